"""Components, inputs, outputs and settings of the modular blocks, each described once."""

from __future__ import annotations

from dataclasses import fields

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
from .components import SETTINGS
from .conditions import KnownLatents
from .given import Given, GivenMedia
from .planning import PlanRequest


PROMPTS = ("prompt", "audio_prompt", "negative_prompt", "audio_negative_prompt")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "audio_negative_prompt_embeds")
SIZE = ("height", "width", "num_frames")
MEDIA = tuple(GivenMedia.__annotations__)
CLIP = ("given", *SIZE, *MEDIA)
PLAN = tuple(field.name for field in fields(PlanRequest))
NOISE = ("generator", "latents", "audio_latents")
GRID = ("num_inference_steps", "sigmas", "timesteps")
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

_TYPES_AND_MEANINGS = {
    "prompt": (str | list[str], "What happens in each clip."),
    "audio_prompt": (str | list[str], "What is heard, for checkpoints with a form for it."),
    "negative_prompt": (str | list[str], "Read where guidance drops the text."),
    "audio_negative_prompt": (str | list[str], "What the sound reads in its place."),
    "prompt_embeds": (torch.Tensor, "Embeddings of the prompts, zero where there is no text."),
    "negative_prompt_embeds": (torch.Tensor, "Embeddings of the negative prompts."),
    "audio_negative_prompt_embeds": (torch.Tensor, "What the sound reads in their place."),
    "height": (int, "Height of a frame in pixels."),
    "width": (int, "Width of a frame in pixels."),
    "num_frames": (int, "Frames of a clip: the VAE's stride times k, plus one."),
    "num_inference_steps": (int, "Denoising steps."),
    "sigmas": (list, "Noise levels of the steps before the schedulers' shifts."),
    "num_videos_per_prompt": (int, "Clips for each prompt."),
    **{name: (None, "What is given, see `GivenMedia`.") for name in MEDIA},
    "audio": (None, "A given sound, or the waveforms of the clips."),
    "given": (Given, "The media that were read."),
    "generator": (torch.Generator, "Makes the clips repeatable; or a list, one for each clip."),
    "latents": (torch.Tensor, "Video noise."),
    "audio_latents": (torch.Tensor, "Audio noise."),
    **{name: (None, "Of the plan, see `BatonPipeline.__call__`.") for name in PLAN},
    "use_cache": (bool, "Run a clean stream once for the call."),
    "attention_kwargs": (dict, "Handed to the transformer; `scale` weighs LoRA layers."),
    "output_type": (str, '"pil", "np", "pt" or "latent".'),
    "known_video": (KnownLatents, "The given picture as clean latents."),
    "known_audio": (KnownLatents, "The given sound as clean latents."),
    "reference_latents": (torch.Tensor, "The reference audio as clean latents."),
    "still_latents": (torch.Tensor, "A still picture, for guidance by a static clip."),
    "silence_latents": (torch.Tensor, "Silence, for guidance by a mute clip."),
    "timesteps": (
        list | torch.Tensor,
        "A list for both modalities, in place of `sigmas`; then, as a tensor, the timesteps of the video.",
    ),
    "given_timesteps": (list, "The list that was given."),
    "audio_timesteps": (torch.Tensor, "Timesteps of the audio."),
    "videos": (None, "Frames of each clip, as `BatonPipelineOutput` holds them."),
    "plan_candidates": (list, "The sheets that were scored, the best first."),
    "frame_rate": (float, "Frames per second."),
    "sampling_rate": (int, "Samples per second."),
}
_DEFAULTS = {"num_videos_per_prompt": 1, "use_cache": False, "output_type": "pil"}
_DEFAULTS |= {field.name: field.default for field in fields(PlanRequest)}

INPUTS = {
    name: InputParam(name, kind, default=_DEFAULTS.get(name), description=meaning)
    for name, (kind, meaning) in _TYPES_AND_MEANINGS.items()
}
OUTPUTS = {name: OutputParam(name, kind, description=meaning) for name, (kind, meaning) in _TYPES_AND_MEANINGS.items()}
CONFIGS = [ConfigSpec(name, default) for name, default in SETTINGS.items()]
