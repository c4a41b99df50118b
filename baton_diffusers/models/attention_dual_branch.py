"""The attention layers of `DualBranchTransformer`: within a modality, to text and the other modality, to the plan."""

from __future__ import annotations

import torch
import torch.nn as nn
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import FP32LayerNorm

from .. import coordinates


RotaryEmbedding = tuple[torch.Tensor, torch.Tensor]

PLAN_ROPE_VARIANTS = ("full", "temporal", "none")


class DualBranchAttnProcessor:
    """Self-attention within one modality, with rotary embedding."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: DualBranchAttention, hidden_states: torch.Tensor, rotary_emb: RotaryEmbedding
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))

        query = coordinates.apply_rotary_embedding(query, rotary_emb)
        key = coordinates.apply_rotary_embedding(key, rotary_emb)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out[0](hidden_states.flatten(2, 3).type_as(query))


class FusionAttnProcessor:
    """Cross-attention to the text and to the other modality, which share query, query norm and output projection.

    `o(attn(q, k_text, v_text) + attn(rope(q), rope(k_fusion), v_fusion))` (Ovi, papers.md 4).
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FusionAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        other_hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        other_rotary_emb: RotaryEmbedding,
        reads_other: bool | torch.Tensor,
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1))
        hidden_states = dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2, 3)

        if reads_other is not False:
            other_hidden_states = attn.norm_fusion(other_hidden_states)
            key = attn.norm_k_fusion(attn.to_k_fusion(other_hidden_states)).unflatten(2, (attn.heads, -1))
            value = attn.to_v_fusion(other_hidden_states).unflatten(2, (attn.heads, -1))
            fusion = dispatch_attention_fn(
                coordinates.apply_rotary_embedding(query, rotary_emb),
                coordinates.apply_rotary_embedding(key, other_rotary_emb),
                value,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            ).flatten(2, 3)
            if isinstance(reads_other, torch.Tensor):
                fusion = fusion * reads_other[:, None, None].to(fusion.dtype)
            hidden_states = hidden_states + fusion

        return attn.to_out[0](hidden_states.type_as(query))


class RSRoPEAttnProcessor:
    """Plan attention under Relative Semantic RoPE (papers.md 1.3).

    Latents (queries) and plan tokens (keys) are rotated by one frequency table at their coordinates in the shared
    space-time frame, so that a score depends on offsets in that frame only.

    Args:
        variant (`str`, defaults to `"full"`): `"full"` rotates by time and place, `"temporal"` by time alone, `"none"`
            not at all. The latter two exist for the ablation.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, variant: str = "full") -> None:
        if variant not in PLAN_ROPE_VARIANTS:
            raise ValueError(f"the variant of RS-RoPE is {variant!r}, but must be one of {PLAN_ROPE_VARIANTS}.")
        self.variant = variant

    def __call__(
        self,
        attn: PlanAttention,
        hidden_states: torch.Tensor,
        plan_hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        plan_rotary_emb: RotaryEmbedding,
        plan_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(plan_hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(plan_hidden_states).unflatten(2, (attn.heads, -1))

        query = self.rotate(attn, query, rotary_emb)
        key = self.rotate(attn, key, plan_rotary_emb)

        attention_mask, has_plan = None, None
        if plan_mask is not None:
            # A sample without a plan would be a softmax over nothing: it attends to everything and its output is dropped.
            has_plan = plan_mask.any(dim=-1)
            attention_mask = (plan_mask | ~has_plan[:, None])[:, None, None, :]

        hidden_states = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend
        )
        hidden_states = attn.to_out[0](hidden_states.flatten(2, 3).type_as(query))
        if has_plan is not None:
            hidden_states = hidden_states * has_plan[:, None, None].to(hidden_states.dtype)
        return hidden_states

    def rotate(self, attn: PlanAttention, states: torch.Tensor, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        """Rotates queries or keys by their coordinates, as far as the variant looks at them."""
        if self.variant == "none":
            return states
        if self.variant == "full":
            return coordinates.apply_rotary_embedding(states, rotary_emb)
        temporal_dim = attn.axes_dims[0]
        temporal_emb = tuple(angles[..., : temporal_dim // 2] for angles in rotary_emb)
        temporal, spatial = states.split([temporal_dim, states.shape[-1] - temporal_dim], dim=-1)
        return torch.cat([coordinates.apply_rotary_embedding(temporal, temporal_emb), spatial], dim=-1)


class DualBranchAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with RMS-normalised queries and keys: self-attention of one branch."""

    _default_processor_cls = DualBranchAttnProcessor
    _available_processors = [DualBranchAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, eps: float, processor=None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.set_processor(processor if processor is not None else self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, *args, **kwargs)


class FusionAttention(DualBranchAttention):
    """Cross-attention to the text and to the other modality."""

    _default_processor_cls = FusionAttnProcessor
    _available_processors = [FusionAttnProcessor]

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__(dim, heads, eps)
        self.norm_fusion = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.to_k_fusion = nn.Linear(dim, dim)
        self.to_v_fusion = nn.Linear(dim, dim)
        self.norm_k_fusion = nn.RMSNorm(dim, eps=eps)


class PlanAttention(DualBranchAttention):
    """Cross-attention from the latents of one modality to its plan: `VCAttn` and `ACAttn` of papers.md 1.2.

    The output projection starts at zero, so that fresh plan layers leave a converted checkpoint's output unchanged.
    """

    _default_processor_cls = RSRoPEAttnProcessor
    _available_processors = [RSRoPEAttnProcessor]

    def __init__(self, dim: int, heads: int, eps: float, variant: str) -> None:
        super().__init__(dim, heads, eps, processor=RSRoPEAttnProcessor(variant))
        self.axes_dims = coordinates.rotary_axes_dims(dim // heads)
        nn.init.zeros_(self.to_out[0].weight)
        nn.init.zeros_(self.to_out[0].bias)
