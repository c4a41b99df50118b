"""Trains one of the two autoencoders on Stage, and exports it as a diffusers folder.

    python examples/train_codecs.py audio examples/configs/nano/audio_vae.yaml [key=value ...]
    python examples/train_codecs.py video examples/configs/nano/video_vae.yaml [key=value ...]

Interrupt it when you like: the same command goes on from the last checkpoint. With `--export-only` it trains nothing and
exports the newest checkpoint, also of a run that is under way.
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
    encode_clip,
    latent_statistics,
    pad_waveform,
)
from baton_diffusers.training.data import StageClips, to_video
from baton_diffusers.training.trainer import Trainer, TrainerConfig, load_config


NUM_STATISTICS_CLIPS = 256


@dataclass
class AudioConfig:
    trainer: TrainerConfig
    model: dict[str, Any]
    export: str  # folder of the trained autoencoder
    objective: AudioCodecConfig = field(default_factory=AudioCodecConfig)
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


def train_audio(config: AudioConfig, export_only: bool) -> None:
    clips = StageClips("train", config.trainer.seed)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        probe = MMAudioVAE(**config.model)
        waveforms = torch.stack(
            [torch.from_numpy(clips.clip(10**9 + i).waveform) for i in range(NUM_STATISTICS_CLIPS)]
        )
        log_mels = probe.mel_converter(pad_waveform(probe, waveforms))
        vae = build_audio_vae(log_mels, config.objective.latent_noise, **config.model)
    else:
        vae = MMAudioVAE.from_pretrained(config.initial)
    trainer = Trainer(
        config.trainer, AudioCodec(vae), AudioCodecObjective(config.objective, vae), clips, settings=config
    )
    save(finish(trainer, export_only), config.export)


def train_video(config: VideoConfig, export_only: bool) -> None:
    clips = StageClips("train", config.trainer.seed, config.tier_weights, True, config.verb_shares)
    torch.manual_seed(config.trainer.seed)
    if config.initial is None:
        vae = build_video_vae(config.objective.latent_noise, **config.model)
    else:
        vae = AutoencoderKLWan.from_pretrained(config.initial)
    codec = VideoCodec(vae, config.objective.train_encoder)
    trainer = Trainer(config.trainer, codec, VideoCodecObjective(config.objective, vae), clips, settings=config)
    vae = finish(trainer, export_only)
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


def save(vae: AutoencoderKLWan | MMAudioVAE, folder: str) -> None:
    """Saves an autoencoder without the trace of the folder that it was started from."""
    vae.register_to_config(_name_or_path="")
    vae.save_pretrained(folder)


def finish(trainer: Trainer, export_only: bool) -> AutoencoderKLWan | MMAudioVAE:
    """Trains, or takes the newest checkpoint as it is."""
    if not export_only:
        return trainer.fit().vae
    if not trainer.resume():
        raise SystemExit(f"No checkpoint to export in {trainer.run_dir}.")
    return trainer.ema_module().vae


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", choices=("audio", "video"))
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value, keys dotted: trainer.steps=100")
    parser.add_argument("--export-only", action="store_true", help="export the newest checkpoint, train nothing")
    arguments = parser.parse_intermixed_args()
    if arguments.codec == "audio":
        train_audio(load_config(arguments.config, AudioConfig, arguments.overrides), arguments.export_only)
    else:
        train_video(load_config(arguments.config, VideoConfig, arguments.overrides), arguments.export_only)
