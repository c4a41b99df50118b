"""The shared space-time frame: the only place where seconds, frame numbers, latent indices and patch centres are
converted into one another.

Three units of time occur:

- *seconds* from the start of the clip. Pixel frame `f` is on screen during `[f, f + 1) / frame_rate`; audio latent `j`
  sounds during `[j, j + 1) / audio_latent_rate`.
- *frame numbers*: a pixel frame's own index, so that the instant in the middle of frame `f` is the number `f`.
- *latent coordinates*: the index of a video latent frame, the unit in which rotary embeddings rotate. A causal video
  autoencoder of temporal stride `s` gives latent frame 0 to pixel frame 0 and latent frame `k > 0` to pixel frames
  `s (k - 1) + 1 .. s k`.

Everything here is a pure function of numbers or tensors; nothing is rounded unless its name says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


# Slack, in tokens, when a duration is compared with a token's time: durations are often computed in floating
# point from frame numbers, and 3 seconds must not hold a 19th keyframe because of a last bit.
_SLACK = 1e-6


def clip_duration(num_frames: int, frame_rate: float) -> float:
    """Seconds that `num_frames` pixel frames last at `frame_rate` frames per second."""
    return num_frames / frame_rate


def num_latent_frames(num_frames: int, temporal_stride: int) -> int:
    """Video latent frames of a causal autoencoder for `num_frames` pixel frames.

    Raises:
        ValueError: if `num_frames` is not `temporal_stride * k + 1` for an integer `k >= 0`.
    """
    if num_frames < 1 or (num_frames - 1) % temporal_stride:
        lower = max(num_frames - 1, 0) // temporal_stride * temporal_stride + 1
        raise ValueError(
            f"`num_frames` is {num_frames}, but this model takes {temporal_stride} * k + 1 frames: "
            f"use {lower} or {lower + temporal_stride}."
        )
    return (num_frames - 1) // temporal_stride + 1


def num_audio_latents(duration: float, audio_latent_rate: float, min_coverage: float = 0.0) -> int:
    """Number of audio latents, at `audio_latent_rate` per second, of a clip of `duration` seconds; at least one.

    The last one may reach beyond the clip: it counts if more than the share `min_coverage` of it lies within the clip. By
    default the latents cover the clip; with a higher share they may leave out less than one latent at its end.
    """
    return max(math.ceil(duration * audio_latent_rate - min_coverage - _SLACK), 1)


def num_samples(duration: float, sampling_rate: int) -> int:
    """Audio samples in `duration` seconds, rounded to the nearest."""
    return round(duration * sampling_rate)


def num_frames_within(duration: float, frame_rate: float) -> int:
    """Pixel frames in `duration` seconds, rounded to the nearest, and at least one."""
    return max(round(duration * frame_rate), 1)


def num_frames_covering(duration: float, frame_rate: float, temporal_stride: int) -> int:
    """The shortest clip of a causal autoencoder, in pixel frames, that holds all of [`num_frames_within`]."""
    return math.ceil((num_frames_within(duration, frame_rate) - 1) / temporal_stride) * temporal_stride + 1


def num_frames_nearest(duration: float, frame_rate: float, temporal_stride: int) -> int:
    """The clip of a causal autoencoder, in pixel frames, whose length is nearest to `duration` seconds."""
    return max(round((duration * frame_rate - 1) / temporal_stride), 0) * temporal_stride + 1


def window_starts(num_frames: int, window: int, overlap: int) -> list[int]:
    """First frames of the windows in which a long clip is made, one after another, each beginning within the one before.

    The last window ends with the clip, so it may share more than `overlap` with the one before it. If all three numbers are
    a causal autoencoder's, `temporal_stride * k + 1`, each window's frame 0 is the last frame of a latent of the one before.

    Args:
        num_frames (`int`): pixel frames of the clip.
        window (`int`): pixel frames of a window.
        overlap (`int`): pixel frames that neighbouring windows share, fewer than `window`.
    """
    if num_frames <= window:
        return [0]
    return [*range(0, num_frames - window, window - overlap), num_frames - window]


def spans_of_units(mask: torch.Tensor, rate: float) -> list[tuple[float, float]]:
    """Seconds `(start, end)` of each run of marked units, where unit `i` lasts `[i, i + 1) / rate`.

    Args:
        mask (`torch.Tensor` of shape `(num_units,)`): bool, over pixel frames, audio samples or audio latents.
        rate (`float`): units per second.
    """
    edges = torch.diff(mask.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return [(start / rate, end / rate) for start, end in zip(starts, ends, strict=True)]


def units_in_spans(spans: Sequence[tuple[float, float]], rate: float, num_units: int) -> torch.Tensor:
    """Which units, `[i, i + 1) / rate` each, lie at least in part in one of the spans of seconds; the inverse of
    [`spans_of_units`].

    Args:
        spans (`Sequence[tuple[float, float]]`): `(start, end)` in seconds; an `end` may be infinite.
        rate (`float`): units per second.
        num_units (`int`): how many units there are.

    Returns:
        `torch.Tensor` of shape `(num_units,)`, bool.
    """
    mask = torch.zeros(num_units, dtype=torch.bool)
    for start, end in spans:
        last = num_units if end == math.inf else math.ceil(end * rate - _SLACK)
        mask[math.floor(start * rate + _SLACK) : last] = True
    return mask


def latent_frames_of(frame_mask: torch.Tensor, temporal_stride: int) -> torch.Tensor:
    """Which video latent frames of a causal autoencoder cover at least one marked pixel frame.

    Args:
        frame_mask (`torch.Tensor` of shape `(temporal_stride * k + 1,)`): bool, over pixel frames.
        temporal_stride (`int`): pixel frames for each video latent frame.

    Returns:
        `torch.Tensor` of shape `(k + 1,)`, bool.
    """
    return torch.cat([frame_mask[:1], frame_mask[1:].unflatten(0, (-1, temporal_stride)).any(dim=1)])


def latent_time(frame: torch.Tensor, temporal_stride: int) -> torch.Tensor:
    """Latent coordinate of a (fractional) frame number.

    Piecewise linear through the centres of the latent frames' pixel frames: `(0, 0)`, `((s + 1) / 2, 1)`,
    `((s + 1) / 2 + s, 2)`, ... ; the first piece is continued to the left of 0. Ours.

    Args:
        frame (`torch.Tensor`): frame numbers, of any shape.
        temporal_stride (`int`): pixel frames for each latent frame, `s`.
    """
    first_centre = (temporal_stride + 1) / 2
    return torch.where(frame < first_centre, frame / first_centre, 1 + (frame - first_centre) / temporal_stride)


def video_latent_coordinates(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Coordinates `(t, y, x)` of the video tokens in the order in which the patches are flattened.

    Args:
        num_frames, height, width (`int`): the token grid, that is, the latent's size after patching.

    Returns:
        `torch.Tensor` of shape `(num_frames * height * width, 3)`, float32.
    """
    axes = [torch.arange(n, dtype=torch.float32) for n in (num_frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def video_plan_coordinates(
    times: torch.Tensor,
    centres: torch.Tensor,
    frame_rate: float,
    temporal_stride: int,
    height: int,
    width: int,
) -> torch.Tensor:
    """Fractional latent coordinates `(t, y, x)` of video plan tokens: RS-RoPE's keys (Baton, arXiv:2605.25195; the
    equations are ours).

    Args:
        times (`torch.Tensor` of shape `(num_tokens,)`): keyframe times in seconds.
        centres (`torch.Tensor` of shape `(num_tokens, 2)`): patch centres `(v, u)`, downwards and to the right, in [0, 1].
        frame_rate (`float`): pixel frames per second.
        temporal_stride (`int`): pixel frames for each latent frame.
        height, width (`int`): the token grid of the latents after patching.

    Returns:
        `torch.Tensor` of shape `(num_tokens, 3)`, float32.
    """
    v, u = centres.float().unbind(-1)
    t = latent_time(times.float() * frame_rate, temporal_stride)
    return torch.stack([t, v * height - 0.5, u * width - 0.5], dim=-1)


def audio_latent_times(num_latents: int, audio_latent_rate: float) -> torch.Tensor:
    """Seconds in the middle of each of `num_latents` audio latents, shape `(num_latents,)`, float32."""
    return (torch.arange(num_latents, dtype=torch.float32) + 0.5) / audio_latent_rate


def reference_audio_times(num_latents: int, audio_latent_rate: float) -> torch.Tensor:
    """Seconds in the middle of each of `num_latents` audio latents that are heard just before the clip and end at 0: where
    Harmony's reference audio (arXiv:2511.21579) lies; ours. Shape `(num_latents,)`, float32."""
    return (torch.arange(-num_latents, 0, dtype=torch.float32) + 0.5) / audio_latent_rate


def audio_coordinates(
    times: torch.Tensor,
    audio_latent_rate: float,
    audio_rope_scale: float | None,
    frame_rate: float,
    temporal_stride: int,
) -> torch.Tensor:
    """Latent coordinates `(t, 0, 0)` of anything that sounds around `times`: audio latents and audio plan tokens alike.

    With an `audio_rope_scale` (Ovi's weights: 0.19676), latent `j` lies at `j * audio_rope_scale`. Without it the exact
    map is used: a sound lies where the pixel frame that is on screen at that instant lies (ours).

    Args:
        times (`torch.Tensor` of shape `(num_tokens,)`): the middle of each token, in seconds.
        audio_latent_rate (`float`): audio latents per second.
        audio_rope_scale (`float` or `None`): video latent frames for each audio latent, or `None` for the exact map.
        frame_rate (`float`): pixel frames per second.
        temporal_stride (`int`): pixel frames for each video latent frame.

    Returns:
        `torch.Tensor` of shape `(num_tokens, 3)`, float32; the two spatial coordinates are zero.
    """
    times = times.float()
    if audio_rope_scale is None:
        t = latent_time(times * frame_rate - 0.5, temporal_stride)
    else:
        t = (times * audio_latent_rate - 0.5) * audio_rope_scale
    return torch.stack([t, torch.zeros_like(t), torch.zeros_like(t)], dim=-1)


def video_latent_spans(num_frames: int, frame_rate: float, temporal_stride: int) -> list[tuple[float, float]]:
    """Seconds `(start, end)` of the pixel frames that each of `num_frames` video latent frames covers.

    Latent 0 covers pixel frame 0, latent `k > 0` the pixel frames `s (k - 1) + 1 .. s k` of a causal autoencoder of
    temporal stride `s`.
    """
    ends = [(temporal_stride * k + 1) / frame_rate for k in range(num_frames)]
    return list(zip([0.0, *ends], ends, strict=False))


def audio_windows(
    num_frames: int,
    num_latents: int,
    window: int,
    frame_rate: float,
    temporal_stride: int,
    audio_latent_rate: float,
) -> list[tuple[int, int]]:
    """The audio latents `first .. end - 1` that each video latent frame attends: TARP's windows (CCL, arXiv:2603.18600).

    The window is `window * temporal_stride / frame_rate` seconds long and centred on the frame's own span, latent 0's
    shorter span included. It holds the audio latents whose middle lies in it, and ends where the clip ends. If there is none,
    because the audio is too short or too coarse, it holds the nearest one (ours).

    Args:
        num_frames (`int`): video latent frames.
        num_latents (`int`): audio latents.
        window (`int`): length of the windows in video latent frames.
        frame_rate (`float`): pixel frames per second.
        temporal_stride (`int`): pixel frames for each video latent frame.
        audio_latent_rate (`float`): audio latents per second.

    Returns:
        `list[tuple[int, int]]`: `(first, end)` for each of the `num_frames` frames; never empty, never decreasing.
    """
    windows = []
    reach = window * temporal_stride / frame_rate / 2
    for start, end in video_latent_spans(num_frames, frame_rate, temporal_stride):
        centre = (start + end) / 2
        # The middle of audio latent j is at (j + 1/2) / rate seconds; windows are half-open.
        first = math.ceil((centre - reach) * audio_latent_rate - 0.5 - _SLACK)
        last = math.ceil((centre + reach) * audio_latent_rate - 0.5 - _SLACK) - 1
        if first > last:
            first = last = math.ceil(centre * audio_latent_rate - 1 - _SLACK)
        windows.append((min(max(first, 0), num_latents - 1), min(max(last, 0), num_latents - 1) + 1))
    return windows


def video_windows(
    num_latents: int,
    num_frames: int,
    window: int,
    frame_rate: float,
    temporal_stride: int,
    audio_latent_rate: float,
) -> list[tuple[int, int]]:
    """The video latent frames `first .. end - 1` that each audio latent attends: TARP's mirror (CCL, arXiv:2603.18600).

    They are the frame whose span covers the middle of the audio latent (ours: the last one, for sound beyond the video's
    end) and `(window - 1) / 2` frames to each side of it, as far as the clip goes. Published: `window = 1`.

    Args:
        num_latents (`int`): audio latents.
        num_frames (`int`): video latent frames.
        window (`int`): an odd number of video latent frames.
        frame_rate (`float`): pixel frames per second.
        temporal_stride (`int`): pixel frames for each video latent frame.
        audio_latent_rate (`float`): audio latents per second.

    Returns:
        `list[tuple[int, int]]`: `(first, end)` for each of the `num_latents` audio latents; never empty, never decreasing.
    """
    reach = (window - 1) // 2
    windows = []
    for j in range(num_latents):
        pixel_frame = math.floor((j + 0.5) * frame_rate / audio_latent_rate + _SLACK)
        covering = min(math.ceil(pixel_frame / temporal_stride), num_frames - 1)
        windows.append((max(covering - reach, 0), min(covering + reach, num_frames - 1) + 1))
    return windows


def keyframe_times(duration: float, keyframe_rate: float) -> torch.Tensor:
    """Times `i / keyframe_rate` in seconds of the keyframes within `[0, duration)`, shape `(num_keyframes,)`, float32."""
    return torch.arange(math.ceil(duration * keyframe_rate - _SLACK), dtype=torch.float32) / keyframe_rate


def nearest_frames(times: torch.Tensor, num_frames: int, frame_rate: float) -> torch.Tensor:
    """Numbers of the pixel frames nearest to `times` in seconds, within a clip of `num_frames`, shaped like `times`, int64."""
    return (times * frame_rate + 0.5).floor().long().clamp(max=num_frames - 1)


def patch_centres(height: int, width: int) -> torch.Tensor:
    """Centres `(v, u)` in [0, 1] of a `height` by `width` grid of patches, row by row, shape `(height * width, 2)`."""
    v = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    u = (torch.arange(width, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(v, u, indexing="ij"), dim=-1).flatten(0, 1)


def audio_plan_times(duration: float, tokens_per_chunk: int, chunk_duration: float = 1.0) -> torch.Tensor:
    """Times in seconds of the audio plan tokens: token `k` of chunk `c` at `(c + (k + 1/2) / tokens_per_chunk)` chunks.

    The last, partial chunk is whole: tokens at times `>= duration` are there to be masked (ours).

    Returns:
        `torch.Tensor` of shape `(num_chunks * tokens_per_chunk,)`, float32.
    """
    num_chunks = math.ceil(duration / chunk_duration - _SLACK)
    tokens = torch.arange(num_chunks * tokens_per_chunk, dtype=torch.float32)
    return (tokens + 0.5) * (chunk_duration / tokens_per_chunk)


class PlanLayout(NamedTuple):
    """Where and when the tokens of a plan are, as [`SemanticPlan`] has it; `audio_mask` is of shape `(num_audio_tokens,)`."""

    video_times: torch.Tensor
    video_centres: torch.Tensor
    audio_times: torch.Tensor
    audio_mask: torch.Tensor


def plan_layout(
    duration: float,
    keyframe_rate: float,
    video_grid: tuple[int, int],
    audio_tokens_per_chunk: int,
    chunk_duration: float = 1.0,
) -> PlanLayout:
    """The layout of a plan of `duration` seconds: for each keyframe its grid, row by row; and whole chunks of sound, whose
    tokens beyond the end are masked."""
    frame_times, centres = keyframe_times(duration, keyframe_rate), patch_centres(*video_grid)
    audio_times = audio_plan_times(duration, audio_tokens_per_chunk, chunk_duration)
    return PlanLayout(
        video_times=frame_times.repeat_interleave(len(centres)),
        video_centres=centres.repeat(len(frame_times), 1),
        audio_times=audio_times,
        audio_mask=audio_times < duration,
    )


def timestamp_coordinates(times: torch.Tensor, positions_per_second: float) -> torch.Tensor:
    """Coordinates on one axis of time alone, for tokens of both modalities at `times` in seconds, shape `(num_tokens, 1)`."""
    return times[:, None] * positions_per_second


def nearest_timestamp(time: float, timestamp_rate: float) -> float:
    """The timestamp nearest to `time`, in seconds. Timestamps begin at 0, `timestamp_rate` per second."""
    return round(time * timestamp_rate) / timestamp_rate


def num_timestamps_within(duration: float, timestamp_rate: float) -> int:
    """Number of timestamps, `timestamp_rate` per second from 0 on, that lie before the end of `duration` seconds."""
    return math.ceil(duration * timestamp_rate - _SLACK)


def rotary_axes_dims(attention_head_dim: int) -> tuple[int, int, int]:
    """Channels of one head that rotate with `t`, `y` and `x`: Wan's split `(d - 4 (d // 6), 2 (d // 6), 2 (d // 6))`."""
    spatial = 2 * (attention_head_dim // 6)
    return attention_head_dim - 2 * spatial, spatial, spatial


def rotary_embedding(
    coordinates: torch.Tensor, axes_dims: tuple[int, ...], theta: float = 10000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that rotate queries and keys at `coordinates`.

    Axis `a` with `d_a` channels rotates pair `i` by `coordinate_a * theta ** (-2 i / d_a)`. A coordinate of zero leaves its
    channels as they are. So the spatial channels of audio tokens, which have no place, do not rotate.

    Args:
        coordinates (`torch.Tensor` of shape `(num_tokens, num_axes)`): positions.
        axes_dims (`tuple[int, ...]`): an even number of channels for each axis; they sum to the head's dimension.
        theta (`float`, defaults to 10000.0): base of the frequencies.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: cosines and sines of shape `(1, num_tokens, 1, sum(axes_dims) // 2)`, float32.
    """
    angles = []
    for coordinate, dim in zip(coordinates.unbind(-1), axes_dims, strict=True):
        exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=coordinates.device) / dim
        angles.append(coordinate[:, None].float() * theta**-exponent)
    angles = torch.cat(angles, dim=-1)[None, :, None, :]
    return angles.cos(), angles.sin()


def apply_rotary_embedding(hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates neighbouring channel pairs of queries or keys `(batch_size, num_tokens, heads, head_dim)` by the angles of
    [`rotary_embedding`], in float32."""
    cos, sin = rotary_emb
    x1, x2 = hidden_states.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.empty_like(hidden_states)  # no copy in float32, whose traffic would be most of the rotation's cost
    rotated[..., 0::2] = x1 * cos - x2 * sin
    rotated[..., 1::2] = x1 * sin + x2 * cos
    return rotated
