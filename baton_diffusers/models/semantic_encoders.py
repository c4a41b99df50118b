"""What plan tokens mean: features of frozen encoders, at keyframes of the picture and in chunks of the sound."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from transformers import EncodecConfig, EncodecModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.encodec.modeling_encodec import EncodecEncoder

from ..coordinates import audio_plan_times, clip_duration, keyframe_times, nearest_frames, num_samples, plan_layout
from ..plan import SemanticPlan


class VideoSemanticEncoder(ModelMixin, ConfigMixin):
    r"""
    Semantic tokens of keyframes: penultimate-layer features of a SigLIP vision tower, averaged onto a coarse grid.

    Baton (arXiv:2605.25195) takes `google/siglip2-so400m-patch14-384`: 27x27 patches of width 1152, here pooled to 8x8. Only
    what these features need is built: the tower's last layer, its final norm and its pooling head are left out.

    Features are standardised per channel by the buffers `feature_mean` and `feature_std` (ours), which are saved with the
    weights and leave the features as they are until they are set.

    Args:
        vision_config (`dict`): configuration of the `transformers.SiglipVisionModel`, all of its layers counted.
        video_grid (`tuple[int, int]`, defaults to `(8, 8)`): rows and columns of tokens per keyframe.
        keyframe_rate (`float`, defaults to 6.0): keyframes per second.

    Raises:
        ValueError: if `vision_config` has fewer than two layers.
    """

    _no_split_modules = ["SiglipVisionEmbeddings", "SiglipEncoderLayer"]
    _skip_layerwise_casting_patterns = ["position_embedding", "norm"]

    @register_to_config
    def __init__(
        self, vision_config: dict[str, Any], video_grid: tuple[int, int] = (8, 8), keyframe_rate: float = 6.0
    ):
        super().__init__()
        config = SiglipVisionConfig(**vision_config)
        if config.num_hidden_layers < 2:
            raise ValueError(
                f"`vision_config` has {config.num_hidden_layers} layers, but the penultimate one of at least 2 is needed."
            )
        config.num_hidden_layers -= 1
        config.vision_use_head = False
        self.vision_model = SiglipVisionModel(config)
        self.vision_model.post_layernorm = nn.Identity()
        self.register_buffer("feature_mean", torch.zeros(config.hidden_size))
        self.register_buffer("feature_std", torch.ones(config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, image_size, image_size)`): images in [-1, 1], which is
                how SigLIP normalises.

        Returns:
            `torch.Tensor` of shape `(batch_size, rows * columns, video_dim)`, row by row.
        """
        patches = self.vision_model(pixel_values).last_hidden_state
        grid = self.vision_model.config.image_size // self.vision_model.config.patch_size
        features = patches.transpose(1, 2).unflatten(2, (grid, grid))
        features = F.adaptive_avg_pool2d(features, self.config.video_grid)
        return (features.flatten(2).transpose(1, 2) - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def encode(self, video: torch.Tensor, frame_rate: float) -> torch.Tensor:
        """
        Tokens of a clip's keyframes, each read off the frame nearest to its time, resized to the tower's image size.

        Args:
            video (`torch.Tensor` of shape `(batch_size, 3, num_frames, height, width)`): frames in [-1, 1].
            frame_rate (`float`): frames per second.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_keyframes * rows * columns, video_dim)`, in the order of
            `SemanticPlan.video_tokens`.

        Raises:
            ValueError: if `video` has another shape, or `frame_rate` is not positive.
        """
        self.check_inputs(video, frame_rate)
        batch_size, _, num_frames, _, _ = video.shape
        times = keyframe_times(clip_duration(num_frames, frame_rate), self.config.keyframe_rate)
        nearest = nearest_frames(times, num_frames, frame_rate)
        frames = video[:, :, nearest.to(video.device)].transpose(1, 2).flatten(0, 1)
        image_size = self.vision_model.config.image_size
        frames = F.interpolate(frames.float(), (image_size, image_size), mode="bilinear", antialias=True)
        return self(frames.to(self.dtype)).unflatten(0, (batch_size, -1)).flatten(1, 2)

    def check_inputs(self, video: torch.Tensor, frame_rate: float) -> None:
        """Raises the `ValueError`s of `encode` without encoding anything."""
        if video.ndim != 5 or video.shape[1] != 3 or not video.shape[2]:
            raise ValueError(
                f"`video` has shape {tuple(video.shape)}, but must be (batch_size, 3, num_frames, height, width)."
            )
        if not frame_rate > 0:
            raise ValueError(f"`frame_rate` is {frame_rate}, but must be positive.")


class AudioSemanticEncoder(ModelMixin, ConfigMixin):
    r"""
    Semantic tokens of sound: continuous features of an EnCodec encoder, averaged in time to a fixed number per chunk.

    Baton (arXiv:2605.25195) takes WavTokenizer, whose encoder is EnCodec's: 75 features of width 512 per second at 24 kHz,
    here averaged by three. Standardised as in [`VideoSemanticEncoder`].

    Args:
        audio_config (`dict`): configuration of the `transformers.EncodecModel`; only its encoder is built.
        tokens_per_chunk (`int`, defaults to 25): tokens per chunk.
        chunk_duration (`float`, defaults to 1.0): seconds per chunk.
    """

    _no_split_modules = ["EncodecEncoder"]

    @register_to_config
    def __init__(self, audio_config: dict[str, Any], tokens_per_chunk: int = 25, chunk_duration: float = 1.0):
        super().__init__()
        config = EncodecConfig(**audio_config)
        # EnCodec's own way to draw weights takes a fifth of a second, on tensors without data too.
        has_data = not nn.LayerNorm(1).weight.is_meta
        self.encoder = EncodecModel(config).encoder if has_data else EncodecEncoder(config)
        self.audio_channels = config.audio_channels
        self.sampling_rate = config.sampling_rate
        self.register_buffer("feature_mean", torch.zeros(config.hidden_size))
        self.register_buffer("feature_std", torch.ones(config.hidden_size))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """
        Args:
            waveform (`torch.Tensor` of shape `(batch_size, num_channels, num_samples)`): whole chunks of sound in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_chunks * tokens_per_chunk, audio_dim)`.
        """
        num_chunks = round(waveform.shape[-1] / self.sampling_rate / self.config.chunk_duration)
        features = self.encoder(waveform)
        features = F.adaptive_avg_pool1d(features, num_chunks * self.config.tokens_per_chunk)
        return (features.transpose(1, 2) - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """
        Tokens of a clip's sound. Silence fills the last chunk, whose tokens beyond the end are zero.

        Args:
            waveform (`torch.Tensor` of shape `(batch_size, num_channels, num_samples)`): samples in [-1, 1].
            sampling_rate (`int`): samples per second.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_chunks * tokens_per_chunk, audio_dim)`, in the order of
            `SemanticPlan.audio_tokens`.

        Raises:
            ValueError: if `waveform` has another shape or number of channels, or another sampling rate than the
                encoder's.
        """
        self.check_inputs(waveform, sampling_rate)
        duration = waveform.shape[2] / sampling_rate
        times = audio_plan_times(duration, self.config.tokens_per_chunk, self.config.chunk_duration)
        num_chunks = len(times) // self.config.tokens_per_chunk
        whole = num_samples(num_chunks * self.config.chunk_duration, sampling_rate)
        tokens = self(F.pad(waveform, (0, whole - waveform.shape[2])).to(self.dtype))
        return tokens * (times < duration).to(tokens)[:, None]

    def check_inputs(self, waveform: torch.Tensor, sampling_rate: int) -> None:
        """Raises the `ValueError`s of `encode` without encoding anything."""
        if waveform.ndim != 3 or waveform.shape[1] != self.audio_channels or not waveform.shape[2]:
            raise ValueError(
                f"`waveform` has shape {tuple(waveform.shape)}, but must be (batch_size, {self.audio_channels}, num_samples)."
            )
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate} Hz, but the encoder takes {self.sampling_rate} Hz: resample first."
            )


@torch.no_grad()
def read_plan(
    video_encoder: VideoSemanticEncoder,
    audio_encoder: AudioSemanticEncoder,
    video: torch.Tensor,
    frame_rate: float,
    waveform: torch.Tensor,
    sampling_rate: int,
) -> SemanticPlan:
    """
    Reads the plan off real clips: what `VAPlannerModel` would ideally have predicted from their prompts.

    The frames set the duration. Sound that is up to one frame longer or shorter is cut or filled with silence.

    Args:
        video_encoder (`VideoSemanticEncoder`): encodes the keyframes.
        audio_encoder (`AudioSemanticEncoder`): encodes the sound.
        video (`torch.Tensor` of shape `(batch_size, 3, num_frames, height, width)`): frames in [-1, 1].
        frame_rate (`float`): frames per second.
        waveform (`torch.Tensor` of shape `(batch_size, num_channels, num_samples)`): samples in [-1, 1].
        sampling_rate (`int`): samples per second.

    Raises:
        ValueError: if batch sizes differ, sound and picture differ in length by more than a frame, or an encoder refuses
            its input.
    """
    if video.shape[0] != waveform.shape[0]:
        raise ValueError(f"`video` holds {video.shape[0]} clips and `waveform` {waveform.shape[0]}.")
    video_encoder.check_inputs(video, frame_rate)
    audio_encoder.check_inputs(waveform, sampling_rate)
    duration = clip_duration(video.shape[2], frame_rate)
    audio_duration = waveform.shape[-1] / sampling_rate
    if abs(audio_duration - duration) > 1 / frame_rate:
        raise ValueError(
            f"`video` lasts {duration:.4f} seconds and `waveform` {audio_duration:.4f}: cut one of them to the other."
        )

    video_tokens = video_encoder.encode(video, frame_rate)
    difference = num_samples(duration, sampling_rate) - waveform.shape[-1]
    audio_tokens = audio_encoder.encode(F.pad(waveform, (0, difference)), sampling_rate)

    video, audio = video_encoder.config, audio_encoder.config
    layout = plan_layout(duration, video.keyframe_rate, video.video_grid, audio.tokens_per_chunk, audio.chunk_duration)
    return SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)
