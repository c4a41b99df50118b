"""Intervals of figures over clips: one bootstrap, which draws scenes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np


Estimate = dict[str, float]


def bootstrap(
    statistic: Callable[..., np.ndarray],
    parts: Sequence[np.ndarray],
    scenes: Sequence[Hashable],
    share: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """
    A statistic of clips and its 95% interval. Scenes are drawn with replacement, each with all of its clips, since clips of one
    scene are not independent.

    Args:
        statistic: Maps the sums of the parts over the clips, arrays of one shape, to an array of that shape; NaN where the
            statistic is not defined. For a share this is [`ratio`].
        parts: What is summed, one value for each clip; for a share its numerators and its denominators.
        scenes: The scene of each clip.
        share: Whether the statistic is the [`ratio`] of two parts, in [0, 1]. Two further scenes then take part in the draws,
            one that is all wrong and one that is all right: without them an interval at 0 or 1 would be a point (ours, after
            Agresti and Coull 1998).
        num_resamples: Number of draws of as many scenes.
        seed: Seed of the draws; the same clips and seed give the same interval.

    Returns:
        `value`, `low` and `high`, or None without a value.

    Raises:
        ValueError: If there is no clip, or not one scene for each.
    """
    if not len(scenes) or any(len(part) != len(scenes) for part in parts):
        raise ValueError(
            f"`scenes` has {len(scenes)} clips, `parts` have {[len(part) for part in parts]}: give one of each for every clip."
        )
    numbers = {scene: number for number, scene in enumerate(dict.fromkeys(scenes))}
    of_clip = [numbers[scene] for scene in scenes]
    sums = np.stack([np.bincount(of_clip, weights=part) for part in parts])
    value = float(statistic(*sums.sum(axis=1)))
    if np.isnan(value):
        return None
    if share:
        size = sums[1].mean()
        sums = np.concatenate([sums, [[0.0, size], [size, size]]], axis=1)
    num_scenes = sums.shape[1]
    draws = np.random.default_rng(seed).multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), num_resamples)
    low, high = np.nanpercentile(statistic(*(sums @ draws.T)), (2.5, 97.5))
    return {"value": value, "low": float(low), "high": float(high)}


def ratio(counted: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The quotient, NaN where `number` is 0."""
    return np.divide(counted, number, out=np.full(np.shape(number), np.nan), where=np.asarray(number) > 0)
