"""Decoders of plan tokens: small pictures and a mel spectrogram, before anything is rendered. Ours.

A plan is sparse: a few keyframes and 10 to 25 audio tokens a second. Each decoder reads the few tokens around an instant and
the position of the instant between them, so it also draws moments between two keyframes.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin


_NUM_FREQUENCIES = 4  # of an instant's phase between two tokens


class _TokensAround(nn.Module):
    """The tokens around instants, mixed into one hidden state each, by where the instant lies between its neighbours."""

    def __init__(self, token_dim: int, hidden_dim: int, token_rate: float, num_neighbours: int) -> None:
        super().__init__()
        if num_neighbours < 2 or num_neighbours % 2:
            raise ValueError(f"`num_neighbours` is {num_neighbours}, but must be even: as many before as after.")
        self.token_rate = token_rate
        self.num_neighbours = num_neighbours
        self.mix = nn.Linear(num_neighbours * token_dim, hidden_dim)
        self.modulate = nn.Linear(2 * _NUM_FREQUENCIES, 2 * hidden_dim)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, tokens: torch.Tensor, token_times: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """
        Args:
            tokens (`torch.Tensor` of shape `(batch_size, num_instants, ..., token_dim)`): in order of time.
            token_times (`torch.Tensor` of shape `(num_instants,)`): in seconds.
            times (`torch.Tensor` of shape `(num_times,)` or `(batch_size, num_times)`): in seconds.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_times, ..., hidden_dim)`.
        """
        times = times.expand(len(tokens), -1).contiguous()
        last = torch.searchsorted(token_times, times, right=True) - 1  # -1 before the first token
        start = token_times[last.clamp(min=0)] - (last < 0) / self.token_rate
        phase = ((times - start) * self.token_rate).clamp(0, 1)
        half = self.num_neighbours // 2
        around = last[..., None] + torch.arange(1 - half, 1 + half, device=last.device)
        clips = torch.arange(len(tokens), device=last.device)[:, None, None]
        near = tokens[clips, around.clamp(0, tokens.shape[1] - 1)]  # (batch, times, neighbours, ..., dim)
        hidden = self.mix(near.movedim(2, -2).flatten(-2))
        angles = 2 * math.pi * phase[..., None] * torch.arange(1, 1 + _NUM_FREQUENCIES, device=phase.device)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(hidden.dtype)
        scale, shift = self.modulate(waves).unflatten(1, (-1, *[1] * (hidden.ndim - 3))).chunk(2, dim=-1)
        return F.silu(hidden * (1 + scale) + shift)


class VideoPlanDecoder(ModelMixin, ConfigMixin):
    """
    Small pictures from video plan tokens, at any instants.

    Args:
        video_dim (`int`): width of a token.
        video_grid (`tuple[int, int]`): rows and columns of tokens per keyframe.
        keyframe_rate (`float`): keyframes per second.
        height (`int`, defaults to 64): of a picture in pixels: 8 times a multiple of the grid's rows.
        width (`int`, defaults to 64): likewise, of its columns.
        hidden_dim (`int`, defaults to 128): width of the mixed tokens.
        channels (`tuple[int, int, int]`, defaults to `(48, 32, 24)`): of the maps of an eighth, a quarter and a half of the size.
        num_neighbours (`int`, defaults to 4): number of keyframes around an instant that the decoder reads.

    Raises:
        ValueError: if the size is no such multiple, or `num_neighbours` is odd.
    """

    _skip_layerwise_casting_patterns = ["modulate"]

    @register_to_config
    def __init__(
        self,
        video_dim: int,
        video_grid: tuple[int, int],
        keyframe_rate: float,
        height: int = 64,
        width: int = 64,
        hidden_dim: int = 128,
        channels: tuple[int, int, int] = (48, 32, 24),
        num_neighbours: int = 4,
    ) -> None:
        super().__init__()
        rows, columns = video_grid
        if height % (8 * rows) or width % (8 * columns):
            raise ValueError(
                f"`height` and `width` are {height} and {width}, but must be multiples of {8 * rows} and {8 * columns}, 8 times the "
                f"grid of {rows} x {columns} tokens."
            )
        first, second, third = channels
        self.cell = height // (8 * rows), width // (8 * columns)  # of a token, in the smallest map
        self.around = _TokensAround(video_dim, hidden_dim, keyframe_rate, num_neighbours)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.to_cells = nn.Linear(hidden_dim, first * math.prod(self.cell))
        self.blocks = nn.ModuleList(
            [
                nn.Conv2d(first, first, 3, padding=1),
                nn.Conv2d(first, second, 3, padding=1),
                nn.Conv2d(second, second, 3, padding=1),
                nn.Conv2d(second, third, 3, padding=1),
                nn.Conv2d(third, third, 3, padding=1),
            ]
        )
        self.to_pixels = nn.Conv2d(third, 12, 3, padding=1)

    def forward(self, video_tokens: torch.Tensor, video_times: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """
        Args:
            video_tokens (`torch.Tensor` of shape `(batch_size, num_video_tokens, video_dim)`): as in a `SemanticPlan`.
            video_times (`torch.Tensor` of shape `(num_video_tokens,)`): each token's keyframe time in seconds.
            times (`torch.Tensor` of shape `(num_frames,)` or `(batch_size, num_frames)`): the instants to draw, in seconds.

        Returns:
            `torch.Tensor` of shape `(batch_size, 3, num_frames, height, width)`, about in [-1, 1].

        Raises:
            ValueError: if the tokens are not whole keyframes.
        """
        rows, columns = self.config.video_grid
        keyframes, keyframe_times = by_keyframe(video_tokens, video_times, rows * columns)
        hidden = self.around(keyframes, keyframe_times, times.to(keyframe_times))
        hidden = hidden + F.silu(self.hidden(hidden))
        maps = self.to_cells(hidden).flatten(0, 1).unflatten(1, (rows, columns)).unflatten(-1, (*self.cell, -1))
        maps = (
            maps.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        )  # (pictures, channels, height / 8, width / 8)
        refine, to_quarter, refine_quarter, to_half, refine_half = self.blocks
        maps = maps + F.silu(refine(maps))
        maps = F.silu(to_quarter(F.interpolate(maps, scale_factor=2)))
        maps = maps + F.silu(refine_quarter(maps))
        maps = F.silu(to_half(F.interpolate(maps, scale_factor=2)))
        maps = maps + F.silu(refine_half(maps))
        pictures = F.pixel_shuffle(self.to_pixels(maps), 2)
        return pictures.unflatten(0, (len(video_tokens), -1)).transpose(1, 2)


def by_keyframe(
    video_tokens: torch.Tensor, video_times: torch.Tensor, tokens_per_keyframe: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Tokens `(batch_size, num_keyframes, tokens_per_keyframe, video_dim)` and the keyframes' times `(num_keyframes,)`.

    Raises:
        ValueError: if the tokens are not whole keyframes.
    """
    if video_tokens.shape[1] % tokens_per_keyframe or not video_tokens.shape[1]:
        raise ValueError(
            f"a plan of {video_tokens.shape[1]} video tokens, but a keyframe has {tokens_per_keyframe}: give the plan of a planner or a "
            "semantic encoder of this checkpoint."
        )
    return video_tokens.unflatten(1, (-1, tokens_per_keyframe)), video_times[::tokens_per_keyframe].contiguous()


class AudioPlanDecoder(ModelMixin, ConfigMixin):
    """
    A mel spectrogram from audio plan tokens, for the vocoder.

    Args:
        audio_dim (`int`): width of a token.
        audio_rate (`float`): tokens per second.
        sampling_rate (`int`, defaults to 16000): samples per second of the sound.
        hop_length (`int`, defaults to 256): samples from one mel frame to the next.
        mel_bins (`int`, defaults to 64): bins of a mel frame.
        hidden_dim (`int`, defaults to 128): width of the mixed tokens.
        num_layers (`int`, defaults to 2): convolutions over mel frames.
        num_neighbours (`int`, defaults to 4): number of tokens around an instant that the decoder reads.

    Raises:
        ValueError: if `num_neighbours` is odd.
    """

    gives_waveform = False  # but a spectrogram
    _skip_layerwise_casting_patterns = ["modulate", "mel_mean", "mel_std"]

    @register_to_config
    def __init__(
        self,
        audio_dim: int,
        audio_rate: float,
        sampling_rate: int = 16_000,
        hop_length: int = 256,
        mel_bins: int = 64,
        hidden_dim: int = 128,
        num_layers: int = 2,
        num_neighbours: int = 4,
    ) -> None:
        super().__init__()
        self.around = _TokensAround(audio_dim, hidden_dim, audio_rate, num_neighbours)
        self.layers = nn.ModuleList(nn.Conv1d(hidden_dim, hidden_dim, 3, padding=1) for _ in range(num_layers))
        self.to_mel = nn.Conv1d(hidden_dim, mel_bins, 1)
        # What a mel bin is like on average, so that the layers work with numbers about 1.
        self.register_buffer("mel_mean", torch.zeros(mel_bins))
        self.register_buffer("mel_std", torch.ones(mel_bins))

    def forward(self, audio_tokens: torch.Tensor, audio_times: torch.Tensor, num_samples: int) -> torch.Tensor:
        """
        Args:
            audio_tokens (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_dim)`): as in a `SemanticPlan`.
            audio_times (`torch.Tensor` of shape `(num_audio_tokens,)`): the middle of each token in seconds.
            num_samples (`int`): samples that the spectrogram covers, or more.

        Returns:
            `torch.Tensor` of shape `(batch_size, mel_bins, num_mel_frames)`, natural logarithm of magnitudes.
        """
        config = self.config
        num_frames = math.ceil(num_samples / config.hop_length)
        times = (torch.arange(num_frames, device=audio_times.device) + 0.5) * (
            config.hop_length / config.sampling_rate
        )
        hidden = self.around(audio_tokens, audio_times, times.to(audio_times)).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        return self.to_mel(hidden) * self.mel_std[:, None] + self.mel_mean[:, None]
