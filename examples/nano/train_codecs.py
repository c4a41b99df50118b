"""Trains an autoencoder or the vocoder on Stage, and exports it as a diffusers folder.

    python examples/nano/train_codecs.py audio examples/configs/nano/audio_vae.yaml [key=value ...]
    python examples/nano/train_codecs.py video examples/configs/nano/video_vae.yaml [key=value ...]
    python examples/nano/train_codecs.py vocoder examples/configs/nano/vocoder.yaml [key=value ...]

Interrupt it when you like: the same command goes on from the last checkpoint. With `--export-only` it trains nothing and
exports the newest checkpoint, also of a run that is under way.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import torch
from autoencoders import (
    AudioCodec,
    AudioCodecObjective,
    VideoCodec,
    VideoCodecObjective,
    build_audio_vae,
    build_video_vae,
    latent_statistics,
    pad_waveform,
)
from diffusers import AutoencoderKLWan, MMAudioVAE, MMAudioVocoder, ModelMixin
from nano_configs import AudioConfig, SoundConfig, VideoConfig
from torch import nn
from vocoder import VocoderObjective, build_vocoder, check_vocoder

from baton_diffusers.models.component_files import load_component
from baton_diffusers.models.latents import to_video
from baton_diffusers.models.wan_clip import encode_clip
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.script import run_one_of
from baton_diffusers.training.trainer import Trainer


NUM_STATISTICS_CLIPS = 256


def train_audio(config: AudioConfig, export_only: bool = False) -> None:
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    if config.initial is None:
        log_mels = sample_log_mels(clips, MMAudioVAE(**config.model))
        vae = build_audio_vae(log_mels, config.objective.latent_noise, **config.model)
    else:
        vae = load_component(config.initial, MMAudioVAE)
    objective = AudioCodecObjective(config.objective, vae)
    codec = AudioCodec(vae, config.objective.train_encoder)
    trainer = Trainer(config.trainer, codec, objective, clips, settings=config)
    save(finish(trainer, export_only).vae, config.export)


def train_video(config: VideoConfig, export_only: bool = False) -> None:
    clips = StageClips("train", config.trainer.seed, config.tier_weights, True, config.verb_shares)
    if config.initial is None:
        vae = build_video_vae(config.objective.latent_noise, **config.model)
    else:
        vae = load_component(config.initial, AutoencoderKLWan)
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


def train_vocoder(config: SoundConfig, export_only: bool = False) -> None:
    audio_vae = load_component(config.audio_vae, MMAudioVAE)
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    if config.initial is None:
        vocoder = build_vocoder(sample_log_mels(clips, audio_vae), **config.model)
    else:
        vocoder = load_component(config.initial, MMAudioVocoder)
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
        raise FileNotFoundError(f"No checkpoint to export in {trainer.run_dir}.")
    return trainer.trained_module()


if __name__ == "__main__":
    run_one_of(
        {
            "audio": (train_audio, AudioConfig),
            "video": (train_video, VideoConfig),
            "vocoder": (train_vocoder, SoundConfig),
        },
        __doc__,
        export_only="export the newest checkpoint, train nothing",
    )
