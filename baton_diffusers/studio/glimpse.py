"""A look at a clip while it is denoised."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F

from . import shown


_SHARE = 6  # a look may take a sixth of the time since the one before
_MAX_SIDE = 12  # latents of the longer side, and frames of latents: larger ones are decoded small


class Glimpse:
    """
    Small pictures of where a clip is going, from the latents of a call's steps.

    A flow-matching step moves the latents in a straight line: `x' = x + (s' - s) v`. Followed to the end, that line leads to
    `x' - s' v`, what the model takes for the clip. Both come from two steps' latents, so nothing is run twice.

    Args:
        pipe ([`BatonPipeline`]): whose call is watched. Its scheduler has the noise levels.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe, self._latents, self._ready_at = pipe, None, 0.0

    def look(self, index: int, latents: torch.Tensor) -> str | None:
        """A picture after step `index`, as an address that holds it; `None` where it is too early for one."""
        before, self._latents = self._latents, latents
        start = time.perf_counter()
        if before is None or start < self._ready_at:
            return None
        sigmas = self.pipe.scheduler.sigmas
        now, last = float(sigmas[index + 1]), float(sigmas[index])
        if not last > now > 0:
            return None
        clip = latents - now * (latents - before) / (now - last)
        picture = self._decode(clip)
        end = time.perf_counter()
        self._ready_at = end + _SHARE * (end - start)
        return picture

    def _decode(self, clip: torch.Tensor) -> str:
        """The middle of the clip, as one picture."""
        height, width = clip.shape[-2:]
        frames = clip[:1, :, : min(clip.shape[2], _MAX_SIDE)]
        if max(height, width) > _MAX_SIDE:
            shrink = _MAX_SIDE / max(height, width)
            size = [max(1, round(side * shrink)) for side in (height, width)]
            frames = F.interpolate(frames, (frames.shape[2], *size), mode="area")
        stride = self.pipe.latent_format["temporal_stride"]
        num_frames = (frames.shape[2] - 1) * stride + 1
        pixels, _ = self.pipe.decode_latents(frames, None, num_frames, "np")
        middle = pixels[0][num_frames // 2]
        return shown.picture((middle.clip(0, 1) * 255).round().astype("uint8"))
