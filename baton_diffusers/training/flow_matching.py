"""Flow matching for stages 2 and 3: the transformer learns to denoise clips under a plan (Baton, arXiv:2605.25195)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import coordinates
from ..guiders import Anchor
from ..models.latents import denormalise_latents, encode_waveforms, normalise_latents
from ..models.transformer_dual_branch import DualBranchTransformer
from ..models.va_planner import VAPlannerModel, plan_prompts, tokenize_cues, tokenize_prompts
from ..models.wan_clip import decode_clip, encode_clip
from ..plan import SemanticPlan
from .config import TransformerTraining
from .data.dataset import CachedFeatures, collate_features
from .planner import planned_like
from .seeds import step_seed
from .tasks import TASKS


def visited_states(config: TransformerTraining, modality: str, other: str = "made") -> frozenset[Anchor]:
    """
    The guidance passes that a training covers for one modality; any other anchor is an untrained state.

    Text, plan and task are drawn independently, so all their combinations occur. Without a plan, [`Anchor.resolve`] simplifies the
    anchors.

    Args:
        config: The training.
        modality: "video" or "audio".
        other: The other modality is "made" too, "given" (A2V, V2A), or there is "none" (T2V, T2A).
    """
    other_modality, replaced = {"video": ("audio", "mute"), "audio": ("video", "static")}[modality]
    routed = {
        getattr(TASKS[name], other_modality) for name in config.tasks if getattr(TASKS[name], modality) == "noisy"
    }
    clean_reads = config.clean_reads_noisy
    states = set()
    if other == "none":
        states |= {Anchor()} if "absent" in routed else set()
    else:
        if "noisy" in routed and other == "made":
            states.add(Anchor())
        if "clean" in routed and other == "given" and not clean_reads:  # given media never read generated ones
            states.add(Anchor())
        if "absent" in routed:
            states.add(Anchor(cross_modal=False))
        if "still" in routed and not (clean_reads and other == "given"):
            states.add(Anchor(**{replaced: True}, clean_reads=clean_reads))

    kept = {
        (True, True): 1 - config.text_dropout - config.plan_dropout - config.joint_dropout,
        (False, True): config.text_dropout,
        (True, False): config.plan_dropout,
        (False, False): config.joint_dropout,
    }
    return frozenset(
        replace(anchor, text=text, plan=plan).resolve(has_plan=config.plan != "none")
        for anchor in states
        for (text, plan), share in kept.items()
        if share > 1e-9
    )


@torch.no_grad()
def static_latents(vae: AutoencoderKLWan, num_frames: int, height: int, width: int) -> torch.Tensor:
    """
    Normalised latents of a motionless mid-grey clip: the static anchor of SyncCFG (arXiv:2511.21579).

    Args:
        vae: The video autoencoder.
        num_frames, height, width: Size of the latents.

    Returns:
        Of shape `(1, num_channels, num_frames, height, width)`.
    """
    scale = vae.config.scale_factor_spatial
    return _still_clips(vae, torch.zeros(1, 3, 1, height * scale, width * scale, device=vae.device), num_frames)


@torch.no_grad()
def held_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents of clips that show their first picture throughout: the static anchor of SyncCFG with a given picture.
    `latents` and the result are `(batch_size, num_channels, num_frames, height, width)`."""
    pictures = decode_clip(vae, denormalise_latents(vae, latents[:, :, :1])).clamp(-1, 1)
    return _still_clips(vae, pictures, latents.shape[2])


def _still_clips(vae: AutoencoderKLWan, pictures: torch.Tensor, num_frames: int) -> torch.Tensor:
    clips = pictures.expand(-1, -1, 1 + (num_frames - 1) * vae.config.scale_factor_temporal, -1, -1)
    return normalise_latents(vae, encode_clip(vae, clips).chunk(2, dim=1)[0])


@torch.no_grad()
def mute_latents(audio_vae: MMAudioVAE, audio_length: int) -> torch.Tensor:
    """Scaled latents of silence, `(1, audio_length, channels)`: the mute anchor of SyncCFG (arXiv:2511.21579)."""
    return encode_waveforms(
        audio_vae, torch.zeros(1, audio_length * audio_vae.latent_hop_length, device=audio_vae.device)
    )


class FeatureCollator:
    """
    Joins samples of [`CachedFeatures`] into a batch for [`FlowMatchingLoss`], with their texts as tokens.

    Args:
        max_sequence_length (`int`): text tokens to which prompts are padded.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): tokenizer of a trained text encoder. Adds `text_ids` and `text_mask`
            `(batch_size, max_sequence_length)`, and `empty_text_ids` and `empty_text_mask` `(1, max_sequence_length)` of the empty
            prompt.
        planner_tokenizer (`PreTrainedTokenizerBase`, *optional*): tokenizer of the planner. Adds `planner_ids` and `planner_mask`
            `(num_forms, batch_size, length)`: one form, or for a planner that writes cues two, with the clip's cues and without.
        planner_config (*optional*): configuration of the planner.
    """

    def __init__(
        self,
        max_sequence_length: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        planner_tokenizer: PreTrainedTokenizerBase | None = None,
        planner_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.max_sequence_length = max_sequence_length
        self.tokenizer = tokenizer
        self.planner_tokenizer = planner_tokenizer
        self.planner_config = planner_config

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch; prompts and cues are lists."""
        batch = collate_features(samples)
        prompts = batch["prompt"]
        if self.tokenizer is not None:
            tokens = self.tokenizer(
                [*prompts, ""],
                padding="max_length",
                max_length=self.max_sequence_length,
                truncation=True,
                return_tensors="pt",
            )
            batch["text_ids"], batch["empty_text_ids"] = tokens.input_ids[:-1], tokens.input_ids[-1:]
            batch["text_mask"], batch["empty_text_mask"] = tokens.attention_mask[:-1], tokens.attention_mask[-1:]
        if self.planner_tokenizer is not None:
            config = self.planner_config
            if config["first_timestamp_id"] is None:
                ids, mask = tokenize_prompts(self.planner_tokenizer, prompts, config["system_prompt"])
            else:
                sheets = [*batch["cues"], *([""] * len(prompts))]
                ids, mask, _ = tokenize_cues(
                    self.planner_tokenizer,
                    plan_prompts([*prompts, *prompts], sheets, config["plans_from_sheets"]),
                    sheets,
                    config["system_prompt"],
                    config["timestamp_rate"],
                )
            batch["planner_ids"], batch["planner_mask"] = (x.unflatten(0, (-1, len(prompts))) for x in (ids, mask))
        return batch


class FlowMatchingLoss:
    r"""
    Flow matching for both modalities: `z_t = (1 - t) x + t noise`, velocity `noise - x`.

    Each sample is drawn for one of the configured tasks, as evenly as the batch allows. All samples pass the model together: a
    task is a choice of noise levels and visibility, not a code path. Clips flagged `silent` or `static` are trained in "t2v" or
    "t2a" instead, the only task that they can teach. Independently of the task, samples lose text, plan or both with the configured
    shares, so that every guidance anchor, and the use without a planner, is a trained state.

    Logged: `loss = video + audio_weight * audio`, and `motion` if a `motion_weight` adds it. With several tasks also, for each task
    and supervised modality, the sum of its samples' losses (`video.a2v`) and their number (`video.a2v.share`), both divided by the
    batch size; the quotient is the mean loss of the task, see [`mean_losses`]. With `noise_bins` the same for ranges of noise levels
    (`video.noise0.25-0.5`).

    Args:
        config ([`TransformerTraining`]): shares, noise levels and weights.
        features ([`CachedFeatures`]): give the plan's layout and, without a text encoder, the empty prompt's embeddings.
        planner ([`VAPlannerModel`], *optional*): frozen planner, for `plan="planner"`.
        vae (`AutoencoderKLWan`, *optional*): encodes the still video of the task "static", once for each shape.
        audio_vae (`MMAudioVAE`, *optional*): encodes the silence of the task "mute", once for each shape.

    Raises:
        ValueError: if a task lacks its autoencoder; or, without a text encoder, if the features have no embeddings or another
            `max_sequence_length`.
    """

    def __init__(
        self,
        config: TransformerTraining,
        features: CachedFeatures,
        planner: VAPlannerModel | None = None,
        vae: AutoencoderKLWan | None = None,
        audio_vae: MMAudioVAE | None = None,
    ) -> None:
        for task, name, model in (("static", "vae", vae), ("mute", "audio_vae", audio_vae)):
            if task in config.tasks and model is None:
                raise ValueError(f"the task {task!r} needs `{name}`, the autoencoder that encodes its condition.")
        if config.text_encoder is None and len(features.empty_prompt_embeds) != config.max_sequence_length:
            raise ValueError(
                f"`max_sequence_length` is {config.max_sequence_length}, but the features hold embeddings of "
                f"{len(features.empty_prompt_embeds)} tokens: give that number."
            )
        self.config = config
        self.features = features
        self.planner = planner
        self.vae = vae
        self.audio_vae = audio_vae
        self._still: dict[torch.Size, torch.Tensor] = {}
        with torch.device("meta"):
            self._geometry = DualBranchTransformer(**config.transformer).config

    def to(self, device: torch.device) -> None:
        """Moves the frozen models to where the transformer is trained."""
        for model in (self.planner, self.vae, self.audio_vae):
            if model is not None:
                model.to(device)

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch, as [`Trainer`] wants it."""
        config = self.config
        batch_size, device = len(batch["prompt"]), batch["latents"].device
        # Draws that decide shapes are made on the CPU: to read them from the device would wait for its queue.
        host = torch.Generator().manual_seed(step_seed(generator.initial_seed(), step, 1))

        # 1. Each sample once in a drawn task, and once in each task of Cross-Task Synergy
        synergy = {name: weight for name, weight in config.synergy_weights.items() if weight > 0}
        repeats = 1 + len(synergy)
        latents = batch["latents"].repeat_interleave(repeats, dim=0)
        audio_latents = batch["audio_latents"].repeat_interleave(repeats, dim=0)
        others = [torch.full((batch_size,), config.tasks.index(name)) for name in synergy]
        drawn_task = torch.stack([self._draw_tasks(batch_size, host), *others], dim=1).flatten()
        task = _sent(drawn_task, device)
        weight = _sent(torch.tensor([1.0, *synergy.values()]).repeat(batch_size), device)
        for flag, name in (("silent", "t2v"), ("static", "t2a")):
            if flag in batch and name in config.tasks:
                flagged = batch[flag].repeat_interleave(repeats)
                task = torch.where(flagged, config.tasks.index(name), task)
        trains_video, trains_audio = self._where(task, "video", "noisy"), self._where(task, "audio", "noisy")

        # 2. Noise levels of rows and of their latents in time; given latents are at 0
        row_level, audio_row_level = self._draw_noise_levels(len(task), generator)
        noisy, audio_noisy = self._draw_noisy(task, latents.shape[2], audio_latents.shape[1], generator)
        level, audio_level = row_level[:, None] * noisy, audio_row_level[:, None] * audio_noisy

        # 3. Noised latents, still conditions and reference audio
        noise = torch.randn(latents.shape, generator=generator, device=device)
        audio_noise = torch.randn(audio_latents.shape, generator=generator, device=device)
        t, audio_t = level[:, None, :, None, None], audio_level[:, :, None]
        noised = (1 - t) * latents + t * noise
        audio_noised = (1 - audio_t) * audio_latents + audio_t * audio_noise
        if "static" in config.tasks:
            still = self._where(task, "video", "still")[:, None, None, None, None]
            noised = torch.where(still, self._still_videos(latents, drawn_task, host), noised)
        if "mute" in config.tasks:
            still = self._where(task, "audio", "still")[:, None, None]
            audio_noised = torch.where(still, self._still_latents(audio_latents), audio_noised)
        reference_audio = self._reference_audio(audio_latents, host)

        # 4. Text and plan
        draw = torch.rand(len(task), generator=generator, device=device)
        loses_text = draw < config.text_dropout + config.joint_dropout
        loses_plan = (draw >= config.text_dropout) & (
            draw < config.text_dropout + config.joint_dropout + config.plan_dropout
        )
        text, attention_mask = self._text(batch, repeats, loses_text)
        plan = self._plan(batch, repeats, generator)
        if plan is not None:
            plan = plan.masked(~loses_plan)

        # 5. Velocities
        velocity, audio_velocity = module(
            noised,
            audio_noised,
            self._timestep(level),
            text,
            attention_mask,
            plan,
            self._timestep(audio_level),
            self._visibility(task, "video", "audio"),
            self._visibility(task, "audio", "video"),
            reference_audio,
        )

        # 6. Errors of each row over its noisy latents; supervised modalities are weighted and summed
        error = velocity.float() - (noise - latents)
        errors = error.square().mean(dim=(1, 3, 4))
        audio_errors = (audio_velocity.float() - (audio_noise - audio_latents)).square().mean(dim=2)
        errors, audio_errors = _mean_where(noisy, errors), _mean_where(audio_noisy, audio_errors)
        video_loss = (weight * trains_video * errors).sum() / batch_size
        audio_loss = (weight * trains_audio * audio_errors).sum() / batch_size
        losses = {
            "loss": video_loss + config.audio_weight * audio_loss,
            "video": video_loss,
            "audio": audio_loss,
            **self._losses_by_group("video", errors.detach(), task, trains_video, row_level, batch_size),
            **self._losses_by_group("audio", audio_errors.detach(), task, trains_audio, audio_row_level, batch_size),
        }

        # 7. Error of the video's change between neighbouring noisy latents
        if config.motion_weight > 0:
            change_errors = error.diff(dim=2).square().mean(dim=(1, 3, 4))
            change_errors = _mean_where(noisy[:, 1:] & noisy[:, :-1], change_errors)
            losses["motion"] = (weight * trains_video * change_errors).sum() / batch_size
            losses["loss"] = losses["loss"] + config.motion_weight * losses["motion"]
        return losses

    def _draw_noise_levels(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        config, device = self.config, generator.device
        normal = torch.randn(2, count, generator=generator, device=device)
        level, other = (config.noise_mean + config.noise_std * normal).sigmoid()
        apart = torch.rand(count, generator=generator, device=device) < config.independent_timesteps
        return level, torch.where(apart, other, level)

    def _draw_noisy(
        self, task: torch.Tensor, num_frames: int, audio_length: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which latents in time are noisy, `(num_rows, num_frames)` and `(num_rows, audio_length)`; the others are given."""
        noisy = self._where(task, "video", "noisy", "absent")[:, None].expand(-1, num_frames)
        audio_noisy = self._where(task, "audio", "noisy", "absent")[:, None].expand(-1, audio_length)
        if self.config.given_share == 0:
            return noisy, audio_noisy

        # Each modality is made between two instants, in seconds. Three forms: after the first picture, after a beginning of both, or
        # within a span of each.
        geometry, device = self._geometry, task.device
        spans = coordinates.video_latent_spans(num_frames, geometry.frame_rate, geometry.temporal_stride)
        spans = _sent(torch.tensor(spans), device)
        times = _sent(coordinates.audio_latent_times(audio_length, geometry.audio_latent_rate), device)
        half = 0.5 / geometry.audio_latent_rate
        duration = spans[-1, 1]
        draw = torch.rand(6, len(task), generator=generator, device=device)
        partly = draw[0] < self.config.given_share
        form = (3 * draw[1]).long()
        begin = 0.5 * duration * draw[2]
        length = duration * (0.25 + 0.5 * draw[3])
        masks = []
        for first, u in ((spans[0, 1], draw[4]), (torch.zeros_like(duration), draw[5])):
            start = torch.where(form == 0, first, torch.where(form == 1, begin, (duration - length) * u))
            masks.append((start[:, None], torch.where(form == 2, start + length, math.inf)[:, None]))
        (start, stop), (audio_start, audio_stop) = masks
        made = (spans[:, 1] > start) & (spans[:, 0] < stop)
        audio_made = (times + half > audio_start) & (times - half < audio_stop)
        return noisy & (made | ~partly[:, None]), audio_noisy & (audio_made | ~partly[:, None])

    def _reference_audio(self, audio_latents: torch.Tensor, host: torch.Generator) -> torch.Tensor | None:
        """A span of each row's own sound, `(num_rows, reference_length, channels)`, or None for batches without one."""
        if self.config.reference_share == 0:
            return None
        num_rows, audio_length, _ = audio_latents.shape
        drawn, size, *starts = torch.rand(2 + num_rows, generator=host).tolist()
        if drawn >= self.config.reference_share:
            return None
        length = max(1, round(audio_length * (1 + 2 * size) / 6))
        first = torch.tensor([int(start * (audio_length - length + 1)) for start in starts])
        places = _sent(first[:, None] + torch.arange(length), audio_latents.device)
        return audio_latents[torch.arange(num_rows, device=audio_latents.device)[:, None], places]

    def _draw_tasks(self, batch_size: int, host: torch.Generator) -> torch.Tensor:
        # Systematic sampling: a task of share p gets p * batch_size samples of a batch, rounded up or down by chance.
        weights = [self.config.task_weights.get(name, 0.0) for name in self.config.tasks]
        ends = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        offset = torch.rand(1, generator=host, dtype=torch.float64)
        places = (torch.arange(batch_size) + offset) / batch_size * ends[-1]
        return torch.searchsorted(ends, places, right=True).clamp(max=len(weights) - 1)

    def _where(self, task: torch.Tensor, modality: str, *states: str) -> torch.Tensor:
        """Which rows have a modality in one of the states."""
        values = [getattr(TASKS[name], modality) in states for name in self.config.tasks]
        return _sent(torch.tensor(values), task.device)[task]

    def _visibility(self, task: torch.Tensor, reader: str, other: str) -> bool | torch.Tensor:
        """Whether `reader` reads `other`: one value if all tasks agree, so that no mask is needed, else one for each row."""
        values = [TASKS[name].reads(reader, other, self.config.clean_reads_noisy) for name in self.config.tasks]
        return values[0] if len(set(values)) == 1 else _sent(torch.tensor(values), task.device)[task]

    def _timestep(self, level: torch.Tensor) -> torch.Tensor:
        """Timesteps of the noise levels `(num_rows, length)`: one for each row or, with given parts, for each latent in time."""
        return 1000 * (level[:, 0] if self.config.given_share == 0 else level)

    def _still_latents(self, like: torch.Tensor) -> torch.Tensor:
        """The still condition in place of a clip's own latents, encoded once for each shape."""
        shape = like.shape[1:]
        if shape not in self._still:
            still = static_latents(self.vae, *shape[1:]) if len(shape) == 4 else mute_latents(self.audio_vae, shape[0])
            self._still[shape] = still.to(like)
        return self._still[shape]

    def _still_videos(self, latents: torch.Tensor, drawn_task: torch.Tensor, host: torch.Generator) -> torch.Tensor:
        """The video of still rows: a grey clip or, with given parts, half of the time the row's own first picture."""
        videos = self._still_latents(latents)
        if self.config.given_share == 0:
            return videos
        held = self._where(drawn_task, "video", "still") & (torch.rand(len(latents), generator=host) < 0.5)
        if not held.any():
            return videos
        rows = _sent(held.nonzero()[:, 0], latents.device)
        pictures = held_latents(self.vae, latents.index_select(0, rows))
        return videos.repeat(len(latents), 1, 1, 1, 1).index_copy(0, rows, pictures)

    def _losses_by_group(
        self,
        modality: str,
        errors: torch.Tensor,
        task: torch.Tensor,
        trained: torch.Tensor,
        level: torch.Tensor,
        batch_size: int,
    ) -> dict[str, torch.Tensor]:
        tasks, bins = self.config.tasks, self.config.noise_bins
        groups = {}
        if len(tasks) > 1:
            for index, name in enumerate(tasks):
                if getattr(TASKS[name], modality) == "noisy":
                    groups[name] = task == index
        for index in range(bins):
            inside = (level * bins).long().clamp(max=bins - 1) == index
            groups[f"noise{index / bins:.3g}-{(index + 1) / bins:.3g}"] = inside & trained
        losses = {}
        for name, chosen in groups.items():
            losses[f"{modality}.{name}"] = (errors * chosen).sum() / batch_size
            losses[f"{modality}.{name}.share"] = chosen.sum() / batch_size
        return losses

    def _text(
        self, batch: dict[str, Any], repeats: int, lost: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids and mask of the rows' prompts, or cached embeddings; rows that `lost` their text get the empty prompt."""
        if self.config.text_encoder is None:
            embeds = batch["prompt_embeds"].repeat_interleave(repeats, dim=0)
            empty = _sent(self.features.empty_prompt_embeds.to(embeds.dtype), embeds.device)
            return torch.where(lost[:, None, None], empty, embeds), None
        ids, mask = (batch[name].repeat_interleave(repeats, dim=0) for name in ("text_ids", "text_mask"))
        ids = torch.where(lost[:, None], batch["empty_text_ids"], ids)
        return ids, torch.where(lost[:, None], batch["empty_text_mask"], mask)

    @torch.no_grad()
    def _plan(self, batch: dict[str, Any], repeats: int, generator: torch.Generator) -> SemanticPlan | None:
        """The plan of each row."""
        if self.config.plan == "none":
            return None
        features_plan = self.features.plan(batch["video_tokens"], batch["audio_tokens"]).to(
            generator.device, non_blocking=True
        )
        if self.config.plan == "encoders":
            return features_plan.repeat_interleave(repeats)
        ids, mask = batch["planner_ids"], batch["planner_mask"]
        if len(ids) == 1:
            return planned_like(
                features_plan, self.planner(ids[0], mask[0], features_plan.duration)
            ).repeat_interleave(repeats)
        # With the clip's own cues the plan agrees with the clip; without them it is the planner's mean over all times.
        ids, mask = (x.repeat_interleave(repeats, dim=1) for x in (ids, mask))
        written = torch.rand(ids.shape[1], generator=generator, device=generator.device) >= self.config.cue_dropout
        ids, mask = (torch.where(written[:, None], x[0], x[1]) for x in (ids, mask))
        return planned_like(features_plan, self.planner(ids, mask, features_plan.duration))


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Small values, copied to the device without waiting for its queue."""
    return values.to(device, non_blocking=True)


def _mean_where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of each row of `values` `(num_rows, length)` over its `mask`; 0 for an empty mask."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def mean_losses(path: str | Path) -> list[dict[str, float]]:
    """
    The learning curves of a run, with the mean loss of each task instead of its sum and share.

    Args:
        path: The `log.csv` of a run.

    Returns:
        Its rows: `step`, `samples`, `seconds`, `learning_rate`, `loss`, `video`, `audio`, and for each task and modality the
        mean over the row's samples (`video.a2v`; NaN where there were none).
    """
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for name in [name.removesuffix(".share") for name in row if name.endswith(".share")]:
            share = row.pop(f"{name}.share")
            row[name] = row[name] / share if share > 0 else math.nan
    return rows
