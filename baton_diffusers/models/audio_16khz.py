"""MMAudio's 16 kHz autoencoder and vocoder: how they differ from the 44.1 kHz ones in diffusers."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from diffusers import MMAudioVAE, MMAudioVocoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_mmaudio import MMAudioMelSpectrogram
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  a pipeline knows a model by this name in its module


class Log10MelSpectrogram(MMAudioMelSpectrogram):
    """Log-mel front end with the decimal logarithm."""

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        return super().forward(waveform) / math.log(10)


class TanhConv1d(nn.Conv1d):
    """A convolution that ends in a tanh."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(hidden_states))


class MMAudioVAE16kHz(MMAudioVAE):
    r"""
    `MMAudioVAE` on decimal log-mel spectrograms, with the sizes of MMAudio's 16 kHz autoencoder as defaults.

    Its weights stay in float32 whatever dtype it is loaded in: bfloat16 is audible. The arguments are the same as `MMAudioVAE` takes;
    latents are not scaled.
    """

    _keep_in_fp32_modules = ["mel_converter", "vae"]

    @register_to_config
    def __init__(
        self,
        mel_bins: int = 80,
        latent_channels: int = 20,
        hidden_channels: int = 384,
        channel_multipliers: tuple[int, ...] = (1, 2, 4),
        layers_per_block: int = 2,
        sample_rate: int = 16_000,
        n_fft: int = 1024,
        hop_length: int = 256,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__(
            mel_bins=mel_bins,
            latent_channels=latent_channels,
            hidden_channels=hidden_channels,
            channel_multipliers=channel_multipliers,
            layers_per_block=layers_per_block,
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            scaling_factor=scaling_factor,
        )
        self.mel_converter = Log10MelSpectrogram(sample_rate, n_fft, mel_bins, hop_length)


class MMAudioVocoder16kHz(MMAudioVocoder):
    r"""
    `MMAudioVocoder` that ends in a convolution with bias and a tanh, with the sizes of MMAudio's 16 kHz BigVGAN as defaults.

    Its weights stay in float32 whatever dtype it is loaded in: bfloat16 is audible. The arguments are the same as in
    `MMAudioVocoder`; weight norm is folded in.
    """

    _keep_in_fp32_modules = ["conv_pre", "ups", "resblocks", "activation_post", "conv_post"]

    @register_to_config
    def __init__(
        self,
        num_mels: int = 80,
        upsample_initial_channel: int = 1536,
        upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2),
        upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4),
        resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11),
        resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    ) -> None:
        super().__init__(
            num_mels=num_mels,
            upsample_initial_channel=upsample_initial_channel,
            upsample_rates=upsample_rates,
            upsample_kernel_sizes=upsample_kernel_sizes,
            resblock_kernel_sizes=resblock_kernel_sizes,
            resblock_dilation_sizes=resblock_dilation_sizes,
        )
        self.conv_post = TanhConv1d(self.conv_post.in_channels, 1, 7, padding=3)
