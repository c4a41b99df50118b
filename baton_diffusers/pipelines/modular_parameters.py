"""Components, inputs, outputs and settings of the modular blocks, each described once."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import get_type_hints

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, MMAudioVAE, MMAudioVocoder
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, OutputParam
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from ..guiders import PlanGuidance
from ..models.plan_checker import PlanChecker
from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel
from ..plan import SemanticPlan
from .components import SETTINGS
from .conditions import KnownLatents
from .given import Given, GivenMedia
from .pipeline_baton import BatonPipeline
from .planning import PlanRequest


PROMPTS = ("prompt", "audio_prompt", "negative_prompt", "audio_negative_prompt")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "audio_negative_prompt_embeds")
SIZE = ("height", "width", "num_frames")
MEDIA = tuple(GivenMedia.__annotations__)
CLIP = ("given", *SIZE, *MEDIA)
PLAN = tuple(field.name for field in fields(PlanRequest))
NOISE = ("generator", "latents", "audio_latents")
GRID = ("num_inference_steps", "sigmas", "timesteps")
OTHERS = ("num_videos_per_prompt", "use_cache", "attention_kwargs", "output_type")
STAND_INS = ("reference_latents", "still_latents", "silence_latents")


def _guider(name: str, scale: float) -> ComponentSpec:
    config = FrozenDict({"guidance_scale": scale})
    return ComponentSpec(name, PlanGuidance, config=config, default_creation_method="from_config")


_MODELS = {
    "text_encoder": UMT5EncoderModel,
    "tokenizer": PreTrainedTokenizerBase,
    "planner": VAPlannerModel,
    "planner_tokenizer": PreTrainedTokenizerBase,
    "plan_checker": PlanChecker,
    "video_semantic_encoder": VideoSemanticEncoder,
    "audio_semantic_encoder": AudioSemanticEncoder,
    "vae": AutoencoderKLWan,
    "audio_vae": MMAudioVAE,
    "vocoder": MMAudioVocoder,
    "transformer": DualBranchTransformer,
    "scheduler": FlowMatchEulerDiscreteScheduler,
    "audio_scheduler": FlowMatchEulerDiscreteScheduler,
}
COMPONENTS = {
    **{name: ComponentSpec(name, model_class) for name, model_class in _MODELS.items()},
    "guider": _guider("guider", 4.0),
    "audio_guider": _guider("audio_guider", 3.0),
}


def _arguments() -> dict[str, InputParam]:
    """The arguments of `BatonPipeline.__call__`, with the descriptions in its docstring and in [`GivenMedia`]'s."""
    call, meanings = BatonPipeline.__call__, {}
    for owner in (call, GivenMedia):
        arguments = re.findall(
            r"^    (\w+) \(.*?\): (.*?)(?=^    \w|^\S|\Z)", inspect.getdoc(owner) or "", re.DOTALL | re.MULTILINE
        )
        meanings |= {name: " ".join(meaning.split()) for name, meaning in arguments}
    kinds, defaults = get_type_hints(call) | get_type_hints(GivenMedia), inspect.signature(call).parameters
    names = (*PROMPTS, *EMBEDS, *SIZE, *MEDIA, *PLAN, *NOISE, *GRID, *OTHERS)
    default = {name: defaults[name].default if name in defaults else None for name in names}
    return {name: InputParam(name, kinds[name], default[name], description=meanings.get(name, "")) for name in names}


# What blocks hand on, by its type and its meaning.
_STATE = {
    "given": (Given, "The media that were read."),
    "known_video": (KnownLatents, "The given picture as clean latents."),
    "known_audio": (KnownLatents, "The given sound as clean latents."),
    "reference_latents": (torch.Tensor, "The reference audio as clean latents."),
    "still_latents": (torch.Tensor, "A still picture, for guidance by a static clip."),
    "silence_latents": (torch.Tensor, "Silence, for guidance by a mute clip."),
    "given_timesteps": (list, "The `timesteps` of the call."),
    "audio_timesteps": (torch.Tensor, "Timesteps of the audio."),
}
_RESULTS = {
    "timesteps": (torch.Tensor, "Timesteps of the video."),
    "latents": (torch.Tensor, "Video latents."),
    "audio_latents": (torch.Tensor, "Audio latents."),
    "videos": (None, "Frames of each clip, as `BatonPipelineOutput` holds them."),
    "audio": (None, "Waveforms of each clip, as `BatonPipelineOutput` holds them."),
    "plan": (SemanticPlan, "The plan that the clips follow."),
    "cues": (list, "A cue sheet for each clip."),
    "plan_candidates": (list, "The sheets that were scored, the best first."),
    "frame_rate": (float, "Frames per second."),
    "sampling_rate": (int, "Samples per second."),
}

INPUTS = _arguments() | {name: InputParam(name, kind, description=text) for name, (kind, text) in _STATE.items()}
OUTPUTS = {name: OutputParam(name, value.type_hint, description=value.description) for name, value in INPUTS.items()}
OUTPUTS |= {name: OutputParam(name, kind, description=text) for name, (kind, text) in _RESULTS.items()}
CONFIGS = [ConfigSpec(name, default) for name, default in SETTINGS.items()]
