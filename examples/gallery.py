"""Draws test scenes of Stage as a checkpoint makes them: with its plan (left) and from the text alone (right), from the same
noise. The scenes are the first of each tier of the test split, not chosen by eye. Needs the extra `eval`.

python examples/gallery.py --model model_cards/baton-nano --output model_cards/baton-nano/gallery.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from baton_diffusers import BatonPipeline
from baton_diffusers.stage.scoring import ClipScore, score_clip
from baton_diffusers.stage.show import contact_sheet
from baton_diffusers.training.evaluation import Example, draw_examples, generated_clips


GAP = 12


def verdict(score: ClipScore) -> str:
    """How many facts hold, and which do not."""
    missing = [f"{fact.subject} ({fact.aspect})" for fact in score.facts if not fact.holds]
    text = f"{len(score.facts) - len(missing)} of {len(score.facts)} facts"
    return f"{text}; not: {', '.join(missing)}" if missing else text


def draw(example: Example, frames: np.ndarray, waveform: np.ndarray, made: str) -> Image.Image:
    """One clip's sheet: what the scorer saw and heard in it is marked."""
    score = score_clip(frames, waveform[0], example.scene)
    caption = f"{example.prompt} [{made}: {verdict(score)}]"
    return contact_sheet(frames, waveform[0], sorted([*score.sights, *score.sounds], key=lambda e: e.time), caption)


def pair(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two sheets side by side."""
    page = Image.new("RGB", (left.width + right.width + GAP, max(left.height, right.height)), "white")
    page.paste(left, (0, 0))
    page.paste(right, (left.width + GAP, 0))
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/baton-nano", help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--scenes-per-tier", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes")
    parser.add_argument("--width", type=int, default=1500, help="of the picture, in pixels")
    arguments = parser.parse_args()

    pipe = BatonPipeline.from_pretrained(arguments.model)
    examples = draw_examples(arguments.scenes_per_tier, seed=arguments.seed)
    pipe.set_progress_bar_config(disable=True)
    planned, textual = (generated_clips(pipe, examples, plan=plan)(examples) for plan in ("planner", "none"))
    pages = [
        pair(draw(example, *with_plan, "plan"), draw(example, *without, "no plan"))
        for example, with_plan, without in zip(examples, planned, textual, strict=True)
    ]
    height = sum(page.height + GAP for page in pages)
    gallery = Image.new("RGB", (max(page.width for page in pages), height), "white")
    top = 0
    for page in pages:
        gallery.paste(page, (0, top))
        top += page.height + GAP
    scale = arguments.width / gallery.width
    gallery.resize((arguments.width, round(height * scale)), Image.Resampling.LANCZOS).save(
        arguments.output, quality=80
    )
    print(arguments.output)
