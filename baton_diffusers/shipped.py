"""Where the checkpoint that comes with the package lies."""

from pathlib import Path


def default_checkpoint() -> Path:
    """The folder of `baton-nano`: inside the package where a wheel was installed, in `model_cards` of a source tree.

    Returns:
        A path for `BatonPipeline.from_pretrained`.

    Raises:
        ValueError: neither place holds the checkpoint.
    """
    package = Path(__file__).parent
    folders = [root / "model_cards" / "baton-nano" for root in (package, package.parent)]
    for folder in folders:
        if (folder / "model_index.json").is_file():
            return folder
    raise ValueError(f"no checkpoint in {folders[0]} or {folders[1]}: install the wheel, or name a checkpoint")
