"""Published decoders of semantic features as plan decoders: RAE's for pictures, WavTokenizer's own for sound. Loaded, not trained."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from diffusers.models.modeling_utils import ModelMixin

from .plan_decoder import by_keyframe


_PICTURES_AT_ONCE = 8


class RAEPlanDecoder(ModelMixin, ConfigMixin):
    """
    Pictures from video plan tokens that are features of SigLIP2: the decoder of a representation autoencoder (Zheng et al. 2025,
    arXiv:2510.11690), diffusers' `AutoencoderRAE`. Each keyframe's picture stands until the next.

    The published decoder reads a grid of 16 x 16 features of the tower's last layer. A coarser grid of tokens is interpolated (ours),
    and its pictures are blurred.

    Args:
        video_dim (`int`, defaults to 768): width of a token.
        video_grid (`tuple[int, int]`, defaults to `(16, 16)`): rows and columns of tokens per keyframe.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size, patch_size: as of
            `AutoencoderRAE`; the defaults are those of the published one.
        num_patches (`int`, defaults to 256): features of a picture; a square.
    """

    _no_split_modules = ["ViTMAELayer"]
    _skip_layerwise_casting_patterns = ["norm", "feature_mean", "feature_std", "image_mean", "image_std"]

    @register_to_config
    def __init__(
        self,
        video_dim: int = 768,
        video_grid: tuple[int, int] = (16, 16),
        decoder_hidden_size: int = 1152,
        decoder_num_hidden_layers: int = 28,
        decoder_num_attention_heads: int = 16,
        decoder_intermediate_size: int = 4096,
        patch_size: int = 16,
        num_patches: int = 256,
    ) -> None:
        super().__init__()
        self.side = round(num_patches**0.5)
        if self.side**2 != num_patches:
            raise ValueError(f"`num_patches` is {num_patches}, but must be a square.")
        self.decoder = RAEDecoder(
            hidden_size=video_dim,
            decoder_hidden_size=decoder_hidden_size,
            decoder_num_hidden_layers=decoder_num_hidden_layers,
            decoder_num_attention_heads=decoder_num_attention_heads,
            decoder_intermediate_size=decoder_intermediate_size,
            num_patches=num_patches,
            patch_size=patch_size,
            image_size=patch_size * self.side,
        )
        # Of the semantic encoder, which standardises its features by them, and of the pictures.
        self.register_buffer("feature_mean", torch.zeros(video_dim))
        self.register_buffer("feature_std", torch.ones(video_dim))
        self.register_buffer("image_mean", torch.full((3,), 0.5))
        self.register_buffer("image_std", torch.full((3,), 0.5))

    def forward(self, video_tokens: torch.Tensor, video_times: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Pictures at instants, as [`VideoPlanDecoder.forward`]."""
        rows, columns = self.config.video_grid
        keyframes, keyframe_times = by_keyframe(video_tokens, video_times, rows * columns)
        features = (keyframes * self.feature_std + self.feature_mean).flatten(0, 1)
        # The last layer's features are normalised, without weights, as the autoencoder leaves them.
        features = F.layer_norm(features, features.shape[-1:], eps=1e-6)
        maps = features.transpose(1, 2).unflatten(2, (rows, columns))
        if (rows, columns) != (self.side, self.side):
            maps = F.interpolate(maps, (self.side, self.side), mode="bilinear")
        pictures = []
        for some in maps.flatten(2).transpose(1, 2).split(_PICTURES_AT_ONCE):
            decoded = self.decoder.unpatchify(self.decoder(some).logits)
            pictures.append(decoded * self.image_std[:, None, None] + self.image_mean[:, None, None])
        pictures = torch.cat(pictures).unflatten(0, (len(video_tokens), -1)).transpose(1, 2) * 2 - 1
        last = torch.searchsorted(keyframe_times, times.to(keyframe_times), right=True) - 1
        return pictures[:, :, last.clamp(min=0)]


class WavTokenizerPlanDecoder(ModelMixin, ConfigMixin):
    """
    A waveform from audio plan tokens that are features of WavTokenizer: its own decoder (Ji et al. 2024, arXiv:2408.16532), a
    backbone of convolutions and one attention, and an inverse short-time Fourier transform. It needs no vocoder.

    WavTokenizer has 75 features a second; tokens at a lower rate are interpolated (ours).

    Args:
        audio_dim (`int`, defaults to 512): width of a token.
        audio_rate (`float`, defaults to 25.0): tokens per second.
        sampling_rate (`int`, defaults to 24000): samples per second of the sound.
        hidden_dim (`int`, defaults to 768): width of the backbone.
        intermediate_dim (`int`, defaults to 2304): width within its blocks.
        num_layers (`int`, defaults to 12): its blocks.
        n_fft (`int`, defaults to 1280): samples of a spectrum's window.
        hop_length (`int`, defaults to 320): samples from one feature to the next.
    """

    gives_waveform = True
    _skip_layerwise_casting_patterns = ["norm", "feature_mean", "feature_std", "window"]

    @register_to_config
    def __init__(
        self,
        audio_dim: int = 512,
        audio_rate: float = 25.0,
        sampling_rate: int = 24_000,
        hidden_dim: int = 768,
        intermediate_dim: int = 2304,
        num_layers: int = 12,
        n_fft: int = 1280,
        hop_length: int = 320,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(audio_dim, hidden_dim, 7, padding=3)
        self.pos_net = nn.ModuleList(
            [
                _ResidualBlock(hidden_dim),
                _ResidualBlock(hidden_dim),
                _AttentionBlock(hidden_dim),
                _ResidualBlock(hidden_dim),
                _ResidualBlock(hidden_dim),
                nn.GroupNorm(32, hidden_dim, eps=1e-6),
            ]
        )
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.convnext = nn.ModuleList(_ConvNeXtBlock(hidden_dim, intermediate_dim) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.out = nn.Linear(hidden_dim, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft))
        self.register_buffer("feature_mean", torch.zeros(audio_dim))
        self.register_buffer("feature_std", torch.ones(audio_dim))

    def forward(self, audio_tokens: torch.Tensor, audio_times: torch.Tensor, num_samples: int) -> torch.Tensor:
        """
        Args:
            audio_tokens (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_dim)`): as in a `SemanticPlan`.
            audio_times (`torch.Tensor` of shape `(num_audio_tokens,)`): the middle of each token in seconds.
            num_samples (`int`): samples of the sound.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, num_samples)`.
        """
        config = self.config
        features = audio_tokens * self.feature_std + self.feature_mean
        num_features = -(-num_samples // config.hop_length)
        times = (torch.arange(num_features, device=audio_times.device) + 0.5) * (
            config.hop_length / config.sampling_rate
        )
        hidden = self.embed(_interpolated(features, audio_times, times.to(audio_times)).transpose(1, 2))
        for block in self.pos_net:
            hidden = block(hidden)
        hidden = self.norm(hidden.transpose(1, 2))
        for block in self.convnext:
            hidden = block(hidden)
        magnitude, phase = self.out(self.final_layer_norm(hidden)).float().transpose(1, 2).chunk(2, dim=1)
        return self._synthesise(torch.polar(magnitude.exp().clamp(max=1e2), phase))[:, None, :num_samples]

    def _synthesise(self, spectrum: torch.Tensor) -> torch.Tensor:
        # Overlap-add, divided by the overlap of the squared windows, without what reaches beyond the first and the last hop.
        n_fft, hop = self.config.n_fft, self.config.hop_length
        window = self.window.float()
        frames = torch.fft.irfft(spectrum, n=n_fft, dim=1) * window[:, None]
        squares = window.square()[None, :, None].expand(1, -1, spectrum.shape[2])
        length = n_fft + hop * (spectrum.shape[2] - 1)
        signal, weight = (
            F.fold(parts, (1, length), (1, n_fft), stride=(1, hop))[:, 0, 0] for parts in (frames, squares)
        )
        padding = (n_fft - hop) // 2
        return signal[:, padding:-padding] / weight[:, padding:-padding]


class _ResidualBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, dim, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv1d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        changed = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(changed)))


class _AttentionBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(dim, dim, 1) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (layer(normed).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(query, key, value)
        return hidden + self.proj_out(attended[:, 0].transpose(1, 2))


class _ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, intermediate_dim), nn.Linear(intermediate_dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        changed = self.norm(self.dwconv(hidden.transpose(1, 2)).transpose(1, 2))
        return hidden + self.gamma * self.pwconv2(F.gelu(self.pwconv1(changed)))


def _interpolated(tokens: torch.Tensor, token_times: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Tokens at instants between theirs, linearly; before the first and after the last one, these."""
    after = torch.searchsorted(token_times.contiguous(), times).clamp(1, max(len(token_times) - 1, 1))
    if len(token_times) == 1:
        return tokens.expand(-1, len(times), -1)
    start, end = token_times[after - 1], token_times[after]
    share = ((times - start) / (end - start)).clamp(0, 1)[:, None].to(tokens.dtype)
    return tokens[:, after - 1] * (1 - share) + tokens[:, after] * share
