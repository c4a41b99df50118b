"""`DualBranchTransformer`: two Wan-style towers, one for video and one for audio, that denoise a clip together under a plan.

The attention layers are in [`~models.attention_dual_branch`], and among them RS-RoPE (Relative Semantic RoPE), by which a layer finds its
place in the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import BaseOutput, apply_lora_scale
from diffusers.utils.torch_utils import maybe_allow_in_graph

from .. import coordinates
from ..plan import SemanticPlan
from .attention_dual_branch import (
    DualBranchAttention,
    FusionAttention,
    PlanAttention,
    RotaryEmbedding,
    WindowGroups,
    make_windows,
)
from .cache_dual_branch import CleanStream, KeysValues
from .conversion import FromOviFileMixin


@dataclass
class DualBranchTransformerOutput(BaseOutput):
    """What [`DualBranchTransformer`] returns.

    Args:
        sample (`torch.Tensor` of shape `(batch_size, num_channels, num_frames, height, width)`): video velocity, or `None`
            for a clean stream under a cache.
        audio_sample (`torch.Tensor` of shape `(batch_size, audio_length, audio_channels)`): audio velocity, likewise.
    """

    sample: torch.Tensor | None
    audio_sample: torch.Tensor | None


class TimeTextEmbedding(nn.Module):
    """Embeds the timestep and the text of one branch.

    The timestep is `(batch_size,)`, which counts as one row, or `(batch_size, num_rows)`. Each row serves an equal number of
    neighbouring tokens. Returned are the time embedding `(batch_size, num_rows, dim)` for the output head, its projection
    `(batch_size, num_rows, 6, dim)` for the blocks, and the text `(batch_size, text_length, dim)`.

    A flow map also embeds the length of the step, shaped like the timestep. Its layer `step_embedder` starts at zero, and all that a
    student learns of lengths can be a LoRA on it.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int, has_step: bool = False) -> None:
        super().__init__()
        self.time_proj = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(freq_dim, dim)
        if has_step:
            self.add_step_embedder()
        self.act = nn.SiLU()
        self.modulation_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")

    def add_step_embedder(self) -> None:
        """Adds the layer for lengths of steps, at zero."""
        weight = self.time_embedder.linear_1.weight
        self.step_embedder = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(weight.dtype)
        nn.init.zeros_(self.step_embedder.weight).requires_grad_(weight.requires_grad)
        if not weight.is_meta:  # offloaded weights are brought in by hooks
            self.step_embedder.to(weight.device)

    def forward(
        self, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, step: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype, time_dtype = encoder_hidden_states.dtype, self.time_embedder.linear_1.weight.dtype
        temb = self.time_embedder(self._sinusoids(timestep).to(time_dtype)).to(dtype)
        if step is not None:
            temb = temb + self.step_embedder(self._sinusoids(step).to(time_dtype)).to(dtype)
        modulation = self.modulation_proj(self.act(temb)).unflatten(-1, (6, -1))
        return temb, modulation, self.text_embedder(encoder_hidden_states)

    def _sinusoids(self, timestep: torch.Tensor) -> torch.Tensor:
        timestep = timestep.reshape(timestep.shape[0], -1)
        return self.time_proj(timestep.flatten()).unflatten(0, timestep.shape)


class GatedConvMLP(nn.Module):
    """`conv_out(silu(conv_gate(x)) * conv_in(x))` over the length of `(batch_size, dim, length)`."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv_gate = nn.Conv1d(dim, hidden_dim, kernel_size, padding=padding, bias=False)
        self.conv_in = nn.Conv1d(dim, hidden_dim, kernel_size, padding=padding, bias=False)
        self.conv_out = nn.Conv1d(hidden_dim, dim, kernel_size, padding=padding, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.silu(self.conv_gate(hidden_states)) * self.conv_in(hidden_states))


class AudioPatchEmbedding(nn.Module):
    """Embeds audio latents `(batch_size, audio_length, in_channels)` with their neighbours, as Ovi does."""

    def __init__(self, in_channels: int, dim: int, hidden_dim: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, dim, kernel_size, padding=kernel_size // 2)
        self.act = nn.SiLU()
        self.mlp = GatedConvMLP(dim, hidden_dim, kernel_size)

    def forward(self, audio_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.act(self.conv(audio_hidden_states.transpose(1, 2)))).transpose(1, 2)


def modulate(hidden_states: torch.Tensor, norm: nn.Module, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`norm(x) * (1 + scale) + shift`, in float32.

    `x` is `(batch_size, num_tokens, dim)`. Shift and scale are `(batch_size, num_rows, dim)`. Each row serves
    `num_tokens / num_rows` neighbouring tokens: the whole clip, a latent frame, or one token.
    """
    rows = hidden_states.unflatten(1, (shift.shape[1], -1))
    normed = norm(rows.float())
    # A `device_map` may put the norm of the head on another device than the time embedding.
    shift, scale = shift[:, :, None].to(normed.device), scale[:, :, None].to(normed.device)
    return (normed * (1 + scale) + shift).type_as(hidden_states).flatten(1, 2)


def _modulate_head(
    hidden_states: torch.Tensor, norm: nn.Module, table: torch.Tensor, temb: torch.Tensor
) -> torch.Tensor:
    """Normalised states, shifted and scaled by a head's table and the embedded noise level."""
    table, temb = table.to(hidden_states.device), temb.to(hidden_states.device)
    shift, scale = (table[:, None] + temb.float()[:, :, None]).unbind(2)
    return modulate(hidden_states, norm, shift, scale)


def add_gated(hidden_states: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x + update * gate`, in float32, with a gate `(batch_size, num_rows, dim)` as in [`modulate`]."""
    rows, updates = (states.unflatten(1, (gate.shape[1], -1)) for states in (hidden_states, update))
    return (rows + updates * gate[:, :, None].float()).type_as(hidden_states).flatten(1, 2)


@maybe_allow_in_graph
class DualBranchTransformerBlock(nn.Module):
    """One block of both branches.

    Each branch runs self-attention, then text and the other modality, then the plan, then the feed-forward. Both branches
    read the other one's state from after its self-attention. Without `has_plan` there are no plan layers. A branch whose
    state is `None` is not run: the other one reads its keys and values in `clean_video` or `clean_audio`, or nothing.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        audio_ffn_dim: int,
        heads: int,
        eps: float,
        num_context_tokens: int,
        has_plan: bool,
    ) -> None:
        super().__init__()

        # 1. Self-attention
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = DualBranchAttention(dim, heads, eps, is_sharded=True)
        self.audio_norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.audio_attn1 = DualBranchAttention(dim, heads, eps)

        # 2. Text and the other modality
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.attn2 = FusionAttention(dim, heads, eps, num_context_tokens)
        self.audio_norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.audio_attn2 = FusionAttention(dim, heads, eps, num_context_tokens, is_sharded=True)

        # 3. Plan
        if has_plan:
            self.norm_plan = FP32LayerNorm(dim, eps, elementwise_affine=True)
            self.plan_attn = PlanAttention(dim, heads, eps)
            self.audio_norm_plan = FP32LayerNorm(dim, eps, elementwise_affine=True)
            self.audio_plan_attn = PlanAttention(dim, heads, eps)

        # 4. Feed-forward
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.audio_norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.audio_ffn = FeedForward(dim, inner_dim=audio_ffn_dim, activation_fn="gelu-approximate")

        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.audio_scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,  # the audio stream, under the name that diffusers' caches look for
        text_states: torch.Tensor | None,
        audio_text_states: torch.Tensor | None,
        modulation: torch.Tensor | None,
        audio_modulation: torch.Tensor | None,
        rotary_emb: RotaryEmbedding,
        audio_rotary_emb: RotaryEmbedding,
        video_reads_audio: bool | torch.Tensor = True,
        audio_reads_video: bool | torch.Tensor = True,
        video_plan: tuple[torch.Tensor, RotaryEmbedding, torch.Tensor | None] | None = None,
        audio_plan: tuple[torch.Tensor, RotaryEmbedding, torch.Tensor | None] | None = None,
        audio_windows: WindowGroups | None = None,
        video_windows: WindowGroups | None = None,
        clean_video: KeysValues | None = None,
        clean_audio: KeysValues | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        audio_states = encoder_hidden_states
        has_video, has_audio = hidden_states is not None, audio_states is not None

        # 1. Self-attention
        if has_video:
            shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (
                self.scale_shift_table[:, None] + modulation.float()
            ).unbind(2)
            normed = modulate(hidden_states, self.norm1, shift_sa, scale_sa)
            hidden_states = add_gated(hidden_states, self.attn1(normed, rotary_emb), gate_sa)
        if has_audio:
            a_shift_sa, a_scale_sa, a_gate_sa, a_shift_ff, a_scale_ff, a_gate_ff = (
                self.audio_scale_shift_table[:, None] + audio_modulation.float()
            ).unbind(2)
            normed = modulate(audio_states, self.audio_norm1, a_shift_sa, a_scale_sa)
            audio_states = add_gated(audio_states, self.audio_attn1(normed, audio_rotary_emb), a_gate_sa)

        # 2. Text and the other modality: both branches read the states from before this step
        if has_video:
            update = self.attn2(
                self.norm2(hidden_states),
                text_states,
                audio_states,
                rotary_emb,
                audio_rotary_emb,
                video_reads_audio,
                audio_windows,
                clean_audio,
            )
        if has_audio:
            audio_update = self.audio_attn2(
                self.audio_norm2(audio_states),
                audio_text_states,
                hidden_states,
                audio_rotary_emb,
                rotary_emb,
                audio_reads_video,
                video_windows,
                clean_video,
            )
            audio_states = audio_states + audio_update
        if has_video:
            hidden_states = hidden_states + update

        # 3. Plan
        if has_video and video_plan is not None:
            plan_states, plan_rotary_emb, plan_mask = video_plan
            hidden_states = hidden_states + self.plan_attn(
                self.norm_plan(hidden_states), plan_states, rotary_emb, plan_rotary_emb, plan_mask
            )
        if has_audio and audio_plan is not None:
            plan_states, plan_rotary_emb, plan_mask = audio_plan
            audio_states = audio_states + self.audio_plan_attn(
                self.audio_norm_plan(audio_states),
                plan_states,
                audio_rotary_emb,
                plan_rotary_emb,
                plan_mask,
            )

        # 4. Feed-forward
        if has_video:
            normed = modulate(hidden_states, self.norm3, shift_ff, scale_ff)
            hidden_states = add_gated(hidden_states, self.ffn(normed), gate_ff)
        if has_audio:
            normed = modulate(audio_states, self.audio_norm3, a_shift_ff, a_scale_ff)
            audio_states = add_gated(audio_states, self.audio_ffn(normed), a_gate_ff)

        return hidden_states, audio_states


TransformerBlockRegistry.register(
    model_class=DualBranchTransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)


# diffusers' caches for whole blocks that would run on this model and return wrong results.
_FAULTS_OF_CACHES = {
    MagCacheConfig: "keeps only the video stream, and loses the sound in each step that it skips",
    SeaCacheConfig: "extrapolates only the video stream, and leaves the sound at an earlier step",
    PyramidAttentionBroadcastConfig: "reuses the attention of one guidance pass in the next pass",
    FasterCacheConfig: "expects all guidance passes in one batch, but each pass is a forward of its own",
    TextKVCacheConfig: "is for another model's blocks",
}


class DualBranchTransformer(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin, FromOviFileMixin):
    r"""
    Two Wan-style towers with Ovi's block order and fusion attention, and Baton's plan attention (arXiv:2605.25195) after
    the text in every block. Predicts the velocities of flow matching for video and audio latents.

    Args:
        patch_size (`tuple[int, int, int]`, defaults to `(1, 2, 2)`): video latents in each token along time, height and width;
            1 along time.
        in_channels (`int`, defaults to 48): channels of the video latents.
        out_channels (`int`, defaults to 48): channels of the video velocity.
        audio_in_channels (`int`, defaults to 20): channels of the audio latents.
        audio_out_channels (`int`, defaults to 20): channels of the audio velocity.
        num_layers (`int`, defaults to 30): number of blocks.
        num_attention_heads (`int`, defaults to 24): heads of each branch.
        attention_head_dim (`int`, defaults to 128): channels of each head. Heads times channels is the width of each branch.
        ffn_dim (`int`, defaults to 14336): inner width of the video feed-forward.
        audio_ffn_dim (`int`, defaults to 14336): inner width of the audio feed-forward.
        audio_patch_hidden_dim (`int`, *optional*): inner width of the audio patch embedding; by default Ovi's: 8/3 of the
            width, rounded up to a multiple of 256.
        text_dim (`int`, defaults to 4096): width of the text encoder's output.
        freq_dim (`int`, defaults to 256): channels of the timestep sinusoids.
        eps (`float`, defaults to 1e-6): epsilon of all norms.
        frame_rate (`float`, defaults to 24.0): pixel frames per second.
        temporal_stride (`int`, defaults to 4): pixel frames for each video latent frame.
        audio_latent_rate (`float`, defaults to 31.25): audio latents per second.
        audio_rope_scale (`float`, *optional*): video latent frames for each audio latent. Ovi's weights need 0.19676, a
            linear map. By default the exact map of `coordinates.py` is used.
        audio_latent_min_coverage (`float`, defaults to 0.0): share of the last audio latent that must lie within the clip, or
            the latent is left out; less than 1. By default the latents cover the whole clip. See
            `coordinates.num_audio_latents`.
        video_plan_dim (`int`, *optional*): width of the video plan tokens. By default there are no plan layers.
        audio_plan_dim (`int`, *optional*): width of the audio plan tokens. Give it if and only if you give `video_plan_dim`.
        num_context_tokens (`int`, defaults to 0): learnable context tokens for each block and direction. A branch reads them
            beside the other modality, and alone if it does not read the other modality. 0 is Ovi's form. See
            [`FusionAttention`].
        cross_modal_window (`int`, *optional*): length, in video latent frames, of the window of audio that a video latent
            frame reads (CCL's TARP: 3), see `coordinates.audio_windows`. By default, or if the window is at least as long as
            the clip, each video token reads all of the audio.
        audio_cross_modal_window (`int`, *optional*): how many video latent frames an audio token reads (TARP: 1), an odd
            number, see `coordinates.video_windows`. Give it if and only if you give `cross_modal_window`.
        is_flow_map (`bool`, defaults to `False`): whether the model takes the noise level at which a step ends, and predicts the mean
            velocity until there. See [`make_flow_map`].

    Raises:
        ValueError: if a value is out of the range described here.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DualBranchTransformerBlock"]
    _repeated_blocks = ["DualBranchTransformerBlock"]
    # The video's tokens are split. The audio stream is a hundredth as long: each process runs all of it.
    _cp_plan = {
        "shard": {"input": ContextParallelInput(split_dim=1)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "plan_embedder", "norm", "proj_out"]
    _keep_in_fp32_modules = [
        "time_embedder",
        "step_embedder",
        "scale_shift_table",
        "audio_scale_shift_table",
        "norm1",
        "audio_norm1",
        "norm2",
        "audio_norm2",
        "norm3",
        "audio_norm3",
        "norm_fusion",
        "norm_plan",
        "audio_norm_plan",
    ]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 48,
        out_channels: int = 48,
        audio_in_channels: int = 20,
        audio_out_channels: int = 20,
        num_layers: int = 30,
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        ffn_dim: int = 14336,
        audio_ffn_dim: int = 14336,
        audio_patch_hidden_dim: int | None = None,
        text_dim: int = 4096,
        freq_dim: int = 256,
        eps: float = 1e-6,
        frame_rate: float = 24.0,
        temporal_stride: int = 4,
        audio_latent_rate: float = 31.25,
        audio_rope_scale: float | None = None,
        audio_latent_min_coverage: float = 0.0,
        video_plan_dim: int | None = None,
        audio_plan_dim: int | None = None,
        num_context_tokens: int = 0,
        cross_modal_window: int | None = None,
        audio_cross_modal_window: int | None = None,
        is_flow_map: bool = False,
    ) -> None:
        super().__init__()
        if patch_size[0] != 1:
            raise ValueError(
                f"`patch_size` is {tuple(patch_size)}, but a token covers one latent frame: use {(1, *patch_size[1:])}."
            )
        if (video_plan_dim is None) != (audio_plan_dim is None):
            raise ValueError(
                f"`video_plan_dim` is {video_plan_dim} and `audio_plan_dim` is {audio_plan_dim}: give both or neither."
            )
        if not 0.0 <= audio_latent_min_coverage < 1.0:
            raise ValueError(
                f"`audio_latent_min_coverage` is {audio_latent_min_coverage}, but must be a share from 0.0 to below 1.0."
            )
        if num_context_tokens < 0:
            raise ValueError(f"`num_context_tokens` is {num_context_tokens}: use 0 for none.")
        if (cross_modal_window is None) != (audio_cross_modal_window is None):
            raise ValueError(
                f"`cross_modal_window` is {cross_modal_window} and `audio_cross_modal_window` is "
                f"{audio_cross_modal_window}: give both (TARP: 3 and 1) or neither."
            )
        if cross_modal_window is not None and cross_modal_window < 1:
            raise ValueError(f"`cross_modal_window` is {cross_modal_window}: use at least 1 latent frame, or None.")
        if audio_cross_modal_window is not None and (
            audio_cross_modal_window < 1 or audio_cross_modal_window % 2 == 0
        ):
            raise ValueError(
                f"`audio_cross_modal_window` is {audio_cross_modal_window}, but is centred on one latent frame: "
                "use 1, 3, 5, ..., or None."
            )

        dim = num_attention_heads * attention_head_dim
        if audio_patch_hidden_dim is None:
            audio_patch_hidden_dim = 256 * math.ceil(8 * dim // 3 / 256)

        # 1. Patches
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.audio_patch_embedding = AudioPatchEmbedding(audio_in_channels, dim, audio_patch_hidden_dim)

        # 2. Time, text, plan
        self.condition_embedder = TimeTextEmbedding(dim, freq_dim, text_dim, is_flow_map)
        self.audio_condition_embedder = TimeTextEmbedding(dim, freq_dim, text_dim, is_flow_map)
        has_plan = video_plan_dim is not None
        if has_plan:
            self.plan_embedder = PixArtAlphaTextProjection(video_plan_dim, dim, act_fn="gelu_tanh")
            self.audio_plan_embedder = PixArtAlphaTextProjection(audio_plan_dim, dim, act_fn="gelu_tanh")

        # 3. Blocks
        self.blocks = nn.ModuleList(
            DualBranchTransformerBlock(
                dim, ffn_dim, audio_ffn_dim, num_attention_heads, eps, num_context_tokens, has_plan
            )
            for _ in range(num_layers)
        )

        # 4. Heads
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.audio_norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.audio_proj_out = nn.Linear(dim, audio_out_channels)
        self.audio_scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

        # 5. Context parallelism splits the video tokens here. Otherwise this is the identity.
        self.shard = nn.Identity()

        self.gradient_checkpointing = False

    def make_flow_map(self, is_flow_map: bool = True) -> None:
        """
        Adds the layers for the end of a step, at zero: the model predicts what it did before, bit for bit, until they are trained or
        a flow map's adapter is loaded onto them. `False` takes them away.
        """
        if is_flow_map == self.config.is_flow_map:
            return
        for embedder in (self.condition_embedder, self.audio_condition_embedder):
            if is_flow_map:
                embedder.add_step_embedder()
            else:
                del embedder.step_embedder
        self.register_to_config(is_flow_map=is_flow_map)

    def cache_bytes(self, num_tokens: int, batch_size: int = 1) -> int:
        """Bytes of the keys and values of a [`CleanStream`] of so many tokens, in all blocks and in the model's dtype.

        For Ovi's 10 s at 960x960, 61 x 30 x 30 video tokens, they are 20 GB. Context tokens count too. Guidance keeps a
        stream for each pass that reads one.
        """
        dim = self.config.num_attention_heads * self.config.attention_head_dim
        return 2 * len(self.blocks) * batch_size * num_tokens * dim * self.dtype.itemsize

    def enable_cache(self, config) -> None:
        """
        As in diffusers: reuses over the denoising steps what changes little. Some of diffusers' caches do not support two
        streams or several guidance passes. They are refused.

        Args:
            config (`FirstBlockCacheConfig` or `TaylorSeerCacheConfig`): the first skips all blocks but the first one if the
                first block's video stream has changed little. To compare, diffusers reads one value from the device in each pass
                (`.item()`), so the CPU waits for the GPU there. The second extrapolates the attention layers, by default all of
                them; it must be in its full form.

        Raises:
            ValueError: if it is another cache, TaylorSeer's lite mode, or one is enabled already.
        """
        fault = _FAULTS_OF_CACHES.get(type(config))
        if isinstance(config, TaylorSeerCacheConfig):
            if config.use_lite_mode:
                fault = "in its lite mode loses the sound in each step that it skips: leave out `use_lite_mode`"
            elif config.cache_identifiers is None and config.skip_predict_identifiers is None:
                # diffusers' own pattern for attention modules misses names that end in a digit.
                config = replace(config, cache_identifiers=[r"blocks\.\d+\..*attn\d?"])
        if fault is not None:
            raise ValueError(
                f"{type(config).__name__} {fault}. `FirstBlockCacheConfig` and `TaylorSeerCacheConfig` suit this model."
            )
        super().enable_cache(config)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_timestep: torch.Tensor | None = None,
        audio_encoder_hidden_states: torch.Tensor | None = None,
        plan: SemanticPlan | None = None,
        video_reads_audio: bool | torch.Tensor = True,
        audio_reads_video: bool | torch.Tensor = True,
        skip_layers: Sequence[int] | None = None,
        reference_audio_hidden_states: torch.Tensor | None = None,
        clean_video: CleanStream | None = None,
        clean_audio: CleanStream | None = None,
        next_timestep: torch.Tensor | None = None,
        audio_next_timestep: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> DualBranchTransformerOutput | tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_channels, num_frames, height, width)`): video latents.
            audio_hidden_states (`torch.Tensor` of shape `(batch_size, audio_length, audio_channels)`): audio latents.
            timestep (`torch.Tensor` of shape `(batch_size,)`, `(batch_size, num_frames)` or `(batch_size, num_video_tokens)`):
                noise level of the video in [0, 1000], one for each sample, latent frame or token; 0 is clean. One for each
                frame costs no memory, one for each token about 12 times the video's hidden states.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, text_length, text_dim)`): the text, zero-padded.
                The padding is attended, as in Ovi.
            audio_timestep (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, audio_length)`, *optional*): noise
                level of the audio; by default the video's, if it is one for each sample.
            audio_encoder_hidden_states (`torch.Tensor`, *optional*): text for the audio branch; by default the video's.
            plan (`SemanticPlan`, *optional*): the plan. Without one the plan layers are skipped.
            video_reads_audio (`bool` or `torch.Tensor` of shape `(batch_size,)`, defaults to `True`): whether the video
                branch reads the audio branch, for the batch or for each sample (CCL's routing, arXiv:2603.18600). A sample
                that does not reads only the context tokens, if the model has any. No bit of its video then depends on the
                audio, and the other samples stay the same.
            audio_reads_video (`bool` or `torch.Tensor` of shape `(batch_size,)`, defaults to `True`): the mirror.
            skip_layers (`Sequence[int]`, *optional*): blocks to skip, as Ovi does in the negative pass.
            reference_audio_hidden_states (`torch.Tensor` of shape `(batch_size, reference_length, audio_channels)`,
                *optional*): clean audio latents that give the clip its style (Harmony's global path, arXiv:2511.21579). They
                precede the audio, have timestep 0, and read the whole video, whatever the windows. The audio reads them in
                its self-attention, the video does not. Ours: their times end where the clip begins
                (`coordinates.reference_audio_times`).
            clean_video (`CleanStream`, *optional*): states that the video is clean, whatever `timestep` says, and is the same in
                every forward with this object. The first forward runs the video's branch, if the audio reads it; later ones
                do not. The video's velocity is `None`. Needs `video_reads_audio=False` and no gradients.
            clean_audio (`CleanStream`, *optional*): the mirror.
            next_timestep (`torch.Tensor`, shaped like `timestep`, *optional*): for a flow map, the noise level of the video at the end of
                the step. The velocity is then the mean one from `timestep` to there.
            audio_next_timestep (`torch.Tensor`, shaped like `audio_timestep`, *optional*): the mirror. Give both or neither.
            attention_kwargs (`dict`, *optional*): `scale` is the weight of loaded LoRA layers.
            return_dict (`bool`, defaults to `True`): whether to return an output object instead of a tuple.

        Returns:
            [`DualBranchTransformerOutput`] or a tuple: velocities shaped like the latents.

        Raises:
            ValueError: if a shape, a visibility, the plan's widths or `skip_layers` do not fit this model or the latents; if
                a clean stream reads the other one, or is given while gradients are recorded or while one of diffusers' caches
                is enabled; if the end of a step is given to a model that is no flow map.
        """
        self._check_inputs(
            hidden_states,
            audio_hidden_states,
            timestep,
            audio_timestep,
            encoder_hidden_states,
            audio_encoder_hidden_states,
            plan,
            (video_reads_audio, audio_reads_video),
            skip_layers,
            reference_audio_hidden_states,
            (clean_video, clean_audio),
            (next_timestep, audio_next_timestep),
        )
        batch_size, _, num_frames, height, width = hidden_states.shape
        p_t, p_h, p_w = self.config.patch_size
        grid = (num_frames // p_t, height // p_h, width // p_w)
        audio_length = audio_hidden_states.shape[1]
        reference_length = 0 if reference_audio_hidden_states is None else reference_audio_hidden_states.shape[1]
        device = hidden_states.device
        layers = [index for index in range(len(self.blocks)) if skip_layers is None or index not in skip_layers]
        if audio_timestep is None:
            audio_timestep = timestep
        if audio_encoder_hidden_states is None:
            audio_encoder_hidden_states = encoder_hidden_states

        # A clean stream is run only if the other modality reads it, and by the first forward.
        has_video, has_audio = clean_video is None, clean_audio is None
        step = audio_step = None  # a flow map's
        if next_timestep is not None:
            step, audio_step = timestep - next_timestep, audio_timestep - audio_next_timestep
        if clean_video is not None:
            timestep, step = torch.zeros_like(timestep), None if step is None else torch.zeros_like(step)
            has_video = audio_reads_video is not False and not clean_video.is_filled(layers)
        if clean_audio is not None:
            audio_timestep = torch.zeros_like(audio_timestep)
            audio_step = None if audio_step is None else torch.zeros_like(audio_step)
            has_audio = video_reads_audio is not False and not clean_audio.is_filled(layers)

        # 1. Patches, with the reference audio before the audio
        states = audio_states = None
        if has_video:
            states = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        if has_audio:
            audio_states = self.audio_patch_embedding(audio_hidden_states)
            if reference_audio_hidden_states is not None:
                reference_states = self.audio_patch_embedding(reference_audio_hidden_states)
                audio_states = torch.cat([reference_states, audio_states], dim=1)
                audio_timestep, audio_step = (
                    None
                    if x is None
                    else F.pad(x.reshape(batch_size, -1).expand(-1, audio_length), (reference_length, 0))
                    for x in (audio_timestep, audio_step)
                )

        # 2. Positions in the shared frame, and windows around them
        rotary_emb = self._rotary_embedding(coordinates.video_latent_coordinates(*grid), device)
        audio_positions = self._audio_coordinates(reference_length, audio_length)
        audio_rotary_emb = self._rotary_embedding(audio_positions, device)
        audio_windows, video_windows = self._windows(grid, reference_length, audio_length, device)

        # 3. Context parallelism: this process keeps its share of the video tokens
        cos, sin = rotary_emb
        rotary_emb = self.shard(cos), self.shard(sin)
        if has_video:
            num_tokens = states.shape[1]
            states = self.shard(states)
            if timestep.ndim == 2 and states.shape[1] < num_tokens:
                timestep, step = (
                    None if x is None else self.shard(x.repeat_interleave(num_tokens // x.shape[1], dim=1))
                    for x in (timestep, step)
                )

        # 4. Time, text, plan
        modulation = audio_modulation = text_states = audio_text_states = video_plan = audio_plan = None
        if has_video:
            temb, modulation, text_states = self.condition_embedder(timestep, encoder_hidden_states, step)
            if plan is not None:
                video_plan = self._embed_video_plan(plan, grid, hidden_states)
        if has_audio:
            audio_temb, audio_modulation, audio_text_states = self.audio_condition_embedder(
                audio_timestep, audio_encoder_hidden_states, audio_step
            )
            if plan is not None:
                audio_plan = self._embed_audio_plan(plan, audio_hidden_states)

        # 5. Blocks
        for index in layers:
            inputs = (
                states,
                audio_states,
                text_states,
                audio_text_states,
                modulation,
                audio_modulation,
                rotary_emb,
                audio_rotary_emb,
                video_reads_audio,
                audio_reads_video,
                video_plan,
                audio_plan,
                audio_windows,
                video_windows,
                None if clean_video is None or audio_reads_video is False else clean_video.block(index),
                None if clean_audio is None or video_reads_audio is False else clean_audio.block(index),
            )
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                states, audio_states = self._gradient_checkpointing_func(self.blocks[index], *inputs)
            else:
                states, audio_states = self.blocks[index](*inputs)

        # 6. Heads, and patches back to latents
        sample = audio_sample = None
        if clean_video is None:
            sample = self.proj_out(_modulate_head(states, self.norm_out, self.scale_shift_table, temb))
            sample = sample.reshape(batch_size, *grid, p_t, p_h, p_w, -1)
            sample = sample.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if clean_audio is None:
            audio_states = _modulate_head(audio_states, self.audio_norm_out, self.audio_scale_shift_table, audio_temb)
            audio_sample = self.audio_proj_out(audio_states)[:, reference_length:]

        if not return_dict:
            return sample, audio_sample
        return DualBranchTransformerOutput(sample=sample, audio_sample=audio_sample)

    def _rotary_embedding(self, positions: torch.Tensor, device: torch.device) -> RotaryEmbedding:
        axes_dims = coordinates.rotary_axes_dims(self.config.attention_head_dim)
        return coordinates.rotary_embedding(positions.to(device, non_blocking=True), axes_dims)

    def _audio_coordinates(self, reference_length: int, audio_length: int) -> torch.Tensor:
        """Latent coordinates of the reference audio, if any, and the audio."""
        rate = self.config.audio_latent_rate
        times = coordinates.audio_latent_times(audio_length, rate)
        if reference_length > 0:
            times = torch.cat([coordinates.reference_audio_times(reference_length, rate), times])
        return self._sound_coordinates(times)

    def _sound_coordinates(self, times: torch.Tensor) -> torch.Tensor:
        config = self.config
        return coordinates.audio_coordinates(
            times, config.audio_latent_rate, config.audio_rope_scale, config.frame_rate, config.temporal_stride
        )

    def _windows(
        self, grid: tuple[int, int, int], reference_length: int, audio_length: int, device: torch.device
    ) -> tuple[WindowGroups | None, WindowGroups | None]:
        """The windows of audio that video tokens read, and the mirror, see [`make_windows`]."""
        config = self.config
        num_frames, tokens_per_frame = grid[0], grid[1] * grid[2]
        # A compiled graph makes its own windows: what it traces are no real tensors, and must not be kept.
        make = make_windows.__wrapped__ if torch.compiler.is_compiling() else make_windows
        return make(
            num_frames,
            tokens_per_frame,
            reference_length,
            audio_length,
            config.cross_modal_window,
            config.audio_cross_modal_window,
            (config.frame_rate, config.temporal_stride, config.audio_latent_rate),
            config.num_context_tokens,
            self._own_tokens(num_frames * tokens_per_frame),
            device,
        )

    def _own_tokens(self, num_tokens: int) -> range:
        """The video tokens of this process. Under context parallelism they are the share that diffusers' sharders give it."""
        config = None if self._parallel_config is None else self._parallel_config.context_parallel_config
        if config is None:
            return range(num_tokens)
        mesh = config._flattened_mesh
        size, larger = divmod(num_tokens, mesh.size())
        rank = torch.distributed.get_rank(mesh.get_group())
        first = rank * size + min(rank, larger)
        return range(first, first + size + (rank < larger))

    def _embed_video_plan(
        self, plan: SemanticPlan, grid: tuple[int, int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor, RotaryEmbedding, torch.Tensor | None]:
        """Plan tokens of the video through their latent MLP, with their rotary embedding and their mask."""
        # Tensor by tensor: `plan.to` breaks the graph of a compiled model.
        positions = coordinates.video_plan_coordinates(
            plan.video_times, plan.video_centres, self.config.frame_rate, self.config.temporal_stride, *grid[1:]
        )
        mask = None if plan.video_mask is None else plan.video_mask.to(like.device)
        states = self.plan_embedder(plan.video_tokens.to(like))
        return states, self._rotary_embedding(positions, like.device), mask

    def _embed_audio_plan(
        self, plan: SemanticPlan, like: torch.Tensor
    ) -> tuple[torch.Tensor, RotaryEmbedding, torch.Tensor | None]:
        """The mirror of [`_embed_video_plan`]."""
        positions = self._sound_coordinates(plan.audio_times)
        mask = None if plan.audio_mask is None else plan.audio_mask.to(like.device)
        states = self.audio_plan_embedder(plan.audio_tokens.to(like))
        return states, self._rotary_embedding(positions, like.device), mask

    def _check_inputs(
        self,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        audio_timestep: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor | None,
        plan: SemanticPlan | None,
        visibilities: tuple[bool | torch.Tensor, ...],
        skip_layers: Sequence[int] | None,
        reference_audio_hidden_states: torch.Tensor | None,
        clean_streams: tuple[CleanStream | None, CleanStream | None],
        ends: tuple[torch.Tensor | None, torch.Tensor | None],
    ) -> None:
        config = self.config
        batch_size, channels, num_frames, height, width = hidden_states.shape
        if channels != config.in_channels:
            raise ValueError(f"`hidden_states` has {channels} channels, but this model takes {config.in_channels}.")
        if any(size % patch for size, patch in zip((num_frames, height, width), config.patch_size, strict=True)):
            raise ValueError(
                f"video latents of {num_frames} x {height} x {width} cannot be cut into patches of {config.patch_size}."
            )
        if audio_hidden_states.shape[0] != batch_size or audio_hidden_states.shape[2] != config.audio_in_channels:
            raise ValueError(
                f"`audio_hidden_states` has shape {tuple(audio_hidden_states.shape)}, but this model takes "
                f"({batch_size}, audio_length, {config.audio_in_channels})."
            )

        if reference_audio_hidden_states is not None:
            shape = tuple(reference_audio_hidden_states.shape)
            if len(shape) != 3 or (shape[0], shape[2]) != (batch_size, config.audio_in_channels) or shape[1] < 1:
                raise ValueError(
                    f"`reference_audio_hidden_states` has shape {shape}, but this model takes "
                    f"({batch_size}, reference_length, {config.audio_in_channels})."
                )
        num_tokens = num_frames * height * width // math.prod(config.patch_size)
        if audio_timestep is None and timestep.ndim == 2:
            raise ValueError("`timestep` differs within the video: give `audio_timestep` too.")
        for name, value, lengths in (
            ("timestep", timestep, (num_frames, num_tokens)),
            ("audio_timestep", audio_timestep, (audio_hidden_states.shape[1],)),
        ):
            shapes = [(batch_size,), *((batch_size, length) for length in lengths)]
            if value is not None and tuple(value.shape) not in shapes:
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}, but must be one of {', '.join(map(str, shapes))}."
                )

        if any(end is not None for end in ends):
            if not config.is_flow_map:
                raise ValueError(
                    "`next_timestep` is for a flow map, but this model is none: leave it out, or call `make_flow_map()` and train it."
                )
            starts = timestep, timestep if audio_timestep is None else audio_timestep
            for name, value, start in zip(("next_timestep", "audio_next_timestep"), ends, starts, strict=True):
                found = None if value is None else tuple(value.shape)
                if found != tuple(start.shape):
                    raise ValueError(
                        f"`{name}` has shape {found}, but must have its timestep's, {tuple(start.shape)}."
                    )
        for name, value in (
            ("encoder_hidden_states", encoder_hidden_states),
            ("audio_encoder_hidden_states", audio_encoder_hidden_states),
        ):
            if value is not None and (value.shape[0] != batch_size or value.shape[2] != config.text_dim):
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}, but must be ({batch_size}, text_length, {config.text_dim})."
                )
        for name, value in zip(("video_reads_audio", "audio_reads_video"), visibilities, strict=True):
            if isinstance(value, bool):
                continue
            if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or tuple(value.shape) != (batch_size,):
                found = (
                    f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                )
                raise ValueError(f"`{name}` is {found}, but must be a bool or a bool tensor of shape ({batch_size},).")
        names = ("clean_video", "video_reads_audio"), ("clean_audio", "audio_reads_video")
        for (name, reads), stream, value in zip(names, clean_streams, visibilities, strict=True):
            if stream is None:
                continue
            if value is not False:
                raise ValueError(f"`{name}` was given with `{reads}={value}`: set it to False, or leave out `{name}`.")
            if torch.is_grad_enabled():
                raise ValueError(
                    f"`{name}` keeps no gradients: call the model under `torch.no_grad()`, or leave out `{name}`."
                )
            if self.is_cache_enabled:
                raise ValueError(
                    f"`{name}` skips a branch, but the enabled cache of diffusers for whole blocks needs both: call "
                    f"`disable_cache()`, or leave out `{name}`."
                )
        unknown = [index for index in skip_layers or () if index not in range(len(self.blocks))]
        if unknown:
            raise ValueError(f"`skip_layers` names {unknown}, but the blocks are 0 to {len(self.blocks) - 1}.")
        ends = [index for index in (0, len(self.blocks) - 1) if index in (skip_layers or ())]
        if ends and isinstance(self._cache_config, FirstBlockCacheConfig):
            raise ValueError(
                f"`skip_layers` names {ends}, but the first-block cache needs the first and the last block: skip others, or "
                "call `disable_cache()`."
            )

        if plan is None:
            return
        if config.video_plan_dim is None:
            raise ValueError("this model has no plan layers (`video_plan_dim` is None): call it without `plan`.")
        if plan.batch_size != batch_size:
            raise ValueError(f"`plan` is for {plan.batch_size} clips, but the latents are {batch_size}.")
        widths = plan.video_tokens.shape[2], plan.audio_tokens.shape[2]
        if widths != (config.video_plan_dim, config.audio_plan_dim):
            raise ValueError(
                f"`plan` has tokens of width {widths[0]} (video) and {widths[1]} (audio), but this model takes "
                f"{config.video_plan_dim} and {config.audio_plan_dim}."
            )
