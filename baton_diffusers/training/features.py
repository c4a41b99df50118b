"""Features of Stage's clips, computed once: what the transformer is trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from .. import coordinates
from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from ..plan import SemanticPlan
from ..stage import write_prompt
from .codecs import encode_clip
from .data import StageClips, to_video
from .trainer import step_seed


_BATCH_SIZE = 8


@torch.no_grad()
def cache_features(
    folder: str | Path,
    clips: StageClips,
    num_clips: int,
    vae: AutoencoderKLWan,
    audio_vae: MMAudioVAE,
    video_semantic_encoder: VideoSemanticEncoder,
    audio_semantic_encoder: AudioSemanticEncoder,
    frame_rate: float,
    audio_latent_rate: float,
    clips_per_shard: int = 512,
) -> None:
    r"""
    Writes normalised latents and plan features of the first `num_clips` clips of a stream into shards.

    A shard is whole or absent: interrupted, the same call goes on with the first missing one.

    Args:
        folder (`str` or `Path`): where the shards go; made if it is not there.
        clips ([`StageClips`]): the stream.
        num_clips (`int`): clips to encode, a multiple of `clips_per_shard`.
        vae, audio_vae: the autoencoders; latents are normalised as `BatonPipeline` expects them.
        video_semantic_encoder, audio_semantic_encoder: what the plan is read with.
        frame_rate (`float`): frames per second.
        audio_latent_rate (`float`): audio latents per second.
        clips_per_shard (`int`, defaults to 512): clips in each file.

    Raises:
        ValueError: if `num_clips` does not fill whole shards.
    """
    if num_clips % clips_per_shard:
        raise ValueError(
            f"`num_clips` is {num_clips}, but must be a multiple of `clips_per_shard`, {clips_per_shard}."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with tqdm(total=num_clips, desc=f"features in {folder}", unit="clip") as bar:
        for shard, first in enumerate(range(0, num_clips, clips_per_shard)):
            path = folder / f"features-{shard:05d}.safetensors"
            if path.is_file():
                bar.update(clips_per_shard)
                continue
            parts: dict[str, list[torch.Tensor]] = {}
            for start in range(first, first + clips_per_shard, _BATCH_SIZE):
                indices = range(start, min(start + _BATCH_SIZE, first + clips_per_shard))
                samples = [clips[index] for index in indices]
                video = to_video(torch.stack([sample["frames"] for sample in samples]))
                waveform = torch.stack([sample["waveform"] for sample in samples])
                duration = coordinates.clip_duration(video.shape[2], frame_rate)
                plan = read_plan(
                    video_semantic_encoder,
                    audio_semantic_encoder,
                    video,
                    frame_rate,
                    waveform[:, None],
                    audio_vae.config.sample_rate,
                ).trimmed()
                features = {
                    "index": torch.tensor(list(indices)),
                    "latents": (encode_clip(vae, video).chunk(2, dim=1)[0] - mean) / std,
                    "audio_latents": encode_audio_latents(audio_vae, waveform, duration, audio_latent_rate),
                    "video_tokens": plan.video_tokens,
                    "audio_tokens": plan.audio_tokens,
                }
                for name, value in features.items():
                    parts.setdefault(name, []).append(value.half() if value.is_floating_point() else value)
                bar.update(len(samples))
            tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
            for name in ("video_times", "video_centres", "audio_times"):
                tensors[name] = getattr(plan, name).contiguous()
            tensors["duration"] = torch.tensor(plan.duration, dtype=torch.float64)
            temporary = path.with_suffix(".part")
            save_file(tensors, temporary)
            os.replace(temporary, path)


def encode_audio_latents(
    audio_vae: MMAudioVAE, waveform: torch.Tensor, duration: float, audio_latent_rate: float
) -> torch.Tensor:
    """Scaled latents `(batch_size, audio_length, channels)` of waveforms `(batch_size, num_samples)`, padded with silence
    to whole latents."""
    length = coordinates.num_audio_latents(duration, audio_latent_rate)
    samples = length * audio_vae.latent_hop_length
    waveform = torch.nn.functional.pad(waveform, (0, samples - waveform.shape[-1]))
    latents = audio_vae.encode(waveform).latent_dist.mode()
    return (latents * audio_vae.config.scaling_factor).transpose(1, 2)


class CachedFeatures:
    """
    What [`cache_features`] wrote, as an endless dataset with prompts.

    Sample `i` of epoch `e` is one of the cached clips, each once an epoch in an order of its own, with a paraphrase of its
    prompt that changes from epoch to epoch. A sample is a dictionary: `prompt`, `latents`, `audio_latents`,
    `video_tokens`, `audio_tokens`; `plan_layout` gives what turns tokens into a [`SemanticPlan`].

    Args:
        folder (`str` or `Path`): where the shards are.
        clips ([`StageClips`]): the stream that they were made from.
        seed (`int`, defaults to 0): of the order.

    Raises:
        ValueError: if there are no shards.
    """

    def __init__(self, folder: str | Path, clips: StageClips, seed: int = 0) -> None:
        paths = sorted(Path(folder).glob("features-*.safetensors"))
        if not paths:
            raise ValueError(f"there are no features in {folder}: write them with `examples/cache_features.py`.")
        shards = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                shards.append({name: file.get_tensor(name) for name in file.keys()})
        self._features = {
            name: torch.cat([shard[name] for shard in shards])
            for name in ("index", "latents", "audio_latents", "video_tokens", "audio_tokens")
        }
        self.plan_layout = {name: shards[0][name] for name in ("video_times", "video_centres", "audio_times")}
        self.plan_layout["duration"] = shards[0]["duration"].item()
        self.clips = clips
        self.seed = seed

    @property
    def num_clips(self) -> int:
        """Clips that were cached: the length of an epoch."""
        return len(self._features["index"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, self.num_clips)
        order = torch.randperm(self.num_clips, generator=torch.Generator().manual_seed(step_seed(self.seed, epoch)))
        row = int(order[place])
        scene, _ = self.clips.scene(int(self._features["index"][row]))
        return {
            "prompt": write_prompt(scene, index),
            **{name: tensor[row].float() for name, tensor in self._features.items() if name != "index"},
        }

    def plan(self, video_tokens: torch.Tensor, audio_tokens: torch.Tensor) -> SemanticPlan:
        """A batch's tokens as a plan."""
        return SemanticPlan(video_tokens=video_tokens, audio_tokens=audio_tokens, **self.plan_layout)


def collate_features(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of [`CachedFeatures`] as a batch; prompts become a list."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "prompt"}
    return {"prompt": [sample["prompt"] for sample in samples], **batch}
