"""The denoising loop: two streams, one for each modality, advance together; guiders combine the passes of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from diffusers.guiders import BaseGuidance
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import logging

from ..guiders import (
    JOINT,
    AnchorGuidance,
    GuidancePass,
    PlanGuidance,
    check_guiders,
    combine,
    guidance_passes,
    passes_of_steps,
)
from ..guiders.anchors import Anchor
from ..models.cache_dual_branch import CleanStream
from ..plan import SemanticPlan
from ..schedulers import check_grid, check_schedulers, set_timesteps, step_kwargs
from .checks import check_whole_number
from .components import PipelineParts
from .conditions import KnownLatents
from .given import Given
from .students import warn_of_students
from .texts import TextEmbeddings


logger = logging.get_logger(__name__)

MAX_STEPS = 10_000


# The request to the loop


@dataclass(frozen=True)
class Denoising:
    """How a call denoises. `BatonPipeline.__call__` describes the arguments."""

    num_inference_steps: int
    use_cache: bool = False
    attention_kwargs: dict[str, Any] | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None

    @classmethod
    def of(
        cls,
        pipe: PipelineParts,
        num_inference_steps: int | None,
        sigmas: Sequence[float] | None,
        timesteps: Sequence[float] | None,
        **settings: Any,
    ) -> Self:
        """The request of a call. The number of steps is by default the length of `sigmas` or `timesteps`, else the pipeline's.

        Raises:
            ValueError: if `sigmas` or `timesteps` are no grid, or their length is not the number of steps.
        """
        length = check_grid(sigmas, timesteps)
        if num_inference_steps is None:
            num_inference_steps = pipe.config.num_inference_steps if length is None else length
        elif length not in (None, num_inference_steps):
            name = "timesteps" if sigmas is None else "sigmas"
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps!r}, but `{name}` has {length} steps: leave out one of them."
            )
        return cls(num_inference_steps, sigmas=sigmas, timesteps=timesteps, **settings)

    def set_timesteps(self, scheduler: SchedulerMixin, device: str | torch.device | None = None) -> torch.Tensor:
        """Puts a scheduler at the start of the clip, and returns its timesteps."""
        return set_timesteps(scheduler, self.num_inference_steps, device, self.sigmas, self.timesteps)

    def check(self, pipe: PipelineParts, given: Given, num_frames: int) -> tuple[GuidancePass, ...]:
        """Refuses guiders, schedulers and caches that do not work, or do not work together.

        Returns:
            The passes of all steps.

        Raises:
            ValueError: naming the component or argument, its value and the remedy.
        """
        passes = self.passes(pipe, given, num_frames)
        anchors = {guidance_pass.anchor for guidance_pass in passes}
        if not pipe.transformer.config.num_context_tokens and any(
            (anchor.mute or anchor.static) and not anchor.clean_reads for anchor in anchors
        ):
            logger.warning(
                "In guidance by a silent or still clip, that clip does not read the other modality, and a transformer without "
                "context tokens has usually not been trained for that: set `clean_reads=True` in the `SyncGuidance` of both modalities."
            )
        encodes_sound = given.audio is not None or given.reference_audio is not None
        if (encodes_sound or any(anchor.mute for anchor in anchors)) and pipe.audio_vae.dtype != torch.float32:
            raise ValueError(
                f"`audio_vae` is in {pipe.audio_vae.dtype}, in which it cannot encode sound: call `pipe.audio_vae.float()`."
            )
        self._check_caches(pipe, given, passes)
        warn_of_students(pipe, self.num_inference_steps, passes)
        return passes

    def check_steps(self, pipe: PipelineParts, only: str | None) -> None:
        """Refuses a number of steps, guiders or schedulers of a wrong kind, before their passes are counted.

        Raises:
            ValueError: naming the component or argument, its value and the remedy.
        """
        guiders = {"guider": pipe.guider, "audio_guider": pipe.audio_guider}
        if only is not None:  # the other guider is not used
            guiders["audio_guider" if only == "video" else "guider"] = PlanGuidance(guidance_scale=1.0)
        check_guiders(**guiders, num_layers=pipe.transformer.config.num_layers)
        check_whole_number("num_inference_steps", self.num_inference_steps, most=MAX_STEPS)
        check_schedulers(pipe.scheduler, pipe.audio_scheduler, self.num_inference_steps, self.sigmas, self.timesteps)
        if self.attention_kwargs is not None and not isinstance(self.attention_kwargs, dict):
            raise ValueError(
                f"`attention_kwargs` is {self.attention_kwargs!r}, but must be a dictionary such as {{'scale': 0.5}}."
            )

    def passes(self, pipe: PipelineParts, given: Given, num_frames: int) -> tuple[GuidancePass, ...]:
        """The passes of all steps; a modality that is given whole, or excluded by `only`, needs none."""
        mask, audio_mask = given.settled_masks(pipe, num_frames)
        guider, audio_guider = None if mask.all() else pipe.guider, None if audio_mask.all() else pipe.audio_guider
        num_steps = len(self.set_timesteps(pipe.scheduler))
        steps = passes_of_steps(
            guider, audio_guider, num_steps, has_other=given.only is None, given_reads=_given_reads(pipe)
        )
        return tuple(guidance_pass for step in steps for guidance_pass in step)

    def _check_caches(self, pipe: PipelineParts, given: Given, passes: Sequence[GuidancePass]) -> None:
        """Refuses settings that do not work with diffusers' caches of whole blocks. These compare the video stream from step to
        step."""
        if not pipe.transformer.is_cache_enabled:
            return
        config, remedy = pipe.transformer.config, "call `pipe.transformer.disable_cache()`"
        ends = {layer for p in passes for layer in p.anchor.skip_layers} & {0, config.num_layers - 1}
        if ends:
            raise ValueError(
                f"the guiders leave out block {min(ends)}, at one of the transformer's ends, where the enabled cache of diffusers "
                "compares and adds up: give them other `skip_layers`, or call `pipe.transformer.disable_cache()`."
            )
        if given.only is not None:
            raise ValueError(
                f"with `only={given.only!r}` one stream is not run, but the enabled cache of diffusers watches both: {remedy}."
            )
        if any(p.keeps_video for p in passes):
            raise ValueError(
                "the enabled cache of diffusers skips a step if the picture has not changed, but here the sound is made for a "
                f"picture (a given `video`, or the still one of `SyncGuidance`) that does not change: {remedy}."
            )
        timesteps = self.set_timesteps(pipe.scheduler)
        if (timesteps[1:] == timesteps[:-1]).any() or (timesteps == 0).any():
            raise ValueError(
                "the enabled cache of diffusers skips a step if the picture has not changed, but with these schedulers the picture "
                f"rests while the sound goes on: {remedy}, or let neither of them lead."
            )
        if self.use_cache and any(p.keeps_video or p.keeps_audio for p in passes):
            raise ValueError(
                "`use_cache` runs a clean stream once, which the enabled cache of diffusers for whole blocks would disturb: "
                f"{remedy}, or leave `use_cache` out."
            )


def _given_reads(pipe: PipelineParts) -> bool:
    """Whether a given modality reads the generated one: a transformer without context tokens has only been trained so."""
    return not pipe.transformer.config.num_context_tokens


def warn_of_lost_guidance(pipe: PipelineParts, only: str | None) -> None:
    """Warns of a guider that has no effect on clips of one modality."""
    if only is None:
        return
    name = "guider" if only == "video" else "audio_guider"
    guider = getattr(pipe, name)
    anchors = guider.anchor_weights() if isinstance(guider, AnchorGuidance) else {}
    anchors = [anchor for anchor, weight in anchors.items() if weight]
    if anchors and all(anchor.resolve(has_other=False) == JOINT for anchor in anchors):
        logger.warning(
            f"`{name}` (`{type(guider).__name__}`) guides by the other modality alone, but the clip has {only} alone: "
            "it is made without guidance. For guidance by the prompt, set the guider's `guidance_scale`."
        )


# The loop


@dataclass
class Stream:
    """
    One modality of the clips on its way from noise to a sample.

    Args:
        latents (`torch.Tensor`): its latents, float32; noise at first.
        known ([`KnownLatents`]): the part that is given.
        scheduler (`SchedulerMixin`): steps it.
        timesteps (`torch.Tensor`): of all steps.
        generator (`torch.Generator` or a list, *optional*): for schedulers that add noise.
        stand_in (`torch.Tensor`, *optional*): clean latents that guidance puts in its place: a still picture, or silence.
    """

    latents: torch.Tensor
    known: KnownLatents
    scheduler: SchedulerMixin
    timesteps: torch.Tensor
    generator: torch.Generator | list[torch.Generator] | None = None
    stand_in: torch.Tensor | None = None

    guider: BaseGuidance | None = field(
        default=None, init=False
    )  # of the current step; `None` if nothing is generated
    timestep: torch.Tensor | None = field(default=None, init=False)
    next_timestep: torch.Tensor | None = field(default=None, init=False)  # at the end of the step, for a flow map
    predictions: dict[Anchor, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.latents = self.known.keep(self.latents)
        self._is_noisy = (self.scheduler.sigmas[: len(self.timesteps)] > 0).tolist()  # read once, before the loop
        self._step_kwargs = step_kwargs(self.scheduler, self.generator)
        self._ends = torch.cat([self.timesteps, torch.zeros_like(self.timesteps[:1])])

    def begin_step(self, index: int, guider: BaseGuidance, end: int | None = None) -> None:
        """Begins a step, to the next timestep or to that of index `end`. A stream that has arrived before the other counts as given from
        then on."""
        self.timestep, self.predictions = self.timesteps[index], {}
        self.next_timestep = self._ends[index + 1 if end is None else end]
        self.guider = guider if self._is_noisy[index] and not self.known.all else None
        if self.guider is not None:
            self.guider.set_state(step=index, num_inference_steps=len(self.timesteps), timestep=self.timestep)

    def inputs(self, is_replaced: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, timestep and the timestep at the end of the step for one pass, which may replace them by the clean stand-in."""
        if is_replaced:
            clean = torch.zeros(len(self.latents), device=self.latents.device)
            return self.stand_in.to(dtype), clean, clean
        return (
            self.latents.to(dtype),
            self.known.timestep(self.timestep),
            self.known.timestep(self.next_timestep),
        )

    def keep_prediction(self, anchor: Anchor, velocity: torch.Tensor) -> None:
        """Keeps what one pass predicts, for the guider."""
        self.predictions[anchor] = self.known.without_velocity(velocity.float())

    def advance(self, has_plan: bool, has_other: bool) -> None:
        """Takes the latents to the next noise level."""
        if self.guider is None:
            return
        velocity = combine(self.guider, self.predictions, has_plan, has_other)
        latents = self.scheduler.step(velocity, self.timestep, self.latents, **self._step_kwargs)[0]
        self.latents = self.known.keep(latents)


class Denoiser:
    """
    Both streams of a call with their conditions; [`step`] advances them by one step.

    Args:
        pipe: with `transformer`, `guider` and `audio_guider`. Guiders are looked up at each step, so that a callback may exchange
            them.
        video, audio ([`Stream`]): the two modalities.
        texts ([`TextEmbeddings`]): of all clips.
        plan ([`SemanticPlan`], *optional*): of all clips.
        reference (`torch.Tensor`, *optional*): clean latents of the reference audio.
        only (`str`, *optional*): the only modality that is made.
        request ([`Denoising`]): what the call asks for.
    """

    def __init__(
        self,
        pipe: PipelineParts,
        video: Stream,
        audio: Stream,
        texts: TextEmbeddings,
        plan: SemanticPlan | None,
        reference: torch.Tensor | None,
        only: str | None,
        request: Denoising,
    ) -> None:
        self.pipe, self.video, self.audio, self.texts, self.plan = pipe, video, audio, texts, plan
        self.has_plan, self.has_other = plan is not None, only is None
        self.attention_kwargs = request.attention_kwargs
        self._dtype = pipe.transformer.dtype  # looks through all modules
        self.reference = None if reference is None else reference.to(self._dtype)
        self._given_reads, self._use_cache = _given_reads(pipe), request.use_cache
        self._is_flow_map = pipe.transformer.config.is_flow_map
        # Clean streams by modality and pass. A stream that no prediction needs is not run, unless diffusers' caches watch both.
        self._clean: dict[tuple[str, str], CleanStream] = defaultdict(CleanStream)
        # Nor do they carry gradients, for training.
        self._skips_unread = not (pipe.transformer.is_cache_enabled or torch.is_grad_enabled())
        pipe.transformer._reset_stateful_cache()  # of a call that ended by an exception
        self._finite: list[tuple[str, int, torch.Tensor]] = []

    @property
    def num_steps(self) -> int:
        """Steps of the loop."""
        return len(self.video.timesteps)

    @property
    def tensors(self) -> dict[str, torch.Tensor | None]:
        """The tensors that a callback may see and change."""
        return {
            "latents": self.video.latents,
            "audio_latents": self.audio.latents,
            "prompt_embeds": self.texts.prompt,
            "negative_prompt_embeds": self.texts.negative,
            "audio_negative_prompt_embeds": self.texts.audio_negative,
        }

    def step(self, index: int) -> None:
        """Predicts the velocities of all passes of one step, and advances both streams."""
        self.predict(index)
        self.advance(index)

    def predict(self, index: int, end: int | None = None) -> None:
        """Runs the transformer once for each pass of a step, which goes to the next timestep or to that of index `end`."""
        video, audio, transformer = self.video, self.audio, self.pipe.transformer
        video.begin_step(index, self.pipe.guider, end)
        audio.begin_step(index, self.pipe.audio_guider, end)
        passes = guidance_passes(video.guider, audio.guider, self.has_plan, self.has_other, self._given_reads)
        for guidance_pass in passes:
            anchor = guidance_pass.anchor
            self._require_conditions(anchor)
            latents, timestep, next_timestep = video.inputs(anchor.static, self._dtype)
            audio_latents, audio_timestep, audio_next_timestep = audio.inputs(anchor.mute, self._dtype)
            with transformer.cache_context(anchor.name):
                velocity, audio_velocity = transformer(
                    hidden_states=latents,
                    audio_hidden_states=audio_latents,
                    timestep=timestep,
                    audio_timestep=audio_timestep,
                    encoder_hidden_states=self.texts.prompt if anchor.text else self.texts.negative,
                    audio_encoder_hidden_states=None if anchor.text else self.texts.audio_negative,
                    plan=self.plan if anchor.plan else None,
                    video_reads_audio=guidance_pass.video_reads_audio,
                    audio_reads_video=guidance_pass.audio_reads_video,
                    skip_layers=anchor.skip_layers,
                    reference_audio_hidden_states=self.reference,
                    clean_video=self._clean_stream(
                        "video", anchor, guidance_pass.keeps_video, guidance_pass.runs_video
                    ),
                    clean_audio=self._clean_stream(
                        "audio", anchor, guidance_pass.keeps_audio, guidance_pass.runs_audio
                    ),
                    next_timestep=next_timestep if self._is_flow_map else None,
                    audio_next_timestep=audio_next_timestep if self._is_flow_map else None,
                    attention_kwargs=self.attention_kwargs,
                    return_dict=False,
                )
            if guidance_pass.predicts_video:
                video.keep_prediction(anchor, velocity)
            if guidance_pass.predicts_audio:
                audio.keep_prediction(anchor, audio_velocity)

    def advance(self, index: int) -> None:
        """Takes both streams to the next noise level."""
        for stream in (self.video, self.audio):
            stream.advance(self.has_plan, self.has_other)
        self._note_finite(f"at step {index + 1} of {self.num_steps}, in what the transformer predicts")

    def call_back(self, callback: Callable, names: Sequence[str], index: int) -> None:
        """Lets a callback see tensors after a step, and change them."""
        # A callback must not change the inputs of clean streams unnoticed.
        moving = {"latents": self.video.guider, "audio_latents": self.audio.guider}
        settled = [name for name in self.tensors if moving.get(name) is None]
        before = {name: _state(self.tensors[name]) for name in settled}
        returned = callback(self.pipe, index, self.video.timestep, {name: self.tensors[name] for name in names})
        changed = {**self.tensors, **self._check_returned(returned)}
        self.video.latents, self.audio.latents = changed["latents"], changed["audio_latents"]
        self.texts = TextEmbeddings(
            changed["prompt_embeds"], changed["negative_prompt_embeds"], changed["audio_negative_prompt_embeds"]
        )
        if before != {name: _state(self.tensors[name]) for name in settled}:
            self._clean.clear()
        self._note_finite(f"after step {index + 1} of {self.num_steps}, in what the callback returns")

    def _check_returned(self, returned: Any) -> dict[str, torch.Tensor | None]:
        """Refuses an invalid result of a callback."""
        if returned is None:
            return {}
        if not isinstance(returned, dict) or not returned.keys() <= self.tensors.keys():
            found = list(returned) if isinstance(returned, dict) else repr(returned)
            raise ValueError(
                f"the callback returned {found}, but must return None or a dictionary of tensors with names from "
                f"{list(self.tensors)}."
            )
        for name, value in returned.items():
            expected = self.tensors[name]
            if expected is None and value is None:
                continue
            if not isinstance(value, torch.Tensor) or (expected is not None and value.shape != expected.shape):
                shape = None if expected is None else tuple(expected.shape)
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(
                    f"the callback returned `{name}` as {found}, but must return a tensor of shape {shape}."
                )
        return returned

    def _clean_stream(self, modality: str, anchor: Anchor, is_kept: bool, is_run: bool) -> CleanStream | None:
        """The [`CleanStream`] of a stream that is the same at every step, or that is not run at all."""
        is_needed = (is_kept and self._use_cache) or (not is_run and self._skips_unread)
        return self._clean[modality, anchor.name] if is_needed else None

    def _note_finite(self, where: str) -> None:
        # Kept on the device: reading it here would stop the loop at every step.
        for name in ("latents", "audio_latents"):
            self._finite.append((name, where, self.tensors[name].isfinite().all()))

    def check_finite(self) -> None:
        """Refuses latents that became NaN or infinite in the loop.

        Raises:
            ValueError: naming where they did first, and what usually causes it.
        """
        if not self._finite:
            return
        flags = torch.stack([flag.to(self.video.latents.device) for _, _, flag in self._finite]).tolist()
        for (name, where, _), is_finite in zip(self._finite, flags, strict=True):
            if not is_finite:
                raise ValueError(
                    f"`{name}` became NaN or infinite {where}. Usual causes: damaged weights of the transformer or of a LoRA (load "
                    "them again), float16, which overflows (use bfloat16), or a guidance scale that is far too large."
                )

    def _require_conditions(self, anchor: Anchor) -> None:
        """Refuses a guider that a callback has set, if it needs inputs that were not prepared."""
        lacking = None
        if not anchor.text and self.texts.negative is None:
            lacking = "drops the text, and did not when the clip was begun, so that no negative prompt was encoded"
        elif anchor.static and self.video.stand_in is None:
            lacking = "puts a still clip in a modality's place, and did not when the clip was begun, so that none was encoded"
        elif anchor.mute and self.audio.stand_in is None:
            lacking = (
                "puts silence in a modality's place, and did not when the clip was begun, so that none was encoded"
            )
        if lacking is not None:
            raise ValueError(f"the guider {lacking}: set it before the call.")


def _state(tensor: torch.Tensor | None) -> tuple[int, int | None]:
    """An identifier of a tensor that changes if the tensor is written to."""
    return id(tensor), None if tensor is None or tensor.is_inference() else tensor._version
