"""Stages 2 and 3: the transformer, with its text encoder, learns to denoise clips under a plan (papers.md 1.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel, tokenize_prompts
from ..plan import SemanticPlan
from .features import CachedFeatures
from .trainer import TrainerConfig


PLAN_SOURCES = ("encoders", "planner", "none")


@dataclass
class TransformerTraining:
    """
    Configuration of a transformer's training.

    Args:
        trainer: The run, see [`TrainerConfig`].
        features: Folder of cached features.
        tokenizer: Folder of the text encoder's tokenizer.
        max_sequence_length: Text tokens to which prompts are padded.
        transformer: Configuration of [`DualBranchTransformer`].
        text_encoder: Configuration of `UMT5EncoderModel`.
        plan: Where plans come from: "encoders" (stage 2: features of the clip itself), "planner" (stage 3: predicted from
            the prompt by the frozen planner) or "none" (the text-only arm).
        planner: Folder of the planner, for `plan="planner"`.
        planner_tokenizer: Folder of its tokenizer.
        initial: Folder with a `transformer` and a `text_encoder` to start from: stage 2's export for stage 3, or a whole
            pipeline to train on. They have to be of the configuration given here.
        text_dropout: Share of samples that lose the text but keep the plan.
        plan_dropout: Share of samples that lose the plan but keep the text.
        joint_dropout: Share of samples that lose both.
        noise_mean: Noise levels are `sigmoid(noise_mean + noise_std * N(0, 1))`.
        noise_std: See `noise_mean`.
        audio_weight: Weight of the audio loss beside the video's.
        data_seed: Seed of the Stage stream that the features were made from.
    """

    trainer: TrainerConfig
    features: str
    tokenizer: str
    max_sequence_length: int
    transformer: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    plan: str = "encoders"
    planner: str | None = None
    planner_tokenizer: str | None = None
    initial: str | None = None
    text_dropout: float = 0.1
    plan_dropout: float = 0.2
    joint_dropout: float = 0.1
    noise_mean: float = 0.3
    noise_std: float = 1.2
    audio_weight: float = 1.0
    data_seed: int = 0

    def __post_init__(self):
        if self.plan not in PLAN_SOURCES:
            raise ValueError(f"`plan` is {self.plan!r}, but must be one of {PLAN_SOURCES}.")
        if self.plan == "planner" and (self.planner is None or self.planner_tokenizer is None):
            raise ValueError('`plan="planner"` needs `planner` and `planner_tokenizer`, the folders of both.')
        if self.text_dropout + self.plan_dropout + self.joint_dropout > 1:
            raise ValueError(
                "`text_dropout`, `plan_dropout` and `joint_dropout` exclude one another: their sum exceeds 1."
            )


class TransformerWithText(nn.Module):
    """The transformer and the text encoder that is trained with it.

    Args:
        transformer ([`DualBranchTransformer`]): the denoiser.
        text_encoder (`UMT5EncoderModel`): its text encoder.
    """

    def __init__(self, transformer: DualBranchTransformer, text_encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(
        self,
        latents: torch.Tensor,
        audio_latents: torch.Tensor,
        timestep: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        plan: SemanticPlan | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of both modalities; text and its zero padding as in `BatonPipeline.encode_prompt`."""
        text = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        text = text * attention_mask[..., None].to(text.dtype)
        return self.transformer(latents, audio_latents, timestep, text, plan=plan, return_dict=False)


def build_transformer(config: TransformerTraining) -> TransformerWithText:
    """The transformer and text encoder that a training starts from: those of `config.initial`, or fresh ones.

    Ours: fresh modulation is the identity with open gates, and fresh heads are zero, so that the first prediction is zero.

    Raises:
        ValueError: if `config.initial` holds models of another configuration.
    """
    transformer = DualBranchTransformer(**config.transformer)
    text_encoder = UMT5EncoderModel(UMT5Config(**config.text_encoder))
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
    if config.initial is not None:
        for model, name in ((transformer, "transformer"), (text_encoder, "text_encoder")):
            weights = type(model).from_pretrained(Path(config.initial) / name, dtype=torch.float32).state_dict()
            shapes, expected = ({key: value.shape for key, value in d.items()} for d in (weights, model.state_dict()))
            if shapes != expected:
                key = next(key for key in {**expected, **shapes} if shapes.get(key) != expected.get(key))
                raise ValueError(
                    f"{config.initial}/{name} has `{key}` of shape {shapes.get(key)}, but the configuration says "
                    f"{expected.get(key)}: start from models of the same configuration."
                )
            model.load_state_dict(weights)
    return TransformerWithText(transformer, text_encoder)


class FlowMatchingLoss:
    r"""
    Flow matching for both modalities at one noise level: `z_t = (1 - t) x + t noise`, velocity `noise - x`.

    Samples lose text, plan or both with the configured shares, so that every anchor of plan guidance, and the use without
    a planner, is a trained state.

    Args:
        config ([`TransformerTraining`]): shares, noise levels and weights.
        features ([`CachedFeatures`]): gives the plan's layout.
        tokenizer (`PreTrainedTokenizerBase`): the text encoder's.
        planner ([`VAPlannerModel`], *optional*): frozen; makes the plans for `plan="planner"`.
        planner_tokenizer (`PreTrainedTokenizerBase`, *optional*): the planner's.
    """

    def __init__(
        self,
        config: TransformerTraining,
        features: CachedFeatures,
        tokenizer: PreTrainedTokenizerBase,
        planner: VAPlannerModel | None = None,
        planner_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.config = config
        self.features = features
        self.tokenizer = tokenizer
        self.planner = planner
        self.planner_tokenizer = planner_tokenizer

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch, as [`Trainer`] wants it."""
        config = self.config
        latents, audio_latents = batch["latents"], batch["audio_latents"]
        batch_size, device = latents.shape[0], latents.device

        # 1. Noise
        level = config.noise_mean + config.noise_std * torch.randn(batch_size, generator=generator, device=device)
        level = level.sigmoid()
        noise = torch.randn(latents.shape, generator=generator, device=device)
        audio_noise = torch.randn(audio_latents.shape, generator=generator, device=device)
        t, audio_t = level.view(-1, 1, 1, 1, 1), level.view(-1, 1, 1)

        # 2. What each sample loses
        draw = torch.rand(batch_size, generator=generator, device=device)
        loses_text = draw < config.text_dropout + config.joint_dropout
        loses_plan = (draw >= config.text_dropout) & (
            draw < config.text_dropout + config.joint_dropout + config.plan_dropout
        )
        prompts = ["" if lost else prompt for prompt, lost in zip(batch["prompt"], loses_text.tolist(), strict=True)]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=config.max_sequence_length, truncation=True, return_tensors="pt"
        ).to(device)
        plan = self._plan(batch, device)
        if plan is not None:
            plan = plan.masked(~loses_plan)

        # 3. Velocities
        velocity, audio_velocity = module(
            (1 - t) * latents + t * noise,
            (1 - audio_t) * audio_latents + audio_t * audio_noise,
            level * 1000,
            tokens.input_ids,
            tokens.attention_mask,
            plan,
        )
        video_loss = (velocity - (noise - latents)).square().mean()
        audio_loss = (audio_velocity - (audio_noise - audio_latents)).square().mean()
        return {"loss": video_loss + config.audio_weight * audio_loss, "video": video_loss, "audio": audio_loss}

    def _plan(self, batch: dict[str, Any], device: torch.device) -> SemanticPlan | None:
        if self.config.plan == "none":
            return None
        if self.config.plan == "encoders":
            return self.features.plan(batch["video_tokens"], batch["audio_tokens"]).to(device)
        input_ids, attention_mask = tokenize_prompts(
            self.planner_tokenizer, batch["prompt"], self.planner.config.system_prompt
        )
        with torch.no_grad():
            plan = self.planner(input_ids.to(device), attention_mask.to(device), self.features.plan_layout["duration"])
        return plan.trimmed()


def export_transformer(module: TransformerWithText, folder: str | Path) -> None:
    """Saves the transformer and its text encoder under `folder/transformer` and `folder/text_encoder`."""
    module.transformer.save_pretrained(Path(folder) / "transformer")
    module.text_encoder.save_pretrained(Path(folder) / "text_encoder")
