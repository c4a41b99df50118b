"""The trained module of stages 2 and 3: transformer and text encoder, before and after a training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from ..models.component_files import load_component
from ..models.transformer_dual_branch import DualBranchTransformer
from ..plan import SemanticPlan
from .config import TransformerTraining


class TransformerWithText(nn.Module):
    """The transformer and the text encoder that is trained with it.

    Args:
        transformer ([`DualBranchTransformer`]): the denoiser.
        text_encoder (`UMT5EncoderModel`, *optional*): its text encoder; without one, embeddings are given.
    """

    def __init__(self, transformer: DualBranchTransformer, text_encoder: UMT5EncoderModel | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(
        self,
        latents: torch.Tensor,
        audio_latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        attention_mask: torch.Tensor | None,
        plan: SemanticPlan | None,
        audio_timestep: torch.Tensor,
        video_reads_audio: bool | torch.Tensor,
        audio_reads_video: bool | torch.Tensor,
        reference_audio: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of both modalities. `text` holds token ids; their embeddings are padded with zeros, as in
        `BatonPipeline.encode_prompt`. Without a text encoder it holds the embeddings themselves, and has no mask."""
        if self.text_encoder is not None:
            text = self.text_encoder(text, attention_mask=attention_mask).last_hidden_state
            text = text * attention_mask[..., None].to(text.dtype)
        return self.transformer(
            latents,
            audio_latents,
            timestep,
            text,
            audio_timestep=audio_timestep,
            plan=plan,
            video_reads_audio=video_reads_audio,
            audio_reads_video=audio_reads_video,
            reference_audio_hidden_states=reference_audio,
            return_dict=False,
        )


def build_transformer(config: TransformerTraining) -> TransformerWithText:
    """The module that a training starts from: from `config.initial`, or fresh.

    Ours: fresh modulation is the identity with open gates, and fresh heads are zero, so that the first prediction is zero.

    Raises:
        ValueError: if `config.initial` holds models of another configuration: with a parameter of another shape, with one
            that the configuration does not know, or without one that `config.new_layers` does not name. Or if
            `config.fresh_layers` holds a name that no parameter of `config.initial` has.
    """
    transformer = DualBranchTransformer(**config.transformer)
    text_encoder = None if config.text_encoder is None else UMT5EncoderModel(UMT5Config(**config.text_encoder))
    for name, module in transformer.named_modules():
        if name.endswith("modulation_proj") or name in ("proj_out", "audio_proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):
            nn.init.zeros_(parameter)
            if parameter.shape[1] == 6:
                with torch.no_grad():
                    parameter[:, [2, 5]] = 1.0  # gates of self-attention and feed-forward
    initial, reader = config.initial, config.initial_text_encoder
    folders = {
        "transformer": None if initial is None else Path(initial) / "transformer",
        "text_encoder": reader if reader is not None or initial is None else Path(initial) / "text_encoder",
    }
    names = []
    for model, folder in ((transformer, folders["transformer"]), (text_encoder, folders["text_encoder"])):
        if model is None or folder is None:
            continue
        weights = load_component(folder, type(model), dtype=torch.float32).state_dict()
        names += weights
        weights = {key: value for key, value in weights.items() if not _names(config.fresh_layers, key)}
        fresh = {key: value for key, value in model.state_dict().items() if _is_new(key, config)}
        weights = {**fresh, **weights}
        shapes, expected = ({key: value.shape for key, value in d.items()} for d in (weights, model.state_dict()))
        if shapes != expected:
            key = next(key for key in {**expected, **shapes} if shapes.get(key) != expected.get(key))
            raise ValueError(
                f"{folder} has `{key}` of shape {shapes.get(key)}, but the configuration says {expected.get(key)}: start from "
                "models of the same configuration."
            )
        model.load_state_dict(weights)
    if initial is not None:
        for part in config.fresh_layers:
            if not any(part in name for name in names):
                raise ValueError(
                    f"`fresh_layers` names {part!r}, but no parameter of {config.initial} has it in its name."
                )
    if text_encoder is not None:
        text_encoder.requires_grad_(config.train_text_encoder)
    return TransformerWithText(transformer, text_encoder)


def _names(parts: Iterable[str], name: str) -> bool:
    return any(part in name for part in parts)


def _is_new(name: str, config: TransformerTraining) -> bool:
    return _names((*config.new_layers, *config.fresh_layers), name)


def parameter_groups(module: TransformerWithText, config: TransformerTraining) -> list[dict[str, Any]] | None:
    """
    Parameter groups for [`Trainer`] with `config.new_layers_learning_rate`; None if it is not set.

    Raises:
        ValueError: if `config.new_layers` holds a name that no parameter has.
    """
    if config.new_layers_learning_rate is None:
        return None
    names = [name for name, _ in module.named_parameters()]
    for part in config.new_layers:
        if not any(part in name for name in names):
            raise ValueError(f"`new_layers` names {part!r}, but no parameter of the model has it in its name.")
    groups = []
    for is_new, rate in ((False, {}), (True, {"lr": config.new_layers_learning_rate})):
        parameters = [value for name, value in module.named_parameters() if _is_new(name, config) == is_new]
        groups.append({"params": [value for value in parameters if value.ndim >= 2], **rate})
        groups.append({"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0, **rate})
    return groups


def export_transformer(module: TransformerWithText, folder: str | Path) -> None:
    """Saves the transformer under `folder/transformer`, and the text encoder that learnt with it under
    `folder/text_encoder`."""
    module.transformer.save_pretrained(Path(folder) / "transformer")
    if module.text_encoder is not None:
        module.text_encoder.save_pretrained(Path(folder) / "text_encoder")
