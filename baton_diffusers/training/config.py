"""Configuration of all trainings: dataclasses, read from YAML files. Nothing here imports torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from ..files import read_json, read_text
from .tasks import TASKS


_MAX_FILE_BYTES = 2**20


Config = TypeVar("Config")

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("no", "fp16", "bf16")
DTYPES = ("float32", "bfloat16", "float16")
DISTILLATIONS = ("consistency", "flow_map")
PLAN_SOURCES = ("encoders", "planner", "none")

# The projections of self-attention, of text, cross-modal and plan attention, and their outputs, in both branches.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("net.0.proj", "net.2")


@dataclass
class TrainerConfig:
    """
    Configuration of a run of [`Trainer`].

    Args:
        run_dir: Folder of the run. If it holds a checkpoint, the run goes on from there.
        steps: Optimiser steps of the whole run.
        batch_size: Samples per step, over all processes.
        gradient_accumulation: Each process computes its samples of a step in this many parts, one after another, to save
            memory. A step depends only on the number of parts, `processes * gradient_accumulation`.
        gradient_checkpointing: Whether the backward pass computes activations again instead of keeping them.
        learning_rate: The rate between warm-up and decay. A parameter group may have its own `lr`.
        warmup_steps: Steps over which the rate rises linearly from zero.
        decay_fraction: Last share of the run over which the rate falls linearly to zero. The position in the run is
            `max(step / steps, minutes / max_minutes)`.
        optimizer: "adamw", or "muon" ([`~training.muon.Muon`]), whose steps cost more; some trainings need ten times fewer.
        weight_decay: Weight decay of tensors of two or more dimensions; vectors and scalars have none.
        betas: AdamW's betas. Muon uses them for vectors and scalars.
        max_grad_norm: Largest gradient norm, over all parameters; None clips nothing.
        ema_decay: Decay of the moving average of the trained weights, warmed up as `(1 + step) / (10 + step)`; None keeps none.
        seed: Seeds the generator of every step, together with the step's number.
        max_minutes: Ends the run, decay included, after this much training time, summed over interruptions. With it, a
            resumed run differs from an uninterrupted one. None ends the run after `steps`.
        checkpoint_every: Steps between checkpoints.
        checkpoint_minutes: Minutes between checkpoints, in addition.
        keep_checkpoints: Newest checkpoints that are kept; older ones are deleted.
        log_every: Steps averaged into one row of `log.csv`.
        validate_every: Steps between validations; None for no validation.
        trackers: Names of accelerate's trackers for the learning curves, such as "tensorboard" and "wandb". None takes
            tensorboard if it is installed.
        num_workers: Processes that load data beside the training; 0 loads in the training process.
        mixed_precision: As in `accelerate.Accelerator`: "no", "fp16" or "bf16".
        compile: True compiles the module with `torch.compile`. "regional" compiles its repeated blocks alone, in a fraction of
            the time.
    """

    run_dir: str
    steps: int
    batch_size: int = 8
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    seed: int = 0
    max_minutes: float | None = None
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 5.0
    keep_checkpoints: int = 2
    log_every: int = 50
    validate_every: int | None = None
    trackers: tuple[str, ...] | None = None
    num_workers: int = 0
    mixed_precision: str = "no"
    compile: bool | str = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "gradient_accumulation", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"`validate_every` must be at least 1, or None, got {self.validate_every}.")
        for name in ("warmup_steps", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.seed >= 2**63:
            raise ValueError(f"`seed` must be less than 2**63, got {self.seed}.")
        for name in ("learning_rate", "max_grad_norm", "max_minutes", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a positive number, got {value}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` must be a number from 0 on, got {self.weight_decay}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` must be in [0, 1), got {self.betas}.")
        for name, known in (("optimizer", OPTIMIZERS), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.compile not in (True, False, "regional"):
            raise ValueError(f"`compile` must be true, false or regional, got {self.compile!r}.")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"`decay_fraction` is a share of the run, in [0, 1], got {self.decay_fraction}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), or None for no moving average, got {self.ema_decay}.")


@dataclass
class ValidationConfig:
    """
    Clips that are made from time to time during a training. Prompts are fixed, and each prompt has the same noise at every
    step, so that clips of different steps can be compared.

    Args:
        model: Folder of a pipeline, from which all components come that are not trained.
        prompts: Prompts of your own; their clips are written, but not scored.
        scenes_per_tier: Scenes of each tier of Stage's validation split, whose clips are written and scored; 0 for none.
        use_plan: Whether the clips follow the plans of the pipeline's planner, or their text alone.
        num_inference_steps: Denoising steps; None takes the pipeline's.
        batch_size: Clips made together.
        scale: Every pixel becomes `scale` x `scale` pixels of the mp4.
    """

    model: str | None = None
    prompts: tuple[str, ...] = ()
    scenes_per_tier: int = 0
    use_plan: bool = True
    num_inference_steps: int | None = None
    batch_size: int = 8
    scale: int = 1

    def __post_init__(self) -> None:
        self.prompts = tuple(self.prompts)
        if not self.prompts and self.scenes_per_tier < 1:
            raise ValueError("`validation` has nothing to make: give `prompts`, or `scenes_per_tier` of Stage.")
        if self.batch_size < 1:
            raise ValueError(f"`validation.batch_size` must be at least 1, got {self.batch_size}.")
        if self.scenes_per_tier and find_spec("jiwer") is None:
            raise ValueError("`validation.scenes_per_tier` scores clips, which needs jiwer: pip install jiwer")


@dataclass
class TransformerTraining:
    """
    Configuration of a transformer's training.

    Args:
        trainer: The run, see [`TrainerConfig`].
        features: Folder of cached features.
        max_sequence_length: Text tokens to which prompts are padded.
        tokenizer: Folder of the text encoder's tokenizer.
        transformer: Configuration of [`DualBranchTransformer`].
        text_encoder: Configuration of `UMT5EncoderModel`, which is trained with the transformer. None takes the prompts' embeddings
            from the features (`baton cache --text`), so that a frozen text encoder is not in memory.
        plan: Where plans come from: "encoders" (stage 2: features of the clip itself), "planner" (stage 3: predicted from
            the prompt by the frozen planner) or "none" (the text-only arm).
        planner: Folder of the planner, for `plan="planner"`.
        planner_tokenizer: Folder of its tokenizer.
        initial: Folder with a `transformer` and a `text_encoder` to start from: stage 2's export for stage 3, or a whole
            pipeline. Their configurations are those given here, except for `new_layers`.
        initial_text_encoder: Folder of a text encoder to start from instead of `initial`'s, such as the one that
            `examples/nano/reading.py` trains.
        train_text_encoder: False keeps the text encoder frozen, so that a plan checker that reads with it stays right.
        new_layers: Parts of parameter names. `initial` may lack these parameters; they then start as in a fresh model.
        fresh_layers: Parts of parameter names. These parameters start as in a fresh model even if `initial` has them, and the
            configuration may lack them. `("fusion", "context_tokens")` re-initialises the layers in which the modalities read
            each other, on trained towers, for the arms of an ablation.
        new_layers_learning_rate: Learning rate of `new_layers` and `fresh_layers`; None takes the common rate. CCL takes ten times
            the rate of the pretrained layers (arXiv:2603.18600).
        task_weights: How often a sample is drawn for each of [`TASKS`], relative to the others. "joint" alone is the plain
            training; "t2v", "t2a", "a2v" and "v2a" beside it are CCL's task mix; "mute" and "static"
            train the anchors of Harmony's SyncCFG.
        synergy_weights: Weights of further loss terms, in which *every* sample is also trained in these tasks, in the same
            step. `{a2v: 0.1, v2a: 0.3}` is Harmony's Cross-Task Synergy (arXiv:2511.21579), at three times the cost.
            `task_weights={joint: 1, a2v: 0.1, v2a: 0.3}` has the same expected gradient, up to a factor, at no further cost.
        clean_reads_noisy: Whether a clean modality reads the noisy one. False is CCL's routing: the clean modality reads the
            context tokens alone, and does not change while the other is denoised. True fits Harmony, whose streams attend to
            each other.
        independent_timesteps: Share of samples whose audio has its own noise level, drawn apart from the video's.
        given_share: Share of samples with a given part: clean, at timestep 0, and not supervised. It is the first picture, the
            beginning of both modalities, or all but a span of time of each. This trains `image`, `continue_from` and masks of a
            pipeline, and takes one timestep for each latent frame. Half of the still clips of "static" then show the clip's own
            first picture, as in SyncCFG with a given picture.
        reference_share: Share of batches in which each sample hears a reference audio before the clip: a random span of its own
            sound, a sixth to a half of it. This trains Harmony's global style path (arXiv:2511.21579).
        vae: Folder of the video autoencoder, for "static".
        audio_vae: Folder of the audio autoencoder, for "mute".
        text_dropout: Share of samples that lose the text but keep the plan.
        plan_dropout: Share of samples that lose the plan but keep the text.
        joint_dropout: Share of samples that lose both.
        cue_dropout: Share of samples that are planned without cues, for a planner that writes them.
        noise_mean: Noise levels are `sigmoid(noise_mean + noise_std * N(0, 1))`.
        noise_std: See `noise_mean`.
        noise_bins: Number of equal ranges of noise levels whose losses are also logged separately; 0 for none.
        audio_weight: Weight of the audio loss; the video's is 1.
        motion_weight: Weight of the error of the video's change between neighbouring latent frames; the error itself has weight 1
            (ours). Still parts, such as a backdrop, dominate the error itself, and small movements hardly count.
        data_seed: Seed of the Stage stream from which the features were made. Its prompts are paraphrased each time. None
            takes the cached prompts, as for your own clips.
        verb_shares: `verb_shares` of that stream, see [`StageClips`].
        validation: Clips to make every `trainer.validate_every` steps, see [`ValidationConfig`]; None for none.
    """

    trainer: TrainerConfig
    features: str
    max_sequence_length: int
    tokenizer: str | None = None
    transformer: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] | None = field(default_factory=dict)
    plan: str = "encoders"
    planner: str | None = None
    planner_tokenizer: str | None = None
    initial: str | None = None
    initial_text_encoder: str | None = None
    train_text_encoder: bool = True
    new_layers: tuple[str, ...] = ("context_tokens",)
    fresh_layers: tuple[str, ...] = ()
    new_layers_learning_rate: float | None = None
    task_weights: dict[str, float] = field(default_factory=lambda: {"joint": 1.0})
    synergy_weights: dict[str, float] = field(default_factory=dict)
    clean_reads_noisy: bool = False
    independent_timesteps: float = 0.0
    given_share: float = 0.0
    reference_share: float = 0.0
    vae: str | None = None
    audio_vae: str | None = None
    text_dropout: float = 0.1
    plan_dropout: float = 0.2
    joint_dropout: float = 0.1
    cue_dropout: float = 0.1
    noise_mean: float = 0.3
    noise_std: float = 1.2
    noise_bins: int = 0
    audio_weight: float = 1.0
    motion_weight: float = 0.0
    data_seed: int | None = 0
    verb_shares: dict[str, float] = field(default_factory=dict)
    validation: ValidationConfig | None = None

    def __post_init__(self):
        if self.plan not in PLAN_SOURCES:
            raise ValueError(f"`plan` is {self.plan!r}, but must be one of {PLAN_SOURCES}.")
        if self.plan == "planner" and (self.planner is None or self.planner_tokenizer is None):
            raise ValueError('`plan="planner"` needs `planner` and `planner_tokenizer`, the folders of both.')
        if self.text_encoder is not None and self.tokenizer is None:
            raise ValueError("`text_encoder` needs `tokenizer`, the folder of its tokenizer.")
        if self.text_encoder is None and self.initial_text_encoder is not None:
            raise ValueError(
                f"`initial_text_encoder` is {self.initial_text_encoder}, but with `text_encoder` null none is trained: leave it out."
            )
        if self.text_encoder is None and self.data_seed is not None:
            raise ValueError(
                f"`text_encoder` is null, which takes the cached embeddings, but `data_seed` {self.data_seed} paraphrases the prompts: "
                "set it to null, too."
            )
        if self.text_dropout + self.plan_dropout + self.joint_dropout > 1:
            raise ValueError(
                "`text_dropout`, `plan_dropout` and `joint_dropout` exclude one another: their sum exceeds 1."
            )
        self.new_layers, self.fresh_layers = tuple(self.new_layers), tuple(self.fresh_layers)
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
        shares = ("text_dropout", "plan_dropout", "joint_dropout", "cue_dropout")
        for name in (*shares, "independent_timesteps", "given_share", "reference_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a share, in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.motion_weight < math.inf:
            raise ValueError(f"`motion_weight` must be a number from 0 on, got {self.motion_weight}.")
        if self.noise_bins < 0:
            raise ValueError(f"`noise_bins` must be 0 or more, got {self.noise_bins}.")
        for task, name in (("static", "vae"), ("mute", "audio_vae")):
            if task in self.tasks and getattr(self, name) is None:
                raise ValueError(f"the task {task!r} needs `{name}`, the folder of the autoencoder that encodes it.")

    @property
    def uses_flagged(self) -> bool:
        """Whether silent and static clips can be trained on: both need a task."""
        return {"t2v", "t2a"} <= set(self.tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the trained tasks, in the order of [`TASKS`]."""
        return tuple(name for name in TASKS if self.task_weights.get(name) or self.synergy_weights.get(name))


@dataclass
class LoraTraining:
    """
    Configuration of a LoRA's training.

    Args:
        trainer: The run, see [`TrainerConfig`].
        model: Folder of the pipeline.
        features: Folder of cached features, made with the pipeline's own encoders.
        output: Folder to which the LoRA is saved, for `pipe.load_lora_weights`.
        rank: Rank of the matrices.
        alpha: The LoRA is scaled by `alpha / rank`; None takes the rank, a scale of 1.
        targets: Ends of the names of the adapted layers, as peft reads them.
        dtype: Data type of the frozen weights: "float32", "bfloat16" or "float16". The trained ones are float32.
        plan: Where plans come from: "encoders", "planner" or "none", see [`TransformerTraining`].
        cached_text: Whether the prompts' embeddings come from the features (`baton cache --text`). The text encoder is then not in
            memory.
        validation: Clips to make during the training, see [`ValidationConfig`]; by default with the components of `model`.
        loss: Further settings of the loss, by their names in [`TransformerTraining`], such as `text_dropout`.
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
        _check_pipeline_folder(self.model)
        if (Path(self.output) / "pytorch_lora_weights.safetensors").exists():
            raise ValueError(f"`output` {self.output} holds a LoRA already: choose another folder, or delete it.")

    def transformer_training(self) -> TransformerTraining:
        """The configuration of the loss.

        Raises:
            ValueError: if `loss` or `plan` has no such setting, or the folder has no transformer.
        """
        known = set(TransformerTraining.__dataclass_fields__)
        taken = {
            "trainer",
            "features",
            "transformer",
            "text_encoder",
            "tokenizer",
            "max_sequence_length",
            "validation",
        }
        taken |= {"plan", "planner", "planner_tokenizer"} | ({"data_seed"} if self.cached_text else set())
        if wrong := set(self.loss) - (known - taken):
            raise ValueError(f"`loss` has {', '.join(sorted(wrong))}, which is not a setting of the loss.")
        return _on_pipeline(self, self.loss)


@dataclass
class DistillationTraining:
    """
    Configuration of a distillation, see [`~training.distillation`].

    Args:
        trainer: The run. `ema_decay` is the decay of the student's average, which ends targets and is exported.
        model: Folder of the pipeline. Its transformer is the teacher, with its guiders and the shifts of its schedulers.
        features: Folder of cached features, made with the pipeline's own encoders.
        output: Folder to which the student is saved: an adapter for `pipe.load_lora_weights`, or with `rank` null a pipeline.
        method: "consistency": the student takes `student_steps` steps. "flow_map": it takes any number of steps up to the
            teacher's, and receives the end of each step. See [`~training.distillation_methods`].
        student_steps: Number of steps of the student, and by default of its clips.
        teacher_steps: Number of steps of the teacher; None takes the pipeline's. For "consistency" a multiple of the student's.
        target_steps: Number of teacher steps that make a target; None takes all teacher steps in one student step. For
            "consistency" it must divide their number.
        own_share: Share of batches that start at the student's own states, the others at noised clips.
        rank: Rank of the adapter; None trains a copy of all weights.
        initial: Folder of an adapter of that rank to start from, of either method; None starts at the teacher.
        alpha: The adapter is scaled by `alpha / rank`; None takes the rank, a scale of 1.
        targets: Ends of the names of the adapted layers, as peft reads them.
        dtype: Data type of the frozen weights: "float32", "bfloat16" or "float16". The trained ones are float32.
        save_dtype: Data type of the saved adapter.
        plan: Where plans come from: "encoders", "planner" or "none", see [`TransformerTraining`].
        cached_text: Whether the prompts' embeddings come from the features (`baton cache --text`). The text encoder is then not in
            memory.
        task_weights: How often a batch is drawn for "joint", "t2v", "t2a", "a2v" and "v2a", relative to the others.
        given_share: Share of batches with a given part: the first picture, a beginning, or all but a span, see
            [`TransformerTraining`].
        reference_share: Share of batches with a reference audio.
        plan_dropout: Share of batches without a plan.
        cue_dropout: Share of samples that are planned without cues, for a planner that writes them.
        audio_weight: Weight of the audio loss; the video's is 1.
        huber: The constant c of the pseudo-Huber distance `sqrt(d^2 + c^2) - c`.
        data_seed: As in [`TransformerTraining`].
        verb_shares: As in [`TransformerTraining`].
        validation: Clips that the student makes during the training, see [`ValidationConfig`]; by default with the components of
            `model`.
    """

    trainer: TrainerConfig
    model: str
    features: str
    output: str
    method: str = "consistency"
    student_steps: int = 4
    teacher_steps: int | None = None
    target_steps: int | None = None
    own_share: float = 0.5
    rank: int | None = 64
    initial: str | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD)
    dtype: str = "float32"
    save_dtype: str = "float32"
    plan: str = "planner"
    cached_text: bool = False
    task_weights: dict[str, float] = field(default_factory=lambda: {"joint": 1.0})
    given_share: float = 0.0
    reference_share: float = 0.0
    plan_dropout: float = 0.1
    cue_dropout: float = 0.0
    audio_weight: float = 1.0
    huber: float = 0.03
    data_seed: int | None = None
    verb_shares: dict[str, float] = field(default_factory=dict)
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        _check_pipeline_folder(self.model)
        index = read_json(Path(self.model) / "model_index.json")
        if self.teacher_steps is None:
            self.teacher_steps = index["num_inference_steps"]
        if self.method not in DISTILLATIONS:
            raise ValueError(f"`method` must be one of {', '.join(DISTILLATIONS)}, got {self.method!r}.")
        for name in ("student_steps", "teacher_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.student_steps > self.teacher_steps:
            raise ValueError(
                f"`student_steps` is {self.student_steps}, but the teacher takes {self.teacher_steps} steps: set fewer."
            )
        segment = self.teacher_steps // self.student_steps
        if self.target_steps is None:
            self.target_steps = segment
        if not 1 <= self.target_steps <= self.teacher_steps:
            raise ValueError(
                f"`target_steps` is {self.target_steps}, but must be from 1 to the teacher's {self.teacher_steps} steps."
            )
        if self.method == "consistency" and self.teacher_steps % self.student_steps:
            raise ValueError(
                f"`teacher_steps` is {self.teacher_steps}, but must be a multiple of `student_steps`, {self.student_steps}."
            )
        if self.method == "consistency" and segment % self.target_steps:
            raise ValueError(
                f"`target_steps` is {self.target_steps}, but must divide the {segment} steps of the teacher in one of the student."
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, or None to train all weights, got {self.rank}.")
        if self.initial is not None and self.rank is None:
            raise ValueError(
                f"`initial` {self.initial} is an adapter, but `rank` is null: set the rank, or leave it out."
            )
        for name in ("dtype", "save_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"`{name}` must be one of {', '.join(DTYPES)}, got {getattr(self, name)!r}.")
        for name in ("own_share", "plan_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a share, in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.huber < math.inf:
            raise ValueError(f"`huber` must be a positive number, got {self.huber}.")
        if wrong := {name for name, weight in self.task_weights.items() if weight} & {"mute", "static"}:
            raise ValueError(
                f"`task_weights` names {sorted(wrong)[0]!r}, an anchor of guidance, but a student has no guidance: leave it out."
            )
        if self.cached_text and self.data_seed is not None:
            raise ValueError(
                f"`cached_text` takes the cached prompts, but `data_seed` {self.data_seed} paraphrases them: set it to null."
            )
        self.transformer_training()
        if (Path(self.output) / "pytorch_lora_weights.safetensors").exists():
            raise ValueError(f"`output` {self.output} holds a LoRA already: choose another folder, or delete it.")

    @property
    def negative_prompts(self) -> tuple[str, str | None]:
        """The pipeline's negative prompts of picture and sound, which guidance uses when it drops the prompt. The sound may
        have none of its own."""
        index = read_json(Path(self.model) / "model_index.json")
        return index.get("negative_prompt") or "", index.get("audio_negative_prompt")

    def transformer_training(self) -> TransformerTraining:
        """The same data, tasks and conditions as a configuration of [`FlowMatchingLoss`]."""
        names = ("task_weights", "given_share", "reference_share", "cue_dropout", "verb_shares", "data_seed")
        settings = {name: getattr(self, name) for name in names}
        return _on_pipeline(self, {**settings, "text_dropout": 0.0, "plan_dropout": 0.0, "joint_dropout": 0.0})


@dataclass
class PlannerTraining:
    """
    Configuration of a planner's training on Stage (Baton's stage 1).

    Args:
        trainer: The run; a sample is one scene.
        tokenizer: Folder of the planner's tokenizer.
        video_semantic_encoder: Folder of the frozen [`VideoSemanticEncoder`].
        audio_semantic_encoder: Folder of the frozen [`AudioSemanticEncoder`].
        output: Folder to which the planner is saved.
        planner: Arguments of [`VAPlannerModel`].
        language_model: Folder or Hub id of a Qwen3 to start the language model from, as in the paper. Its configuration is the one
            in `planner`. None starts from random weights.
        initial: Folder of a planner to start from. If it lacks the timestamps of `planner`, they start fresh.
        lora_rank: Rank of a LoRA on the language model, merged at the end; placeholders and towers are trained in full. None trains
            the language model in full, as the paper does.
        features: Folder of cached features, which hold the targets. None computes the targets when a scene first comes up, see
            `num_scenes` and `clips_per_prompt`.
        data_seed: Seed of the Stage stream from which the features were made. Its prompts are paraphrased anew each time. None
            takes the cached prompts, as for your own clips.
        verb_shares: `verb_shares` of that stream, see [`StageClips`].
        num_scenes: Training scenes. Their features are computed once, their prompts are paraphrased at every epoch.
        clips_per_prompt: Renders of a scene whose features are averaged into one target (ours). A prompt does not say when things
            happen, so a scene has many clips; the mean has the gradient of all of them.
        audio_weight: Weight of an audio token beside a video token; 1 is the paper's plain sum over tokens.
        cue_weight: Weight of the cross-entropy of cues, for a planner with timestamps.
        faint_weight: Weight added to video tokens that change faintly, see [`PlannerLoss`]; 0 is the paper's plain sum.
        cue_texts: Further prompts with their cues in each batch, for the cross-entropy alone; a multiple of the batch size. Writing
            cues takes more examples to learn than planning by them, and text is cheap.
        cue_tier_weights: Relative frequency of the tiers in these prompts; None draws all tiers equally often.
        cue_dropout: Share of samples that are planned without cues.
        evaluation_scenes: Validation scenes for the explained variance after training; 0 for none.
    """

    trainer: TrainerConfig
    tokenizer: str
    video_semantic_encoder: str
    audio_semantic_encoder: str
    output: str
    planner: dict[str, Any]
    language_model: str | None = None
    initial: str | None = None
    lora_rank: int | None = None
    features: str | None = None
    data_seed: int | None = 0
    verb_shares: dict[str, float] = field(default_factory=dict)
    num_scenes: int = 5000
    clips_per_prompt: int = 1
    audio_weight: float = 1.0
    cue_weight: float = 1.0
    faint_weight: float = 0.0
    cue_texts: int = 0
    cue_tier_weights: dict[str, float] | None = None
    cue_dropout: float = 0.1
    evaluation_scenes: int = 200

    def __post_init__(self) -> None:
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"`lora_rank` must be at least 1, or None for no LoRA, got {self.lora_rank}.")
        if self.language_model is not None and self.initial is not None:
            raise ValueError("`initial` is a whole planner, its language model included: give it or `language_model`.")
        if self.cue_texts < 0 or self.cue_texts % self.trainer.batch_size:
            raise ValueError(
                f"`cue_texts` is {self.cue_texts}, but must be a multiple of `trainer.batch_size`, {self.trainer.batch_size}."
            )
        if not 0 <= self.cue_dropout <= 1:
            raise ValueError(f"`cue_dropout` is a share of the samples, in [0, 1], got {self.cue_dropout}.")
        if self.clips_per_prompt > 1 and self.planner.get("first_timestamp_id") is not None:
            raise ValueError(
                f"`clips_per_prompt` is {self.clips_per_prompt}, but a planner with timestamps learns each clip with its own cues: set it "
                "to 1."
            )


def _check_pipeline_folder(model: str) -> None:
    if not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"`model` is {model!r}, but must be the folder of a pipeline, with a model_index.json.")


def _on_pipeline(config: LoraTraining | DistillationTraining, settings: dict[str, Any]) -> TransformerTraining:
    """The configuration of the loss of a training on a pipeline's own parts, with further `settings`.

    Raises:
        ValueError: if the folder has no transformer, or a setting is wrong.
    """
    model = Path(config.model)
    index, transformer = read_json(model / "model_index.json"), read_json(model / "transformer" / "config.json")
    transformer = {name: value for name, value in transformer.items() if not name.startswith("_")}
    parts = {"plan": config.plan, "features": config.features, "transformer": transformer}
    if config.cached_text:
        parts |= {"text_encoder": None, "data_seed": None}
    else:
        parts |= {"tokenizer": str(model / "tokenizer")}
    if config.plan == "planner":
        parts |= {name: str(model / name) for name in ("planner", "planner_tokenizer")}
    return TransformerTraining(
        trainer=config.trainer, max_sequence_length=index["max_sequence_length"], **{**settings, **parts}
    )


def load_config(path: str | Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """
    Reads a YAML file into a dataclass, whose fields may be dataclasses.

    Args:
        path: The file; its keys are the fields of `cls`.
        cls: The dataclass.
        overrides: `key=value` texts, as from the command line; the key of a nested field is dotted
            (`trainer.steps=100`), the value is YAML.

    Raises:
        ValueError: For a file that is not there or no YAML, an unknown or missing key, or a value of the wrong type, naming it.
    """
    try:
        values = yaml.load(read_text(path, _MAX_FILE_BYTES), _Yaml)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a YAML file: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold the keys of {cls.__name__}, such as `trainer:`, but it holds {values!r}.")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"An override reads `key=value`, got {override!r}.")
        *parents, name = key.split(".")
        section = values
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise ValueError(f"Override {override!r}: `{parent}` is a value, it holds no keys.")
        try:
            section[name] = yaml.load(text, _Yaml)
        except yaml.YAMLError as error:
            raise ValueError(f"Override {override!r}: the value is not YAML: {error}") from error
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] == "missing")  # a misspelt key is missing, too
        raise ValueError(f"{path}: {_sentence(cls, first)}") from None
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans and floats: `no` is a word, and `1e-4` a number. Dates are words, too."""


_Yaml.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({_FLOAT})$"), list("-+.0123456789"))


def _sentence(cls: type, error: dict[str, Any]) -> str:
    """What is wrong with a value, by pydantic's first error."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"`{place}` is missing, and has no default."
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = ", ".join(known.name for known in fields(_section(cls, error["loc"][:-1])))
        return f"unknown key `{place}`; it may be one of {known}."
    if error["type"] == "dataclass_type":
        return f"`{place}` must hold the keys of {error['ctx']['class_name']}, got {error['input']!r}."
    return f"`{place}` is {error['input']!r}, but it {error['msg'].removeprefix('Input ')}."


def _section(cls: type, keys: Sequence[str]) -> type:
    """The dataclass of a nested field."""
    for key in keys:
        hint = get_type_hints(cls)[key]
        cls = next(option for option in (hint, *get_args(hint)) if is_dataclass(option))
    return cls
