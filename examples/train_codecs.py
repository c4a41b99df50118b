"""Trains one of the two autoencoders on Stage, and exports it as a diffusers folder.

    python examples/train_codecs.py audio examples/configs/nano/audio_vae.yaml [key=value ...]
    python examples/train_codecs.py video examples/configs/nano/video_vae.yaml [key=value ...]

Interrupt it when you like: the same command goes on from the last checkpoint.
"""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE

from baton_diffusers.training.codecs import (
    AudioCodec,
    AudioCodecConfig,
    AudioCodecObjective,
    VideoCodec,
    VideoCodecConfig,
    VideoCodecObjective,
    build_audio_vae,
    build_video_vae,
    pad_waveform,
)
from baton_diffusers.training.data import StageClips
from baton_diffusers.training.trainer import Trainer, TrainerConfig, load_config


@dataclass
class AudioConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    objective: AudioCodecConfig = field(default_factory=AudioCodecConfig)


def train_audio(config: AudioConfig) -> None:
    clips = StageClips("train", seed=config.trainer.seed)
    torch.manual_seed(config.trainer.seed)
    probe = MMAudioVAE(**config.model)
    waveforms = torch.stack([torch.from_numpy(clips.clip(10**9 + index).waveform) for index in range(256)])
    log_mels = probe.mel_converter(pad_waveform(probe, waveforms))
    vae = build_audio_vae(log_mels, config.objective.latent_noise, **config.model)
    trainer = Trainer(config.trainer, AudioCodec(vae), AudioCodecObjective(config.objective, vae), clips)
    trained = trainer.fit().vae
    trained.save_pretrained(f"{config.trainer.run_dir}/export")


@dataclass
class VideoConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    objective: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    tier_weights: dict[str, float] | None = None
    initial: str | None = None  # folder of an autoencoder to start from


def train_video(config: VideoConfig) -> None:
    clips = StageClips("train", config.trainer.seed, config.tier_weights, foreground=True)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        vae = build_video_vae(config.objective.latent_noise, **config.model)
    else:
        vae = AutoencoderKLWan.from_pretrained(config.initial)
    codec = VideoCodec(vae, config.objective.train_encoder)
    trainer = Trainer(config.trainer, codec, VideoCodecObjective(config.objective, vae), clips)
    trained = trainer.fit().vae
    trained.save_pretrained(f"{config.trainer.run_dir}/export")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", choices=("audio", "video"))
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, keys dotted: trainer.steps=100")
    arguments = parser.parse_args()
    if arguments.codec == "audio":
        train_audio(load_config(arguments.config, AudioConfig, arguments.overrides))
    else:
        train_video(load_config(arguments.config, VideoConfig, arguments.overrides))
