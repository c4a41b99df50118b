"""Variants for ablations: they replace RS-RoPE, the planner's towers (arXiv:2605.25195), or the plan itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import coordinates
from ..files import read_json
from ..models.attention_dual_branch import PlanAttention, RotaryEmbedding, RSRoPEAttnProcessor
from ..models.component_files import load_component
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel, plan_prompts, tokenize_cues


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
    Sets how the plan layers of a transformer rotate. Weights have the same shapes in each variant, and a saved transformer does
    not store its variant.

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


# Tokens of a sheet that is read as text; what the planner reads before it, and the longest sheets, fit.
SHEET_LENGTH = 160


@torch.no_grad()
def sheet_embeds(
    planner: VAPlannerModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], sheets: Sequence[str]
) -> torch.Tensor:
    """
    Cue sheets as text: the hidden states of the planner's language model, from which its towers would make a plan. A denoiser that
    reads them beside the prompt has all that a plan is made of, but no plan.

    Args:
        planner: With a language model as wide as the denoiser's text.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        sheets: One for each prompt; an empty one leaves the prompt alone.

    Returns:
        `(len(prompts), SHEET_LENGTH, hidden_size)`, zero where there is no text. Of a longer text the beginning is left out.
    """
    config = planner.config
    texts = plan_prompts(prompts, sheets, config.plans_from_sheets)
    ids, mask, _ = tokenize_cues(tokenizer, texts, sheets, config.system_prompt, config.timestamp_rate)
    return states_of_sheets(planner, ids.to(planner.device), mask.to(planner.device))


def states_of_sheets(planner: VAPlannerModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """As [`sheet_embeds`], from the tokens of `tokenize_cues`."""
    states = planner.language_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
    ).last_hidden_state
    states = (states * attention_mask[..., None].to(states.dtype))[:, -SHEET_LENGTH:]
    return nn.functional.pad(states, (0, 0, SHEET_LENGTH - states.shape[1], 0))


def load_planner(folder: str | os.PathLike) -> VAPlannerModel:
    """A saved planner, with towers or without.

    Raises:
        ValueError: If there is no such folder, or as [`load_component`].
    """
    name = read_json(Path(folder, "config.json")).get("_class_name")
    return load_component(folder, TowerlessPlanner if name == TowerlessPlanner.__name__ else VAPlannerModel)
