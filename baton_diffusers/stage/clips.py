"""Stage as training data: endless streams in which an index names a clip."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .prompts import training_prompt, write_cues, write_prompt
from .render import Clip, background, render_clip, render_video
from .scene import EVENTS, TIERS, Scene, sample_scene
from .sound import render_audio


FOREGROUND_THRESHOLD = 2.0  # of 255: what differs from the empty stage by more belongs to an actor
HIT_OF_TWO = "hit of two"  # a hit by a box between two others, which has to choose


class StageClips:
    """
    Stage's clips of one split, rendered on access; the same index gives the same clip.

    Args:
        split: "train", "validation", "test" or "test-combinations".
        seed: Streams of different seeds have different clips.
        tier_weights: How often each tier is drawn, in any scale; default: all tiers equally often.
        foreground: Whether a sample also has the mask of its actors.
        verb_shares: For each of these verbs, the share of clips in which somebody does it, for verbs that are rare and hard:
            scenes are drawn until one has the verb. The other clips are drawn as usual, and may have it too. "hit of two" is a
            hit by a box that stands between two others.
        frames: Whether a sample also has the picture: it takes most of the time.

    `clips[index]` is a dictionary: `index`; `prompt` and `cues`, strings; `waveform`, float32 `(num_samples,)` in [-1, 1];
    `frames`, uint8 `(num_frames, height, width, 3)`; and, if asked for, `foreground`, bool `(num_frames, height, width)`.
    PyTorch's default collation makes batches of them.

    Raises:
        ValueError: If `tier_weights` has an unknown tier, a negative weight, or no positive one; or `verb_shares` an unknown
            verb, or shares that are negative or sum to more than 1; or `foreground` is asked for without `frames`.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        tier_weights: Mapping[str, float] | None = None,
        foreground: bool = False,
        verb_shares: Mapping[str, float] | None = None,
        frames: bool = True,
    ):
        weights = dict.fromkeys(TIERS, 1.0) if tier_weights is None else dict(tier_weights)
        if unknown := set(weights) - set(TIERS):
            raise ValueError(f"`tier_weights` has {sorted(unknown)}; the tiers are {', '.join(TIERS)}.")
        if foreground and not frames:
            raise ValueError("`foreground` is the mask of `frames`: ask for `frames` too.")
        if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"`tier_weights` must be non-negative with at least one positive, got {weights}.")
        shares = dict(verb_shares or {})
        if unknown := set(shares) - {*EVENTS, HIT_OF_TWO}:
            raise ValueError(
                f"`verb_shares` has {sorted(unknown)}; the verbs are {', '.join(EVENTS)}, and {HIT_OF_TWO}."
            )
        if min(shares.values(), default=0) < 0 or sum(shares.values()) > 1:
            raise ValueError(f"`verb_shares` must be non-negative with a sum of at most 1, got {shares}.")
        self.split = split
        self.seed = seed
        self.tier_weights = weights
        self.verb_shares = shares
        self.foreground = foreground
        self.frames = frames
        self._write = training_prompt if split == "train" else write_prompt
        self._tiers = list(weights)
        self._shares = np.array(list(weights.values())) / sum(weights.values())

    def scene(self, index: int) -> tuple[Scene, int]:
        """The scene of an index and its render seed."""
        rng = np.random.default_rng((self.seed, index))
        tier = self._tiers[rng.choice(len(self._tiers), p=self._shares)]
        render_seed = int(rng.integers(2**31))
        verb = None
        if self.verb_shares:
            shares = [*self.verb_shares.values()]
            verb = rng.choice([*self.verb_shares, None], p=[*shares, 1 - sum(shares)])
        while True:
            scene = sample_scene(render_seed, tier=tier, split=self.split)
            if verb is None or _shows(scene, verb):
                return scene, render_seed
            render_seed = int(rng.integers(2**31))

    def prompt(self, index: int) -> str:
        """The prompt of an index."""
        return self._write(*self.scene(index))

    def clip(self, index: int) -> Clip:
        """The rendered clip of an index."""
        return render_clip(*self.scene(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, seed = self.scene(index)
        sample = {
            "index": index,
            "prompt": self._write(scene, seed),
            "cues": write_cues(scene, seed),
            "waveform": torch.from_numpy(render_audio(scene, seed)),
        }
        if self.frames:
            sample["frames"] = torch.from_numpy(render_video(scene, seed))
        if self.foreground:
            distance = np.abs(sample["frames"].numpy() - background(scene, seed)).max(axis=-1)
            sample["foreground"] = torch.from_numpy(distance > FOREGROUND_THRESHOLD)
        return sample


def _shows(scene: Scene, verb: str) -> bool:
    if verb == HIT_OF_TWO:
        return any(action.verb == "hit" and 0 < action.actor < len(scene.actors) - 1 for action in scene.script)
    return any(action.verb == verb for action in scene.script)
