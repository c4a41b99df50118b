"""`BatonPipeline` as diffusers' modular blocks, built on the same objects.

Each block reads its inputs from the state, lets an object of this package do the work, and writes its outputs back. Each runs
alone as well: `BatonTextEncoderStep().init_pipeline(folder)` needs the text encoder and nothing else.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConditionalPipelineBlocks,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from ..guiders import passes_of_steps
from ..schedulers import check_schedulers
from . import conditions
from .checks import check_output_type
from .components import REQUIRED, ClipSize, PipelineParts, one_at_a_time
from .conditions import KnownLatents, Noise
from .denoise import Denoiser, Denoising, Stream, warn_of_lost_guidance
from .given import Given, read_given
from .modular_parameters import (
    CLIP,
    COMPONENTS,
    CONFIGS,
    EMBEDS,
    GRID,
    INPUTS,
    MEDIA,
    NOISE,
    OUTPUTS,
    PLAN,
    PROMPTS,
    SIZE,
    STAND_INS,
)
from .modular_pipeline import BatonModularPipeline
from .pipeline_baton import BatonPipeline
from .planning import PlanRequest, ready_plan
from .texts import TextEmbeddings, Texts, format_prompts


class Parts(PipelineParts):
    """The components of a modular pipeline in the form that the objects of this package read; a missing one is `None`."""

    def __init__(self, components: ModularPipeline) -> None:
        self._components = components

    def __getattr__(self, name: str) -> Any:
        return getattr(self._components, name, None)


class BatonBlocks:
    """Blocks that make a [`BatonModularPipeline`], described by their docstrings."""

    model_name = "baton"

    @property
    def description(self) -> str:
        """What the block does."""
        return self.__doc__

    def init_pipeline(self, pretrained_model_name_or_path=None, components_manager=None, collection=None):
        """A pipeline of these blocks, whose `load_components` loads what they need."""
        return BatonModularPipeline(self, pretrained_model_name_or_path, components_manager, collection)


class _Step(BatonBlocks, ModularPipelineBlocks):
    """A block that names what it needs and does its work in `run`."""

    parts: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [COMPONENTS[name] for name in self.parts]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return CONFIGS

    @property
    def inputs(self) -> list[InputParam]:
        return [INPUTS[name] for name in self.reads]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OUTPUTS[name] for name in self.writes]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        self.run(Parts(components), block_state)
        self.set_block_state(state, block_state)
        return components, state

    def run(self, pipe: Parts, s: BlockState) -> None:
        """Reads inputs from the state `s`, and writes outputs to it."""
        raise NotImplementedError


# What blocks share


def _given(pipe: Parts, s: BlockState, max_seconds: float | None = None) -> Given:
    """The media of a state: read by the first block, or by a block that runs alone."""
    if s["given"] is not None:
        return s.given
    rates = pipe.frame_rate, pipe.sampling_rate, pipe.latent_format["temporal_stride"]
    return read_given(*rates, **{name: s[name] for name in MEDIA}, max_seconds=max_seconds)


def _clip(pipe: Parts, s: BlockState) -> tuple[Given, ClipSize, torch.device]:
    """The media of a state, the size of its clips, and the device on which they are made."""
    given = _given(pipe, s)
    return given, given.default_size(pipe, *(s[name] for name in SIZE)), pipe._execution_device


def _texts(pipe: Parts, s: BlockState) -> Texts:
    prompt = format_prompts(s.prompt, s.audio_prompt, pipe.config.prompt_form)
    return Texts(prompt, s.negative_prompt, s.audio_negative_prompt, *(s[name] for name in EMBEDS))


def _request(s: BlockState) -> PlanRequest:
    return PlanRequest(**{name: s[name] for name in PLAN}).read()


def _denoising(pipe: Parts, s: BlockState, timesteps: list[float] | None) -> Denoising:
    grid = s.num_inference_steps, s.sigmas, timesteps
    return Denoising.of(pipe, *grid, use_cache=s.use_cache, attention_kwargs=s.attention_kwargs)


# Texts and plans


class BatonInputStep(_Step):
    """Reads the given media, sets the size of the clips, and refuses invalid arguments before any model runs."""

    reads = (
        *(*PROMPTS, *EMBEDS, *SIZE, *MEDIA, *NOISE, *PLAN, "num_videos_per_prompt"),
        *(*GRID, "use_cache", "attention_kwargs", "output_type"),
    )
    writes = ("given", *SIZE, "frame_rate", "sampling_rate")

    def run(self, pipe: Parts, s: BlockState) -> None:
        request = _request(s)
        s.given = given = _given(pipe, s, request.longest_clip(pipe))
        size = given.default_size(pipe, *(s[name] for name in SIZE))
        if all(getattr(pipe, name) is not None for name in REQUIRED):  # a whole pipeline, not a part of it
            texts, noise, denoising = (
                _texts(pipe, s),
                Noise(*(s[name] for name in NOISE)),
                _denoising(pipe, s, s.timesteps),
            )
            num_videos = s.num_videos_per_prompt
            BatonPipeline.check_inputs(pipe, texts, size, given, noise, request, denoising, num_videos, s.output_type)
            warn_of_lost_guidance(pipe, given.only)
        s.height, s.width, s.num_frames = size.height, size.width, size.num_frames
        s.frame_rate, s.sampling_rate = pipe.frame_rate, pipe.sampling_rate


class BatonTextEncoderStep(_Step):
    """Embeds the prompts and the negative prompts."""

    parts = ("text_encoder", "tokenizer")
    reads = (*PROMPTS, *EMBEDS)
    writes = EMBEDS

    def run(self, pipe: Parts, s: BlockState) -> None:
        texts = _texts(pipe, s)
        texts.check(pipe)
        if pipe.text_encoder is not None and pipe.tokenizer is not None:
            dtype = (pipe.transformer or pipe.text_encoder).dtype
            embeds = texts.encode(pipe, True, 1, pipe._execution_device, dtype)
            s.prompt_embeds, s.negative_prompt_embeds, s.audio_negative_prompt_embeds = embeds


class BatonPlannerStep(_Step):
    """Writes cue sheets, or fits them to the media, and plans the clips; or makes a given plan ready for them."""

    parts = (
        *("planner", "planner_tokenizer", "plan_checker", "text_encoder", "tokenizer"),
        *("video_semantic_encoder", "audio_semantic_encoder"),
    )
    reads = ("prompt", "audio_prompt", "prompt_embeds", *PLAN, "generator", "num_videos_per_prompt", *CLIP)
    writes = ("plan", "cues", "plan_candidates")

    def run(self, pipe: Parts, s: BlockState) -> None:
        (given, size, device), request = _clip(pipe, s), _request(s)
        prompt = format_prompts(s.prompt, s.audio_prompt, pipe.config.prompt_form)
        texts = Texts(prompt, prompt_embeds=s.prompt_embeds if prompt is None else None)
        request.check(pipe, texts, s.num_videos_per_prompt, size.num_frames)
        num_clips = texts.batch_size * s.num_videos_per_prompt
        s.plan = plan = request.make(pipe, texts.prompts, given, num_clips, size, s.generator, device)
        s.cues = None if plan is None or plan.sheets is None else list(plan.sheets)
        s.plan_candidates = None if plan is None or plan.candidates is None else list(plan.candidates)


# What is given, as latents


class BatonVideoEncoderStep(_Step):
    """Encodes the given picture: its known part becomes clean latents."""

    parts = ("vae",)
    reads = CLIP
    writes = ("known_video",)

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, device = _clip(pipe, s)
        s.known_video = conditions.encode_given_video(pipe, given, given.num_clips.get("video", 1), size, device)


class BatonAudioEncoderStep(_Step):
    """Encodes the given sound: its known part becomes clean latents."""

    parts = ("audio_vae",)
    reads = CLIP
    writes = ("known_audio",)

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, device = _clip(pipe, s)
        s.known_audio = conditions.encode_given_audio(pipe, given, given.num_clips.get("audio", 1), size, device)


class BatonReferenceEncoderStep(_Step):
    """Encodes the reference audio, which gives the clips its style."""

    parts = ("audio_vae",)
    reads = ("given", *MEDIA)
    writes = ("reference_latents",)

    def run(self, pipe: Parts, s: BlockState) -> None:
        given = _given(pipe, s)
        num_clips = given.num_clips.get("reference audio", 1)
        s.reference_latents = conditions.reference_latents(pipe, given, num_clips, pipe._execution_device)


class _IfGiven(ConditionalPipelineBlocks):
    """Runs its block if one of the trigger inputs is given."""

    @property
    def description(self) -> str:
        return f"{self.block_classes[0].__doc__} It is skipped without {' or '.join(self.block_trigger_inputs)}."

    def select_block(self, **kwargs: Any) -> str | None:
        return self.block_names[0] if any(value is not None for value in kwargs.values()) else None


class BatonAutoVideoEncoderStep(_IfGiven):
    block_classes, block_names = [BatonVideoEncoderStep], ["video_encoder"]
    block_trigger_inputs = ["image", "video", "continue_from"]


class BatonAutoAudioEncoderStep(_IfGiven):
    block_classes, block_names = [BatonAudioEncoderStep], ["audio_encoder"]
    block_trigger_inputs = ["audio", "continue_from"]


class BatonAutoReferenceEncoderStep(_IfGiven):
    block_classes, block_names = [BatonReferenceEncoderStep], ["reference_encoder"]
    block_trigger_inputs = ["reference_audio"]


# Denoising


class BatonSetTimestepsStep(_Step):
    """Puts both schedulers at the start of a clip."""

    parts = ("scheduler", "audio_scheduler")
    reads = GRID
    writes = ("num_inference_steps", "given_timesteps", "timesteps", "audio_timesteps")

    def run(self, pipe: Parts, s: BlockState) -> None:
        # From here on, `timesteps` are the video's.
        s.given_timesteps, device = s.timesteps, pipe._execution_device
        denoising = Denoising.of(pipe, s.num_inference_steps, s.sigmas, s.given_timesteps)
        s.num_inference_steps = denoising.num_inference_steps
        check_schedulers(pipe.scheduler, pipe.audio_scheduler, s.num_inference_steps, s.sigmas, s.given_timesteps)
        s.timesteps = denoising.set_timesteps(pipe.scheduler, device)
        s.audio_timesteps = denoising.set_timesteps(pipe.audio_scheduler, device)


class BatonStandInStep(_Step):
    """Encodes a still picture or silence, if guidance replaces a modality by it (Harmony)."""

    parts = ("vae", "audio_vae", "guider", "audio_guider")
    reads = (*CLIP, "timesteps")
    writes = ("still_latents", "silence_latents")

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, device = _clip(pipe, s)
        steps = passes_of_steps(pipe.guider, pipe.audio_guider, len(s.timesteps), has_other=given.only is None)
        passes, num_clips = itertools.chain.from_iterable(steps), given.num_clips.get("video", 1)
        s.still_latents, s.silence_latents = conditions.stand_ins(pipe, passes, given, num_clips, size, device)


class BatonPrepareLatentsStep(_Step):
    """Draws the noise, and repeats the conditions for each clip."""

    parts = ("transformer",)
    writes = (*EMBEDS, "latents", "audio_latents", "plan", "known_video", "known_audio", *STAND_INS)
    reads = (*writes, *CLIP, "generator", "num_videos_per_prompt")

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, device = _clip(pipe, s)
        num_clips = len(s.prompt_embeds) * s.num_videos_per_prompt
        size.check(pipe, num_clips, given.only)
        noise = Noise(*(s[name] for name in NOISE))
        noise.check(pipe, num_clips, size, given.only)
        embeds = TextEmbeddings(*(s[name] for name in EMBEDS)).for_clips(
            s.num_videos_per_prompt, pipe.config.max_sequence_length, device, pipe.transformer.dtype
        )
        s.prompt_embeds, s.negative_prompt_embeds, s.audio_negative_prompt_embeds = embeds
        s.plan = None if s.plan is None else ready_plan(pipe, s.plan, num_clips, device)
        nothing = KnownLatents.nothing(pipe, given, size, device)
        s.known_video = (s.known_video or nothing[0]).for_clips(num_clips)
        s.known_audio = (s.known_audio or nothing[1]).for_clips(num_clips)
        for name in STAND_INS:
            s[name] = conditions.repeated(s[name], num_clips)
        s.latents, s.audio_latents = noise.draw(pipe, num_clips, size, device)


class BatonLoopPredictStep(_Step):
    """Runs the transformer once for each pass of guidance in a step."""

    parts = ("transformer", "guider", "audio_guider")

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, s: BlockState, i: int) -> tuple[ModularPipeline, BlockState]:
        s.denoiser.predict(i)
        return components, s


class BatonLoopAdvanceStep(_Step):
    """Lets the guiders combine the predictions, and the schedulers take both streams to the next noise level."""

    parts = ("scheduler", "audio_scheduler")

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, s: BlockState, i: int) -> tuple[ModularPipeline, BlockState]:
        s.denoiser.advance(i)
        return components, s


class BatonDenoiseStep(BatonBlocks, LoopSequentialPipelineBlocks):
    """The denoising loop: two streams advance together; `sub_blocks` holds the parts of a step."""

    block_classes = [BatonLoopPredictStep, BatonLoopAdvanceStep]
    block_names = ["predict", "advance"]
    reads = (
        *(*EMBEDS, *NOISE, "plan", "given", *MEDIA, "known_video", "known_audio", *STAND_INS),
        *("num_inference_steps", "sigmas", "given_timesteps", "use_cache", "attention_kwargs"),
    )

    @property
    def loop_inputs(self) -> list[InputParam]:
        return [INPUTS[name] for name in self.reads]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return [OUTPUTS["latents"], OUTPUTS["audio_latents"]]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        pipe, s = Parts(components), self.get_block_state(state)
        given, denoising = _given(pipe, s), _denoising(pipe, s, s.given_timesteps)
        denoising.check_steps(pipe, given.only)
        timesteps = denoising.set_timesteps(pipe.scheduler, s.latents.device)
        audio_timesteps = denoising.set_timesteps(pipe.audio_scheduler, s.latents.device)
        video = Stream(s.latents, s.known_video, pipe.scheduler, timesteps, s.generator, s.still_latents)
        audio = Stream(
            s.audio_latents, s.known_audio, pipe.audio_scheduler, audio_timesteps, s.generator, s.silence_latents
        )
        embeds = TextEmbeddings(*(s[name] for name in EMBEDS))
        s.denoiser = Denoiser(pipe, video, audio, embeds, s.plan, s.reference_latents, given.only, denoising)
        with self.progress_bar(total=s.denoiser.num_steps) as progress_bar:
            for i in range(s.denoiser.num_steps):
                components, s = self.loop_step(components, s, i=i)
                progress_bar.update()
        s.denoiser.check_finite()
        s.latents, s.audio_latents = video.latents, audio.latents
        self.set_block_state(state, s)
        return components, state


class BatonCoreDenoiseStep(BatonBlocks, SequentialPipelineBlocks):
    """Denoises: from embeddings, a plan and known latents to finished latents."""

    block_classes = [BatonSetTimestepsStep, BatonStandInStep, BatonPrepareLatentsStep, BatonDenoiseStep]
    block_names = ["set_timesteps", "stand_ins", "prepare_latents", "denoise"]


# Decoding


class BatonVideoDecoderStep(_Step):
    """Decodes the video latents; a picture that is given whole is returned as it is."""

    parts = ("vae",)
    reads = ("latents", *CLIP, "output_type")
    writes = ("videos", "frame_rate")

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, _ = _clip(pipe, s)
        check_output_type(s.output_type)
        finished = conditions.finished_video(pipe, given, s.latents, size.num_frames, s.output_type)
        s.videos, s.frame_rate = finished


class BatonAudioDecoderStep(_Step):
    """Decodes the audio latents; a sound that is given whole is returned as it is."""

    parts = ("audio_vae", "vocoder")
    reads = ("audio_latents", *CLIP, "output_type")
    writes = ("audio", "sampling_rate")

    def run(self, pipe: Parts, s: BlockState) -> None:
        given, size, _ = _clip(pipe, s)
        check_output_type(s.output_type)
        finished = conditions.finished_audio(pipe, given, s.audio_latents, size.num_frames, s.output_type)
        s.audio, s.sampling_rate = finished


class _UnlessExcluded(ConditionalPipelineBlocks):
    """Runs its block unless `only` names the other modality."""

    block_trigger_inputs: ClassVar[list[str]] = ["only"]
    other: ClassVar[str]

    @property
    def description(self) -> str:
        return f'{self.block_classes[0].__doc__} It is skipped with only="{self.other}".'

    def select_block(self, only: str | None = None) -> str | None:
        return None if only == self.other else self.block_names[0]


class BatonAutoVideoDecoderStep(_UnlessExcluded):
    block_classes, block_names, other = [BatonVideoDecoderStep], ["video_decoder"], "audio"


class BatonAutoAudioDecoderStep(_UnlessExcluded):
    block_classes, block_names, other = [BatonAudioDecoderStep], ["audio_decoder"], "video"


# Everything


class BatonAutoBlocks(BatonBlocks, SequentialPipelineBlocks):
    """Plans a clip from a prompt, then denoises picture and sound together under that plan, in every direction."""

    block_classes = [
        *(BatonInputStep, BatonTextEncoderStep, BatonPlannerStep),
        *(BatonAutoVideoEncoderStep, BatonAutoAudioEncoderStep, BatonAutoReferenceEncoderStep),
        *(BatonCoreDenoiseStep, BatonAutoVideoDecoderStep, BatonAutoAudioDecoderStep),
    ]
    block_names = [
        *("input", "text_encoder", "planner", "video_encoder", "audio_encoder", "reference_encoder"),
        *("denoise", "video_decoder", "audio_decoder"),
    ]
    _workflow_map: ClassVar[dict[str, dict[str, Any]]] = {
        "text2av": {"prompt": True},
        "text2video": {"prompt": True, "only": "video"},
        "text2audio": {"prompt": True, "only": "audio"},
        "image2av": {"prompt": True, "image": True},
        "video2audio": {"prompt": True, "video": True},
        "audio2video": {"prompt": True, "audio": True},
        "continue": {"prompt": True, "continue_from": True},
        "inpaint": {"prompt": True, "video": True, "audio": True},
        "reference2av": {"prompt": True, "reference_audio": True},
    }

    @property
    def outputs(self) -> list[OutputParam]:
        """The clips, and what they follow."""
        return [OUTPUTS[name] for name in ("videos", "audio", "frame_rate", "sampling_rate", "plan", "cues")]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        with one_at_a_time(components.components.values()):
            return super().__call__(components, state)


BatonModularPipeline.default_blocks = BatonAutoBlocks
