"""`SemanticPlan`: the planned tokens of a clip, with their times and places."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from . import files
from .coordinates import PlanLayout
from .cues import Cue, PlanCandidate, Sheet, Turn, format_sheet, format_turns, parse_sheet, sheet_turns, spoken_turns
from .figure import draw_clip, html_picture, png
from .media import VideoFile


_FORMAT = "baton_diffusers.SemanticPlan"

# `pipe.preview` of the pipeline that made a plan, which draws it with pictures in a notebook. Weak: it keeps neither alive.
_PREVIEWS: weakref.WeakKeyDictionary[SemanticPlan, weakref.WeakMethod] = weakref.WeakKeyDictionary()

# Times that differ by less, in seconds, are the same: cutting and joining float32 times changes their last bit.
_SLACK = 1e-5
_SLACK_OF_CUES = 0.01  # timestamps are written in hundredths
MAX_SECONDS = 86_400.0  # of a plan: a day

# Rounding of the timestamps of a sheet, in seconds: they are written in hundredths.
_ROUNDED = 0.005

# Sound is planned in whole chunks: its last tokens may lie up to this many seconds beyond the clip's end.
_MAX_TAIL = 10.0


class NotFinite(ValueError):
    """A plan whose tokens are not finite."""


@dataclass(frozen=True, eq=False)
class SemanticPlan:
    """A blueprint of a clip in time: semantic tokens of picture and sound, in the space of frozen semantic encoders.

    Made by `VAPlannerModel` from a prompt or read off a real clip by the semantic encoders; read by
    `DualBranchTransformer`. One plan holds a batch of clips of equal duration and layout (Baton,
    arXiv:2605.25195).

    Args:
        video_tokens (`torch.Tensor` of shape `(batch_size, num_video_tokens, video_dim)`): keyframe tokens.
        video_times (`torch.Tensor` of shape `(num_video_tokens,)`): each token's keyframe time in seconds.
        video_centres (`torch.Tensor` of shape `(num_video_tokens, 2)`): patch centres `(v, u)`, downwards and to the
            right, in [0, 1].
        audio_tokens (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_dim)`): audio tokens.
        audio_times (`torch.Tensor` of shape `(num_audio_tokens,)`): the middle of each token in seconds.
        duration (`float`): seconds that the plan is for.
        video_mask (`torch.Tensor` of shape `(batch_size, num_video_tokens)`, *optional*): bool, `True` where a token
            counts. A sample without any token that counts is a sample without a plan.
        audio_mask (`torch.Tensor` of shape `(batch_size, num_audio_tokens)`, *optional*): the same for the sound.
        prompts (`tuple[str, ...]`, *optional*): the prompt that each clip was planned from; a pipeline warns if a call has
            another prompt.
        sheets (`tuple[str, ...]`, *optional*): the cue sheet that each clip's tokens follow, see [`baton_diffusers.cues`].
        candidates (`tuple[tuple[PlanCandidate, ...], ...]`, *optional*): the sheets among which each clip's was chosen, with their
            scores, the best first.

    Raises:
        ValueError: if shapes disagree with one another, tokens or times are not floating-point, masks are not bool, there is no
            token of a modality, `duration` is not a positive number of seconds, or, for a plan on the CPU, as `check_values`. A plan on
            another device is checked when a pipeline takes it, since a read would wait for the device.
    """

    # A slice between two tokens has none of them, and is still a part that others can follow.
    _may_be_empty: ClassVar[bool] = False
    # Fields with one entry for each clip.
    _texts: ClassVar[tuple[str, ...]] = ("prompts", "sheets", "candidates")

    video_tokens: torch.Tensor
    video_times: torch.Tensor
    video_centres: torch.Tensor
    audio_tokens: torch.Tensor
    audio_times: torch.Tensor
    duration: float
    video_mask: torch.Tensor | None = None
    audio_mask: torch.Tensor | None = None
    prompts: tuple[str, ...] | None = None
    sheets: tuple[str, ...] | None = None
    candidates: tuple[tuple[PlanCandidate, ...], ...] | None = None

    def __post_init__(self) -> None:
        for name in self._tensor_names():
            value = getattr(self, name)
            if not isinstance(value, torch.Tensor) and not (value is None and name.endswith("_mask")):
                raise ValueError(f"`{name}` is a {type(value).__name__}, but must be a tensor.")
        for name in ("video_tokens", "audio_tokens"):
            if getattr(self, name).ndim != 3:
                raise ValueError(
                    f"`{name}` must have shape (batch_size, num_tokens, dim), but has shape {tuple(getattr(self, name).shape)}."
                )
        if not isinstance(self.duration, Real) or isinstance(self.duration, bool) or not 0 < self.duration < math.inf:
            raise ValueError(f"`duration` is {self.duration!r} seconds, but a plan needs a positive duration.")
        if self.duration > MAX_SECONDS:
            raise ValueError(f"`duration` is {self.duration:g} seconds, but a plan lasts at most {MAX_SECONDS:g}.")
        batch_size, num_video_tokens, _ = self.video_tokens.shape
        num_audio_tokens = self.audio_tokens.shape[1]
        for name in self._texts:
            value = getattr(self, name)
            if value is not None and len(value) != batch_size:
                raise ValueError(f"`{name}` has {len(value)} entries, but the plan is for {batch_size} clips.")
        expected = {
            "video_times": (num_video_tokens,),
            "video_centres": (num_video_tokens, 2),
            "audio_tokens": (batch_size, num_audio_tokens, self.audio_tokens.shape[2]),
            "audio_times": (num_audio_tokens,),
            "video_mask": (batch_size, num_video_tokens),
            "audio_mask": (batch_size, num_audio_tokens),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}, but `video_tokens` of shape {tuple(self.video_tokens.shape)} "
                    f"and `audio_tokens` of shape {tuple(self.audio_tokens.shape)} need {shape}."
                )
        for name in self._tensor_names():
            value, mask = getattr(self, name), name.endswith("_mask")
            if value is not None and not (value.dtype == torch.bool if mask else value.is_floating_point()):
                raise ValueError(f"`{name}` is {value.dtype}, but must be {'bool' if mask else 'floating-point'}.")
        if 0 in (num_video_tokens, num_audio_tokens) and not self._may_be_empty:
            raise ValueError(
                f"a plan of {num_video_tokens} video tokens and {num_audio_tokens} audio tokens: it needs some of each."
            )
        # Values are read where this costs nothing: a host read of another device would wait for it, and a traced one break a graph.
        tensors = [getattr(self, name) for name in self._tensor_names()]
        if not torch.compiler.is_compiling() and all(
            value is None or (type(value) is torch.Tensor and value.device.type == "cpu") for value in tensors
        ):
            self._check_places()
            self._check_tokens()

    def check_values(self) -> SemanticPlan:
        """Refuses a plan whose values no clip can have. It reads tensors from their device: call it once, before the loop.

        Returns:
            The plan.

        Raises:
            ValueError: if a token that counts is not finite, a modality has no tokens, or times or centres lie outside of the
                clip.
        """
        if 0 in (self.video_tokens.shape[1], self.audio_tokens.shape[1]):
            raise ValueError(
                f"the plan of {self.duration:g} seconds lies between tokens and holds none: take a longer slice."
            )
        self._check_places()
        self._check_tokens()
        return self

    def _check_sheets(self) -> None:
        for cue in (cue for sheet in self.sheets or () for cue in parse_sheet(sheet).cues):
            if cue.time > self.duration + _SLACK_OF_CUES:
                raise ValueError(f"the plan's sheet names {cue.time:g} seconds, but the plan lasts {self.duration:g}.")

    def _check_places(self) -> None:
        seconds = f"the {self.duration:g} seconds of the clip"
        for name, start, end, within in (
            ("video_times", -_SLACK, self.duration + _MAX_TAIL, seconds),
            ("audio_times", -_SLACK, self.duration + _MAX_TAIL, seconds),
            ("video_centres", -1, 2, "[0, 1], or a picture beside it"),  # the model only sees differences
        ):
            values = getattr(self, name)
            if not ((values >= start) & (values <= end)).all():
                raise ValueError(f"`{name}` go from {values.min():g} to {values.max():g}, but must lie in {within}.")

    def _check_tokens(self) -> None:
        for name in ("video", "audio"):
            tokens, mask = getattr(self, f"{name}_tokens"), getattr(self, f"{name}_mask")
            finite = tokens.isfinite().all(dim=-1)
            if not (finite if mask is None else finite | ~mask).all():
                raise NotFinite(
                    f"`{name}_tokens` of the plan hold NaN or infinite values: make or read the plan again."
                )

    @classmethod
    def laid_out(
        cls, layout: PlanLayout, video_tokens: torch.Tensor, audio_tokens: torch.Tensor, duration: float
    ) -> SemanticPlan:
        """The plan of tokens in a layout, see [`~coordinates.plan_layout`], on their device."""
        device = video_tokens.device
        return cls(
            video_tokens=video_tokens,
            video_times=layout.video_times.to(device),
            video_centres=layout.video_centres.to(device),
            audio_tokens=audio_tokens.to(device),
            audio_times=layout.audio_times.to(device),
            duration=duration,
            audio_mask=layout.audio_mask.to(device).expand(len(video_tokens), -1),
        )

    @property
    def batch_size(self) -> int:
        """Number of clips."""
        return self.video_tokens.shape[0]

    @property
    def sheet(self) -> Sheet:
        """The cue sheet of the plan of one clip, parsed.

        Raises:
            ValueError: if the plan has none, or is for several clips.
        """
        if self.batch_size != 1:
            raise ValueError(f"the plan is for {self.batch_size} clips: take one of them, such as `plan[0]`.")
        if self.sheets is None:
            raise ValueError(
                "the plan has no cue sheet: it was read off a clip, or its planner writes none. Say what it shows by "
                "`dataclasses.replace(plan, sheets=(sheet,))`."
            )
        return parse_sheet(self.sheets[0])

    def __getitem__(self, index: int | slice) -> SemanticPlan:
        """The plan of some clips of the batch; an integer keeps a batch of one."""
        if isinstance(index, int):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"clip {index} of a plan for {self.batch_size}")
            index = slice(index % self.batch_size, index % self.batch_size + 1)
        return self._over_batch(lambda tensor: tensor[index])

    def repeat_interleave(self, repeats: int) -> SemanticPlan:
        """Each clip of the batch `repeats` times in a row, as `num_videos_per_prompt` orders them."""
        return self._over_batch(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def masked(self, keep: torch.Tensor) -> SemanticPlan:
        """Drops the whole plan of some samples.

        Args:
            keep (`torch.Tensor` of shape `(batch_size,)`): bool, `False` for samples to be left without a plan.
        """

        def mask(mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
            kept = keep.to(tokens.device)[:, None].expand(tokens.shape[:2])
            return kept if mask is None else mask & kept

        return replace(
            self,
            video_mask=mask(self.video_mask, self.video_tokens),
            audio_mask=mask(self.audio_mask, self.audio_tokens),
        )

    def slice(self, start: float, end: float) -> SemanticPlan:
        """The part within `[start, end)` seconds, with times counted from `start`, and its cues. A short part may hold no
        token: it can be joined with other parts, but no clip can follow it alone. What happened before `start` is lost: a box
        that was pushed earlier keeps its first place in the cast.

        Raises:
            ValueError: if `[start, end)` is empty or not within the plan.
        """
        _check_numbers(start=start, end=end)
        if not 0 <= start < end <= self.duration + _SLACK:
            raise ValueError(f"cannot slice [{start}, {end}) seconds out of a plan of {self.duration} seconds.")
        last = end >= self.duration - _SLACK  # masked tokens beyond the end belong to the last part
        video = (self.video_times >= start) & ((self.video_times < end) | last)
        audio = (self.audio_times >= start) & ((self.audio_times < end) | last)
        return _part(
            video_tokens=self.video_tokens[:, video],
            video_times=self.video_times[video] - start,
            video_centres=self.video_centres[video],
            audio_tokens=self.audio_tokens[:, audio],
            audio_times=self.audio_times[audio] - start,
            duration=end - start,
            video_mask=None if self.video_mask is None else self.video_mask[:, video],
            audio_mask=None if self.audio_mask is None else self.audio_mask[:, audio],
            sheets=self._retimed_sheets(lambda time: time - start, end - start),
        )

    @staticmethod
    def concat(plans: Sequence[SemanticPlan]) -> SemanticPlan:
        """Plans one after another in time; `concat([p.slice(0, t), p.slice(t, p.duration)])` is `p`, with its times to
        within the rounding of float32. It does not make two parts agree where they meet: the picture may change at once.

        Tokens of a part that lie beyond its own end are left out, except for the last part's. If all parts have the same cast,
        the whole has their cues.

        Raises:
            ValueError: if there are no plans, or their batch sizes or token widths differ.
        """
        _check_plans("concat", plans)
        parts, times = [], {"video_times": [], "audio_times": []}
        offset = 0.0
        for number, plan in enumerate(plans):
            for name in ("video_tokens", "audio_tokens"):
                ours, first = getattr(plan, name), getattr(plans[0], name)
                if (ours.shape[0], ours.shape[2]) != (first.shape[0], first.shape[2]):
                    raise ValueError(
                        f"plan {number} has `{name}` of shape {tuple(ours.shape)} and cannot follow {tuple(first.shape)}: "
                        "batch size and width must agree."
                    )
            if number + 1 < len(plans):
                plan = plan.trimmed()
            parts.append(plan)
            for name, moved in times.items():
                moved.append(getattr(plan, name) + offset)
            offset += plan.duration

        def join(name: str, dim: int) -> torch.Tensor:
            return torch.cat([getattr(part, name) for part in parts], dim=dim)

        def join_masks(name: str, tokens: str) -> torch.Tensor | None:
            masks = [getattr(part, name) for part in parts]
            if all(mask is None for mask in masks):
                return None
            filled = [
                torch.ones(getattr(part, tokens).shape[:2], dtype=torch.bool, device=getattr(part, tokens).device)
                if mask is None
                else mask
                for part, mask in zip(parts, masks, strict=True)
            ]
            return torch.cat(filled, dim=1)

        return SemanticPlan(
            video_tokens=join("video_tokens", 1),
            video_times=torch.cat(times["video_times"]),
            video_centres=join("video_centres", 0),
            audio_tokens=join("audio_tokens", 1),
            audio_times=torch.cat(times["audio_times"]),
            duration=offset,
            video_mask=join_masks("video_mask", "video_tokens"),
            audio_mask=join_masks("audio_mask", "audio_tokens"),
            sheets=_joined_sheets(parts),
        )

    def splice(self, other: SemanticPlan, start: float, end: float, only: str | None = None) -> SemanticPlan:
        """This plan, with its `[start, end)` seconds replaced by the same seconds of another plan. To use other seconds, shift
        the other plan first.

        Args:
            other (`SemanticPlan`): of as many clips and of the same widths.
            start, end (`float`): seconds, in both plans.
            only (`str`, *optional*): "video" or "audio" for the tokens of that modality alone.

        Raises:
            ValueError: if the span is empty or not within both plans, or their batch sizes or widths differ.
        """
        if only not in (None, "video", "audio"):
            raise ValueError(f"`only` is {only!r}, but must be 'video', 'audio', or None for both.")
        _check_plans("splice", [other])
        parts = [other.slice(start, end)]
        if start > 0:
            parts.insert(0, self.slice(0, start))
        if end < self.duration - _SLACK:
            parts.append(self.slice(end, self.duration))
        whole = replace(SemanticPlan.concat(parts), duration=self.duration, prompts=self.prompts)
        if only is None:
            return whole
        names = [name for name in self._tensor_names() if name.startswith(only)]
        sheets = self.sheets if self.sheets == whole.sheets else None  # the two modalities follow different ones
        return replace(self, **{name: getattr(whole, name) for name in names}, sheets=sheets, candidates=None)

    def shift(self, seconds: float) -> SemanticPlan:
        """Moves everything later by some seconds, or earlier if negative; the duration stays. What is moved out of the plan is
        lost, and the first (or last) moment fills the gap.

        Raises:
            ValueError: if nothing of the plan would stay.
        """
        _check_numbers(seconds=seconds)
        if not abs(seconds) < self.duration:
            raise ValueError(
                f"cannot shift a plan of {self.duration:g} seconds by {seconds:g}: nothing of it would stay."
            )
        if abs(seconds) <= _SLACK:
            return self
        plan, cut = self.trimmed(), self.duration - abs(seconds)
        if seconds > 0:
            parts = [plan.slice(0, seconds)._held(plan, 0), plan.slice(0, cut)]
        else:
            parts = [plan.slice(-seconds, plan.duration), plan.slice(cut, plan.duration)._held(plan, -1)]
        return replace(SemanticPlan.concat(parts), duration=self.duration, prompts=self.prompts)

    def stretch(self, factor: float) -> SemanticPlan:
        """Makes the plan slower by a factor, or faster if it is below 1: times and duration are multiplied. What happens within
        a token does not change: a word is said later, but not more slowly.

        Raises:
            ValueError: if `factor` is not positive.
        """
        _check_numbers(factor=factor)
        if not 0 < factor < math.inf:
            raise ValueError(f"`factor` is {factor!r}, but must be positive: 2 makes a plan twice as long.")
        plan, duration = self.trimmed(), self.duration * factor
        return replace(
            plan,
            video_times=plan.video_times * factor,
            audio_times=plan.audio_times * factor,
            duration=duration,
            sheets=plan._retimed_sheets(lambda time: time * factor, duration),
            candidates=None,
        )

    def mirror(self) -> SemanticPlan:
        """Exchanges left and right in the picture and in the cast. It does not mirror the picture within one token, or the
        prompt.

        Raises:
            ValueError: if the grid of the keyframes is not symmetric.
        """
        patches = self.video_centres[: self._patches]
        opposite = (
            (patches[:, None] - patches * patches.new_tensor([1, -1]) - patches.new_tensor([0, 1])).abs().amax(-1)
        )
        if not (opposite.amin(dim=1) < _SLACK).all():
            raise ValueError(
                "the plan's patches lie unevenly to the left and the right: only a symmetric grid can be mirrored."
            )
        order = opposite.argmin(dim=1)

        def mirrored(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None:
                return None
            return values.unflatten(1, (-1, self._patches))[:, :, order].flatten(1, 2)

        sides = {"left": "right", "right": "left"}
        sheets = None
        if self.sheets is not None:
            sheets = tuple(
                format_sheet(
                    sheet._replace(cast=tuple(m._replace(place=sides.get(m.place, m.place)) for m in sheet.cast))
                )
                for sheet in map(parse_sheet, self.sheets)
            )
        return replace(
            self,
            video_tokens=mirrored(self.video_tokens),
            video_mask=mirrored(self.video_mask),
            prompts=None,
            sheets=sheets,
            candidates=None,
        )

    def transfer(self, prompt: str | Sequence[str]) -> SemanticPlan:
        """The plan under another prompt, one for all clips or one for each. It does not change what the tokens show: they still
        decide what happens, and to whom. The prompt decides what they leave open.

        Raises:
            ValueError: if there are neither one nor as many prompts as clips.
        """
        prompts = [prompt] * self.batch_size if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence):
            raise ValueError(f"`prompt` is {prompt!r}, but must be a text, or one for each clip.")
        return replace(self, prompts=tuple(prompts), sheets=None, candidates=None)

    @staticmethod
    def collate(plans: Sequence[SemanticPlan]) -> SemanticPlan:
        """Plans of equal layout and duration as one batch.

        Raises:
            ValueError: if there are no plans, or their times, places or durations differ.
        """
        _check_plans("collate", plans)
        first = plans[0]
        for number, plan in enumerate(plans):
            for name in ("video_times", "video_centres", "audio_times"):
                ours = getattr(plan, name)
                theirs = getattr(first, name)
                if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=_SLACK):
                    raise ValueError(
                        f"plan {number} differs from the first in `{name}`: only plans of one layout make a batch."
                    )
            if abs(plan.duration - first.duration) > _SLACK:
                raise ValueError(f"plan {number} lasts {plan.duration} seconds, the first one {first.duration}.")
            if (plan.video_mask is None, plan.audio_mask is None) != (
                first.video_mask is None,
                first.audio_mask is None,
            ):
                raise ValueError(
                    f"plan {number} and the first one do not both have masks: give all of them one, or none."
                )
        return first._over_batch(lambda *tensors: torch.cat(tensors, dim=0), *plans[1:])

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> SemanticPlan:
        """Moves the plan as `torch.Tensor.to` does. A dtype applies to the tokens; times and places stay float32."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(name: str) -> torch.Tensor | None:
            tensor = getattr(self, name)
            tokens_dtype = dtype if name in ("video_tokens", "audio_tokens") else None
            return None if tensor is None else tensor.to(device=device, dtype=tokens_dtype, non_blocking=non_blocking)

        return replace(self, **{name: move(name) for name in self._tensor_names()})

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as one safetensors file, whole or not at all.

        Raises:
            ValueError: if there is nothing to save, see `check_values`, or nothing can be written there, see
                [`files.check_target`].
        """
        self.check_values()
        self._check_sheets()
        files.check_target(path)
        tensors = {
            name: getattr(self, name).detach().cpu().contiguous()
            for name in self._tensor_names()
            if getattr(self, name) is not None
        }
        texts = {name: getattr(self, name) for name in self._texts if getattr(self, name) is not None}
        told = {"duration": self.duration, **texts}
        metadata = {_FORMAT: json.dumps(told)}  # one key: safetensors shuffles several
        files.write_bytes(path, save(tensors, metadata=metadata))

    @staticmethod
    def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> SemanticPlan:
        """Reads a plan that `save` wrote.

        Raises:
            ValueError: if the file does not exist, is truncated, or holds something else than a plan of finite values.
        """
        path = Path(path)
        try:
            is_file = path.is_file()
        except (OSError, ValueError):  # a name that is too long, or holds a zero
            is_file = False
        if not is_file:
            raise ValueError(f"there is no plan at {path}.")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is truncated or not a safetensors file ({error}): save the plan again."
            ) from error
        required = {name for name in SemanticPlan._tensor_names() if not name.endswith("_mask")}
        if _FORMAT not in metadata or not required <= tensors.keys() <= set(SemanticPlan._tensor_names()):
            raise ValueError(f"{path} holds {sorted(tensors)}, which is not a plan that `SemanticPlan.save` wrote.")
        try:
            told = json.loads(metadata[_FORMAT])
            if not isinstance(told, dict) or not {"duration"} <= told.keys() <= {
                "duration",
                *SemanticPlan._texts,
            }:
                raise ValueError(f"its metadata is {str(told)[:80]!r}, without a duration")
            texts = {name: _read_texts(name, told.get(name)) for name in ("prompts", "sheets")}
            texts["candidates"] = _read_candidates(told.get("candidates"))
            plan = SemanticPlan(**tensors, duration=told["duration"], **texts).check_values()
            plan._check_sheets()
            return plan
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no plan that can be used ({error}): save the plan again.") from error

    def __repr__(self) -> str:
        number = self.batch_size
        lines = [
            f"SemanticPlan of {self.duration:.4f} s for {number} clip{'' if number == 1 else 's'}",
            "no cue sheet",
        ]
        more = f" and {number - 1} more" if number > 1 else ""
        if self.prompts:
            lines[0] += f": {self.prompts[0]!r}{more}"
        if self.sheets:
            lines[1] = f"cues: {self.sheets[0]!r}{more}"
        parts = []
        for name in ("video", "audio"):
            tokens, mask = getattr(self, f"{name}_tokens"), getattr(self, f"{name}_mask")
            masked = "" if mask is None or mask.all() else " (some masked)"
            parts.append(f"{tokens.shape[1]} {name} tokens of {tokens.shape[2]} channels{masked}")
        tokens = self.video_tokens
        return "\n".join([*lines, f"{parts[0]}, {parts[1]}, {str(tokens.dtype)[6:]} on {tokens.device}"])

    def turns(self, index: int = 0) -> list[Turn]:
        """
        Who acts or speaks when in a clip, and for how long: by its sheet, or without one by the `<S>...<E>` parts of its prompt.

        Args:
            index (`int`, defaults to 0): which clip of the batch.

        Raises:
            IndexError: if there is no such clip.
            ValueError: if its sheet is malformed.
        """
        if not isinstance(index, int) or not -self.batch_size <= index < self.batch_size:
            raise IndexError(f"clip {index} of a plan for {self.batch_size}")
        sheet = "" if self.sheets is None else self.sheets[index]
        if sheet:
            return sheet_turns(parse_sheet(sheet), self.duration)
        return [] if self.prompts is None else spoken_turns(self.prompts[index])

    def table(self, index: int = 0) -> str:
        """The turns of a clip as a table to print: who, what, when and how long. See `turns`."""
        return format_turns(self.turns(index))

    def figure(
        self, index: int = 0, frames: np.ndarray | VideoFile | None = None, waveform: np.ndarray | None = None
    ) -> PIL.Image.Image:
        """
        A clip's turns on an axis of time, see [`draw_clip`].

        Args:
            index (`int`, defaults to 0): which clip of the batch.
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)` or [`~media.VideoFile`], *optional*): its pictures, uint8,
                for a strip above.
            waveform (`np.ndarray` of shape `(num_channels, num_samples)`, *optional*): its sound, drawn below.

        Raises:
            IndexError: if there is no such clip.
            ValueError: if its sheet is malformed.
        """
        turns = self.turns(index)
        cast = [member.name for member in parse_sheet(self.sheets[index]).cast] if self.sheets else []
        prompt = None if self.prompts is None else self.prompts[index]
        return draw_clip(self.duration, turns, cast, prompt, frames, waveform)

    def previewed_by(self, preview: Callable[[SemanticPlan], Any]) -> SemanticPlan:
        """Makes a notebook show the plan with the `preview` of a pipeline, as long as the pipeline exists. Returns the plan."""
        _PREVIEWS[self] = weakref.WeakMethod(preview)
        return self

    def _repr_html_(self) -> str:
        if (preview := self._preview()) is not None:
            return preview._repr_html_()
        return "\n".join(html_picture(self.figure(index)) for index in range(self.batch_size))

    def _repr_png_(self) -> bytes:
        if (preview := self._preview()) is not None:
            return preview._repr_png_()
        return png([self.figure(index) for index in range(self.batch_size)])

    def _preview(self) -> Any | None:
        reference = _PREVIEWS.get(self)
        preview = None if reference is None else reference()
        return None if preview is None else preview(self)

    def trimmed(self) -> SemanticPlan:
        """The plan without tokens beyond the clip's end, and without masks where every token left counts."""
        video, audio = self.video_times < self.duration, self.audio_times < self.duration

        def rest(mask: torch.Tensor | None, kept: torch.Tensor) -> torch.Tensor | None:
            return None if mask is None or mask[:, kept].all() else mask[:, kept]

        return _part(
            duration=self.duration,
            video_tokens=self.video_tokens[:, video],
            video_times=self.video_times[video],
            video_centres=self.video_centres[video],
            audio_tokens=self.audio_tokens[:, audio],
            audio_times=self.audio_times[audio],
            video_mask=rest(self.video_mask, video),
            audio_mask=rest(self.audio_mask, audio),
            **{name: getattr(self, name) for name in self._texts},
        )

    @property
    def _patches(self) -> int:
        """Tokens of a keyframe."""
        return int((self.video_times == self.video_times[0]).sum())

    def _held(self, whole: SemanticPlan, moment: int) -> SemanticPlan:
        """A part of a plan that repeats the `whole` plan's first (0) or last (-1) keyframe and audio token."""
        size = whole._patches
        frame = slice(0, size) if moment == 0 else slice(-size, None)

        def hold(name: str) -> dict[str, torch.Tensor | None]:
            values, number = getattr(whole, name), len(self.video_times) // size
            if values is None:
                return {name: None}
            if name.startswith("video"):
                return {name: values[:, frame].repeat(1, number, *[1] * (values.ndim - 2))}
            return {name: values[:, [moment]].expand(-1, len(self.audio_times), *[-1] * (values.ndim - 2))}

        sheets = None
        if self.sheets is not None:
            sheets = tuple(format_sheet(parse_sheet(sheet)._replace(cues=())) for sheet in self.sheets)
        tensors = hold("video_tokens") | hold("video_mask") | hold("audio_tokens") | hold("audio_mask")
        return replace(self, **tensors, sheets=sheets)

    def _retimed_sheets(self, retime: Callable[[float], float], duration: float) -> tuple[str, ...] | None:
        """The sheets with other times; cues that leave the plan are left out."""
        if self.sheets is None:
            return None
        sheets = []
        for cast, cues in map(parse_sheet, self.sheets):
            moved = [Cue(retime(cue.time), cue.text) for cue in cues]
            kept = [cue for cue in moved if -_ROUNDED <= cue.time < duration - _ROUNDED]
            sheets.append(format_sheet(Sheet(cast, tuple(cue._replace(time=max(cue.time, 0.0)) for cue in kept))))
        return tuple(sheets)

    def _over_batch(self, function, *others: SemanticPlan) -> SemanticPlan:
        names = ("video_tokens", "audio_tokens", "video_mask", "audio_mask")
        changed = {
            name: function(getattr(self, name), *(getattr(other, name) for other in others))
            for name in names
            if getattr(self, name) is not None
        }
        plans = (self, *others)
        for name in self._texts:
            values = [getattr(plan, name) for plan in plans]
            changed[name] = None
            if all(value is not None for value in values):
                texts = [text for value in values for text in value]
                numbers = torch.arange(len(texts)).split([plan.batch_size for plan in plans])
                changed[name] = tuple(texts[number] for number in function(*numbers).tolist())
        return replace(self, **changed)

    @staticmethod
    def _tensor_names() -> tuple[str, ...]:
        return tuple(
            field.name for field in fields(SemanticPlan) if field.name not in ("duration", *SemanticPlan._texts)
        )


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"`{name}` is {value!r}, but must be a number.")


def _check_plans(name: str, plans: Any) -> None:
    if not isinstance(plans, Sequence) or not plans:
        raise ValueError(f"`{name}` needs at least one plan.")
    for plan in plans:
        if not isinstance(plan, SemanticPlan):
            raise ValueError(f"`{name}` takes plans, and one is {plan!r}.")


def _read_texts(name: str, value: Any) -> tuple[str, ...] | None:
    """The prompts or the sheets of a file."""
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise ValueError(f"its {name} are {str(value)[:80]!r}")
    for text in value or ():
        text.encode()  # its error names a character that UTF-8 lacks
    for sheet in value or () if name == "sheets" else ():
        parse_sheet(sheet)
    return None if value is None else tuple(value)


def _read_candidates(value: Any) -> tuple[tuple[PlanCandidate, ...], ...] | None:
    """The candidates in a file's metadata."""

    def is_candidate(told: Any) -> bool:
        return (
            isinstance(told, list)
            and len(told) == 2
            and isinstance(told[0], str)
            and (told[1] is None or isinstance(told[1], float) and math.isfinite(told[1]))
        )

    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(clip, list) and all(map(is_candidate, clip)) for clip in value
    ):
        raise ValueError(f"its candidates are {str(value)[:80]!r}")
    candidates = tuple(tuple(PlanCandidate(*told) for told in clip) for clip in value)
    for candidate in (candidate for clip in candidates for candidate in clip):
        parse_sheet(candidate.sheet)
    return candidates


class _EmptyPart(SemanticPlan):
    _may_be_empty = True


def _part(**values: torch.Tensor | float | None) -> SemanticPlan:
    """A part of a plan, which may lie between tokens."""
    empty = 0 in (len(values["video_times"]), len(values["audio_times"]))
    return (_EmptyPart if empty else SemanticPlan)(**values)


def _joined_sheets(parts: Sequence[SemanticPlan]) -> tuple[str, ...] | None:
    """The cues of parts that follow one another, if all have some and their casts agree."""
    if any(part.sheets is None for part in parts):
        return None
    joined = []
    for sheets in zip(*(map(parse_sheet, part.sheets) for part in parts), strict=True):
        if len({sheet.cast for sheet in sheets}) > 1:
            return None
        offsets = [sum(part.duration for part in parts[:number]) for number in range(len(parts))]
        cues = [
            Cue(cue.time + offset, cue.text)
            for sheet, offset in zip(sheets, offsets, strict=True)
            for cue in sheet.cues
        ]
        joined.append(format_sheet(Sheet(sheets[0].cast, tuple(cues))))
    return tuple(joined)
