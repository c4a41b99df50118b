"""Distillation: a student learns to make, in a few steps without guidance, the clips that its teacher makes in many steps with
guidance.

Teacher and student share their weights, and the student adds an adapter; or the teacher is a frozen copy of the trained
weights. Both use one grid of equal parts of *unshifted* time. Each modality applies its own shift, as in the pipeline, so that
one step means the same for picture and sound. The student learns to cross a part of the grid in one step:

    x(i)      a state at a point i of the grid
    target    from there the teacher takes some guided steps; the student's moving average goes on to the end
    student   crosses from i to the end in one step, with one pass

The method chooses these steps, and how far the teacher goes, see [`~training.distillation_methods`]. The loss is the
pseudo-Huber distance (arXiv:2310.14189) of mean velocities.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, MMAudioVAE
from diffusers.guiders import BaseGuidance
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from ..files import read_json
from ..guiders import Anchor, check_guiders, combine, passes_of_steps, presets
from ..models.component_files import component_class, load_component
from ..models.lora_conversion import STEP_EMBEDDER, match_lora
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel
from ..pipelines.conditions import KnownLatents
from ..pipelines.denoise import Denoiser, Denoising, Stream
from ..pipelines.lora import save_adapter
from ..pipelines.pipeline_baton import BatonPipeline
from ..pipelines.students import StudentPreset
from ..pipelines.texts import TextEmbeddings, read_texts
from ..plan import SemanticPlan
from ..schedulers import set_timesteps
from .average import WeightAverage
from .config import DistillationTraining
from .data.dataset import CachedFeatures
from .distillation_methods import Consistency, FlowMap
from .flow_matching import FeatureCollator, FlowMatchingLoss, held_latents, mute_latents, static_latents
from .seeds import step_seed
from .validation import Validation


_DRAWS = 2**32 - 1  # the part of a step whose seed decides what all parts have in common


class Student(nn.Module):
    """
    The transformer that learns, and its teacher.

    Args:
        transformer ([`DualBranchTransformer`]): the student.
        teacher ([`DualBranchTransformer`], *optional*): frozen; by default it is the student without its adapters.
    """

    text_encoder = None  # frozen: validation takes the pipeline's

    def __init__(self, transformer: DualBranchTransformer, teacher: DualBranchTransformer | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.teacher = teacher

        self._is_teacher = False

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Within this context, the module is the teacher."""
        self._is_teacher = True
        if self.teacher is None:
            self.transformer.disable_adapters()
        try:
            yield
        finally:
            self._is_teacher = False
            if self.teacher is None:
                self.transformer.enable_adapters()

    def forward(self, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The transformer's output. The teacher does not receive the end of a step."""
        if not self._is_teacher:
            return self.transformer(**inputs)
        teacher = self.transformer if self.teacher is None else self.teacher
        return teacher(**{**inputs, "next_timestep": None, "audio_next_timestep": None})


def build_student(config: DistillationTraining) -> Student:
    """The pipeline's transformer with an adapter, fresh or `config.initial`; or, with `config.rank` null, a trained copy beside the
    frozen one. For a flow map it has layers for the end of a step.

    Raises:
        ValueError: if no layer has one of `config.targets` in its name, or `config.initial` does not fit.
    """
    dtype, folder = getattr(torch, config.dtype), Path(config.model) / "transformer"
    transformer = load_component(folder, DualBranchTransformer, dtype=dtype).requires_grad_(False)
    is_flow_map, targets = _method(config).is_flow_map, list(config.targets)
    if config.rank is None:
        student = copy.deepcopy(transformer).float()
        student.make_flow_map(is_flow_map)
        return Student(student.requires_grad_(True), transformer)
    if is_flow_map:
        transformer.make_flow_map()
        targets.append(STEP_EMBEDDER)
    alpha = config.rank if config.alpha is None else config.alpha
    transformer.add_adapter(LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=targets))
    cast_training_params(transformer, torch.float32)
    if config.initial is not None:
        _start_from(transformer, config.initial, alpha / config.rank)
    return Student(transformer)


@torch.no_grad()
def _start_from(transformer: DualBranchTransformer, source: str, scale: float) -> None:
    """Gives the adapter the weights of a saved one; layers that this one lacks stay fresh, and add nothing."""
    state_dict, config = BatonPipeline._read_lora(source, {})
    match = match_lora(state_dict, transformer, config=config)
    weights = dict(transformer.named_parameters())
    for name, layer in match.layers.items():
        down, up = (weights.get(f"{name}.lora_{part}.default.weight") for part in "AB")
        if down is None or down.shape != layer.down.shape or layer.magnitude is not None or layer.bias is not None:
            raise ValueError(
                f"`initial` {source} has a layer {name!r} of rank {layer.rank}, which this adapter lacks: set `rank` and `targets` as "
                "they were for it."
            )
        down.copy_(layer.down)
        up.copy_(layer.scale / scale * layer.up)


class Grid:
    """
    Points of unshifted time, from noise to a sample, and the noise levels of both modalities there.

    Args:
        num_steps (`int`): parts of the grid.
        shifts (`tuple[float, float]`): of the video and the audio.
        device (`torch.device`): where the timesteps go.
    """

    def __init__(self, num_steps: int, shifts: tuple[float, float], device: torch.device) -> None:
        self.num_steps = num_steps
        self.schedulers = [FlowMatchEulerDiscreteScheduler(shift=shift) for shift in shifts]
        self.timesteps = [set_timesteps(scheduler, num_steps, device) for scheduler in self.schedulers]
        for scheduler in self.schedulers:
            scheduler.sigmas = scheduler.sigmas.cpu()  # read at every step
        self.sigmas = [scheduler.sigmas.tolist() for scheduler in self.schedulers]


@dataclass(frozen=True)
class _Clips:
    """The conditions of the clips of a batch; all clips have the same task."""

    texts: TextEmbeddings
    plan: SemanticPlan | None
    known: tuple[KnownLatents, KnownLatents]
    stand_ins: tuple[torch.Tensor | None, torch.Tensor | None]
    reference: torch.Tensor | None
    only: str | None


class _Transformer:
    """A [`Student`] with the interface of a transformer, for the denoising loop. It calls the module that the trainer has
    wrapped."""

    def __init__(self, module: nn.Module, transformer: DualBranchTransformer) -> None:
        self._module, self._transformer = module, transformer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def __call__(self, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._module(**inputs)


def _method(config: DistillationTraining) -> Consistency | FlowMap:
    if config.method == "flow_map":
        return FlowMap(config.teacher_steps, config.target_steps, config.own_share)
    return Consistency(config.student_steps, config.teacher_steps, config.target_steps, config.own_share)


class DistillationLoss:
    r"""
    The distance between the end of a student's step and the teacher's state there.

    A batch has one task, one given part, and one [`Crossing`]. It starts at noised clips, or with probability `own_share` at
    states that the student itself reaches. The student's states and the ends of targets come from the moving average of its
    weights, see `average`. The teacher runs with the pipeline's guiders and all their passes; each batch resets them.

    Logged: `loss = video + audio_weight * audio`.

    Args:
        config ([`DistillationTraining`]): the recipe.
        student ([`Student`]): what is trained; the trainer calls it as `module`, maybe wrapped.
        features ([`CachedFeatures`]): give the plan's layout and, without a text encoder, the empty prompt's embeddings.
        guiders (`dict[str, BaseGuidance]`): the teacher's `guider` and `audio_guider`.
        shifts (`tuple[float, float]`): of the noise levels of video and audio.
        text_encoder, tokenizer (*optional*): frozen; without them the features hold embeddings.
        planner ([`VAPlannerModel`], *optional*): frozen planner, for `plan="planner"`.
        vae (`AutoencoderKLWan`, *optional*): encodes the still clip, for guiders that put one in the video's place.
        audio_vae (`MMAudioVAE`, *optional*): encodes silence, likewise.

    Raises:
        ValueError: if the guiders do not fit, or need an autoencoder or a negative prompt that is not there.
    """

    def __init__(
        self,
        config: DistillationTraining,
        student: Student,
        features: CachedFeatures,
        guiders: dict[str, BaseGuidance],
        shifts: tuple[float, float],
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        planner: VAPlannerModel | None = None,
        vae: AutoencoderKLWan | None = None,
        audio_vae: MMAudioVAE | None = None,
    ) -> None:
        check_guiders(**guiders, num_layers=student.transformer.config.num_layers)
        self.config, self.student, self.features, self.method = config, student, features, _method(config)
        self.guiders, self.shifts, self._no_guiders = guiders, shifts, presets()["none"]
        self.text_encoder, self.tokenizer, self.vae, self.audio_vae = text_encoder, tokenizer, vae, audio_vae
        self.training = config.transformer_training()
        self.average: WeightAverage | None = None  # the trainer sets it
        self._flow = FlowMatchingLoss(self.training, features, planner)
        self._device: torch.device | None = None
        self._grids: dict[int, Grid] = {}
        self._kept: dict[Any, torch.Tensor] = {}
        self._drops_text = not all(anchor.text for anchor in _anchors(guiders, self.method.grids))
        self._replaced = replaced_modalities(guiders, self.method.grids)
        for modality, name, model in (("video", "vae", vae), ("audio", "audio_vae", audio_vae)):
            if modality in self._replaced and model is None:
                raise ValueError(
                    f"the guiders put a still clip in the {modality}'s place: give its autoencoder, `{name}`."
                )
        if self._drops_text and text_encoder is None and any(config.negative_prompts):
            raise ValueError(
                f"the guiders read the negative prompts {config.negative_prompts}, which no text encoder embeds: set `cached_text` to "
                "false, or the pipeline's negative prompts to ''."
            )

    def to(self, device: torch.device) -> None:
        """Moves the frozen models to where the student is trained."""
        self._flow.to(device)
        for model in (self.text_encoder, self.vae, self.audio_vae):
            if model is not None:
                model.to(device)
        self._device = device

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch, as [`Trainer`] wants it."""
        config, data = self.config, (batch["latents"], batch["audio_latents"])
        # Draws that decide shapes and passes are made on the CPU: to read them from the device would wait for its queue. They
        # are the same in all parts of a step, so that processes do not wait for each other.
        host = torch.Generator().manual_seed(step_seed(config.trainer.seed, step, _DRAWS))

        # 1. The task with its conditions, and the step on the grid
        clips, crossing = self._clips(batch, generator, host), self.method.draw(host)
        grid, start, middle, end = self._grid(crossing.num_parts), crossing.start, crossing.middle, crossing.end

        # 2. The state there
        state = [torch.randn(x.shape, generator=generator, device=x.device) for x in data]
        with torch.no_grad():
            if crossing.own_stride is not None:
                with self._averaged():
                    state = self._walk(module, clips, grid, state, range(0, start + 1, crossing.own_stride))
            else:
                sigmas = [levels[start] for levels in grid.sigmas]
                state = [(1 - s) * x + s * noise for x, noise, s in zip(data, state, sigmas, strict=True)]

            # 3. The target: some steps of the teacher; then the student's average goes on
            with self.student.as_teacher():
                target = self._walk(module, clips, grid, state, range(start, middle + 1), self.guiders)
            if middle < end:
                with self._averaged():
                    target = self._walk(module, clips, grid, target, (middle, end))

        # 4. The student's one step, and its distance as a mean velocity
        reached = self._walk(module, clips, grid, state, (start, end))
        losses = [
            _pseudo_huber(x - goal, known, levels[start] - levels[end], config.huber)
            for x, goal, known, levels in zip(reached, target, clips.known, grid.sigmas, strict=True)
        ]
        return {"loss": losses[0] + config.audio_weight * losses[1], "video": losses[0], "audio": losses[1]}

    def _walk(
        self,
        module: nn.Module,
        clips: _Clips,
        grid: Grid,
        state: list[torch.Tensor],
        points: Sequence[int],
        guiders: dict[str, BaseGuidance] | None = None,
    ) -> list[torch.Tensor]:
        """Euler's steps from point to point of the grid, both modalities together, without guidance or under `guiders`."""
        guiders = copy.deepcopy(guiders or self._no_guiders)  # some remember earlier steps
        parts = SimpleNamespace(transformer=_Transformer(module, self.student.transformer), **guiders)
        streams = [
            Stream(*given, stand_in=stand_in)
            for *given, stand_in in zip(
                state, clips.known, grid.schedulers, grid.timesteps, clips.stand_ins, strict=True
            )
        ]
        request = Denoising(grid.num_steps)
        denoiser = Denoiser(parts, *streams, clips.texts, clips.plan, clips.reference, clips.only, request)
        for here, there in pairwise(points):
            denoiser.predict(here, there)
            for stream, sigmas in zip(streams, grid.sigmas, strict=True):
                if stream.guider is not None:
                    velocity = combine(stream.guider, stream.predictions, denoiser.has_plan, denoiser.has_other)
                    stream.latents = stream.known.keep(stream.latents + (sigmas[there] - sigmas[here]) * velocity)
        return [stream.latents for stream in streams]

    def _grid(self, num_steps: int) -> Grid:
        if num_steps not in self._grids:
            self._grids[num_steps] = Grid(num_steps, self.shifts, self._device)
        return self._grids[num_steps]

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    @torch.no_grad()
    def _clips(self, batch: dict[str, Any], generator: torch.Generator, host: torch.Generator) -> _Clips:
        """Draws a task and the given part, and computes embeddings and plans."""
        latents, audio_latents = batch["latents"], batch["audio_latents"]
        task = self._flow._draw_tasks(1, host)
        name = self.training.tasks[int(task)]
        only = {"t2v": "video", "t2a": "audio"}.get(name)
        made = self._flow._draw_noisy(task, latents.shape[2], audio_latents.shape[1], host)
        masks = [~made[0][0] | (only == "audio"), ~made[1][0] | (only == "video")]
        known = tuple(
            KnownLatents.place(x, mask, dim)
            for x, mask, dim in zip((latents, audio_latents), masks, (2, 1), strict=True)
        )
        has_plan = torch.rand(1, generator=host).item() >= self.config.plan_dropout
        still = silence = None
        if "video" in self._replaced:  # a given first picture, as in the pipeline, or a grey one
            still = held_latents(self.vae, latents) if masks[0][0] else self._still(latents)
        if "audio" in self._replaced:
            silence = self._still(audio_latents)
        reference = self._flow._reference_audio(audio_latents, host)
        plan = self._flow._plan(batch, 1, generator) if has_plan else None
        return _Clips(self._texts(batch), plan, known, (still, silence), reference, only)

    def _texts(self, batch: dict[str, Any]) -> TextEmbeddings:
        """Embeddings of the prompts and, if the guiders drop these, of the pipeline's negative prompts."""
        device, count = batch["latents"].device, len(batch["prompt"])
        if self.text_encoder is None:
            prompt = batch["prompt_embeds"]
        else:
            prompt = read_texts(self._reader, batch["prompt"], device)
        if not self._drops_text:
            return TextEmbeddings(prompt, None, None)
        negative, audio_negative = (
            None if text is None else self._negative(text, device).expand(count, -1, -1)
            for text in self.config.negative_prompts
        )
        return TextEmbeddings(prompt, negative, audio_negative)

    @property
    def _reader(self) -> SimpleNamespace:
        length = SimpleNamespace(max_sequence_length=self.training.max_sequence_length)
        return SimpleNamespace(text_encoder=self.text_encoder, tokenizer=self.tokenizer, config=length)

    def _negative(self, text: str, device: torch.device) -> torch.Tensor:
        if text not in self._kept:
            if self.text_encoder is None:
                self._kept[text] = self.features.empty_prompt_embeds[None].to(device)
            else:
                self._kept[text] = read_texts(self._reader, [text], device)
        return self._kept[text]

    def _still(self, like: torch.Tensor) -> torch.Tensor:
        """A still clip or silence of the shape of `like`, encoded once for each shape."""
        shape = like.shape[1:]
        if shape not in self._kept:
            still = static_latents(self.vae, *shape[1:]) if len(shape) == 4 else mute_latents(self.audio_vae, shape[0])
            self._kept[shape] = still.to(like)
        return self._kept[shape].expand_as(like)


def _pseudo_huber(difference: torch.Tensor, known: KnownLatents, length: float, c: float) -> torch.Tensor:
    """`sqrt(mean(d^2) + c^2) - c` of each clip over its generated latents, with d = `difference / length`; then the mean over
    the clips."""
    if known.all:
        return difference.new_zeros(())
    made = (~known.mask).expand_as(difference)
    square = (difference / length).square() * made
    mean = square.flatten(1).sum(1) / made.flatten(1).sum(1)
    return ((mean + c**2).sqrt() - c).mean()


def load_guiders(model: str | Path) -> dict[str, BaseGuidance]:
    """The `guider` and `audio_guider` of a pipeline's folder.

    Raises:
        ValueError: if it has none, or of another library.
    """
    index = read_json(Path(model) / "model_index.json")
    guiders = {}
    for name in ("guider", "audio_guider"):
        library, class_name = index.get(name) or (None, None)
        if library is None:
            raise ValueError(
                f"{model} has no `{name}`, which says how the teacher is guided: save the pipeline with one."
            )
        guiders[name] = component_class(name, library, class_name).from_pretrained(Path(model) / name)
    return guiders


def load_shifts(model: str | Path) -> tuple[float, float]:
    """The shifts of a pipeline's `scheduler` and `audio_scheduler`.

    Raises:
        ValueError: if one depends on the size of an image.
    """
    shifts = []
    for name in ("scheduler", "audio_scheduler"):
        config = read_json(Path(model) / name / "scheduler_config.json")
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                f"the `{name}` of {model} has `use_dynamic_shifting`, but a student needs one `shift`: set it."
            )
        shifts.append(float(config.get("shift", config.get("flow_shift", 1.0))))
    return shifts[0], shifts[1]


def build_loss(
    config: DistillationTraining, student: Student, features: CachedFeatures
) -> tuple[DistillationLoss, FeatureCollator]:
    """The loss with those frozen parts of the pipeline that it needs, and the function that joins its batches."""
    model, training = Path(config.model), config.transformer_training()

    def frozen(name: str, model_class: type[nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        return load_component(model / name, model_class, dtype=dtype or torch.float32).eval().requires_grad_(False)

    guiders, parts = load_guiders(model), {}
    if not config.cached_text:
        parts["text_encoder"] = frozen("text_encoder", UMT5EncoderModel, getattr(torch, config.dtype))
        parts["tokenizer"] = AutoTokenizer.from_pretrained(training.tokenizer)
    collate = FeatureCollator(training.max_sequence_length)
    if config.plan == "planner":
        parts["planner"] = frozen("planner", VAPlannerModel)
        planner_tokenizer = AutoTokenizer.from_pretrained(training.planner_tokenizer)
        collate = FeatureCollator(training.max_sequence_length, None, planner_tokenizer, parts["planner"].config)
    replaced = replaced_modalities(guiders, _method(config).grids)
    if "video" in replaced:
        parts["vae"] = frozen("vae", AutoencoderKLWan)
    if "audio" in replaced:
        parts["audio_vae"] = frozen("audio_vae", MMAudioVAE)
    return DistillationLoss(config, student, features, guiders, load_shifts(model), **parts), collate


def replaced_modalities(guiders: dict[str, BaseGuidance], sizes: Sequence[int]) -> set[str]:
    """The modalities that the guiders replace by a still clip or silence."""
    anchors = _anchors(guiders, sizes)
    found = {"video": any(anchor.static for anchor in anchors), "audio": any(anchor.mute for anchor in anchors)}
    return {name for name, is_replaced in found.items() if is_replaced}


def _anchors(guiders: dict[str, BaseGuidance], sizes: Sequence[int]) -> set[Anchor]:
    steps = [step for num_steps in sizes for step in passes_of_steps(*guiders.values(), num_steps)]
    return {guidance_pass.anchor for step in steps for guidance_pass in step}


def build_validation(config: DistillationTraining) -> Validation | None:
    """Clips that the student makes during the training, or None."""
    if config.validation is None:
        return None
    settings = replace(
        config.validation,
        model=config.validation.model or config.model,
        num_inference_steps=config.validation.num_inference_steps or config.student_steps,
    )
    preset = StudentPreset(settings.num_inference_steps, *load_shifts(config.model))
    return Validation(settings, Path(config.trainer.run_dir) / "samples", preset.parts())


def save_student(module: Student, config: DistillationTraining) -> None:
    """Saves the adapter with its preset; or, where all weights were trained, a pipeline with the student's settings."""
    transformer = module.transformer
    if config.rank is None:
        pipe = BatonPipeline.from_pretrained(config.model, transformer=transformer)
        preset = StudentPreset(config.student_steps, *load_shifts(config.model))
        pipe.register_modules(**preset.parts())
        pipe.register_to_config(num_inference_steps=preset.num_inference_steps)
        pipe.save_pretrained(config.output)
        return
    layers = get_peft_model_state_dict(transformer)
    save_adapter(
        config.output,
        {name: value.to(getattr(torch, config.save_dtype)) for name, value in layers.items()},
        transformer.peft_config["default"].to_dict(),
        StudentPreset(config.student_steps, *load_shifts(config.model)),
    )
