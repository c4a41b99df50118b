"""Draws clips of Stage's test scenes, made by a checkpoint: with its plan (left) and from the text alone (right), from the same
noise. The scenes are the first of each tier of the test split, not chosen by eye. `--failures` adds the next scenes, tier by
tier, in which something was missed. Needs the extra `eval`.

python examples/nano/gallery.py --model model_cards/baton-nano --output model_cards/baton-nano/gallery.jpg --failures 2

With `--over-training`, the scenes stand side by side instead, each row by another transformer, with the plan: exports of one training
at several times.

python examples/nano/gallery.py --output progress.jpg --over-training "1,672 steps=runs/a/export" "4,793 steps=runs/b/export"
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import UMT5EncoderModel

from baton_diffusers import BatonPipeline, DualBranchTransformer
from baton_diffusers.evaluation.scores import Example, draw_examples, generated_clips
from baton_diffusers.files import check_target
from baton_diffusers.stage.scene import TIERS
from baton_diffusers.stage.scoring import ClipScore, score_clip
from baton_diffusers.stage.show import contact_sheet


GAP = 12
PARTS = {
    "transformer": DualBranchTransformer,
    "text_encoder": UMT5EncoderModel,
}  # of an export of `train_transformer.py`


def verdict(score: ClipScore) -> str:
    """How many facts hold, and which do not."""
    missing = [f"{fact.subject} ({fact.aspect})" for fact in score.facts if not fact.holds]
    text = f"{len(score.facts) - len(missing)} of {len(score.facts)} facts"
    return f"{text}; not: {', '.join(missing)}" if missing else text


def draw(example: Example, clip: tuple[np.ndarray, np.ndarray], made: str) -> Image.Image:
    """One clip's sheet: what the scorer saw and heard in it is marked."""
    frames, waveform = clip
    score = score_clip(frames, waveform[0], example.scene)
    caption = f"{example.prompt} [{made}: {verdict(score)}]"
    return contact_sheet(frames, waveform[0], sorted([*score.sights, *score.sounds], key=lambda e: e.time), caption)


def page(rows: Sequence[Sequence[Image.Image]], width: int) -> Image.Image:
    """Sheets in rows, `width` pixels wide."""
    heights = [max(sheet.height for sheet in row) for row in rows]
    size = (
        max(sum(sheet.width + GAP for sheet in row) for row in rows) - GAP,
        sum(height + GAP for height in heights),
    )
    image, top = Image.new("RGB", size, "white"), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for sheet in row:
            image.paste(sheet, (left, top))
            left += sheet.width + GAP
        top += height + GAP
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def check_export(folder: Path) -> Path:
    """
    Returns:
        The folder.

    Raises:
        ValueError: If it is not what `train_transformer.py` exports.
    """
    missing = [name for name in PARTS if not (folder / name / "config.json").is_file()]
    if missing:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}: give an export of `train_transformer.py`")
    return folder


def parse_stage(text: str) -> tuple[str, Path]:
    """Name and folder of a stage of training, of a text like "1,672 steps=runs/a/export".

    Raises:
        ValueError: If it has no name, or the folder holds no export.
    """
    name, _, folder = text.rpartition("=")
    if not name:
        raise ValueError(f"{text} is not of the form NAME=FOLDER, such as 'first=runs/a/export'")
    return name, check_export(Path(folder))


def use_transformer(pipe: BatonPipeline, export: Path) -> None:
    """Puts what `train_transformer.py` exported in place of the pipeline's own."""
    pipe.register_modules(**{name: part.from_pretrained(export / name).eval() for name, part in PARTS.items()})


def failures(
    pipe: BatonPipeline, shown: set[Example], seed: int, number: int
) -> Iterator[tuple[Example, tuple[np.ndarray, np.ndarray]]]:
    """The first `number` scenes beyond those `shown` whose planned clip misses a fact; tiers take turns."""
    per_tier = len(shown) // len(TIERS) + 10 * number
    drawn = draw_examples(per_tier, seed=seed)
    turns = [drawn[tier * per_tier + i] for i in range(per_tier) for tier in range(len(TIERS))]
    for example in turns:
        if example in shown:
            continue
        frames, waveform = generated_clips(pipe, [example])([example])[0]
        if not all(fact.holds for fact in score_clip(frames, waveform[0], example.scene).facts):
            yield example, (frames, waveform)
            number -= 1
            if number == 0:
                return


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/baton-nano", help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--scenes-per-tier", type=int, default=1)
    parser.add_argument(
        "--failures", type=int, default=0, help="further scenes, the first with a fact that does not hold"
    )
    parser.add_argument(
        "--textual", type=Path, help="export of `train_transformer.py plan=none`, for the right column"
    )
    parser.add_argument(
        "--over-training", nargs="+", metavar="NAME=FOLDER", help="exports of `train_transformer.py`, one for each row"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes")
    parser.add_argument("--width", type=int, default=1500, help="of the picture, in pixels")
    parser.add_argument("--quality", type=int, default=80, help="of a JPEG or WebP")
    arguments = parser.parse_args(arguments)
    if arguments.over_training and (arguments.textual or arguments.failures):
        parser.error(
            "--over-training draws no failures and no clips without a plan: leave --textual and --failures out"
        )
    try:
        check_target(arguments.output, (".jpg", ".jpeg", ".png", ".webp"))
        stages = [parse_stage(stage) for stage in arguments.over_training or []]
        if arguments.textual:
            check_export(arguments.textual)
    except ValueError as error:
        parser.error(str(error))

    pipe = BatonPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    examples = draw_examples(arguments.scenes_per_tier, seed=arguments.seed)
    rows = []
    if stages:
        for name, export in stages:
            use_transformer(pipe, export)
            clips = generated_clips(pipe, examples)(examples)
            rows.append([draw(example, clip, name) for example, clip in zip(examples, clips, strict=True)])
    else:
        planned = generated_clips(pipe, examples)(examples)
        if arguments.failures:
            for example, clip in failures(pipe, set(examples), arguments.seed, arguments.failures):
                examples.append(example)
                planned.append(clip)
        if arguments.textual:
            use_transformer(pipe, arguments.textual)
        textual = generated_clips(pipe, examples, plan="none")(examples)
        for example, with_plan, without in zip(examples, planned, textual, strict=True):
            rows.append([draw(example, with_plan, "plan"), draw(example, without, "no plan")])
    page(rows, arguments.width).save(arguments.output, quality=arguments.quality, method=6)
    print(arguments.output)


if __name__ == "__main__":
    main()
