"""Checkpoints and guiders by the names that commands use."""

import sys
from pathlib import Path


def guiders(guidance: str | None) -> dict:
    """The guiders of a published scheme, ready to be registered; none without a name."""
    if guidance is None:
        return {}

    from ..guiders import presets

    if guidance not in presets():
        raise ValueError(f"--guidance {guidance} is not known: choose one of {', '.join(presets())}")
    return presets()[guidance]


def check_guidance(guidance: str | None, guiders: dict, model: str | None) -> None:
    """Refuses a scheme that leaves out blocks that the transformer does not have; no weights are loaded for it."""
    from ..files import read_json

    skipped = [layer for guider in guiders.values() for layer in guider.skip_layers]
    if not skipped:
        return
    _, configurations = find_checkpoint(model)
    num_layers = read_json(configurations / "transformer" / "config.json").get("num_layers", 0)
    if max(skipped) >= num_layers:
        raise ValueError(
            f"--guidance {guidance} leaves out block {max(skipped)} of the transformer, but {model or 'baton-nano'} has "
            f"the blocks 0 to {num_layers - 1}: give --guidance text, which leaves none out"
        )


def find_folder(model: str | None) -> Path:
    """The folder that a name stands for: one here, or a checkpoint that comes with the package; it need not exist."""
    from ..shipped import default_checkpoint

    if model is None:
        return default_checkpoint()
    folder = Path(model)
    if folder.is_dir() or folder.name != model:
        return folder
    shipped = default_checkpoint().parent / model
    return shipped if shipped.is_dir() else folder


def find_checkpoint(model: str | None) -> tuple[Path | str, Path]:
    """What `BatonPipeline.from_pretrained` takes, and the folder of its configurations; of a Hub id, only those are fetched."""
    folder = find_folder(model)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise ValueError(f"{folder} has no {index.name}: it is not the folder of a saved pipeline")
        if not any(folder.glob("transformer/*.safetensors")):
            raise ValueError(
                f"{folder} holds configurations without weights: make a folder with weights by "
                "conversion_scripts/convert_ovi_to_diffusers.py, see the card of baton-11b, and give that"
            )
        return folder, folder
    if model.count("/") != 1:
        raise ValueError(f"{model} is neither a folder nor a Hub id like 'owner/name'")

    from huggingface_hub import snapshot_download

    try:
        return model, Path(snapshot_download(model, allow_patterns=["model_index.json", "*/config.json"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} is no folder here, and could not be loaded from the Hub: {error}") from error


def import_pipeline(without: tuple[str, ...] = ()):
    """Imports `BatonPipeline`, as if the optional packages `without` were not installed. The garbage collector is off during
    the imports, and ignores the hundreds of thousands of imported objects afterwards: this saves a third of the time of a cold
    start. diffusers' notice that guiders are experimental, one for each guider, is hidden."""
    import gc
    import logging

    logging.getLogger("diffusers.guiders").setLevel(logging.ERROR)
    cold = "torch" not in sys.modules
    hidden = [name for name in without if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # Python treats a module that is None as missing
    if cold:
        gc.disable()
    try:
        from ..pipelines.pipeline_baton import BatonPipeline
    finally:
        for name in hidden:
            del sys.modules[name]
    if cold:
        gc.freeze()
        gc.enable()
    return BatonPipeline


def load_pipeline(model: str | None, recipe: str | None = None):
    """The pipeline of a folder or Hub id, or of baton-nano: in float32, on the GPU if there is one; or by a recipe."""
    BatonPipeline = import_pipeline()

    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar for all components is enough

    chosen = None if recipe is None else _recipe(recipe)
    checkpoint, _ = find_checkpoint(model)
    if chosen is None:
        return BatonPipeline.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe = BatonPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    chosen.follow(pipe)
    return pipe


def find_student(model: str | None, turbo: bool, student: str | None) -> str | None:
    """The folder or Hub id of a student: `--student`, or with `--turbo` the checkpoint's own, `model/turbo`."""
    if turbo and student is not None:
        raise ValueError("--turbo and --student both name a student: give one of them")
    if student is not None:
        from ..pipelines.students import find_student

        find_student(student)
    if not turbo:
        return student
    folder = find_folder(model)
    if folder.is_dir() and not (folder / "turbo").is_dir():
        raise ValueError(
            f"--turbo needs a student, and {folder} has no folder turbo: distil one by examples/train_distillation.py, and give it as "
            "--student"
        )
    return str(folder / "turbo") if folder.is_dir() else f"{model}/turbo"


def _recipe(name: str):
    """The recipe of a name; none can be followed without a GPU."""
    import torch

    from ..memory import RECIPES

    if name not in RECIPES:
        raise ValueError(f"--recipe {name} is not known: choose one of {', '.join(RECIPES)}")
    if not torch.cuda.is_available():
        raise ValueError(f"--recipe {name} needs a GPU with CUDA, and there is none here: leave it out")
    return RECIPES[name]
