"""Whether a plan's preview shows the events of the plan, and how much faster it is than a clip."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ..cues import parse_sheet
from ..stage.scoring import score_clip
from .bootstrap import bootstrap, ratio
from .corrections import NEAR, cues_in_time, scene_of
from .scores import Example, format_estimate, markdown_table


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


@dataclass
class PreviewScores:
    """The facts that the scorer finds in previews, clip by clip, and the seconds that some of them took.

    Args:
        scenes (`list`): of each clip, for the intervals.
        counts (`dict`): by what is counted, pairs of what was found and what there is, for each clip.
        seconds (`list[tuple[float, float, float]]`): of the timed clips: to plan, to preview, and to make the clip from its prompt.
        untold (`int`): clips that cannot be scored, because their sheet is no scene of Stage.
    """

    scenes: list[Any] = field(default_factory=list)
    counts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    seconds: list[tuple[float, float, float]] = field(default_factory=list)
    untold: int = 0


def measure_previews(
    pipe: BatonPipeline, examples: Sequence[Example], num_timed: int = 3, **call: Any
) -> PreviewScores:
    """
    Scores previews against the sheets of their plans.

    Args:
        pipe: With a planner that writes sheets, and both plan decoders.
        examples: Whose prompts are planned.
        num_timed: Clips that are also rendered, and timed.
        call: Arguments of the pipeline's call, such as `num_inference_steps`.
    """
    scores = PreviewScores()
    for number, example in enumerate(tqdm(examples, desc="previews", leave=False)):
        start = time.perf_counter()
        plan = pipe.plan(example.prompt, generator=torch.Generator().manual_seed(example.seed))
        planned = time.perf_counter()
        preview = pipe.preview(plan)
        seen = time.perf_counter()
        if number <= num_timed:
            pipe(example.prompt, generator=torch.Generator().manual_seed(example.seed), output_type="np", **call)
            if number:  # the first one warms up
                scores.seconds.append((planned - start, seen - planned, time.perf_counter() - seen))
        sheet = parse_sheet(plan.sheets[0])
        try:
            scene = scene_of(sheet)
        except ValueError:
            scores.untold += 1
            continue
        frames, waveform = preview.clip()
        score = score_clip(frames, waveform.mean(axis=0), scene)
        holds: dict[str, list[bool]] = {}
        for fact in score.facts:
            if fact.aspect in ("present", "place"):
                holds.setdefault(fact.subject, []).append(fact.holds)
        found = cues_in_time(sheet, score)
        errors, words = score.word_errors
        counted = {
            "cast with place and colour": (sum(map(all, holds.values())), len(holds)),
            "facts": (sum(fact.holds for fact in score.facts), len(score.facts)),
            f"events within {NEAR:g} s": (sum(map(all, found)), len(found)),
            "events seen": (sum(sight for sight, _ in found), len(found)),
            "events heard": (sum(sound for _, sound in found), len(found)),
            "M-WER": (errors, words),
        }
        scores.scenes.append(example.scene.digest)
        for name, pair in counted.items():
            scores.counts.setdefault(name, []).append(pair)
    return scores


def summarise_previews(scores: PreviewScores) -> dict[str, Any]:
    """
    Shares of what was found, with 95% intervals over scenes, and times.

    Returns:
        `shares`, by what is counted. `seconds`: medians of the time to `plan`, to `preview` and to make the whole `clip`, and `ratio`, the
        median of the preview's time over the clip's. `untold`.
    """
    shares = {
        name: bootstrap(
            ratio, [np.array(values) for values in zip(*pairs, strict=True)], scores.scenes, share=name != "M-WER"
        )
        for name, pairs in scores.counts.items()
    }
    times = np.array(scores.seconds).reshape(-1, 3)
    seconds = {}
    if len(times):
        seconds = dict(zip(("plan", "preview", "clip"), np.median(times, axis=0).tolist(), strict=True))
        seconds["ratio"] = float(np.median(times[:, 1] / times[:, 2]))
    return {"shares": shares, "seconds": seconds, "untold": scores.untold}


def format_previews(summary: dict[str, Any]) -> str:
    """[`summarise_previews`]'s result as a Markdown table and a line of times."""
    rows = [["from the preview alone", "found"]]
    rows += [[name, format_estimate(estimate)] for name, estimate in summary["shares"].items()]
    text, seconds = markdown_table(rows), summary["seconds"]
    if seconds:
        text += (
            f"\nmedian seconds: {seconds['plan']:.2f} to plan, {seconds['preview']:.2f} to preview, {seconds['clip']:.2f} for a clip; "
            f"a preview takes {100 * seconds['ratio']:.1f} % of its clip's time"
        )
    return text
