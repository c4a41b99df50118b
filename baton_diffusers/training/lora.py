"""LoRA: a few low-rank matrices learn one's own clips, and the checkpoint that they are trained on stays as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from transformers import UMT5EncoderModel

from ..models.transformer_dual_branch import DualBranchTransformer
from ..pipelines.lora import BatonLoraLoaderMixin
from .config import TrainerConfig
from .transformer import TransformerTraining, TransformerWithText
from .validation import ValidationConfig


# The projections of self-attention, of text, cross-modal and plan attention, and their outputs, in both branches.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoraTraining:
    """
    Configuration of a LoRA's training.

    Args:
        trainer: The run, see [`TrainerConfig`].
        model: Folder of the pipeline that it is trained on.
        features: Folder of cached features, made with that pipeline's own encoders.
        output: Folder to which it is saved, for `pipe.load_lora_weights`.
        rank: Rank of the matrices: their size and what they can learn.
        alpha: Scale of what they add, as `alpha / rank`; None takes the rank, a scale of 1.
        targets: Names of layers that get them, as peft reads them: ends of names.
        dtype: Of the frozen weights: "float32", "bfloat16" or "float16". The trained ones are float32.
        plan: Where plans come from: "encoders", "planner" or "none", see [`TransformerTraining`].
        cached_text: Whether the prompts' embeddings come from the features (`baton cache --text`), so that the text encoder
            is not in memory.
        validation: Clips that are made while it is trained, see [`ValidationConfig`]; by default with the components of
            `model`.
        loss: Further settings of the loss, by their names in [`TransformerTraining`], e.g. `text_dropout`.
    """

    trainer: TrainerConfig
    model: str
    features: str
    output: str
    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ATTENTION
    dtype: str = "float32"
    plan: str = "planner"
    cached_text: bool = False
    validation: ValidationConfig | None = None
    loss: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}, but must be one of {', '.join(DTYPES)}.")
        if not (Path(self.model) / "model_index.json").is_file():
            raise ValueError(
                f"`model` is {self.model!r}, but must be the folder of a pipeline, with a model_index.json."
            )
        if (Path(self.output) / "pytorch_lora_weights.safetensors").exists():
            raise ValueError(f"`output` {self.output} holds a LoRA already: choose another folder, or delete it.")

    def transformer_training(self) -> TransformerTraining:
        """The configuration of the loss, which is that of the transformer itself.

        Raises:
            ValueError: if `loss` or `plan` is not what it takes.
        """
        model = Path(self.model)
        index = json.loads((model / "model_index.json").read_text())
        parts = {"plan": self.plan, "features": self.features}
        if self.cached_text:
            parts |= {"text_encoder": None, "data_seed": None}
        else:
            parts |= {"tokenizer": str(model / "tokenizer")}
        if self.plan == "planner":
            parts |= {name: str(model / name) for name in ("planner", "planner_tokenizer")}
        known = set(TransformerTraining.__dataclass_fields__)
        if wrong := set(self.loss) - (
            known - {*parts, "trainer", "max_sequence_length", "transformer", "text_encoder", "validation"}
        ):
            raise ValueError(f"`loss` has {', '.join(sorted(wrong))}, which is not a setting of the loss.")
        return TransformerTraining(
            trainer=self.trainer, max_sequence_length=index["max_sequence_length"], **parts, **self.loss
        )


def build_lora(config: LoraTraining) -> TransformerWithText:
    """The pipeline's transformer with fresh adapters, and its text encoder, if need be; nothing but the adapters learns.

    Raises:
        ValueError: if no layer has one of `config.targets` in its name.
    """
    dtype, model = DTYPES[config.dtype], Path(config.model)
    transformer = DualBranchTransformer.from_pretrained(model / "transformer", torch_dtype=dtype).requires_grad_(False)
    text_encoder = None
    if not config.cached_text:
        text_encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=dtype).requires_grad_(False)
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
    """Saves the adapters of [`build_lora`], trained, for `pipe.load_lora_weights(folder)`."""
    transformer = module.transformer
    BatonLoraLoaderMixin.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
