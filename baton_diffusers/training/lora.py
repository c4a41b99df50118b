"""LoRA: low-rank matrices learn your clips, and the checkpoint stays unchanged."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from transformers import UMT5EncoderModel

from ..models.component_files import load_component
from ..models.transformer_dual_branch import DualBranchTransformer
from ..pipelines.lora import save_adapter
from .config import LoraTraining
from .transformer import TransformerWithText


def build_lora(config: LoraTraining) -> TransformerWithText:
    """The pipeline's transformer with fresh adapters and, without `cached_text`, its text encoder; only the adapters are trained.

    Raises:
        ValueError: if no layer has one of `config.targets` in its name.
    """
    dtype, model = getattr(torch, config.dtype), Path(config.model)
    transformer = load_component(model / "transformer", DualBranchTransformer, dtype=dtype).requires_grad_(False)
    text_encoder = None
    if not config.cached_text:
        text_encoder = load_component(model / "text_encoder", UMT5EncoderModel, dtype=dtype).requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,
            target_modules=list(config.targets),
        )
    )
    cast_training_params(transformer, torch.float32)
    return TransformerWithText(transformer, text_encoder)


def save_lora(module: TransformerWithText, folder: str | Path) -> None:
    """Saves trained adapters of [`build_lora`] for `pipe.load_lora_weights(folder)`."""
    transformer = module.transformer
    save_adapter(folder, get_peft_model_state_dict(transformer), transformer.peft_config["default"].to_dict())
