"""The whole-clip form of `AutoencoderKLWan`, which is faster to train and to encode with.

The class itself encodes and decodes a clip in a Python loop over chunks, each convolution keeping the last two frames that it
saw. Its convolutions are causal, so the loop equals one pass over all frames, with two cares: temporal downsampling keeps the
first frame as it is, and temporal upsampling leaves the first frame alone and sees zeros before the second.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanDecoder3d,
    WanEncoder3d,
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanUpBlock,
    patchify,
    unpatchify,
)


def encode_clip(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """
    The posterior's parameters for a whole clip at once: equal to `vae.encode`, and faster to train.

    Args:
        video: `(batch_size, 3, 1 + 4 * n, height, width)` in [-1, 1].

    Returns:
        `(batch_size, 2 * z_dim, 1 + n, latent_height, latent_width)`, mean and log-variance.
    """
    if (video.shape[2] - 1) % 4 != 0:
        raise ValueError(f"A Wan autoencoder takes 1 + 4 * n frames, got {video.shape[2]}.")
    if vae.config.patch_size is not None:
        video = patchify(video, vae.config.patch_size)
    return vae.quant_conv(_encoder(vae.encoder, video))


def decode_clip(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """
    The frames of whole-clip latents at once: equal to `vae.decode` before its clamp to [-1, 1].

    Args:
        latents: `(batch_size, z_dim, 1 + n, latent_height, latent_width)`, as the encoder gives them (not normalised).

    Returns:
        `(batch_size, 3, 1 + 4 * n, height, width)`, about [-1, 1], not clamped.
    """
    video = _decoder(vae.decoder, vae.post_quant_conv(latents))
    return video if vae.config.patch_size is None else unpatchify(video, vae.config.patch_size)


def _encoder(encoder: WanEncoder3d, x: torch.Tensor) -> torch.Tensor:
    x = encoder.conv_in(x)
    for layer in encoder.down_blocks:
        if isinstance(layer, WanResidualDownBlock):
            shortcut = layer.avg_shortcut(x)
            for resnet in layer.resnets:
                x = resnet(x)
            x = shortcut + (x if layer.downsampler is None else _resample(layer.downsampler, x))
        elif isinstance(layer, WanResample):
            x = _resample(layer, x)
        else:
            x = layer(x)
    x = encoder.mid_block(x)
    return encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x)))


def _decoder(decoder: WanDecoder3d, x: torch.Tensor) -> torch.Tensor:
    x = decoder.mid_block(decoder.conv_in(x))
    for block in decoder.up_blocks:
        x = _up_block(block, x)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


def _up_block(block: WanUpBlock | WanResidualUpBlock, x: torch.Tensor) -> torch.Tensor:
    residual = isinstance(block, WanResidualUpBlock)
    shortcut = None
    if residual and block.avg_shortcut is not None:
        shortcut = block.avg_shortcut(x, first_chunk=True)
    for resnet in block.resnets:
        x = resnet(x)
    upsampler = block.upsampler if residual else (block.upsamplers[0] if block.upsamplers is not None else None)
    if upsampler is not None:
        x = _resample(upsampler, x)
    return x if shortcut is None else x + shortcut


def _resample(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        batch_size, channels, num_frames, height, width = x.shape
        pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, channels))
        pairs = pairs.permute(0, 2, 3, 1, 4, 5).reshape(batch_size, channels, 2 * (num_frames - 1), height, width)
        x = torch.cat([x[:, :, :1], pairs], dim=2)
    num_frames = x.shape[2]
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, num_frames)).transpose(1, 2)
    if layer.mode == "downsample3d" and num_frames > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x
