"""Attention between the modalities at one duration and at four times that duration: within windows and global.

    python benchmarks/windowed_attention.py                          # from nano's clip on: seconds on a CPU
    python benchmarks/windowed_attention.py --frame-rate 24 --frames 31 --tokens-per-frame 484 --heads 24 --head-dim 128
                                                                     # from Ovi's 5 s on: a GPU

Two layers are timed together: video tokens read audio, and audio tokens read video. They are timed whole, as a block runs them,
and their attention alone, with queries, keys and values given; gathering windows counts. Each round runs every form once and
gives the ratios; the median over the rounds is printed. On a CPU, one thread is used and its own time is counted. Other programs
still compete for the machine's caches.

The project's limit: at four times the duration, attention within windows takes at most 4.5 times as long. The exit status is 1
if it is exceeded.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from baton_diffusers import coordinates
from baton_diffusers.models.attention_dual_branch import FusionAttention, WindowGroups, group_windows


TEMPORAL_STRIDE, AUDIO_LATENT_RATE = 4, 31.25
LIMIT = 4.5


class Reader:
    """Tokens of one modality that read the other modality through a layer of random weights."""

    def __init__(
        self,
        positions: torch.Tensor,
        other: torch.Tensor,
        windows: WindowGroups,
        options: argparse.Namespace,
        dtype: torch.dtype,
    ) -> None:
        dim = options.heads * options.head_dim
        axes_dims = coordinates.rotary_axes_dims(options.head_dim)
        self.layer = FusionAttention(dim, options.heads, 1e-6, options.context_tokens).to(dtype)
        self.windows = windows
        self.rotary_embs = [coordinates.rotary_embedding(places, axes_dims) for places in (positions, other)]
        self.states, self.other_states = (
            torch.randn(1, len(places), dim, dtype=dtype) for places in (positions, other)
        )
        self.text_states = torch.randn(1, 1, dim, dtype=dtype)
        self.query = self.states.unflatten(2, (options.heads, -1))
        self.key, self.value = self.layer.processor.project_other(self.layer, self.other_states, self.rotary_embs[1])

    def attend(self, windowed: bool) -> None:
        """The attention alone."""
        if windowed:
            self.layer.processor.attend_windows(self.query, self.key, self.value, self.windows)
        else:
            self.layer.processor.attend(self.query, self.key, self.value)

    def run(self, windowed: bool) -> None:
        """The layer."""
        windows = self.windows if windowed else None
        self.layer(self.states, self.text_states, self.other_states, *self.rotary_embs, True, windows)


def readers(num_frames: int, options: argparse.Namespace, dtype: torch.dtype) -> tuple[Reader, Reader]:
    """The video tokens and the audio tokens of a clip."""
    duration = coordinates.clip_duration(TEMPORAL_STRIDE * (num_frames - 1) + 1, options.frame_rate)
    audio_length = coordinates.num_audio_latents(duration, AUDIO_LATENT_RATE)
    rates = options.frame_rate, TEMPORAL_STRIDE, AUDIO_LATENT_RATE
    video = coordinates.video_latent_coordinates(num_frames, 1, options.tokens_per_frame)
    times = coordinates.audio_latent_times(audio_length, AUDIO_LATENT_RATE)
    audio = coordinates.audio_coordinates(times, AUDIO_LATENT_RATE, None, options.frame_rate, TEMPORAL_STRIDE)
    windows = coordinates.audio_windows(num_frames, audio_length, options.window, *rates)
    mirror = coordinates.video_windows(audio_length, num_frames, options.audio_window, *rates)
    device = torch.get_default_device()
    of_video = group_windows(windows, options.tokens_per_frame, 1, options.context_tokens, device)
    of_audio = group_windows(mirror, 1, options.tokens_per_frame, options.context_tokens, device)
    return Reader(video, audio, of_video, options, dtype), Reader(audio, video, of_audio, options, dtype)


def seconds(call: Callable[[], None], device: str) -> float:
    """Time of one call: wall time on a GPU, this process' own time on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.no_grad()
def main(arguments: list[str] | None = None) -> bool:
    """Runs the benchmark, prints its ratios, and returns whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=13, help="latent frames of the shorter clip")
    parser.add_argument("--frame-rate", type=float, default=16.0)
    parser.add_argument("--tokens-per-frame", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=44)
    parser.add_argument("--context-tokens", type=int, default=4)
    parser.add_argument("--window", type=int, default=3, help="latent frames of audio that a video frame reads")
    parser.add_argument("--audio-window", type=int, default=1, help="latent frames that an audio token reads")
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.device(device):
        clips = {factor: readers(factor * options.frames, options, dtype) for factor in (1, 4)}

    def call(part: str, windowed: bool, factor: int) -> Callable[[], None]:
        return lambda: [getattr(reader, part)(windowed) for reader in clips[factor]]

    forms = [(part, windowed, factor) for part in ("run", "attend") for windowed in (True, False) for factor in clips]
    for form in forms:  # warm up
        call(*form)()
    rounds = [{form: seconds(call(*form), device) for form in forms} for _ in range(options.repeats)]

    print(f"{options.frames} and {4 * options.frames} latent frames on {device}, {options.repeats} rounds")
    for part, name in (("run", "layers"), ("attend", "attention alone")):
        growth = [
            statistics.median(r[part, windowed, 4] / r[part, windowed, 1] for r in rounds)
            for windowed in (True, False)
        ]
        print(f"{name}, 4x the duration: {growth[0]:.2f}x the time within windows, {growth[1]:.2f}x globally")
        for factor in clips:
            against = statistics.median(r[part, False, factor] / r[part, True, factor] for r in rounds)
            print(f"{name} at {factor}x: {against:.2f}x the time globally of that within windows")
    return growth[0] <= LIMIT


if __name__ == "__main__":
    sys.exit(not main())
