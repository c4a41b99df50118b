"""What Baton's ablation puts in the place of RS-RoPE and of the planner's towers (arXiv:2605.25195)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from .. import coordinates
from ..files import read_json
from ..models.attention_dual_branch import PlanAttention, RotaryEmbedding, RSRoPEAttnProcessor
from ..models.component_files import load_component
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel


class TemporalRoPEAttnProcessor(RSRoPEAttnProcessor):
    """Plan attention that rotates by time alone: the patches of a keyframe are told apart by content."""

    def rotate(self, states: torch.Tensor, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        temporal_dim = coordinates.rotary_axes_dims(states.shape[-1])[0]
        temporal, spatial = states.split([temporal_dim, states.shape[-1] - temporal_dim], dim=-1)
        temporal_emb = tuple(angles[..., : temporal_dim // 2] for angles in rotary_emb)
        return torch.cat([super().rotate(temporal, temporal_emb), spatial], dim=-1)


class NoRoPEAttnProcessor(RSRoPEAttnProcessor):
    """Plan attention without positions."""

    def rotate(self, states: torch.Tensor, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        return states


PLAN_ROPES = {"full": RSRoPEAttnProcessor, "temporal": TemporalRoPEAttnProcessor, "none": NoRoPEAttnProcessor}


def set_plan_rope(transformer: DualBranchTransformer, name: str) -> None:
    """
    Sets how the plan layers of a transformer rotate. Weights have the same shapes under each, and a saved transformer does not
    tell them apart.

    Args:
        transformer: The model that is changed.
        name: A key of `PLAN_ROPES`.

    Raises:
        ValueError: If there is no such variant.
    """
    if name not in PLAN_ROPES:
        raise ValueError(f"the plan's RoPE is {name!r}: choose one of {', '.join(PLAN_ROPES)}.")
    for module in transformer.modules():
        if isinstance(module, PlanAttention):
            module.set_processor(PLAN_ROPES[name]())


class TowerlessPlanner(VAPlannerModel):
    """A planner that regresses the plan from the language model's hidden states by a linear map. It has no towers, whatever
    `tower_depth` is."""

    def _build_towers(self, dim: int) -> None:
        hidden_size = self.language_model.config.hidden_size
        self.proj_out = nn.Linear(hidden_size, self.config.video_dim)
        self.audio_proj_out = nn.Linear(hidden_size, self.config.audio_dim)

    def _align(
        self,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        video_times: torch.Tensor,
        audio_times: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder_hidden_states, audio_encoder_hidden_states


def load_planner(folder: str | os.PathLike) -> VAPlannerModel:
    """A saved planner, with towers or without.

    Raises:
        ValueError: If there is no such folder, or as [`load_component`].
    """
    name = read_json(Path(folder, "config.json")).get("_class_name")
    return load_component(folder, TowerlessPlanner if name == TowerlessPlanner.__name__ else VAPlannerModel)
