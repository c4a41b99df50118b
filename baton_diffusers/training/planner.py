"""Stage 1 of Baton's training: the planner learns to regress the semantic encoders' features from prompts (arXiv:2605.25195)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, Qwen3Model

from ..models.component_files import load_component
from ..models.latents import to_video
from ..models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from ..models.va_planner import VAPlannerModel, check_sheet_tokens, plan_prompts, tokenize_cues, tokenize_prompts
from ..plan import SemanticPlan
from ..stage import render_clip, sample_scene, training_prompt, write_cues, write_prompt
from ..stage.clips import StageClips
from .config import PlannerTraining
from .data.dataset import CachedFeatures


_TEXTS_OF_A_SCENE = 4
_STILL = 1e-3  # mean squared change of a token below which nothing happens
_FAINT = 0.05  # of a faint change: in nano's tokens the jolt of a target that a box hits; an opening mouth changes them by 1.5


def build_planner(config: PlannerTraining, model_class: type[VAPlannerModel] = VAPlannerModel) -> VAPlannerModel:
    """The planner that a training starts from.

    Raises:
        ValueError: if `config.language_model` or `config.initial` has another configuration than `config.planner`.
    """
    planner = model_class(**config.planner)
    if config.language_model is not None:
        local = Path(config.language_model).is_dir()  # or a Hub id
        load = partial(load_component, model_class=Qwen3Model) if local else Qwen3Model.from_pretrained
        weights = load(config.language_model, dtype=torch.float32).state_dict()
        _load(planner.language_model, weights, config.language_model)
    if config.initial is not None:
        weights = load_component(config.initial, model_class).state_dict()
        name = "language_model.embed_tokens.weight"
        embeddings, expected = weights[name], planner.state_dict()
        if planner.writes_cues and len(embeddings) <= planner.config.first_timestamp_id:
            # known tokens keep their rows; fresh ones, such as timestamps, get the same scale
            fresh = expected[name][len(embeddings) :]
            weights[name] = torch.cat([embeddings, fresh * embeddings.std() / fresh.std()])
            weights |= {name: value for name, value in expected.items() if name == "lm_head.weight"}
        _load(planner, weights, config.initial)
    if config.lora_rank is not None:
        targets = r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        planner.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=targets))
        for name, parameter in planner.named_parameters():
            if not name.startswith("language_model."):
                parameter.requires_grad_(True)
    return planner


def _load(model: nn.Module, weights: dict[str, torch.Tensor], folder: str) -> None:
    shapes, expected = (
        {name: tuple(value.shape) for name, value in state.items()} for state in (weights, model.state_dict())
    )
    if different := [name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name)]:
        name = different[0]
        raise ValueError(
            f"{folder} has `{name}` of shape {shapes.get(name)}, but the configuration of the planner needs "
            f"{expected.get(name)}: give `planner` and its `language_model_config` the numbers of its config.json."
        )
    model.load_state_dict(weights)


def merge_lora(planner: VAPlannerModel) -> VAPlannerModel:
    """Merges the LoRA of [`build_planner`], if there is one, into the language model's weights."""
    if getattr(planner, "peft_config", None):
        planner.fuse_lora()
        planner.unload_lora()
    return planner


class PlannedScenes:
    """
    Stage scenes with their prompts and the plans of their clips, as an endless dataset.

    Sample `i` is scene `i % num_scenes`; its prompt is paraphrased in every epoch. The features of a scene are computed when it
    first comes up, and kept in memory in half precision.

    A sample is a dictionary: `prompt`; `cues` of the scene's clip, or the empty sheet if it has several; and `plan`, a
    [`SemanticPlan`] of batch size 1, the mean over the scene's clips.

    Args:
        video_encoder, audio_encoder: the frozen semantic encoders, on the device on which they run.
        num_scenes (`int`): scenes in an epoch.
        clips_per_prompt (`int`, defaults to 1): renders of a scene, each with times of its own.
        split (`str`, defaults to `"train"`): Stage's split.
    """

    def __init__(
        self,
        video_encoder: VideoSemanticEncoder,
        audio_encoder: AudioSemanticEncoder,
        num_scenes: int,
        clips_per_prompt: int = 1,
        split: str = "train",
    ):
        self.video_encoder = video_encoder.eval().requires_grad_(False)
        self.audio_encoder = audio_encoder.eval().requires_grad_(False)
        self.num_scenes = num_scenes
        self.clips_per_prompt = clips_per_prompt
        self.split = split
        self._plans: dict[int, SemanticPlan] = {}

    def read(self, number: int) -> SemanticPlan:
        """The plans read off the clips of one scene, a batch of `clips_per_prompt`."""
        scene, device = sample_scene(number, split=self.split), self.video_encoder.device
        clips = [render_clip(scene, number * self.clips_per_prompt + i) for i in range(self.clips_per_prompt)]
        return read_plan(
            self.video_encoder,
            self.audio_encoder,
            to_video(torch.stack([torch.from_numpy(clip.frames) for clip in clips]).to(device)),
            clips[0].frame_rate,
            torch.stack([torch.from_numpy(clip.waveform)[None] for clip in clips]).to(device),
            clips[0].sampling_rate,
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index % self.num_scenes
        if number not in self._plans:
            plan = self.read(number).trimmed()
            self._plans[number] = replace(
                plan[0],
                video_tokens=plan.video_tokens.mean(dim=0, keepdim=True).half(),
                audio_tokens=plan.audio_tokens.mean(dim=0, keepdim=True).half(),
            )
        scene = sample_scene(number, split=self.split)
        cues = write_cues(scene, number) if self.clips_per_prompt == 1 else ""
        return {"prompt": training_prompt(scene, index), "cues": cues, "plan": self._plans[number]}


class CachedPlans:
    """The clips of [`CachedFeatures`], as samples in the form of [`PlannedScenes`]."""

    def __init__(self, features: CachedFeatures):
        self.features = features

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.features[index]
        plan = self.features.plan(sample["video_tokens"][None], sample["audio_tokens"][None])
        return {"prompt": sample["prompt"], "cues": sample["cues"], "plan": plan}


class PlannerSamples:
    """
    Samples of [`PlannedScenes`] or [`CachedPlans`] with the random draws of a training. The draws depend on the sample's number
    alone, so that a batch is the same however processes cut it.

    A sample also has `texts`, a list of further prompts with their sheets. A share of the samples loses its own sheet.

    Args:
        samples ([`PlannedScenes`] or [`CachedPlans`]): the samples.
        seed (`int`): of the draws.
        texts_per_sample (`int`, defaults to 0): further prompts of Stage, for the cross-entropy of cues alone.
        cue_dropout (`float`, defaults to 0.0): share of samples whose sheet is left out.
        tier_weights (`dict`, *optional*): how often the further prompts are of each tier, see [`StageClips`].
    """

    def __init__(
        self,
        samples: PlannedScenes | CachedPlans,
        seed: int,
        texts_per_sample: int = 0,
        cue_dropout: float = 0.0,
        tier_weights: Mapping[str, float] | None = None,
    ):
        self.samples = samples
        self.seed = seed
        self.texts_per_sample = texts_per_sample
        self.cue_dropout = cue_dropout
        self.stage = StageClips("train", tier_weights=tier_weights)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, rng = self.samples[index], np.random.default_rng((self.seed, index))
        cues = "" if rng.random() < self.cue_dropout else sample["cues"]
        texts: list[tuple[str, str]] = []
        while len(texts) < self.texts_per_sample:
            # Drawing a scene takes longer than writing about it: each gives several prompts and sheets.
            scene, seed = self.stage.scene(int(rng.integers(2**31)))
            count = min(_TEXTS_OF_A_SCENE, self.texts_per_sample - len(texts))
            texts += [(training_prompt(scene, seed + i), write_cues(scene, seed + i)) for i in range(count)]
        return {**sample, "cues": cues, "texts": texts}


class PlanCollator:
    """
    Joins samples into a batch for [`PlannerLoss`]: `plan`, `input_ids` and `attention_mask`. With timestamps also `labels` of the
    sheets, and `further_texts`, the same three tensors of the further prompts, if there are any.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the planner's.
        planner_config (`dict`): configuration of the planner.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, planner_config: Mapping[str, Any]):
        check_sheet_tokens(tokenizer, planner_config)
        self.tokenizer = tokenizer
        self.planner_config = planner_config

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        config, prompts = self.planner_config, [sample["prompt"] for sample in samples]
        batch = {"plan": SemanticPlan.collate([sample["plan"] for sample in samples])}
        if config["first_timestamp_id"] is None:
            tokens = tokenize_prompts(self.tokenizer, prompts, config["system_prompt"])
            return batch | dict(zip(("input_ids", "attention_mask"), tokens, strict=True))
        texts = [text for sample in samples for text in sample.get("texts", ())]
        if texts:
            batch["further_texts"] = self._tokens(*zip(*texts, strict=True))
        sheets = [sample["cues"] for sample in samples]
        tokens = self._tokens(plan_prompts(prompts, sheets, config["plans_from_sheets"]), sheets)
        return batch | dict(zip(("input_ids", "attention_mask", "labels"), tokens, strict=True))

    def _tokens(
        self, prompts: Sequence[str], sheets: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.planner_config
        input_ids, attention_mask, labels = tokenize_cues(
            self.tokenizer, prompts, list(sheets), config["system_prompt"], config["timestamp_rate"]
        )
        # an empty sheet is read, and never a target
        return (
            input_ids,
            attention_mask,
            labels.masked_fill(torch.tensor([not sheet for sheet in sheets])[:, None], -100),
        )


class PlannerLoss:
    """Baton's plain L2 over the tokens of both modalities and, for a planner with timestamps, the cross-entropy of its cues: the
    mean over sheets of each sheet's mean over tokens. So the parts of a batch have the mean loss of the whole batch.

    Args:
        audio_weight (`float`, defaults to 1.0): weight of an audio token beside a video token.
        cue_weight (`float`, defaults to 1.0): weight of the cross-entropy.
        faint_weight (`float`, defaults to 0.0): weight added to a video token that changes faintly from one keyframe to the next,
            see [`faint_change`]. Otherwise faint changes of the picture are lost among large errors.
        tokens_per_keyframe (`int`, defaults to 1): of the planner, for `faint_weight`.
    """

    def __init__(
        self,
        audio_weight: float = 1.0,
        cue_weight: float = 1.0,
        faint_weight: float = 0.0,
        tokens_per_keyframe: int = 1,
    ):
        self.audio_weight = audio_weight
        self.cue_weight = cue_weight
        self.faint_weight = faint_weight
        self.tokens_per_keyframe = tokens_per_keyframe

    def __call__(self, module: nn.Module, batch: dict, generator: torch.Generator, step: int) -> dict:
        """The loss of one batch, as [`Trainer`] wants it."""
        target, input_ids = batch["plan"], batch["input_ids"]
        losses = {}
        if "labels" in batch:
            plan, cross_entropy = module(
                input_ids, batch["attention_mask"], target.duration, batch["labels"], batch.get("further_texts")
            )
            losses["cues"] = cross_entropy[: len(input_ids)].mean()
            if "further_texts" in batch:
                losses["texts"] = cross_entropy[len(input_ids) :].mean()
        else:
            plan = module(input_ids, batch["attention_mask"], target.duration)
        plan = planned_like(target, plan)
        # squared distance per token, averaged over channels
        video = (plan.video_tokens.float() - target.video_tokens.float()).square().mean(dim=-1)
        audio = (plan.audio_tokens.float() - target.audio_tokens.float()).square().mean(dim=-1)
        weighted = video
        if self.faint_weight:
            weighted = video * (1 + self.faint_weight * faint_change(target.video_tokens, self.tokens_per_keyframe))
        weight = video.numel() + self.audio_weight * audio.numel()
        loss = (weighted.sum() + self.audio_weight * audio.sum()) / weight
        loss = loss + self.cue_weight * sum(losses.values())
        return {"loss": loss, "video": video.mean(), "audio": audio.mean(), **losses}


def faint_change(video_tokens: torch.Tensor, tokens_per_keyframe: int) -> torch.Tensor:
    """
    How faintly a token changes: 0 if it does not change; 1 if it changes by little from the keyframe before or to the one
    after; near 0 again if it changes as much as for an opening mouth. Ours.

    Args:
        video_tokens (`torch.Tensor` of shape `(batch_size, num_video_tokens, video_dim)`): of unit variance, in order of time.
        tokens_per_keyframe (`int`): tokens of a keyframe.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_video_tokens)`, in [0, 1].
    """
    keyframes = video_tokens.float().unflatten(1, (-1, tokens_per_keyframe))
    step = (keyframes[:, 1:] - keyframes[:, :-1]).square().mean(dim=-1)
    still = torch.zeros_like(step[:, :1])
    change = torch.maximum(torch.cat([still, step], dim=1), torch.cat([step, still], dim=1)).flatten(1)
    return (change > _STILL) * _FAINT / (change + _FAINT)


def planned_like(target: SemanticPlan, plan: SemanticPlan) -> SemanticPlan:
    """
    A planner's plan without the audio tokens beyond the clip's end, since `target`, the clip's features, has none there.
    Nothing is read from the device.

    Raises:
        ValueError: if planner and features differ in the number or width of tokens.
    """
    num_audio_tokens = target.audio_tokens.shape[1]
    tokens = plan.video_tokens, plan.audio_tokens[:, :num_audio_tokens]
    shapes = [tuple(value.shape[1:]) for value in tokens]
    expected = [tuple(value.shape[1:]) for value in (target.video_tokens, target.audio_tokens)]
    if shapes != expected:
        raise ValueError(
            f"the planner makes video and audio tokens of shapes {shapes}, but the features have {expected}: cache the features with "
            "the encoders that the planner was trained on."
        )
    return replace(target, video_tokens=tokens[0], audio_tokens=tokens[1], video_mask=None, audio_mask=None)


@torch.no_grad()
def explained_variance(
    planner: VAPlannerModel,
    tokenizer: PreTrainedTokenizerBase,
    video_encoder: VideoSemanticEncoder,
    audio_encoder: AudioSemanticEncoder,
    num_scenes: int,
    batch_size: int = 20,
    split: str = "validation",
) -> dict[str, float | list[float]]:
    """
    The share of the features' variance that a planner explains, and a ceiling for planners without cues.

    The reference is the best constant: the mean feature of every token and channel. No prediction can explain details that a
    prompt leaves open, such as times or the shade of the wall. So the ceiling is the share that the mean over all clips of
    a scene explains, estimated without bias from two clips of each scene. A planner that reads cues gets each clip's own,
    and may exceed it.

    Args:
        planner (`VAPlannerModel`): in evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        video_encoder, audio_encoder: give the features of real clips.
        num_scenes (`int`): scenes to take.
        batch_size (`int`, defaults to 20): scenes at a time.
        split (`str`, defaults to `"validation"`): Stage's split.

    Returns:
        `dict`: `video`, `video_ceiling`, `audio`, `audio_ceiling`, and the lists `video_by_keyframe`,
        `video_ceiling_by_keyframe` over the keyframes in order of time.
    """
    scenes = PlannedScenes(video_encoder, audio_encoder, num_scenes, clips_per_prompt=2, split=split)
    targets, predictions = [], []
    for start in range(0, num_scenes, batch_size):
        numbers = range(start, min(start + batch_size, num_scenes))
        targets += [scenes.read(number).trimmed() for number in numbers]
        drawn = [(sample_scene(number, split=split), number) for number in numbers for _ in range(2)]
        prompts = [write_prompt(scene, number) for scene, number in drawn]
        if planner.writes_cues:
            cues = [write_cues(scene, 2 * number + i % 2) for i, (scene, number) in enumerate(drawn)]
            input_ids, attention_mask, _ = tokenize_cues(
                tokenizer,
                plan_prompts(prompts, cues, planner.config.plans_from_sheets),
                cues,
                planner.config.system_prompt,
                planner.config.timestamp_rate,
            )
        else:
            input_ids, attention_mask = tokenize_prompts(tokenizer, prompts, planner.config.system_prompt)
        plan = planner(input_ids.to(planner.device), attention_mask.to(planner.device), targets[0].duration)
        predictions.append(plan.trimmed())
    target, prediction = SemanticPlan.collate(targets), SemanticPlan.collate(predictions)

    def shares(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        # per token: the variance that the planner leaves unexplained, that the scene's mean leaves, and the whole
        real = getattr(target, name).double().unflatten(0, (-1, 2))
        predicted = getattr(prediction, name).to(real).unflatten(0, (-1, 2))
        variance = (real - real.mean(dim=(0, 1))).square().mean(dim=(0, 1, 3))
        error = (real - predicted).square().mean(dim=(0, 1, 3))
        within = (real[:, 0] - real[:, 1]).square().mean(dim=(0, 2)) / 2
        return torch.stack([error, within]), variance

    frames, frame_of_token = target.video_times.unique(return_inverse=True)
    unexplained, variance = shares("video_tokens")
    audio_unexplained, audio_variance = shares("audio_tokens")
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
