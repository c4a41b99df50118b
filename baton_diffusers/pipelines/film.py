"""Films: shot after shot under one plan, rendered in windows of the model's length that overlap.

A film is made of *takes*, which hard cuts separate. A take is planned as a whole (`film_plan.py`) and rendered window by window. What
two windows share is made by the first one and given to the next: as latents in both modalities. A causal autoencoder encodes
the first frames of a clip differently from the rest, so these are encoded from the pixels of the window before, and are not
shown. A window is decoded on its own, so that memory does not grow with the film, and its latents are kept in a folder
(`film_work.py`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils import logging

from .. import coordinates, files
from ..cues import Sheet, parse_sheet
from ..media import Clip, ClipWriter
from ..plan import SemanticPlan
from ..shots import FILE_SUFFIXES, Shot, as_shots, read_film
from . import conditions
from .checks import check_flags, check_whole_number
from .components import ClipSize, PipelineParts, one_at_a_time, require_components
from .conditions import KnownLatents, Noise
from .denoise import Denoiser, Denoising, Stream
from .film_plan import Section, calls_back, check_shot, is_split, plan_take, seed_of, split_shot, write_sheets
from .film_work import Kept, Work, fingerprint
from .given import KEPT_SECONDS, Given, GivenAudio, GivenVideo, at_sampling_rate, read_given
from .planning import PlanRequest, ready_plan
from .texts import Texts


logger = logging.get_logger(__name__)

# What a window follows: its part of the film's plan, a plan made from its own text alone, or none.
PLANS = ("film", "windows", "none")

# A causal autoencoder encodes this many first latents of a clip differently than the same frames in mid-clip.
WARM_UP_LATENTS = 3
# Seconds at a window's end that the next one makes anew: a model has learnt no event that the end of a clip cuts off, and leaves out a jump
# whose landing lies beyond it.
_MADE_ANEW = 0.25
# Seconds of the cross-fade of sound between windows, and of the fades at a hard cut.
_CROSSFADE, _FADE = 0.04, 0.004
# A background that changes by less than this within a window has drifted, and is corrected.
_MOST_DRIFT = 0.016
# A shot's prompt belongs to the text of a window if it lasts for this share of the window.
_LEAST_SHARE = 0.15


@dataclass(frozen=True)
class Take:
    """Shots that follow one another without a cut.

    Args:
        number (`int`): which one of the film it is.
        shots (`range`): numbers of its shots.
        first (`int`): its first frame in the film.
        num_frames (`int`): frames that are shown.
        made_frames (`int`): frames that are made: the shortest clip of the autoencoder that holds them.
    """

    number: int
    shots: range
    first: int
    num_frames: int
    made_frames: int


@dataclass(frozen=True)
class Window:
    """A clip of the model's length, or a shorter one if the take is shorter.

    Args:
        take (`int`): the take's number.
        index (`int`): which window of the take it is.
        start (`int`): its first frame, from the take's start.
        num_frames (`int`): its length.
        audio_start (`int`): its first audio latent, from the take's start.
        prompt (`str`): what is seen and heard in it.
    """

    take: int
    index: int
    start: int
    num_frames: int
    audio_start: int
    prompt: str


class Planned(NamedTuple):
    """What is planned of a take: its `sections`, and its `plan`, or `None` if there is none."""

    sections: list[Section]
    plan: SemanticPlan | None


class FilmWindow(NamedTuple):
    """A piece of a finished film, as it comes out of [`Film`].

    Args:
        frames: uint8 of shape `(num_frames, height, width, 3)`.
        waveform: float32 of shape `(1, num_samples)` in [-1, 1].
        start: seconds from the film's start.
        number: which piece it is, from 0.
    """

    frames: np.ndarray
    waveform: np.ndarray
    start: float
    number: int


@dataclass(frozen=True)
class FilmSettings:
    """The settings of a film besides its shots. `BatonPipeline.film` describes the arguments."""

    seed: int = 0
    overlap_seconds: float | None = None
    plans: str = "film"
    num_inference_steps: int | None = None
    num_plan_candidates: int | None = None
    negative_prompt: str | None = None
    audio_negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    use_cache: bool = False
    attention_kwargs: dict[str, Any] | None = None


def overlap_frames(num_frames: int, frame_rate: float, temporal_stride: int, seconds: float | None = None) -> int:
    """Frames that neighbouring windows of `num_frames` share: `seconds`, or by default one, but at most a third of a window."""
    if seconds is None:
        seconds = min(KEPT_SECONDS, coordinates.clip_duration(num_frames, frame_rate) / 3)
    return coordinates.num_frames_nearest(seconds, frame_rate, temporal_stride)


class Film:
    """
    A film that is made as it is read: iterate over its pieces, or [`save`] it, which never hold more than a window.

    Args:
        pipe ([`BatonPipeline`]): makes it.
        shots (`Sequence[Shot]`): its shots.
        settings ([`FilmSettings`]): how.
        plan ([`SemanticPlan`], *optional*): of the whole film; by default the planner's.
        work (`str` or `Path`, *optional*): the folder that keeps its windows; by default a temporary one.

    Attributes:
        plan ([`SemanticPlan`] or `None`): of the whole film.
        sections (`list[list[Section]]`): what is planned at once, with cue sheets, take by take.
        windows (`list[list[Window]]`): of each take.

    Raises:
        ValueError: if anything of it cannot be made, before any work.
    """

    def __init__(
        self,
        pipe: PipelineParts,
        shots: Sequence[Shot],
        settings: FilmSettings,
        plan: SemanticPlan | None = None,
        work: str | Path | None = None,
    ) -> None:
        require_components(pipe)
        self.pipe, self.shots, self.settings = pipe, tuple(shots), settings
        self.frame_rate, self.sampling_rate = pipe.frame_rate, pipe.sampling_rate
        self._stride, self._hop = pipe.latent_format["temporal_stride"], pipe.audio_vae.latent_hop_length
        self.size = self._check_settings()
        self.takes = self._split_at_cuts()
        self._voices: list[tuple[int, GivenAudio]] = []  # and the frames from which on they are heard
        self._given = [self._read(take) for take in self.takes]
        self._check(plan)
        self._temporary = tempfile.TemporaryDirectory(prefix="baton-film-") if work is None else None
        if not isinstance(work, (str, Path, type(None))):
            raise ValueError(f"`work` is {work!r}, but must be the path of a folder.")
        self.work = Work(files.make_folder(self._temporary.name if work is None else work))
        self._weights = fingerprint(pipe)
        self._given_plan, reads_plans = plan, pipe.transformer.config.video_plan_dim is not None
        self._follows_plan = settings.plans == "film" and reads_plans
        self._plans_windows = settings.plans == "windows" and reads_plans and pipe.planner is not None
        self._planned: dict[int, Planned] = {}
        self._cut: dict[int, list[Window]] = {}
        self._window_plans: dict[Window, SemanticPlan] = {}
        self._keys: dict[Window, str] = {}
        self._decoded: tuple[Window, np.ndarray, np.ndarray] | None = None
        self._clip: Clip | None = None

    # What is asked for

    @property
    def num_frames(self) -> int:
        """Frames of the film."""
        return sum(take.num_frames for take in self.takes)

    @property
    def duration(self) -> float:
        """Seconds of the film."""
        return coordinates.clip_duration(self.num_frames, self.frame_rate)

    @cached_property
    def plan(self) -> SemanticPlan | None:
        """The plan of the whole film."""
        plans = [self._plan_take(take).plan for take in self.takes]
        if any(plan is None for plan in plans):
            return None
        shown = [
            plan.slice(0.0, min(self.pipe.clip_duration(take.num_frames), plan.duration))
            for take, plan in zip(self.takes, plans, strict=True)
        ]
        return SemanticPlan.concat(shown)

    def _check_settings(self) -> ClipSize:
        pipe, settings = self.pipe, self.settings
        check_whole_number("seed", settings.seed, least=0, most=2**63 - 1)
        check_flags(use_cache=settings.use_cache)
        if settings.plans not in PLANS:
            raise ValueError(f"`plans` is {settings.plans!r}, but must be one of {PLANS}.")
        default = pipe.config.height, pipe.config.width
        asked = (settings.height, settings.width)
        height, width = (value if given is None else given for value, given in zip(default, asked, strict=True))
        size = ClipSize(height, width, pipe.config.num_frames)
        size.check(pipe)
        seconds = settings.overlap_seconds
        is_number = isinstance(seconds, Real) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds < math.inf):
            raise ValueError(f"`overlap_seconds` is {seconds!r}, but must be a positive number of seconds.")
        overlap = self._overlap(size.num_frames)
        if overlap >= size.num_frames:
            raise ValueError(
                f"`overlap_seconds` is {seconds:g}, which are {overlap} of the {size.num_frames} frames that the model makes at "
                "once: give less."
            )
        return size

    def _overlap(self, num_frames: int) -> int:
        return overlap_frames(num_frames, self.frame_rate, self._stride, self.settings.overlap_seconds)

    def _split_at_cuts(self) -> list[Take]:
        """The takes of the film: its shots, split at hard cuts. Borders of shots lie on whole frames, without a drift."""
        borders, seconds = [0], 0.0
        for number, shot in enumerate(self.shots):
            seconds += shot.seconds
            borders.append(round(seconds * self.frame_rate))
            if borders[-1] == borders[-2]:
                raise ValueError(
                    f"shot {number + 1}: `seconds` is {shot.seconds:g}, which is no whole frame at {self.frame_rate:g} per second: "
                    "make it longer."
                )
            if shot.image is not None and not shot.cut and number:
                raise ValueError(
                    f"shot {number + 1}: `image` needs a hard cut: give the shot `cut=True`, or leave out the image."
                )
        starts = [number for number, shot in enumerate(self.shots) if shot.cut or not number]
        takes = []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(self.shots)], strict=True)):
            shown = borders[end] - borders[start]
            made = coordinates.num_frames_covering(shown / self.frame_rate, self.frame_rate, self._stride)
            takes.append(Take(number, range(start, end), borders[start], shown, made))
        self._borders = borders
        return takes

    def _read(self, take: Take) -> Given:
        """The given media of a take: its first frame, and sounds at their times."""
        rates = self.frame_rate, self.sampling_rate, self._stride
        video = audio = None
        spans, sound = [], None
        for number in take.shots:
            shot = self.shots[number]
            try:
                if shot.image is not None:
                    video = read_given(*rates, image=shot.image).video
                if shot.voices is not None:
                    voices = read_given(*rates, reference_audio=shot.voices).reference_audio
                    self._voices.append((self._borders[number], voices))
                if shot.audio is None:
                    continue
                given = read_given(*rates, audio=shot.audio, max_seconds=shot.seconds + 0.5).audio
                waveform = at_sampling_rate(
                    given.waveform[0].mean(axis=0, keepdims=True), given.sampling_rate, rates[1]
                )
            except ValueError as error:
                raise ValueError(f"shot {number + 1}: {error}") from error
            start, end = (
                coordinates.num_samples((border - take.first) / self.frame_rate, self.sampling_rate)
                for border in self._borders[number : number + 2]
            )
            if abs(waveform.shape[1] - (end - start)) > 0.5 * self.sampling_rate:
                raise ValueError(
                    f"shot {number + 1}: `audio` lasts {waveform.shape[1] / self.sampling_rate:.2f} seconds, but the shot "
                    f"{shot.seconds:g}: cut one to the other."
                )
            if sound is None:
                total = coordinates.num_samples(take.made_frames / self.frame_rate, self.sampling_rate)
                sound = np.zeros((1, 1, total + self._hop), np.float32)
            length = min(end - start, waveform.shape[1])
            sound[0, :, start : start + length] = waveform[:, :length]
            spans.append((start / self.sampling_rate, end / self.sampling_rate))
        if sound is not None:
            audio = GivenAudio(sound, self.sampling_rate, tuple(_gaps(spans)))
        return Given(video, audio)

    def _check(self, plan: SemanticPlan | None) -> None:
        """Refuses a film that cannot be made, before any model runs."""
        pipe, settings = self.pipe, self.settings
        shots = []
        for number, shot in enumerate(self.shots):
            try:
                shots.append(replace(shot, plan=PlanRequest(shot.plan).read().plan))
            except ValueError as error:
                raise ValueError(f"shot {number + 1}: {error}") from error
        self.shots = tuple(shots)
        self._denoising = Denoising.of(
            pipe,
            settings.num_inference_steps,
            None,
            None,
            use_cache=settings.use_cache,
            attention_kwargs=settings.attention_kwargs,
        )
        self._denoising.check_steps(pipe, None)
        prompts = [self._text(shot.prompt) for shot in self.shots]
        texts = self._texts(prompts[0])
        for prompt in prompts:
            self._texts(prompt).check(pipe)
        voices = self._voices[0][1] if self._voices else None
        going_on = Given(self._anchor(np.zeros((1, self.size.height, self.size.width, 3), np.float32)))
        for given in (*self._given, going_on):
            passes = self._denoising.check(pipe, replace(given, reference_audio=voices), self.size.num_frames)
            if not all(guidance_pass.anchor.text for guidance_pass in passes):
                texts.check_negative(pipe)
        PlanRequest(num_plan_candidates=settings.num_plan_candidates).check(
            pipe, self._texts(prompts[0]), 1, self.size.num_frames
        )
        if plan is not None:
            if settings.plans != "film":
                raise ValueError(f"`plan` was given with `plans={settings.plans!r}`: leave one of them out.")
            duration = self.duration
            if not isinstance(plan, SemanticPlan) or abs(plan.duration - duration) > 0.5 / self.frame_rate:
                found = f"{plan.duration:.4f} seconds" if isinstance(plan, SemanticPlan) else type(plan).__name__
                raise ValueError(
                    f"`plan` is {found}, but the film lasts {duration:.4f} seconds: give a plan for all of it."
                )
            PlanRequest(plan.check_values()).check_widths(pipe)
        for number, shot in enumerate(self.shots):
            if settings.plans == "film" and plan is None:
                check_shot(pipe, shot, number, self._length(number))
            else:
                is_split(pipe, shot, number, self._length(number))

    def _length(self, number: int) -> int:
        return self._borders[number + 1] - self._borders[number]

    def _text(self, prompt: str) -> str:
        return self.pipe.format_prompt(prompt)

    def _texts(self, prompt: str) -> Texts:
        return Texts(prompt, self.settings.negative_prompt, self.settings.audio_negative_prompt)

    # The plan

    @property
    def sections(self) -> list[list[Section]]:
        """What is planned at once, with cue sheets, take by take."""
        return [self._plan_take(take).sections for take in self.takes]

    def _plan_take(self, take: Take) -> Planned:
        """Sections and plan of a take. They are made when they are needed first, unless the work folder keeps them: of several
        processes, each plans the takes that it renders."""
        if (planned := self._kept_plan(take)) is None:
            before = [parse_sheet(sheet) for sheet in self._sheets_before(take)]
            with one_at_a_time(self.pipe.components.values()):
                planned = Planned(*self._make_plan(take, before))
                self.pipe.maybe_free_model_hooks()
            self.work.keep_plan(take.number, self._plan_key(take), *planned)
            self._planned[take.number] = planned
        return planned

    def _kept_plan(self, take: Take) -> Planned | None:
        """Sections and plan of a take, if they were made before."""
        if take.number not in self._planned:
            kept = self.work.read_plan(take.number, self._plan_key(take))
            if kept is None:
                return None
            self._planned[take.number] = Planned(*kept)
        return self._planned[take.number]

    def _plan_key(self, take: Take) -> str:
        return self.work.key(
            weights=self._weights,
            shots=[
                (shot.prompt, shot.seconds, shot.cues, shot.plan)
                for shot in self.shots[take.shots.start : take.shots.stop]
            ],
            seed=self.settings.seed,
            candidates=self.settings.num_plan_candidates,
            use_plan=self._follows_plan,
            plan=self._given_plan,
            take=(take.number, take.first, take.num_frames),
            before=self._sheets_before(take),
        )

    def _sheets_before(self, take: Take) -> list[str]:
        """The sheets of the takes before, if a prompt of this one names somebody by an earlier deed."""
        is_read = self._follows_plan and any(calls_back(self.shots[number].prompt) for number in take.shots)
        earlier = self.takes[: take.number] if is_read else []
        return [section.sheet for other in earlier for section in self._plan_take(other).sections if section.sheet]

    @torch.no_grad()
    def _make_plan(self, take: Take, before: Sequence[Sheet]) -> tuple[list[Section], SemanticPlan | None]:
        pipe, settings, plan, sections = self.pipe, self.settings, self._given_plan, []
        for number in take.shots:
            start = self._borders[number] - take.first
            sections += split_shot(pipe, self.shots[number], number, start, self._length(number))
        if not self._follows_plan:
            return sections, None
        made = pipe.clip_duration(take.made_frames)
        if plan is not None:
            start = take.first / self.frame_rate
            end = min((take.first + take.num_frames) / self.frame_rate, plan.duration)
            return sections, replace(plan.slice(start, end), duration=made)
        request = PlanRequest(num_plan_candidates=settings.num_plan_candidates)
        sections = write_sheets(pipe, sections, self.shots, request, settings.seed, before)
        taken = plan_take(pipe, sections, self.shots)
        return sections, None if taken is None else replace(taken, duration=made)

    # The windows

    @property
    def windows(self) -> list[list[Window]]:
        """The windows of each take."""
        return [self._windows(take.number) for take in self.takes]

    def _windows(self, number: int) -> list[Window]:
        """A take cut into windows: as long as the model's clips, each sharing the overlap with the one before."""
        if number not in self._cut:
            take, rate = self.takes[number], self.pipe.latent_format["audio_latent_rate"]
            length, starts = self._starts(take)
            self._cut[number] = [
                Window(
                    number,
                    index,
                    start,
                    length,
                    round(start / self.frame_rate * rate),
                    self.prompt_of(take, start, length),
                )
                for index, start in enumerate(starts)
            ]
        return self._cut[number]

    def _starts(self, take: Take) -> tuple[int, list[int]]:
        """Frames of each window of a take, and where they begin."""
        length = min(self.size.num_frames, take.made_frames)
        return length, coordinates.window_starts(take.made_frames, length, self._overlap(length))

    def prompt_of(self, take: Take, start: int, num_frames: int) -> str:
        """The prompts of what is seen in a window, or in a part of it; `start` counts from the take's."""
        shares: dict[str, int] = {}
        for section in self._plan_take(take).sections:
            shared = min(start + num_frames, section.start + section.num_frames) - max(start, section.start)
            if shared > 0:
                shares[section.prompt] = shares.get(section.prompt, 0) + shared
        least = min(_LEAST_SHARE * num_frames, max(shares.values()))
        told = [prompt for prompt, shared in shares.items() if shared >= least]
        while len(told) > 1 and not self._is_read(self._text(" ".join(told))):
            told.remove(min(told, key=shares.__getitem__))
        return self._text(" ".join(told))

    def _is_read(self, text: str) -> bool:
        """Whether the text encoder reads a text to its end."""
        return len(self.pipe.tokenizer(text, verbose=False).input_ids) <= self.pipe.config.max_sequence_length

    def _key(self, window: Window) -> str:
        """A hash of everything that determines a window's bytes, except the latents that it shares with its neighbours."""
        if window not in self._keys:
            self._keys[window] = self.work.key(
                weights=self._weights,
                size=(self.size.height, self.size.width),
                window=window,
                plan=self._plan_of(window),
                given=self._given_in(window),
                settings=(self._denoising, self.settings),
            )
        return self._keys[window]

    def _plan_of(self, window: Window) -> SemanticPlan | None:
        if self._plans_windows:
            return self._window_plan(window)
        plan = self._plan_take(self.takes[window.take]).plan
        if plan is None:
            return None
        start = window.start / self.frame_rate
        return plan.slice(start, min(start + self.pipe.clip_duration(window.num_frames), plan.duration)).trimmed()

    @torch.no_grad()
    def _window_plan(self, window: Window) -> SemanticPlan:
        """The plan of a window that is planned by itself."""
        key = window.take, window.index
        if key not in self._window_plans:
            section = Section(window.prompt, 0, window.num_frames, self.takes[window.take].shots.start)
            request = PlanRequest(num_plan_candidates=self.settings.num_plan_candidates)
            shots = [Shot(window.prompt, self.pipe.clip_duration(window.num_frames))] * len(self.shots)
            sections = write_sheets(self.pipe, [section], shots, request, seed_of(self.settings.seed, *key))
            self._window_plans[key] = plan_take(self.pipe, sections, shots).trimmed()
        return self._window_plans[key]

    def _given_in(self, window: Window) -> Given:
        """The media that the shots give for a window: a picture, sounds, voices."""
        given = self._given[window.take]
        middle = self.takes[window.take].first + window.start + window.num_frames // 2
        voices = [voices for first, voices in self._voices if first <= middle]
        audio = given.audio
        if audio is not None:
            first = window.audio_start * self._hop
            length = self.pipe.audio_length(window.num_frames) * self._hop
            waveform = np.zeros((1, 1, length), np.float32)
            part = audio.waveform[:, :, first : first + length]
            waveform[:, :, : part.shape[2]] = part
            offset = first / self.sampling_rate
            new = tuple((max(start - offset, 0.0), end - offset) for start, end in audio.new if end > offset)
            audio = GivenAudio(waveform, self.sampling_rate, new)
        return Given(given.video if window.index == 0 else None, audio, reference_audio=voices[-1] if voices else None)

    def _anchor(self, frames: np.ndarray) -> GivenVideo:
        """The first frames of a window, as pixels: float in [0, 1]."""
        end = coordinates.clip_duration(len(frames), self.frame_rate)
        return GivenVideo(frames[None], self.frame_rate, ((end, math.inf),))

    def _latents(self, window: Window) -> Kept | None:
        """A window's latents, if the folder keeps them and they still continue the window before."""
        kept = self.work.read(window.take, window.index, self._key(window))
        if kept is None or window.index == 0:
            return kept
        before = self._windows(window.take)[window.index - 1]
        kept_before = self.work.read_any(before.take, before.index)
        is_joined = kept_before is not None and self._are_joined(window, kept, before, kept_before)
        return kept if is_joined else None

    @torch.no_grad()
    def _render(self, window: Window, progress: Any) -> Kept:
        """Denoises a window, joined to those neighbours that exist."""
        pipe, device = self.pipe, self.pipe._execution_device
        size = replace(self.size, num_frames=window.num_frames)
        windows = self._windows(window.take)
        before = windows[window.index - 1] if window.index else None
        after = [other for other in windows[window.index + 1 :] if other.start < window.start + window.num_frames]

        # 1. What is given: the shots' media, the window before, and those after it that are kept
        given, frames, shared, colours = self._given_in(window), None, None, None
        if before is not None:
            whole = self._decode(before)[0]
            frames = self._given_frames(whole[window.start - before.start :])
            given = replace(given, video=self._anchor(frames))
        known = conditions.encode_given_video(pipe, given, 1, size, device)
        audio_known = conditions.encode_given_audio(pipe, given, 1, size, device)
        for other in after:
            if (kept := self.work.read(other.take, other.index, self._key(other))) is not None:
                known, audio_known = self._join(known, audio_known, window, other, kept)
        if before is not None:
            kept, encoded = self.work.read_any(before.take, before.index), known.latents
            known, audio_known = self._join(known, audio_known, window, before, kept)
            colours = _held_colours(_colours(whole) if kept.colours is None else kept.colours, _colours(frames))
            known = self._match(known, encoded, frames, colours)
            shared = self._part_shared(kept.latents, before, window)

        # 2. Text, plan, noise
        texts = self._texts(window.prompt)
        passes = self._denoising.passes(pipe, given, window.num_frames)
        anchors = {guidance_pass.anchor for guidance_pass in passes}
        embeds = texts.encode(pipe, not all(anchor.text for anchor in anchors), 1, device, pipe.transformer.dtype)
        plan = self._plan_of(window)
        plan = None if plan is None else ready_plan(pipe, plan, 1, device)
        reference = conditions.reference_latents(pipe, given, 1, device)
        still = silence = None
        if any(anchor.static for anchor in anchors):
            still = conditions.still_latents(pipe, given, 1, size, device)
        if any(anchor.mute for anchor in anchors):
            silence = conditions.silence_latents(pipe, 1, window.num_frames, device)
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "window", window.take, window.index))
        latents, audio_latents = Noise(generator).draw(pipe, 1, size, device)

        # 3. The loop
        timesteps = self._denoising.set_timesteps(pipe.scheduler, device)
        audio_timesteps = self._denoising.set_timesteps(pipe.audio_scheduler, device)
        video = Stream(latents, known, pipe.scheduler, timesteps, generator, still)
        audio = Stream(audio_latents, audio_known, pipe.audio_scheduler, audio_timesteps, generator, silence)
        denoiser = Denoiser(pipe, video, audio, embeds, plan, reference, None, self._denoising)
        for i, t in enumerate(timesteps):
            pipe._current_timestep = t
            denoiser.step(i)
            progress.update()
        pipe._current_timestep = None
        denoiser.check_finite()
        kept = Kept(video.latents.cpu(), audio.latents.cpu(), shared, colours)
        return self.work.keep(window.take, window.index, self._key(window), kept)

    def _match(
        self, known: KnownLatents, encoded: torch.Tensor, frames: np.ndarray, colours: torch.Tensor
    ) -> KnownLatents:
        """The known latents, corrected so that the window begins with its former background.

        A decoder makes the same latents a little brighter or darker early in a clip than late in it, and so does the model with new
        frames. This is invisible in one window, but would add up over many. The encoder says how latents change with the colour of a
        frame.

        Args:
            known ([`KnownLatents`]): of the window.
            encoded (`torch.Tensor`): latents that begin with those of `frames`.
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): the shared frames, float in [0, 1].
            colours (`torch.Tensor` of shape `(3,)`): of the background, in [0, 1].
        """
        pipe, device = self.pipe, known.latents.device
        length = coordinates.num_latent_frames(len(frames), self._stride)
        shared = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(device) * 2 - 1
        off = (_colours(frames) - colours).to(device).view(1, 3, 1, 1, 1) * 2
        found = pipe.decode_latents(known.latents[:, :, :length], None, len(frames))[0].transpose(1, 2) * 2 - 1
        off = off + (found - shared).flatten(3).median(dim=3).values[..., None, None]
        change = pipe.encode_video(shared - off) - encoded[:, :, :length]
        latents = known.latents.clone()
        latents[:, :, :length] += change
        return replace(known, latents=latents)

    def _shared(self, window: Window, other: Window) -> tuple[range, range]:
        """Video and audio latents that a window shares with another one; latent `i` here is the other's `i + shift`.

        The first video latents of a window are left out, since they were encoded as the beginning of a clip. So are the audio latents
        at both ends, which were encoded without their neighbours, and what is made anew.
        """
        shift, audio_shift = self._shifts(window, other)
        length = coordinates.num_latent_frames(window.num_frames, self._stride)
        last = min(length, length - shift)
        first = min(max(self._warm_up_latents(window), self._warm_up_latents(other) - shift), last)
        rate = self.pipe.latent_format["audio_latent_rate"]
        whole = math.floor(self.pipe.clip_duration(window.num_frames) * rate + 1e-6) - 1
        audio_last = min(whole, whole - audio_shift)
        audio_first = min(max(1, 1 - audio_shift), audio_last)
        return (
            range(first, max(last - self._latents_made_anew, first)),
            range(audio_first, max(audio_last - round(_MADE_ANEW * rate), audio_first)),
        )

    @property
    def _latents_made_anew(self) -> int:
        return math.ceil(_MADE_ANEW * self.frame_rate / self._stride)

    def _given_frames(self, frames: np.ndarray) -> np.ndarray:
        """Of the frames that two windows share, those that the second one is given."""
        length = coordinates.num_latent_frames(len(frames), self._stride)
        length = max(length - self._latents_made_anew, min(length, WARM_UP_LATENTS))
        return frames[: (length - 1) * self._stride + 1]

    def _shifts(self, window: Window, other: Window) -> tuple[int, int]:
        return (window.start - other.start) // self._stride, window.audio_start - other.audio_start

    def _warm_up_latents(self, window: Window) -> int:
        return WARM_UP_LATENTS if window.index else 1

    def _part_shared(self, latents: torch.Tensor, window: Window, other: Window) -> torch.Tensor:
        """The video latents of a window that another one shares."""
        shared = self._shared(window, other)[0]
        return latents.narrow(2, shared.start, len(shared))

    def _join(
        self, known: KnownLatents, audio_known: KnownLatents, window: Window, other: Window, kept: Kept
    ) -> tuple[KnownLatents, KnownLatents]:
        """The known latents of a window, and among them the latents that it shares with another one."""
        (shared, audio_shared), (_, audio_shift) = self._shared(window, other), self._shifts(window, other)
        if other.index < window.index:
            known = _overlaid(known, self._part_shared(kept.latents, other, window), shared, dim=2)
        elif other.index == window.index + 1:
            known = _overlaid(known, kept.shared, shared, dim=2)
        sound = kept.audio_latents.narrow(1, audio_shared.start + audio_shift, len(audio_shared))
        return known, _overlaid(audio_known, sound, audio_shared, dim=1)

    def _are_joined(self, window: Window, kept: Kept, before: Window, kept_before: Kept) -> bool:
        """Whether a window still continues the present latents of the window before."""
        shared, shift = self._shared(window, before)[1], self._shifts(window, before)[1]
        sound = kept.audio_latents.narrow(1, shared.start, len(shared))
        sound_before = kept_before.audio_latents.narrow(1, shared.start + shift, len(shared))
        picture = self._part_shared(kept_before.latents, before, window)
        return kept.shared is not None and torch.equal(kept.shared, picture) and torch.equal(sound, sound_before)

    def _decode(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Frames of a window, float in [0, 1], and its waveform. The last one is kept in memory."""
        if self._decoded is None or self._decoded[0] != window:
            pipe, kept = self.pipe, self.work.read_any(window.take, window.index)
            device = pipe._execution_device
            frames, waveform = pipe.decode_latents(
                kept.latents.to(device), kept.audio_latents.to(device), window.num_frames, "np"
            )
            self._decoded = window, frames[0], waveform[0]
        return self._decoded[1:]

    # The film

    def __iter__(self) -> Iterator[FilmWindow]:
        """The pieces of the film in order, each as soon as it is made."""
        number = 0
        with self._progress() as progress:
            for take in self.takes:
                for frames, waveform, start in self._pieces(take, progress):
                    yield FilmWindow(frames, waveform, start, number)
                    number += 1

    def render(self, takes: Sequence[int] | None = None) -> Film:
        """Makes the missing windows, and decodes only those that a new window continues.

        Args:
            takes (`Sequence[int]`, *optional*): numbers of the takes; by default all.
        """
        with self._progress(takes) as progress:
            for number in range(len(self.takes)) if takes is None else takes:
                for window in self._windows(number):
                    self._ensure(window, progress)
        return self

    @property
    def is_rendered(self) -> bool:
        """Whether the folder keeps all windows."""
        return all(
            self._kept_plan(take) is not None
            and all(self._latents(window) is not None for window in self._windows(take.number))
            for take in self.takes
        )

    def _progress(self, takes: Sequence[int] | None = None) -> Any:
        numbers = range(len(self.takes)) if takes is None else takes
        windows = [window for number in numbers for window in self._windows(number)]
        kept = sum(self._latents(window) is not None for window in windows)
        steps = self._denoising.num_inference_steps
        bar = self.pipe.progress_bar(total=steps * len(windows))
        bar.initial = bar.n = steps * kept
        return bar

    def _ensure(self, window: Window, progress: Any) -> None:
        if self._latents(window) is not None:
            return
        with one_at_a_time(self.pipe.components.values()):
            try:
                self._render(window, progress)
            finally:
                self.pipe.maybe_free_model_hooks()

    def _pieces(self, take: Take, progress: Any) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Frames, waveform and start of each piece of a take. Pieces meet in the middle of the frames that two windows share."""
        windows = self._windows(take.number)
        cuts = [
            0,
            *(
                (w.start + before.start + before.num_frames) // 2
                for before, w in zip(windows, windows[1:], strict=False)
            ),
        ]
        cuts.append(take.num_frames)
        fade, tail = round(_CROSSFADE * self.sampling_rate), None
        for window, (start, end) in zip(windows, pairwise(cuts), strict=True):
            self._ensure(window, progress)
            with one_at_a_time(self.pipe.components.values()):
                frames, waveform = self._decode(window)
                self.pipe.maybe_free_model_hooks()
            first, last = (self._sample(take, frame) for frame in (start, end))
            sound = _part_of(waveform, window.audio_start * self._hop, first, last + fade)
            if tail is not None:
                length = min(fade, tail.shape[1])
                weight = np.linspace(0, 1, length, dtype=np.float32)
                sound[:, :length] += (tail[:, :length] - sound[:, :length]) * (1 - weight)
            tail = sound[:, last - first :]
            sound = self._with_given(take, sound[:, : last - first], first)
            if take.number and not start:
                _fade(sound, round(_FADE * self.sampling_rate), at_end=False)
            if take.number + 1 < len(self.takes) and end == take.num_frames:
                _fade(sound, round(_FADE * self.sampling_rate), at_end=True)
            picture = frames[start - window.start : end - window.start]
            yield (picture * 255).round().astype(np.uint8), sound, (take.first + start) / self.frame_rate

    def _sample(self, take: Take, frame: int) -> int:
        """The sample of a take at which a frame begins. Counted from the film's start, so that takes add up."""
        start = coordinates.num_samples(take.first / self.frame_rate, self.sampling_rate)
        return coordinates.num_samples((take.first + frame) / self.frame_rate, self.sampling_rate) - start

    def _with_given(self, take: Take, sound: np.ndarray, first: int) -> np.ndarray:
        """The sound, with the given sound in its place, unchanged."""
        audio = self._given[take.number].audio
        if audio is None:
            return sound
        rate, length = self.sampling_rate, sound.shape[1]
        new = coordinates.units_in_spans(audio.new, rate, audio.waveform.shape[2]).numpy()
        given = (~new[first : first + length]).astype(np.float32)
        fade = max(round(_FADE * rate), 1)
        weight = np.convolve(np.pad(given, fade, mode="edge"), np.full(2 * fade + 1, 1 / (2 * fade + 1)), "valid")
        weight = np.pad(weight.astype(np.float32), (0, max(length - len(weight), 0)))[:length]
        part = np.zeros_like(sound)
        found = audio.waveform[0, :, first : first + length]
        part[:, : found.shape[1]] = found
        return sound + (part - sound) * weight

    def clip(self) -> Clip:
        """The whole film in memory."""
        if self._clip is None:
            pieces = list(self)
            frames = np.concatenate([piece.frames for piece in pieces])
            waveform = np.concatenate([piece.waveform for piece in pieces], axis=1)
            self._clip = Clip(frames, waveform, self.frame_rate, self.sampling_rate)
        return self._clip

    def save(self, path: str | Path, scale: int = 1) -> Path:
        """
        Writes the film to an mp4, piece by piece; the file appears when it is whole.

        Args:
            path (`str` or `Path`): where to; the name ends in `.mp4`.
            scale (`int`, defaults to 1): every pixel becomes `scale` x `scale` pixels.

        Raises:
            ValueError, OSError: as for [`~media.ClipWriter`]; the work folder keeps all windows that were made.
        """
        height, width = self.size.height, self.size.width
        with ClipWriter(path, height, width, self.frame_rate, self.sampling_rate, scale) as writer:
            for piece in self:
                writer.write(piece.frames, piece.waveform)
        return Path(path)

    def finish(self, path: str | Path, scale: int = 1) -> Path | None:
        """
        Writes the film as `save` does, where several processes render it: the one that finds all windows there.

        Returns:
            The path, or `None` if windows are missing, or another process writes the film.
        """
        if not self.is_rendered:
            return None
        with files.held(self.work.folder / "writing.lock") as is_held:
            if not is_held:
                return None
            if not self.work.is_written(path, scale):
                self.save(path, scale)
                self.work.note_written(path, scale)
        return Path(path)

    def __repr__(self) -> str:
        number = sum(len(self._starts(take)[1]) for take in self.takes)
        return (
            f"Film of {self.duration:.4f} s: {len(self.shots)} shots, {len(self.takes)} takes, {number} windows of up to "
            f"{self.pipe.clip_duration(self.size.num_frames):.4f} s"
        )


def _gaps(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The gaps between spans in order, from 0 to infinity."""
    end = 0.0
    for start, stop in spans:
        if start > end:
            yield end, start
        end = stop
    yield end, math.inf


def _colours(frames: np.ndarray) -> torch.Tensor:
    """Red, green and blue of the background: medians over all pixels, since most pixels show it."""
    return torch.from_numpy(np.median(frames, axis=(0, 1, 2)).astype(np.float32))


def _held_colours(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """The target colours of a window's background: the former ones, unless another picture has begun."""
    return now if ((now - before).abs() > _MOST_DRIFT).any() else before


def _overlaid(known: KnownLatents, latents: torch.Tensor, shared: range, dim: int) -> KnownLatents:
    """Known latents, with the latents of another window in the places `shared`."""
    mask, placed = known.mask.flatten().cpu().clone(), known.latents.clone()
    mask[shared.start : shared.stop] = True
    placed.narrow(dim, shared.start, len(shared)).copy_(latents.to(placed.device))
    return KnownLatents.place(placed, mask, dim)


def _part_of(waveform: np.ndarray, offset: int, first: int, last: int) -> np.ndarray:
    """Samples `first .. last - 1` of a take, from a waveform that begins at `offset`; silence where it has none."""
    part = np.zeros((len(waveform), last - first), np.float32)
    start, end = max(first - offset, 0), min(last - offset, waveform.shape[1])
    if end > start:
        part[:, start + offset - first : end + offset - first] = waveform[:, start:end]
    return part


def _fade(sound: np.ndarray, length: int, at_end: bool) -> None:
    length = min(length, sound.shape[1])
    ramp = np.linspace(0, 1, length, dtype=np.float32)
    if at_end:
        sound[:, sound.shape[1] - length :] *= ramp[::-1]
    else:
        sound[:, :length] *= ramp


class BatonFilmMixin:
    """Films as a method of a pipeline."""

    def film(
        self,
        shots: Sequence[Shot | dict[str, Any]] | str | Path,
        seconds: float | None = None,
        seed: int | None = None,
        work: str | Path | None = None,
        stream: bool = False,
        plan: SemanticPlan | str | Path | None = None,
        plans: str = "film",
        overlap_seconds: float | None = None,
        num_inference_steps: int | None = None,
        num_plan_candidates: int | None = None,
        negative_prompt: str | None = None,
        audio_negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        use_cache: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Film:
        r"""
        Makes a film of any length: shots under one plan, in windows of the model's length that overlap.

        Args:
            shots (list of [`Shot`], or `str` or `Path`): the shots; or a film file (`.toml`, `.yaml`, `.json`), see `shots.py`; or one
                prompt, which is split at its sentences.
            seconds (`float`, *optional*): how long the film of one prompt lasts.
            seed (`int`, *optional*): the same seed gives the same film; by default the film file's, or 0.
            work (`str` or `Path`, *optional*): a folder that keeps all windows. The same call goes on from there, and one with
                another shot renders that shot's windows alone, joined to those beside them.
            stream (`bool`, defaults to `False`): make each piece when it is asked for: `for piece in film`, or `film.save`. Memory
                then does not grow with the film. By default the whole film is made now, and kept in memory.
            plan ([`SemanticPlan`] or the path of its file, *optional*): of the whole film, instead of the planner's.
            plans (`str`, defaults to `"film"`): `"film"` gives each window its part of the film's plan. To compare with, `"windows"`
                plans each window by itself, from its own text, and `"none"` renders from the texts alone.
            overlap_seconds (`float`, *optional*): what neighbouring windows share; by default 1, or a third of a shorter window.
            num_inference_steps, num_plan_candidates, negative_prompt, audio_negative_prompt, height, width, use_cache,
                attention_kwargs (*optional*): as in `__call__`, for every window.

        Returns:
            [`Film`]

        Raises:
            ValueError: if the film cannot be made, before any model runs, or if a model returns NaN.
            OSError: if the folder cannot be written to, as on a full disk; what was made before stays there.
        """
        check_flags(stream=stream)
        told: dict[str, Any] = {}
        if isinstance(shots, Path) or (isinstance(shots, str) and shots.lower().endswith(FILE_SUFFIXES)):
            if seconds is not None:
                raise ValueError(
                    f"`seconds` is {seconds!r}, but the shots of a file say their own length: leave it out."
                )
            shots, told = read_film(shots)
        asked = {
            "seed": seed,
            "overlap_seconds": overlap_seconds,
            "num_inference_steps": num_inference_steps,
            "num_plan_candidates": num_plan_candidates,
            "negative_prompt": negative_prompt,
            "audio_negative_prompt": audio_negative_prompt,
            "height": height,
            "width": width,
        }
        told |= {name: value for name, value in asked.items() if value is not None}
        settings = FilmSettings(**told, plans=plans, use_cache=use_cache, attention_kwargs=attention_kwargs)
        film = Film(self, as_shots(shots, seconds), settings, PlanRequest(plan).read().plan, work)
        if not stream:
            film.clip()
        return film
