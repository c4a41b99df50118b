"""Trains an autoencoder or the vocoder on Stage, and exports it as a diffusers folder.

    python examples/train_codecs.py audio examples/configs/nano/audio_vae.yaml [key=value ...]
    python examples/train_codecs.py video examples/configs/nano/video_vae.yaml [key=value ...]
    python examples/train_codecs.py vocoder examples/configs/nano/vocoder.yaml [key=value ...]

Interrupt it when you like: the same command goes on from the last checkpoint. With `--export-only` it trains nothing and
exports the newest checkpoint, also of a run that is under way.
"""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE, MMAudioVocoder, ModelMixin
from torch import nn

from baton_diffusers.models.latents import to_video
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.codecs import (
    AudioCodec,
    AudioCodecConfig,
    AudioCodecObjective,
    VideoCodec,
    VideoCodecConfig,
    VideoCodecObjective,
    build_audio_vae,
    build_video_vae,
    encode_clip,
    latent_statistics,
    pad_waveform,
)
from baton_diffusers.training.config import TrainerConfig, load_config
from baton_diffusers.training.trainer import Trainer
from baton_diffusers.training.vocoder import VocoderConfig, VocoderObjective, build_vocoder, check_vocoder


NUM_STATISTICS_CLIPS = 256


@dataclass
class AudioConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    export: str  # folder of the trained autoencoder
    objective: AudioCodecConfig = field(default_factory=AudioCodecConfig)
    verb_shares: dict[str, float] | None = None
    initial: str | None = None  # folder of an autoencoder to start from


@dataclass
class VideoConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    export: str  # folder of the trained autoencoder
    objective: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    tier_weights: dict[str, float] | None = None
    verb_shares: dict[str, float] | None = None
    initial: str | None = None  # folder of an autoencoder to start from


@dataclass
class SoundConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    export: str  # folder of the trained vocoder
    audio_vae: str  # folder of the autoencoder whose spectrograms it takes
    objective: VocoderConfig = field(default_factory=VocoderConfig)
    verb_shares: dict[str, float] | None = None
    initial: str | None = None  # folder of a vocoder to start from


def train_audio(config: AudioConfig, export_only: bool) -> None:
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        log_mels = sample_log_mels(clips, MMAudioVAE(**config.model))
        vae = build_audio_vae(log_mels, config.objective.latent_noise, **config.model)
    else:
        vae = MMAudioVAE.from_pretrained(config.initial)
    objective = AudioCodecObjective(config.objective, vae)
    codec = AudioCodec(vae, config.objective.train_encoder)
    trainer = Trainer(config.trainer, codec, objective, clips, settings=config)
    save(finish(trainer, export_only).vae, config.export)


def train_video(config: VideoConfig, export_only: bool) -> None:
    clips = StageClips("train", config.trainer.seed, config.tier_weights, True, config.verb_shares)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        vae = build_video_vae(config.objective.latent_noise, **config.model)
    else:
        vae = AutoencoderKLWan.from_pretrained(config.initial)
    codec = VideoCodec(vae, config.objective.train_encoder)
    trainer = Trainer(config.trainer, codec, VideoCodecObjective(config.objective, vae), clips, settings=config)
    vae = finish(trainer, export_only).vae
    if config.objective.train_encoder:
        probe = StageClips("train", config.trainer.seed + 1)
        frames = (torch.from_numpy(probe.clip(i).frames)[None] for i in range(NUM_STATISTICS_CLIPS))
        with torch.no_grad():
            means = [encode_clip(vae, to_video(x).to(vae.device)).chunk(2, dim=1)[0] for x in frames]
        latents_mean, latents_std = latent_statistics(means)
        vae.register_to_config(
            latents_mean=[round(value, 5) for value in latents_mean],
            latents_std=[round(value, 5) for value in latents_std],
        )
    save(vae, config.export)


def train_vocoder(config: SoundConfig, export_only: bool) -> None:
    audio_vae = MMAudioVAE.from_pretrained(config.audio_vae)
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        vocoder = build_vocoder(sample_log_mels(clips, audio_vae), **config.model)
    else:
        vocoder = MMAudioVocoder.from_pretrained(config.initial)
    check_vocoder(vocoder, audio_vae)
    objective = VocoderObjective(config.objective, audio_vae)
    trainer = Trainer(config.trainer, vocoder, objective, clips, settings=config)
    save(finish(trainer, export_only), config.export)


def sample_log_mels(clips: StageClips, vae: MMAudioVAE) -> torch.Tensor:
    """Log-mel spectrograms of clips that no step sees, `(num_clips, mel_bins, num_mel_frames)`, for their statistics."""
    waveforms = torch.stack([clips[10**9 + i]["waveform"] for i in range(NUM_STATISTICS_CLIPS)])
    return vae.mel_converter(pad_waveform(vae, waveforms))


def save(model: ModelMixin, folder: str) -> None:
    """Saves a model without the trace of the folder that it was started from."""
    model.register_to_config(_name_or_path="")
    model.save_pretrained(folder)


def finish(trainer: Trainer, export_only: bool) -> nn.Module:
    """Trains, or takes the newest checkpoint as it is."""
    if not export_only:
        return trainer.fit()
    if not trainer.resume():
        raise SystemExit(f"No checkpoint to export in {trainer.run_dir}.")
    return trainer.trained_module()


TRAINERS = {
    "audio": (AudioConfig, train_audio),
    "video": (VideoConfig, train_video),
    "vocoder": (SoundConfig, train_vocoder),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", choices=tuple(TRAINERS))
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, keys dotted: trainer.steps=100")
    parser.add_argument("--export-only", action="store_true", help="export the newest checkpoint, train nothing")
    arguments = parser.parse_intermixed_args()
    settings, train = TRAINERS[arguments.codec]
    train(load_config(arguments.config, settings, arguments.overrides), arguments.export_only)
