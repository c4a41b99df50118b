"""Stage 1 of Baton's training: the planner learns to regress the semantic encoders' features from prompts. papers.md 1.4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from transformers import PreTrainedTokenizerBase

from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from ..models.va_planner import VAPlannerModel, tokenize_prompts
from ..plan import SemanticPlan
from ..stage import render_clip, sample_scene, write_prompt
from .data import to_video
from .trainer import TrainerConfig


@dataclass
class PlannerConfig:
    """
    Training of a [`VAPlannerModel`] on Stage.

    Args:
        trainer: The run; a sample is one scene.
        tokenizer: Folder of the planner's tokenizer.
        video_semantic_encoder: Folder of the frozen [`VideoSemanticEncoder`].
        audio_semantic_encoder: Folder of the frozen [`AudioSemanticEncoder`].
        output: Folder to which the planner is saved.
        planner: Arguments of [`VAPlannerModel`].
        clips_per_prompt: Renders of a scene whose features are averaged into one target. The prompt does not say when
            things happen, so that a scene has many clips; the squared distances to all of them have, in one forward pass,
            the gradient of the squared distance to their mean (ours).
        audio_weight: Weight of an audio token beside a video token; 1 is the paper's plain sum over tokens.
        evaluation_scenes: Validation scenes over which the explained variance is taken after training.
    """

    trainer: TrainerConfig
    tokenizer: str
    video_semantic_encoder: str
    audio_semantic_encoder: str
    output: str
    planner: dict[str, Any]
    clips_per_prompt: int = 2
    audio_weight: float = 1.0
    evaluation_scenes: int = 200


class PromptedClips:
    """Endless Stage scenes, each with a prompt and several renders; an index is a scene.

    Args:
        clips_per_prompt (`int`): renders per scene, each with times of its own.
        split (`str`): Stage's split.
    """

    def __init__(self, clips_per_prompt: int, split: str = "train"):
        self.clips_per_prompt = clips_per_prompt
        self.split = split

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = sample_scene(index, split=self.split)
        clips = [render_clip(scene, index * self.clips_per_prompt + i) for i in range(self.clips_per_prompt)]
        return {
            "prompt": write_prompt(scene, index),
            "frames": torch.stack([torch.from_numpy(clip.frames) for clip in clips]),
            "waveform": torch.stack([torch.from_numpy(clip.waveform)[None] for clip in clips]),
            "frame_rate": clips[0].frame_rate,
            "sampling_rate": clips[0].sampling_rate,
        }


class PromptCollator:
    """Joins samples of [`PromptedClips`] and tokenises their prompts. The clips of a prompt stay next to one another."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None):
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        prompts = [sample["prompt"] for sample in samples]
        input_ids, attention_mask = tokenize_prompts(self.tokenizer, prompts, self.system_prompt)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "frames": torch.cat([sample["frames"] for sample in samples]),
            "waveform": torch.cat([sample["waveform"] for sample in samples]),
            "frame_rate": samples[0]["frame_rate"],
            "sampling_rate": samples[0]["sampling_rate"],
        }


class PlanReader:
    """Reads the plans off a batch of [`PromptCollator`] with frozen encoders."""

    def __init__(self, video_encoder: VideoSemanticEncoder, audio_encoder: AudioSemanticEncoder):
        self.video_encoder = video_encoder.eval().requires_grad_(False)
        self.audio_encoder = audio_encoder.eval().requires_grad_(False)

    def __call__(self, batch: dict[str, Any]) -> SemanticPlan:
        device = batch["frames"].device
        return read_plan(
            self.video_encoder.to(device),
            self.audio_encoder.to(device),
            to_video(batch["frames"]),
            batch["frame_rate"],
            batch["waveform"],
            batch["sampling_rate"],
        )


def plan_distance(plan: SemanticPlan, target: SemanticPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance per token, averaged over channels, of the video and of the audio tokens; masked ones are 0.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch_size, num_video_tokens)` and `(batch_size, num_audio_tokens)`.
    """
    video = (plan.video_tokens.float() - target.video_tokens.float()).square().mean(dim=-1)
    audio = (plan.audio_tokens.float() - target.audio_tokens.float()).square().mean(dim=-1)
    return video, audio if target.audio_mask is None else audio * target.audio_mask


class PlannerLoss:
    """The plain L2 of papers.md 1.1, over the tokens of both modalities.

    Args:
        read (`PlanReader`): gives the targets.
        audio_weight (`float`, defaults to 1.0): weight of an audio token beside a video token.
    """

    def __init__(self, read: PlanReader, audio_weight: float = 1.0):
        self.read = read
        self.audio_weight = audio_weight

    def __call__(self, module: nn.Module, batch: dict, generator: torch.Generator, step: int) -> dict:
        target = average_clips(self.read(batch), len(batch["input_ids"]))
        plan = module(batch["input_ids"], batch["attention_mask"], target.duration)
        video, audio = plan_distance(plan, target)
        num_video, num_audio = video.numel(), target.audio_mask.sum()
        loss = (video.sum() + self.audio_weight * audio.sum()) / (num_video + self.audio_weight * num_audio)
        return {"loss": loss, "video": video.mean(), "audio": audio.sum() / num_audio}


def average_clips(plan: SemanticPlan, num_prompts: int) -> SemanticPlan:
    """The mean plan of each of `num_prompts` equal runs of clips in the batch."""
    clips = plan.batch_size // num_prompts
    return SemanticPlan(
        video_tokens=plan.video_tokens.unflatten(0, (num_prompts, clips)).mean(dim=1),
        video_times=plan.video_times,
        video_centres=plan.video_centres,
        audio_tokens=plan.audio_tokens.unflatten(0, (num_prompts, clips)).mean(dim=1),
        audio_times=plan.audio_times,
        duration=plan.duration,
        audio_mask=None if plan.audio_mask is None else plan.audio_mask[::clips],
    )


@torch.no_grad()
def explained_variance(
    planner: VAPlannerModel,
    tokenizer: PreTrainedTokenizerBase,
    read: PlanReader,
    num_scenes: int,
    batch_size: int = 20,
    split: str = "validation",
) -> dict[str, float | list[float]]:
    """
    The share of the features' variance that a planner explains, next to what any planner could.

    The reference is the best constant: the mean feature of every token and channel. What a prompt leaves open (when things
    happen, the shade of the wall) no prediction can explain: the ceiling is what the mean over all clips of a scene
    explains, estimated without bias from two clips of each.

    Args:
        planner (`VAPlannerModel`): in evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        read (`PlanReader`): gives the features of real clips.
        num_scenes (`int`): scenes to take.
        batch_size (`int`, defaults to 20): scenes at a time.
        split (`str`, defaults to `"validation"`): Stage's split.

    Returns:
        `dict`: `video`, `video_ceiling`, `audio`, `audio_ceiling`, and the lists `video_by_keyframe`,
        `video_ceiling_by_keyframe` over the keyframes in order of time.
    """
    dataset, collate = PromptedClips(2, split), PromptCollator(tokenizer, planner.config.system_prompt)
    targets, predictions = [], []
    for start in range(0, num_scenes, batch_size):
        batch = collate([dataset[index] for index in range(start, min(start + batch_size, num_scenes))])
        batch = {name: value.to(planner.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        target = read(batch)
        targets.append(target)
        predictions.append(planner(batch["input_ids"], batch["attention_mask"], target.duration))
    target, prediction = SemanticPlan.collate(targets), SemanticPlan.collate(predictions)

    def shares(name: str, tokens: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        # per token: share explained by the planner, and by the scene's mean
        real = getattr(target, name)[:, tokens].double().unflatten(0, (-1, 2))
        predicted = getattr(prediction, name)[:, tokens].double()
        variance = (real - real.mean(dim=(0, 1))).square().mean(dim=(0, 1, 3))
        error = (real - predicted[:, None]).square().mean(dim=(0, 1, 3))
        within = (real[:, 0] - real[:, 1]).square().mean(dim=(0, 2)) / 2
        return torch.stack([error, within]), variance

    frames, frame_of_token = target.video_times.unique(return_inverse=True)
    unexplained, variance = shares("video_tokens", slice(None))
    audio_unexplained, audio_variance = shares("audio_tokens", target.audio_mask[0])
    per_frame = torch.zeros(3, len(frames), dtype=torch.float64, device=variance.device)
    per_frame.index_add_(1, frame_of_token, torch.cat([unexplained, variance[None]]))
    video, video_ceiling = (1 - unexplained.sum(dim=1) / variance.sum()).tolist()
    audio, audio_ceiling = (1 - audio_unexplained.sum(dim=1) / audio_variance.sum()).tolist()
    by_keyframe = 1 - per_frame[:2] / per_frame[2]
    return {
        "video": video,
        "video_ceiling": video_ceiling,
        "audio": audio,
        "audio_ceiling": audio_ceiling,
        "video_by_keyframe": by_keyframe[0].tolist(),
        "video_ceiling_by_keyframe": by_keyframe[1].tolist(),
    }


def format_explained_variance(report: dict[str, float | Sequence[float]], keyframe_rate: float) -> str:
    """A table of [`explained_variance`], one line for each modality and keyframe."""
    lines = ["variance explained   planner  ceiling"]
    rows = [(name, report[name], report[f"{name}_ceiling"]) for name in ("video", "audio")]
    by_keyframe = zip(report["video_by_keyframe"], report["video_ceiling_by_keyframe"], strict=True)
    rows += [(f"video at {i / keyframe_rate:.2f} s", *shares) for i, shares in enumerate(by_keyframe)]
    return "\n".join(lines + [f"{name:<20} {share:7.3f}  {ceiling:7.3f}" for name, share, ceiling in rows])
