"""Stages 2 and 3: the transformer, with its text encoder, learns to denoise clips under a plan (papers.md 1.4)."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from torch import nn
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel, tokenize_prompts
from ..plan import SemanticPlan
from .codecs import encode_clip
from .features import CachedFeatures, encode_audio_latents
from .trainer import TrainerConfig


PLAN_SOURCES = ("encoders", "planner", "none")


@dataclass(frozen=True)
class Task:
    """
    What a sample teaches: the state of either modality, from which follows who is supervised and who reads whom.

    A modality is "noisy" (it is to be denoised, and supervised), "absent" (nobody reads it), "clean" (the clip's own, at
    timestep 0) or "still" (in place of the clip's own a motionless picture or silence, at timestep 0). What the noisy
    modality has to become is the clip's own in every case: a still condition says nothing about it, as a dropped one.

    Args:
        video: The state of the video.
        audio: The state of the audio.
    """

    video: str = "noisy"
    audio: str = "noisy"

    def reads(self, reader: str, other: str, clean_reads_noisy: bool) -> bool:
        """Whether the stream `reader` reads the stream `other` ("video" or "audio")."""
        state, source = getattr(self, reader), getattr(self, other)
        return source != "absent" and (state == "noisy" or (state != "absent" and clean_reads_noisy))


TASKS = {
    "joint": Task(),
    "t2v": Task(audio="absent"),
    "t2a": Task(video="absent"),
    "a2v": Task(audio="clean"),
    "v2a": Task(video="clean"),
    "mute": Task(audio="still"),
    "static": Task(video="still"),
}


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
            pipeline to train on. They have to be of the configuration given here, but for `new_layers`.
        new_layers: Parts of names of parameters that `initial` may lack, which then start as in a fresh model.
        new_layers_learning_rate: Learning rate of the parameters that `new_layers` names; None trains them at the rate of
            the rest. CCL takes ten times the rate of the pretrained layers (papers.md, section 2).
        task_weights: How often a sample is drawn for each of [`TASKS`], relative to the others. "joint" alone is the plain
            training; "t2v", "t2a", "a2v" and "v2a" beside it are CCL's task mix (papers.md, section 2); "mute" and "static"
            train the anchors of SyncCFG (papers.md, section 3).
        synergy_weights: Weights of further terms of the loss, in which *every* sample is trained in these tasks too, in the
            same step. `{a2v: 0.1, v2a: 0.3}` is Harmony's Cross-Task Synergy (papers.md, section 3), at three times the
            cost. `task_weights={joint: 1, a2v: 0.1, v2a: 0.3}` has, up to a factor, the same gradient on average, at one.
        clean_reads_noisy: Whether a clean modality reads the noisy one. Harmony says nothing of a routing, and both of its
            streams attend to each other: `True`. The default is CCL's routing (papers.md, section 2): the clean modality
            reads the context tokens alone, and so does not change while the other is denoised.
        independent_timesteps: Share of samples whose audio has a noise level of its own, drawn apart from the video's.
        vae: Folder of the video's autoencoder, for "static".
        audio_vae: Folder of the audio's autoencoder, for "mute".
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
    new_layers: tuple[str, ...] = ("context_tokens",)
    new_layers_learning_rate: float | None = None
    task_weights: dict[str, float] = field(default_factory=lambda: {"joint": 1.0})
    synergy_weights: dict[str, float] = field(default_factory=dict)
    clean_reads_noisy: bool = False
    independent_timesteps: float = 0.0
    vae: str | None = None
    audio_vae: str | None = None
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
        self.new_layers = tuple(self.new_layers)
        if self.new_layers_learning_rate is not None and not self.new_layers_learning_rate > 0:
            raise ValueError(f"`new_layers_learning_rate` must be positive, got {self.new_layers_learning_rate}.")
        for name in ("task_weights", "synergy_weights"):
            for task, weight in getattr(self, name).items():
                if task not in TASKS:
                    raise ValueError(f"`{name}` names {task!r}, but the tasks are {', '.join(TASKS)}.")
                if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                    raise ValueError(
                        f"`{name}` gives {task!r} the weight {weight!r}, but it must be a number from 0 on."
                    )
        if not any(self.task_weights.values()):
            raise ValueError(f"`task_weights` is {self.task_weights}: give one task at least a weight above 0.")
        if not 0 <= self.independent_timesteps <= 1:
            raise ValueError(
                f"`independent_timesteps` is a share of the samples, in [0, 1], got {self.independent_timesteps}."
            )
        for task, name in (("static", "vae"), ("mute", "audio_vae")):
            if task in self.tasks and getattr(self, name) is None:
                raise ValueError(f"the task {task!r} needs `{name}`, the folder of the autoencoder that encodes it.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are trained, in the order of [`TASKS`]."""
        return tuple(name for name in TASKS if self.task_weights.get(name) or self.synergy_weights.get(name))


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
        audio_timestep: torch.Tensor,
        video_reads_audio: bool | torch.Tensor,
        audio_reads_video: bool | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of both modalities; text and its zero padding as in `BatonPipeline.encode_prompt`."""
        text = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
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
            return_dict=False,
        )


def build_transformer(config: TransformerTraining) -> TransformerWithText:
    """The transformer and text encoder that a training starts from: those of `config.initial`, or fresh ones.

    Ours: fresh modulation is the identity with open gates, and fresh heads are zero, so that the first prediction is zero.

    Raises:
        ValueError: if `config.initial` holds models of another configuration: with a parameter of another shape, with one
            that the configuration does not know, or without one that `config.new_layers` does not name.
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
            fresh = {key: value for key, value in model.state_dict().items() if _is_new(key, config)}
            weights = {**fresh, **weights}
            shapes, expected = ({key: value.shape for key, value in d.items()} for d in (weights, model.state_dict()))
            if shapes != expected:
                key = next(key for key in {**expected, **shapes} if shapes.get(key) != expected.get(key))
                raise ValueError(
                    f"{config.initial}/{name} has `{key}` of shape {shapes.get(key)}, but the configuration says "
                    f"{expected.get(key)}: start from models of the same configuration."
                )
            model.load_state_dict(weights)
    return TransformerWithText(transformer, text_encoder)


def _is_new(name: str, config: TransformerTraining) -> bool:
    return any(part in name for part in config.new_layers)


def parameter_groups(module: TransformerWithText, config: TransformerTraining) -> list[dict[str, Any]] | None:
    """
    The parameter groups of [`Trainer`] that give new layers a learning rate of their own; None if they have none.

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


@torch.no_grad()
def static_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """
    Normalised latents of a motionless mid-grey clip: the static anchor of SyncCFG (papers.md, section 3).

    Args:
        vae: The video's autoencoder.
        latents: Latents of a clip, `(num_channels, num_frames, height, width)`: their shape is taken.

    Returns:
        Of shape `(1, num_channels, num_frames, height, width)`.
    """
    config = vae.config
    num_frames, height, width = latents.shape[1:]
    space = config.scale_factor_spatial
    grey = torch.zeros(
        1, 3, 1 + (num_frames - 1) * config.scale_factor_temporal, height * space, width * space, device=vae.device
    )
    mean = torch.tensor(config.latents_mean, device=vae.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std, device=vae.device).view(1, -1, 1, 1, 1)
    return (encode_clip(vae, grey).chunk(2, dim=1)[0] - mean) / std


@torch.no_grad()
def mute_latents(audio_vae: MMAudioVAE, duration: float, audio_latent_rate: float) -> torch.Tensor:
    """Scaled latents of silence, `(1, audio_length, channels)`: the mute anchor of SyncCFG (papers.md, section 3)."""
    return encode_audio_latents(audio_vae, torch.zeros(1, 1, device=audio_vae.device), duration, audio_latent_rate)


class FlowMatchingLoss:
    r"""
    Flow matching for both modalities: `z_t = (1 - t) x + t noise`, velocity `noise - x`.

    Every sample of a batch is drawn for one of the configured tasks, as evenly as the batch allows, and all of them pass the
    model together: a task is a choice of noise levels and of who reads whom, not a code path (architecture.md, decision 3).
    Samples lose text, plan or both with the configured shares, whatever their task, so that every anchor of guidance, and
    the use without a planner, is a trained state.

    What it logs: `loss = video + audio_weight * audio`. With more than one task also, for each task and modality that it
    supervises, the sum of its samples' losses (`video.a2v`) and their number (`video.a2v.share`), both divided by the batch
    size; the mean loss of the task is the quotient of the two columns, see [`mean_losses`].

    Args:
        config ([`TransformerTraining`]): shares, noise levels and weights.
        features ([`CachedFeatures`]): gives the plan's layout.
        tokenizer (`PreTrainedTokenizerBase`): the text encoder's.
        planner ([`VAPlannerModel`], *optional*): frozen; makes the plans for `plan="planner"`.
        planner_tokenizer (`PreTrainedTokenizerBase`, *optional*): the planner's.
        static (`torch.Tensor` of shape `(1, num_channels, num_frames, height, width)`, *optional*): what stands for the
            video in the task "static", see [`static_latents`].
        mute (`torch.Tensor` of shape `(1, audio_length, channels)`, *optional*): what stands for the audio in the task
            "mute", see [`mute_latents`].

    Raises:
        ValueError: if a task lacks its latents.
    """

    def __init__(
        self,
        config: TransformerTraining,
        features: CachedFeatures,
        tokenizer: PreTrainedTokenizerBase,
        planner: VAPlannerModel | None = None,
        planner_tokenizer: PreTrainedTokenizerBase | None = None,
        static: torch.Tensor | None = None,
        mute: torch.Tensor | None = None,
    ) -> None:
        for task, latents in (("static", static), ("mute", mute)):
            if task in config.tasks and latents is None:
                raise ValueError(f"the task {task!r} needs `{task}`, the latents of its condition.")
        self.config = config
        self.features = features
        self.tokenizer = tokenizer
        self.planner = planner
        self.planner_tokenizer = planner_tokenizer
        self.static = static
        self.mute = mute

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch, as [`Trainer`] wants it."""
        config = self.config
        batch_size, device = len(batch["prompt"]), batch["latents"].device

        # 1. Every sample once in a task that is drawn, and once in each task of Cross-Task Synergy
        synergy = {name: weight for name, weight in config.synergy_weights.items() if weight > 0}
        repeats = 1 + len(synergy)
        latents = batch["latents"].repeat_interleave(repeats, dim=0)
        audio_latents = batch["audio_latents"].repeat_interleave(repeats, dim=0)
        prompts = [prompt for prompt in batch["prompt"] for _ in range(repeats)]
        plan = self._plan(batch, device)
        if plan is not None:
            plan = plan.repeat_interleave(repeats)
        num_rows = len(prompts)

        # 2. Noise
        level = self._noise_levels(num_rows, generator)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        audio_noise = torch.randn(audio_latents.shape, generator=generator, device=device)

        # 3. What each sample loses
        draw = torch.rand(num_rows, generator=generator, device=device)
        loses_text = draw < config.text_dropout + config.joint_dropout
        loses_plan = (draw >= config.text_dropout) & (
            draw < config.text_dropout + config.joint_dropout + config.plan_dropout
        )
        prompts = ["" if lost else prompt for prompt, lost in zip(prompts, loses_text.tolist(), strict=True)]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=config.max_sequence_length, truncation=True, return_tensors="pt"
        ).to(device)
        if plan is not None:
            plan = plan.masked(~loses_plan)

        # 4. Tasks
        apart = torch.rand(num_rows, generator=generator, device=device) < config.independent_timesteps
        audio_level = torch.where(apart, self._noise_levels(num_rows, generator), level)
        others = [torch.full((batch_size,), config.tasks.index(name), device=device) for name in synergy]
        task = torch.stack([self._draw_tasks(batch_size, generator), *others], dim=1).flatten()
        weight = torch.tensor([1.0, *synergy.values()], device=device).repeat(batch_size)

        trains_video, trains_audio = self._where(task, video="noisy"), self._where(task, audio="noisy")
        level = level * (trains_video | self._where(task, video="absent"))
        audio_level = audio_level * (trains_audio | self._where(task, audio="absent"))
        t, audio_t = level.view(-1, 1, 1, 1, 1), audio_level.view(-1, 1, 1)
        noised = (1 - t) * latents + t * noise
        audio_noised = (1 - audio_t) * audio_latents + audio_t * audio_noise
        if "static" in config.tasks:
            still = self._where(task, video="still").view_as(t)
            noised = torch.where(still, self.static.to(noised), noised)
        if "mute" in config.tasks:
            still = self._where(task, audio="still").view_as(audio_t)
            audio_noised = torch.where(still, self.mute.to(audio_noised), audio_noised)

        # 5. Velocities
        velocity, audio_velocity = module(
            noised,
            audio_noised,
            level * 1000,
            tokens.input_ids,
            tokens.attention_mask,
            plan,
            audio_level * 1000,
            self._visibility(task, "video", "audio"),
            self._visibility(task, "audio", "video"),
        )
        errors = (velocity.float() - (noise - latents)).square().flatten(1).mean(dim=1)
        audio_errors = (audio_velocity.float() - (audio_noise - audio_latents)).square().flatten(1).mean(dim=1)

        # 6. The loss: errors of supervised modalities, weighted by term
        video_loss = (weight * trains_video * errors).sum() / batch_size
        audio_loss = (weight * trains_audio * audio_errors).sum() / batch_size
        losses = {"loss": video_loss + config.audio_weight * audio_loss, "video": video_loss, "audio": audio_loss}
        if len(config.tasks) > 1:
            for modality, values in (("video", errors), ("audio", audio_errors)):
                for index, name in enumerate(config.tasks):
                    if getattr(TASKS[name], modality) == "noisy":
                        chosen = task == index
                        losses[f"{modality}.{name}"] = (values.detach() * chosen).sum() / batch_size
                        losses[f"{modality}.{name}.share"] = chosen.sum() / batch_size
        return losses

    def _noise_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        normal = torch.randn(count, generator=generator, device=generator.device)
        return (self.config.noise_mean + self.config.noise_std * normal).sigmoid()

    def _draw_tasks(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        # Systematic sampling: a task of share p gets p * batch_size samples of a batch, rounded up or down by chance.
        weights = [self.config.task_weights.get(name, 0.0) for name in self.config.tasks]
        ends = torch.tensor(weights, dtype=torch.float64, device=generator.device).cumsum(0)
        offset = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
        places = (torch.arange(batch_size, device=generator.device) + offset) / batch_size * ends[-1]
        return torch.searchsorted(ends, places, right=True).clamp(max=len(weights) - 1)

    def _where(self, task: torch.Tensor, **state: str) -> torch.Tensor:
        """Which rows have a modality in a state: `_where(task, video="noisy")`."""
        ((modality, wanted),) = state.items()
        values = [getattr(TASKS[name], modality) == wanted for name in self.config.tasks]
        return torch.tensor(values, device=task.device)[task]

    def _visibility(self, task: torch.Tensor, reader: str, other: str) -> bool | torch.Tensor:
        """Who reads: one value if all tasks agree, so that nothing is masked in vain, or one for each row."""
        values = [TASKS[name].reads(reader, other, self.config.clean_reads_noisy) for name in self.config.tasks]
        return values[0] if len(set(values)) == 1 else torch.tensor(values, device=task.device)[task]

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


def mean_losses(path: str | Path) -> list[dict[str, float]]:
    """
    The learning curves of a run, with the mean loss of each task in place of its sums.

    Args:
        path: The `log.csv` of a run.

    Returns:
        Its rows: `step`, `samples`, `seconds`, `learning_rate`, `loss`, `video`, `audio`, and for each task and modality the
        mean over the row's samples (`video.a2v`; NaN where there were none).
    """
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for name in [name.removesuffix(".share") for name in row if name.endswith(".share")]:
            share = row.pop(f"{name}.share")
            row[name] = row[name] / share if share > 0 else math.nan
    return rows
