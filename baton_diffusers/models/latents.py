"""What the autoencoders take, and how their latents are scaled for the transformer. No other module scales latents."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from torch import nn

from .. import coordinates


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 `(batch_size, num_frames, height, width, 3)` as video `(batch_size, 3, num_frames, height, width)` in
    [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def normalise_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Scales latents `(batch_size, num_channels, num_frames, height, width)` of a video autoencoder for the transformer: each
    channel gets mean 0 and deviation 1, float32."""
    mean, std = _statistics(vae, latents)
    return (latents.float() - mean) / std


def denormalise_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The reverse of [`normalise_latents`], float32."""
    mean, std = _statistics(vae, latents)
    return latents.float() * std + mean


def encode_waveforms(audio_vae: MMAudioVAE, waveforms: torch.Tensor) -> torch.Tensor:
    """
    Encodes sound to latents, scaled for the transformer.

    Args:
        audio_vae: The audio's autoencoder.
        waveforms: `(batch_size, num_samples)` in [-1, 1], at the autoencoder's rate; whole latents of samples.

    Returns:
        `(batch_size, audio_length, audio_channels)`, float32.
    """
    latents = audio_vae.encode(waveforms).latent_dist.mode().float()
    return (latents * audio_vae.config.scaling_factor).transpose(1, 2)


def encode_audio_latents(
    audio_vae: MMAudioVAE,
    waveform: torch.Tensor,
    duration: float,
    audio_latent_rate: float,
    min_coverage: float = 0.0,
) -> torch.Tensor:
    """Scaled latents `(batch_size, audio_length, channels)` of waveforms `(batch_size, num_samples)`, padded with silence
    to whole latents."""
    length = coordinates.num_audio_latents(duration, audio_latent_rate, min_coverage)
    samples = length * audio_vae.latent_hop_length
    return encode_waveforms(audio_vae, nn.functional.pad(waveform, (0, samples - waveform.shape[-1])))


def decode_spectrograms(audio_vae: MMAudioVAE, latents: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrograms `(batch_size, mel_bins, num_mel_frames)` of latents as [`encode_waveforms`] gives them."""
    latents = latents.transpose(1, 2).float() / audio_vae.config.scaling_factor
    return audio_vae.decode(latents.to(audio_vae.dtype), return_dict=False)[0]


def _statistics(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
