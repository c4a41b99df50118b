"""Trains nano's plan decoders: plan tokens to small pictures, and to mel spectrograms for the vocoder.

    python examples/nano/plan_decoders.py examples/configs/nano/plan_decoders.yaml [key=value ...]
    python examples/nano/plan_decoders.py examples/configs/nano/plan_decoders.yaml --export   # the newest checkpoint, beside the training

The tokens are those of the semantic encoders in a cache of features; the pictures and the sound are rendered anew. A planner's tokens
are somewhat blurred: some samples have those in place of the encoders', and all have a little noise.
"""

from __future__ import annotations

import baton_diffusers.interrupts  # noqa: F401


# isort: split

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import pad_waveform
from diffusers import MMAudioVAE
from torch import nn
from torch.utils.data import default_collate
from transformers import AutoTokenizer

from baton_diffusers.models.component_files import load_component
from baton_diffusers.models.plan_decoder import AudioPlanDecoder, VideoPlanDecoder
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.stage.clips import FOREGROUND_THRESHOLD, StageClips
from baton_diffusers.stage.render import background, render_video
from baton_diffusers.stage.scene import FRAME_RATE, timeline
from baton_diffusers.stage.sound import render_audio
from baton_diffusers.training.checkpoint import load_checkpoint
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.data.dataset import CachedFeatures
from baton_diffusers.training.planner import PlanCollator, planned_like
from baton_diffusers.training.script import run
from baton_diffusers.training.trainer import Trainer


AROUND = (-4, 6)  # frames before and after an event that belong to it


@dataclass
class PlanDecoding:
    """
    Training of the plan decoders.

    Args:
        trainer: The run; a sample is one clip.
        features: Folder of cached features of Stage's clips.
        audio_vae: Folder of the autoencoder whose spectrograms the vocoder takes.
        planner: Folder of a planner.
        planner_tokenizer: Folder of its tokenizer.
        output: Folder to which `video_plan_decoder` and `audio_plan_decoder` are saved.
        initial: Folder with both to start from; None starts from random weights.
        video: Arguments of [`VideoPlanDecoder`] besides the form of the tokens.
        audio: Arguments of [`AudioPlanDecoder`] likewise.
        data_seed: Seed of the Stage stream from which the features were made.
        verb_shares: `verb_shares` of that stream, see [`StageClips`].
        frames_per_clip: Frames drawn from each clip, every other one around an event. Each kind of event of a clip comes up as often:
            hits are rare, and a jolt of three pixels is soon over.
        planned_share: Share of the samples whose tokens are the planner's.
        token_noise: Largest deviation of the noise on tokens, themselves of unit variance; each sample has its own.
        foreground_weight: Weight of a pixel of an actor, added to the 1 that every pixel has.
        motion_weight: Weight of a pixel that differs from the frame before or after, likewise.
        loud_weight: Weight of a mel cell that can be heard, likewise.
        loud_threshold: Log-mel magnitude from which a cell is taken to be heard.
        mel_floor: Log-mel magnitude below which cells count as equal.
    """

    trainer: TrainerConfig
    features: str
    audio_vae: str
    planner: str
    planner_tokenizer: str
    output: str
    initial: str | None = None
    video: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    data_seed: int = 0
    verb_shares: dict[str, float] = field(default_factory=dict)
    frames_per_clip: int = 12
    planned_share: float = 0.35
    token_noise: float = 0.3
    foreground_weight: float = 4.0
    motion_weight: float = 8.0
    loud_weight: float = 4.0
    loud_threshold: float = -7.0
    mel_floor: float = -9.0

    def __post_init__(self) -> None:
        if self.frames_per_clip < 1:
            raise ValueError(f"`frames_per_clip` must be at least 1, got {self.frames_per_clip}.")
        if not 0 <= self.planned_share <= 1:
            raise ValueError(f"`planned_share` is a share of the samples, in [0, 1], got {self.planned_share}.")


class PlanDecoders(nn.Module):
    """Both decoders, as they are trained: `forward` gives pictures at instants, each clip its own, and mel spectrograms."""

    def __init__(self, video: VideoPlanDecoder, audio: AudioPlanDecoder) -> None:
        super().__init__()
        self.video = video
        self.audio = audio

    def forward(
        self,
        video_tokens: torch.Tensor,
        audio_tokens: torch.Tensor,
        layout: dict[str, torch.Tensor],
        times: torch.Tensor,
        num_samples: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = self.video(video_tokens, layout["video_times"], times)
        return pictures, self.audio(audio_tokens, layout["audio_times"], num_samples)


class RenderedFeatures:
    """Cached features of Stage's clips with some of the clips' frames and their sound, as an endless dataset.

    A sample is one of [`CachedFeatures`] with `frames`, `weight` and `times` of the drawn frames, and the `waveform`.
    """

    def __init__(self, features: CachedFeatures, config: PlanDecoding) -> None:
        self.features = features
        self.config = config

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, (scene, seed) = self.features[index], self.features.scene(index)
        frames, config = render_video(scene, seed), self.config
        changes = _any_channel(frames[1:] != frames[:-1])
        moving = np.pad(changes, ((1, 0), (0, 0), (0, 0))) | np.pad(changes, ((0, 1), (0, 0), (0, 0)))
        rng, number = np.random.default_rng((config.trainer.seed, index)), config.frames_per_clip
        chosen = rng.integers(len(frames), size=number)
        if events := timeline(scene, seed):
            kinds = sorted({event.kind for event in events})
            for i in range(0, number, 2):
                kind = kinds[rng.integers(len(kinds))]
                instants = [event.frame for event in events if event.kind == kind]
                around = instants[rng.integers(len(instants))] + rng.integers(*AROUND)
                chosen[i] = np.clip(around, 0, len(frames) - 1)
        foreground = _any_channel(np.abs(frames[chosen] - background(scene, seed)) > FOREGROUND_THRESHOLD)
        weight = 1 + config.foreground_weight * foreground + config.motion_weight * moving[chosen]
        return {
            "prompt": sample["prompt"],
            "cues": sample["cues"],
            "video_tokens": sample["video_tokens"],
            "audio_tokens": sample["audio_tokens"],
            "frames": torch.from_numpy(frames[chosen]),
            "weight": torch.from_numpy(weight.astype(np.float32)),
            "times": torch.from_numpy(chosen / FRAME_RATE).float(),
            "waveform": torch.from_numpy(render_audio(scene, seed)),
        }


def _any_channel(marked: np.ndarray) -> np.ndarray:
    return (
        marked[..., 0] | marked[..., 1] | marked[..., 2]
    )  # numpy's `any` over three channels takes five times as long


class DecoderCollator:
    """Joins samples of [`RenderedFeatures`]; the prompts and sheets of the first `num_planned` become the planner's `tokens`."""

    def __init__(self, plans: PlanCollator, features: CachedFeatures, num_planned: int) -> None:
        self.plans = plans
        self.features = features
        self.num_planned = num_planned

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [{name: sample.pop(name) for name in ("prompt", "cues")} for sample in samples]
        batch = default_collate(samples)
        batch["plan"] = self.features.plan(batch.pop("video_tokens"), batch.pop("audio_tokens"))
        if self.num_planned:
            planned = [text | {"plan": batch["plan"][i]} for i, text in enumerate(texts[: self.num_planned])]
            batch["planned"] = self.plans(planned)
        return batch


class DecoderLoss:
    """Squared plus absolute error of pictures, and absolute error of log-mel magnitudes, as [`Trainer`] wants it."""

    def __init__(self, config: PlanDecoding, planner: VAPlannerModel, audio_vae: MMAudioVAE) -> None:
        self.config = config
        self.planner = planner.eval().requires_grad_(False)
        self.audio_vae = audio_vae.requires_grad_(False).eval()

    def to(self, device: torch.device) -> None:
        """Moves the frozen models to where the decoders are trained."""
        self.planner.to(device)
        self.audio_vae.to(device)

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        config, plan = self.config, batch["plan"]
        video_tokens, audio_tokens = (
            self._noised(tokens, generator) for tokens in self._tokens(plan, batch.get("planned"))
        )
        with torch.no_grad():
            target_mel = self.audio_vae.mel_converter(pad_waveform(self.audio_vae, batch["waveform"]))
        layout = {"video_times": plan.video_times, "audio_times": plan.audio_times}
        num_samples = target_mel.shape[-1] * self.audio_vae.config.hop_length
        pictures, mel = module(video_tokens, audio_tokens, layout, batch["times"], num_samples)
        target = batch["frames"].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        error, weight = pictures.float() - target, batch["weight"][:, None]
        weight = weight / weight.mean()
        video = (weight * (error.square() + error.abs())).mean()
        loud = 1 + config.loud_weight * (target_mel > config.loud_threshold)
        mel_error = (mel.float().clamp(min=config.mel_floor) - target_mel.clamp(min=config.mel_floor)).abs()
        # Below the floor nothing pulls, so that a cell which is far too low would stay there.
        mel_error = mel_error + 0.1 * (mel.float() - target_mel).abs()
        audio = (loud * mel_error).mean() / loud.mean()
        return {"loss": video + 0.3 * audio, "video": video, "squared": error.square().mean(), "audio": audio}

    @torch.no_grad()
    def _tokens(self, plan: Any, planned: dict[str, Any] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoders' tokens, the first of them replaced by the planner's."""
        if planned is None:
            return plan.video_tokens, plan.audio_tokens
        made = self.planner(planned["input_ids"], planned["attention_mask"], plan.duration)
        made = planned_like(planned["plan"], made)
        pairs = (made.video_tokens, plan.video_tokens), (made.audio_tokens, plan.audio_tokens)
        return tuple(torch.cat([ours.to(theirs), theirs[len(ours) :]]) for ours, theirs in pairs)

    def _noised(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        scale = torch.rand(len(tokens), 1, 1, generator=generator, device=tokens.device) * self.config.token_noise
        return tokens + scale * torch.randn(tokens.shape, generator=generator, device=tokens.device)


def build_decoders(
    config: PlanDecoding, planner: VAPlannerModel, log_mels: torch.Tensor, vae: MMAudioVAE
) -> PlanDecoders:
    """
    Decoders for a planner's tokens and an autoencoder's spectrograms.

    Args:
        config: Its `video` and `audio`.
        planner: Gives the form of the tokens.
        log_mels: `(num_clips, mel_bins, num_mel_frames)`, from which the mean and deviation of each mel bin are taken.
        vae: Gives the form of the spectrograms.
    """
    tokens, mel = planner.config, vae.config
    video = VideoPlanDecoder(tokens.video_dim, tuple(tokens.video_grid), tokens.keyframe_rate, **config.video)
    audio = AudioPlanDecoder(
        tokens.audio_dim,
        tokens.audio_tokens_per_chunk / tokens.chunk_duration,
        mel.sample_rate,
        mel.hop_length,
        mel.mel_bins,
        **config.audio,
    )
    audio.mel_mean.copy_(log_mels.mean(dim=(0, 2)))
    audio.mel_std.copy_(log_mels.std(dim=(0, 2)))
    if config.initial is not None:
        video = load_component(
            Path(config.initial) / "video_plan_decoder", VideoPlanDecoder, torch_dtype=torch.float32
        )
        audio = load_component(
            Path(config.initial) / "audio_plan_decoder", AudioPlanDecoder, torch_dtype=torch.float32
        )
    return PlanDecoders(video.to(memory_format=torch.channels_last), audio)  # a fifth faster on a CPU


def main(config: PlanDecoding, export: bool = False) -> None:
    planner = load_component(config.planner, VAPlannerModel)
    audio_vae = load_component(config.audio_vae, MMAudioVAE)
    clips = StageClips("train", config.data_seed, verb_shares=config.verb_shares)
    features = CachedFeatures(config.features, clips, config.trainer.seed, config.trainer.batch_size, True)
    dataset = RenderedFeatures(features, config)
    waveforms = torch.stack([dataset[index]["waveform"] for index in range(64)])
    decoders = build_decoders(config, planner, audio_vae.mel_converter(pad_waveform(audio_vae, waveforms)), audio_vae)
    if export:
        print(f"step {load_checkpoint(config.trainer.run_dir, decoders)}")
    else:
        tokenizer = AutoTokenizer.from_pretrained(config.planner_tokenizer)
        num_planned = round(config.planned_share * config.trainer.batch_size)
        trainer = Trainer(
            config.trainer,
            decoders,
            DecoderLoss(config, planner, audio_vae),
            dataset,
            collate_fn=DecoderCollator(PlanCollator(tokenizer, planner.config), features, num_planned),
            settings=config,
        )
        decoders = trainer.fit()
        if not trainer.accelerator.is_main_process:
            return
    for name, decoder in (("video_plan_decoder", decoders.video), ("audio_plan_decoder", decoders.audio)):
        decoder.to(memory_format=torch.contiguous_format).save_pretrained(Path(config.output) / name)
    print(f"{sum(parameter.numel() for parameter in decoders.parameters())} parameters")


if __name__ == "__main__":
    run(main, PlanDecoding, __doc__, export="do not train: save the newest checkpoint")
