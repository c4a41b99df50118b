"""What the modular blocks take and give: components, inputs, outputs and settings, each described once."""

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


MEDIA = tuple(GivenMedia.__annotations__)
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "audio_negative_prompt_embeds")
SIZE = ("height", "width", "num_frames")
PLAN = tuple(field.name for field in fields(PlanRequest))
NOISE = ("generator", "latents", "audio_latents")


def _guider(name: str, scale: float) -> ComponentSpec:
    config = FrozenDict({"guidance_scale": scale})
    return ComponentSpec(name, PlanGuidance, config=config, default_creation_method="from_config")


COMPONENTS = {
    spec.name: spec
    for spec in (
        ComponentSpec("text_encoder", UMT5EncoderModel),
        ComponentSpec("tokenizer", PreTrainedTokenizerBase),
        ComponentSpec("planner", VAPlannerModel),
        ComponentSpec("planner_tokenizer", PreTrainedTokenizerBase),
        ComponentSpec("plan_checker", PlanChecker),
        ComponentSpec("video_semantic_encoder", VideoSemanticEncoder),
        ComponentSpec("audio_semantic_encoder", AudioSemanticEncoder),
        ComponentSpec("vae", AutoencoderKLWan),
        ComponentSpec("audio_vae", MMAudioVAE),
        ComponentSpec("vocoder", MMAudioVocoder),
        ComponentSpec("transformer", DualBranchTransformer),
        ComponentSpec("scheduler", FlowMatchEulerDiscreteScheduler),
        ComponentSpec("audio_scheduler", FlowMatchEulerDiscreteScheduler),
        _guider("guider", 4.0),
        _guider("audio_guider", 3.0),
    )
}

_GIVEN, _CALL = "see `GivenMedia`", "see `BatonPipeline.__call__`"
INPUTS = {
    param.name: param
    for param in (
        InputParam("prompt", str | list[str], description="What happens in each clip."),
        InputParam("audio_prompt", str | list[str], description="What is heard, for checkpoints with a form for it."),
        InputParam("negative_prompt", str | list[str], description="Read where guidance drops the text."),
        InputParam("audio_negative_prompt", str | list[str], description="What the sound reads in its place."),
        InputParam(
            "prompt_embeds", torch.Tensor, description="Embeddings of the prompts, zero where there is no text."
        ),
        InputParam("negative_prompt_embeds", torch.Tensor, description="Embeddings of the negative prompts."),
        InputParam("audio_negative_prompt_embeds", torch.Tensor, description="What the sound reads in their place."),
        InputParam("height", int, description="Height of a frame in pixels."),
        InputParam("width", int, description="Width of a frame in pixels."),
        InputParam("num_frames", int, description="Frames of a clip: the VAE's stride times k, plus one."),
        InputParam("num_inference_steps", int, description="Denoising steps."),
        InputParam("sigmas", list, description="Noise levels of the steps before the schedulers' shifts."),
        InputParam("num_videos_per_prompt", int, default=1, description="Clips for each prompt."),
        *(InputParam(name, description=f"What is given, {_GIVEN}.") for name in MEDIA),
        InputParam("given", Given, description="The media that were read."),
        InputParam(
            "generator", torch.Generator, description="Makes the clips repeatable; or a list, one for each clip."
        ),
        InputParam("latents", torch.Tensor, description="Video noise."),
        InputParam("audio_latents", torch.Tensor, description="Audio noise."),
        *(InputParam(f.name, default=f.default, description=f"Of the plan, {_CALL}.") for f in fields(PlanRequest)),
        InputParam("use_cache", bool, default=False, description="Run a clean stream once for the call."),
        InputParam("attention_kwargs", dict, description="Handed to the transformer; `scale` weighs LoRA layers."),
        InputParam("output_type", str, default="pil", description='"pil", "np", "pt" or "latent".'),
        InputParam("known_video", KnownLatents, description="The given picture as clean latents."),
        InputParam("known_audio", KnownLatents, description="The given sound as clean latents."),
        InputParam("reference_latents", torch.Tensor, description="The reference audio as clean latents."),
        InputParam("still_latents", torch.Tensor, description="A still picture, for guidance by a static clip."),
        InputParam("silence_latents", torch.Tensor, description="Silence, for guidance by a mute clip."),
        InputParam("timesteps", torch.Tensor, description="Timesteps of the video."),
        InputParam("audio_timesteps", torch.Tensor, description="Timesteps of the audio."),
    )
}
OUTPUTS = {
    "videos": OutputParam("videos", description="Frames of each clip, as `BatonPipelineOutput` holds them."),
    "audio": OutputParam("audio", description="Waveforms of the clips."),
    "plan_candidates": OutputParam(
        "plan_candidates", list, description="The sheets that were scored, the best first."
    ),
    "frame_rate": OutputParam("frame_rate", float, description="Frames per second."),
    "sampling_rate": OutputParam("sampling_rate", int, description="Samples per second."),
    **{name: OutputParam(name, param.type_hint, description=param.description) for name, param in INPUTS.items()},
}
CONFIGS = [ConfigSpec(name, default) for name, default in SETTINGS.items()]
