"""Objectives of the two autoencoders: `AutoencoderKLWan` for pictures and `MMAudioVAE` for sound, both diffusers' own.

Both are trained with a posterior of fixed variance (ours). Latents get Gaussian noise of a fixed standard deviation while
their own mean and standard deviation are held at zero and one, channel by channel. The noise bounds the information as a
KL term would, without a balance between two losses. It makes neighbouring latents decode alike, so that a diffusion
model's small errors do little harm, and the latents come out normalised.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, MMAudioVAE
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMPConv1d
from nano_configs import AudioCodecConfig, VideoCodecConfig
from torch import nn

from baton_diffusers.models.latents import to_video
from baton_diffusers.models.wan_clip import decode_clip, encode_clip


def build_video_vae(latent_noise: float, **config: Any) -> AutoencoderKLWan:
    """
    An `AutoencoderKLWan` ready to be trained: at first it treats each frame alone, so that it can learn from single
    frames; and its posterior has a fixed variance.

    Args:
        latent_noise: Standard deviation of the posterior.
        config: Arguments of `AutoencoderKLWan`.
    """
    statistics = {"latents_mean": [0.0] * config["z_dim"], "latents_std": [1.0] * config["z_dim"]}
    vae = AutoencoderKLWan(**(statistics | config))
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResample) and module.mode in ("downsample3d", "upsample3d"):
                # From the newest frame, repeated; the other taps stay random, or earlier frames would be lost.
                weight = module.time_conv.weight
                weight[:, :, -1] = torch.eye(module.dim).repeat(len(weight) // module.dim, 1)[:, :, None, None]
        for module in vae.modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
                module.weight[:, :, :-1] = 0
                nn.init.kaiming_uniform_(module.weight[:, :, -1], a=math.sqrt(5))
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = 2 * math.log(latent_noise)
    return vae


class VideoCodec(nn.Module):
    """
    The trained form of an `AutoencoderKLWan`: `forward(video, noise)` gives the reconstruction from noised latents and
    the posterior's mean, in the whole-clip form.
    """

    def __init__(self, vae: AutoencoderKLWan, train_encoder: bool = True):
        super().__init__()
        self.vae = vae
        self.vae.encoder.requires_grad_(train_encoder)
        self.vae.quant_conv.requires_grad_(train_encoder)
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):  # twice as fast on a CPU
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)

    def forward(self, video: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, _ = encode_clip(self.vae, video).chunk(2, dim=1)
        return decode_clip(self.vae, mean + noise), mean


class VideoCodecObjective:
    """
    The loss of [`VideoCodec`] on batches with `frames` and `foreground` of whole clips: squared plus absolute error, in
    windows cut from the clips as the curriculum says, with the actors and what moves weighted up.
    """

    def __init__(self, config: VideoCodecConfig, vae: AutoencoderKLWan):
        self.config = config
        self.vae = vae

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        config = self.config
        video = to_video(batch["frames"])
        changes = (video[:, :, 1:] != video[:, :, :-1]).any(dim=1)
        moving = F.pad(changes, (0, 0, 0, 0, 1, 0)) | F.pad(changes, (0, 0, 0, 0, 0, 1))
        weight = 1 + config.foreground_weight * batch["foreground"] + config.motion_weight * moving
        foreground = batch["foreground"].float()

        _, num_frames, num_windows = next(entry for entry in reversed(config.windows) if step >= entry[0])
        starts = video.shape[2] - num_frames + 1
        starts = torch.randint(starts, (num_windows, video.shape[0]), generator=generator, device=video.device)
        frames = starts[:, :, None] + torch.arange(num_frames, device=video.device)
        clips = torch.arange(video.shape[0], device=video.device)[None, :, None]
        video = video.transpose(1, 2)[clips, frames].flatten(0, 1).transpose(1, 2)
        weight, foreground = (x[clips, frames].flatten(0, 1).unsqueeze(1) for x in (weight, foreground))

        scale = self.vae.config.scale_factor_spatial
        shape = (
            len(video),
            self.vae.config.z_dim,
            (num_frames + 3) // 4,
            video.shape[3] // scale,
            video.shape[4] // scale,
        )
        # A latent frame holds four frames, but the first one holds one: so all count alike.
        weight[:, :, 0] *= self.vae.config.scale_factor_temporal
        noise = config.latent_noise * torch.randn(shape, generator=generator, device=video.device)
        reconstruction, mean = module(video, noise)
        error = reconstruction - video
        weight = weight / weight.mean()
        moments = moments_loss(mean)
        squared = error.square().mean(dim=1, keepdim=True)
        loss = (weight * (error.square() + error.abs())).mean() + config.moments_weight * moments
        # Peak-to-peak is 2 in [-1, 1]: the decibels are 10 log10(4 / squared error).
        return {
            "loss": loss,
            "squared": squared.mean(),
            "foreground_squared": (squared * foreground).sum() / foreground.sum().clamp(min=1),
            "moments": moments,
        }


def build_audio_vae(log_mels: torch.Tensor, latent_noise: float, **config: Any) -> MMAudioVAE:
    """
    An `MMAudioVAE` ready to be trained: the class expects convolution weights of unit magnitude and data statistics.

    Args:
        log_mels: `(num_clips, mel_bins, num_mel_frames)`, from which the mean and deviation of each mel bin are taken.
        latent_noise: Standard deviation of the posterior to start from.
        config: Arguments of `MMAudioVAE`.
    """
    vae = MMAudioVAE(**config)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, MMAudioMPConv1d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        # The last convolution has no bias; its input, a SiLU scaled to unit magnitude, has this mean.
        mean_activation = 0.347
        log_variance_rows = vae.vae.encoder.conv_out.weight[vae.config.latent_channels :]
        log_variance_rows.fill_(2 * math.log(latent_noise) / (mean_activation * log_variance_rows[0].numel()))
        vae.vae.data_mean.copy_(log_mels.mean(dim=(0, 2))[None, :, None])
        vae.vae.data_std.copy_(log_mels.std(dim=(0, 2))[None, :, None])
    return vae


def pad_waveform(vae: MMAudioVAE, waveform: torch.Tensor) -> torch.Tensor:
    """Zeros at the end of `waveform` `(batch_size, num_samples)`, up to a whole number of latent frames."""
    return F.pad(waveform, (0, -waveform.shape[-1] % vae.latent_hop_length))


class AudioCodec(nn.Module):
    """
    The trained form of an `MMAudioVAE`: `forward(waveform, noise)` gives the standardised log-mel spectrogram, its
    reconstruction from noised latents, and the posterior's mean and log-variance.
    """

    def __init__(self, vae: MMAudioVAE, train_encoder: bool = True):
        super().__init__()
        self.vae = vae
        self.vae.vae.encoder.requires_grad_(train_encoder)

    def forward(self, waveform: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inner = self.vae.vae
        mel = (self.vae.mel_converter(waveform) - inner.data_mean) / inner.data_std
        mean, log_variance = inner.encoder(mel).chunk(2, dim=1)
        return mel, inner.decoder(mean + noise), mean, log_variance


class AudioCodecObjective:
    """
    The loss of [`AudioCodec`] on batches with a `waveform` `(batch_size, num_samples)`: weighted
    squared plus absolute error of the standardised log-mel spectrogram, and the conditions on the latents.
    """

    def __init__(self, config: AudioCodecConfig, vae: MMAudioVAE):
        self.config = config
        self.vae = vae

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        config = self.config
        waveform = pad_waveform(self.vae, batch["waveform"])
        shape = (waveform.shape[0], self.vae.config.latent_channels, waveform.shape[1] // self.vae.latent_hop_length)
        noise = config.latent_noise * torch.randn(shape, generator=generator, device=waveform.device)
        mel, reconstruction, mean, log_variance = module(waveform, noise)
        error = reconstruction - mel
        inner = self.vae.vae
        loud = mel * inner.data_std + inner.data_mean > config.loud_threshold
        weight = 1 + config.loud_weight * loud
        weight = weight / weight.mean()
        moments = moments_loss(mean)
        posterior = (log_variance - 2 * math.log(config.latent_noise)).square().mean()
        loss = (
            (weight * (error.square() + error.abs())).mean()
            + config.moments_weight * moments
            + config.log_variance_weight * posterior
        )
        return {
            "loss": loss,
            "mel_squared": error.square().mean(),  # the share of the variance that is lost
            "loud_absolute": (error.abs() * inner.data_std * loud).sum() / loud.sum().clamp(min=1),  # nepers
            "moments": moments,
            "log_variance": posterior,
        }


def moments_loss(mean: torch.Tensor) -> torch.Tensor:
    """Distance of each channel (dimension 1) of the latents from zero mean and unit standard deviation, squared."""
    channels = mean.transpose(0, 1).flatten(1)
    return channels.mean(dim=1).square().mean() + (channels.std(dim=1) - 1).square().mean()


@torch.no_grad()
def latent_statistics(latents: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel (dimension 1) over batches of latents, for a configuration."""
    channels = torch.cat([batch.transpose(0, 1).flatten(1).double().cpu() for batch in latents], dim=1)
    return channels.mean(dim=1).tolist(), channels.std(dim=1).tolist()
