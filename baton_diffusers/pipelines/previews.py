"""A plan as small pictures and a scratch track, made by plan decoders before anything is rendered."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F

from .. import coordinates
from ..plan import SemanticPlan
from .checks import check_finite, check_plan
from .components import PipelineParts
from .pipeline_output import BatonPipelineOutput


@torch.no_grad()
def preview_plan(
    pipe: PipelineParts, plan: SemanticPlan | str | os.PathLike, device: torch.device
) -> BatonPipelineOutput:
    """Small pictures and a scratch track of a plan. See `BatonPipeline.preview`."""
    video, audio = pipe.video_plan_decoder, pipe.audio_plan_decoder
    if video is None and audio is None:
        raise ValueError(
            "`preview` needs `video_plan_decoder` or `audio_plan_decoder`, and this pipeline has neither: load a checkpoint that has, "
            "such as baton-nano, train them (examples/nano/plan_decoders.py), or convert published ones (conversion_scripts)."
        )
    plan = SemanticPlan.load(plan) if isinstance(plan, (str, os.PathLike)) else plan
    check_plan("plan", plan)
    plan = plan.trimmed().check_values()
    for name, decoder in (("video", video), ("audio", audio)):
        width = getattr(plan, f"{name}_tokens").shape[2]
        if decoder is not None and width != decoder.config[f"{name}_dim"]:
            raise ValueError(
                f"`plan` has {name} tokens of width {width}, but `{name}_plan_decoder` takes {decoder.config[f'{name}_dim']}: use a plan "
                "made for this checkpoint."
            )
    frames = waveform = None
    sampling_rate = pipe.sampling_rate
    if video is not None:
        frames = _draw_pictures(pipe, _counted_tokens(plan, "video", video, device), plan, device)
    if audio is not None:
        tokens, times = _counted_tokens(plan, "audio", audio, device), plan.audio_times.to(device)
        sampling_rate = audio.config.sampling_rate
        num_samples = coordinates.num_samples(plan.duration, sampling_rate)
        waveform = audio(tokens, times, num_samples).float()
        if not audio.gives_waveform:
            waveform = pipe.vocoder(waveform.to(pipe.vocoder.dtype), return_dict=False)[0].float()
        check_finite(
            waveform, "the scratch track holds", "usually the weights of a decoder are damaged; load them again"
        )
        waveform = waveform[..., :num_samples].clamp(-1, 1).cpu().numpy()
    return BatonPipelineOutput(frames, waveform, pipe.frame_rate, sampling_rate, plan, "np")


def _counted_tokens(plan: SemanticPlan, name: str, decoder: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """A plan's tokens for a decoder. Masked tokens are zero, the mean of standardised features."""
    tokens, mask = getattr(plan, f"{name}_tokens"), getattr(plan, f"{name}_mask")
    tokens = tokens if mask is None else tokens.masked_fill(~mask[..., None], 0)
    return tokens.to(device, decoder.dtype)


def _draw_pictures(pipe: PipelineParts, tokens: torch.Tensor, plan: SemanticPlan, device: torch.device) -> np.ndarray:
    num_frames = coordinates.num_frames_within(plan.duration, pipe.frame_rate)
    times = torch.arange(num_frames, dtype=torch.float32, device=device) / pipe.frame_rate
    clips = []
    for clip in tokens.split(1):
        pictures = pipe.video_plan_decoder(clip, plan.video_times.to(device), times)[0].float()
        height, width = pictures.shape[-2:]
        # The semantic encoder sees every frame as a square.
        wide = 2 * max(round(height * pipe.config.width / pipe.config.height / 2), 1)
        if wide != width:
            pictures = F.interpolate(pictures, (height, wide), mode="bilinear", antialias=True)
        clips.append((pictures / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0))
    frames = torch.stack(clips)
    check_finite(
        frames, "the pictures hold", "usually the weights of `video_plan_decoder` are damaged; load them again"
    )
    return frames.cpu().numpy()
