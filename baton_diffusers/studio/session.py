"""What can be done in the studio: sessions, the versions of a clip in each, and the actions that make them.

Nothing here knows a page. A browser tab is a session. No session sees the clips of another: a file has a random name and a random key, and
a browser needs the key to fetch it. The files are deleted with the studio.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import coordinates, ffmpeg
from ..cues import LONGEST_CUE, PlanCandidate, parse_sheet
from ..media import Clip, read_audio, read_clip, read_video, to_aac_rate, write_audio, write_clip
from ..models.va_planner import tokenize_prompts
from ..pipelines.components import ClipSize
from ..pipelines.pipeline_baton import BatonPipeline
from ..pipelines.pipeline_output import BatonPipelineOutput
from ..pipelines.planning import PlanRequest, check_cues
from ..pipelines.students import student_presets
from ..plan import SemanticPlan
from ..prompt_language import PromptLanguage
from . import shown
from .glimpse import Glimpse
from .recipe import Recipe, written_generator


MAX_SESSIONS = 64
IDLE_SECONDS = 3600  # for which a session is kept
GRACE_SECONDS = 120  # for which the session of a tab that is gone is kept
MAX_VERSIONS = 60  # of a session
MAX_CLIP_BYTES = 2**30  # of the decoded clips of a session
MAX_LETTERS = 2000  # of a prompt
MAX_UPLOAD_SECONDS = 30
MAX_SIDE = 512  # pixels: larger uploads are reduced to it
LEAST_SIDE = 256  # pixels: smaller clips are enlarged to about that; more would take longer to write than to render
MAX_TIMES = 4  # a clip may have so many times the pixels of one of the checkpoint's own size and length
MAX_PLANS = 32  # among which one is chosen

FORGOTTEN = (
    "The studio does not know this tab any more: it was restarted, the page was reloaded, or you were away for an hour. Your prompt and "
    "your plan were still here and are taken up; the clips of before are gone."
)


class Cancelled(Exception):
    """A render was cancelled."""


class Progress(NamedTuple):
    """How far a render is: `step` of `steps`, where there is a new one a small picture as an address that holds it, and how many
    renders are to be done before it."""

    step: int
    steps: int
    picture: str | None = None
    before: int = 0


class File(NamedTuple):
    """A file that a browser may fetch, and the name under which it is saved there."""

    path: Path
    name: str


class Look(NamedTuple):
    """A storyboard, and a waveform `(num_channels, num_samples)` with its rate, of a plan or a clip; empty where nothing shows one."""

    pictures: list[dict[str, Any]]
    waveform: np.ndarray | None = None
    sampling_rate: int = 0


class Request(NamedTuple):
    """What the page says when something is to be done.

    Args:
        prompt: the prompt.
        seed: decides the noise, and what the planner leaves open.
        sheet: the page's timeline as JSON; `None` for a plan without cues.
        session, version: the ids of the session and version that the page shows.
        span: the seconds that are marked on the timeline, from and to.
        attempt: which render of this page it is, so that `cancel` can be told which one it ends.
        seconds, height, width: of clips that are planned; by default the checkpoint's own.
        plans: how many are drawn, the best of which is taken; by default as many as the pipeline draws.
        quick: whether the student renders, if there is one.
        modality: "video" or "audio" to retake that alone.
        actor: whose events alone to retake.
    """

    prompt: str
    seed: int = 0
    sheet: Any = None
    session: str | None = None
    version: int | None = None
    span: tuple[float, float] | None = None
    attempt: int = 0
    seconds: float | None = None
    height: int | None = None
    width: int | None = None
    plans: int | None = None
    quick: bool = False
    modality: str | None = None
    actor: str | None = None


class Run:
    """A render that is under way. Whoever waits for its reports gets `Cancelled` among them as soon as it is cancelled."""

    def __init__(self, steps: int) -> None:
        self.steps, self.is_cancelled = steps, False
        self.reports: SimpleQueue = SimpleQueue()

    def cancel(self) -> None:
        """Ends it at its next step, or before it begins."""
        self.is_cancelled = True
        self.reports.put(Cancelled())


class Line:
    """The renders of all tabs take turns: first come, first served."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._moved = threading.Condition()

    @property
    def is_taken(self) -> bool:
        """Whether somebody renders."""
        return bool(self._runs)

    @contextmanager
    def turn(self, run: Run) -> Iterator[None]:
        """
        Waits for the turn of a run, and keeps it. The run reports how many are before it.

        Raises:
            Cancelled: if the run was cancelled before its turn.
        """
        with self._moved:
            self._runs.append(run)
        try:
            with self._moved:
                reported = 0
                while not run.is_cancelled and (before := self._runs.index(run)):
                    if before != reported:
                        run.reports.put(Progress(0, run.steps, before=before))
                        reported = before
                    self._moved.wait()
            if run.is_cancelled:
                raise Cancelled
            yield
        finally:
            with self._moved:
                if run in self._runs:
                    self._runs.remove(run)
                self._moved.notify_all()

    def cancel(self, run: Run) -> None:
        """Ends a run. One that waits leaves the line at once; another one keeps its turn until its step is over."""
        run.cancel()
        with self._moved:
            if run in self._runs[1:]:
                self._runs.remove(run)
            self._moved.notify_all()


@dataclass(frozen=True, eq=False)
class Version:
    """One state of a clip: planned, edited, rendered, or opened from a file. Versions are a tree: `undo` goes to the parent."""

    number: int
    parent: int | None
    what: str
    prompt: str
    seed: int
    plan: SemanticPlan
    recipe: Recipe
    size: ClipSize
    clip: BatonPipelineOutput | Clip | None = None
    source: int | None = None  # the version whose clip a retake begins with: the last one that has one
    changed: tuple[float, float] | None = None  # seconds in which an edit has changed things
    pictures: list[dict[str, Any]] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    files: dict[str, str] = field(
        default_factory=dict
    )  # from "clip", "plan", "script", "sound" and "opened" to keys of `Studio.files`
    num_bytes: int = 0  # of the decoded clip
    drawn: tuple[PlanCandidate, ...] = ()  # among which the plan was chosen, see `Studio.drawn`

    @property
    def sheet(self) -> str | None:
        """The cue sheet that the plan follows, if there is one."""
        return None if self.plan.sheets is None else self.plan.sheets[0]


class Studio:
    """
    A pipeline, and the sessions that share it.

    Args:
        pipe ([`BatonPipeline`]): plans and renders.
        folder (`Path`): where clips are kept as long as their session lasts.
        model (`str`, *optional*): the checkpoint's name in scripts; by default the one that comes with the package.
        student (`str`, *optional*): the name there of the student that the pipeline has loaded by `load_student`. The page then has a
            switch between it and its teacher.
        starts_quick (`bool`, defaults to `False`): where that switch stands at first.

    Raises:
        ValueError: if the pipeline has no planner.
    """

    def __init__(
        self,
        pipe: BatonPipeline,
        folder: Path,
        model: str | None = None,
        student: str | None = None,
        starts_quick: bool = False,
    ) -> None:
        if pipe.planner is None:
            raise ValueError(
                "the studio shows plans, and this checkpoint has no planner: use `baton generate`, or give one that has."
            )
        self.pipe, self.folder, self.model, self.student = pipe, Path(folder), model, student
        self.files: dict[str, File] = {}
        self.line = Line()
        self._is_quick, self._drawing = student is not None, threading.Lock()
        self.steps = pipe.config.num_inference_steps
        self.quick_steps = self.steps if student is not None else None
        self.starts_quick = starts_quick
        if student is not None:
            with self.drawing(quick=False):
                self.steps = pipe.config.num_inference_steps
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    @property
    def example(self) -> str:
        """A prompt that the checkpoint understands, if it tells one."""
        return "" if self._language is None else self._language.example

    def remark(self, prompt: str) -> str | None:
        """What the checkpoint will not understand of a prompt, if it can say."""
        return None if self._language is None else self._language.remark([prompt])

    @property
    def _language(self) -> PromptLanguage | None:
        return None if self.pipe.tokenizer is None else PromptLanguage.of(self.pipe.tokenizer)

    @property
    def places(self) -> list[str]:
        """Places that a cast may have, where the plan checker knows them all."""
        return [] if self.pipe.plan_checker is None else list(self.pipe.plan_checker.config.places)

    @contextmanager
    def drawing(self, quick: bool) -> Iterator[BatonPipeline]:
        """The pipeline as its student renders, or its teacher; for one thread at a time."""
        quick = quick and self.student is not None
        with self._drawing:
            if quick != self._is_quick:
                self.pipe.use_preset(next(iter(student_presets(self.pipe.transformer))) if quick else None)
                (self.pipe.enable_lora if quick else self.pipe.disable_lora)()
                self._is_quick = quick
            yield self.pipe

    def recipe(self, prompt: str, *lines: str, clip: tuple[str, ...] = ()) -> Recipe:
        """A new recipe for this checkpoint, of statements that make a plan."""
        return Recipe(self.model, prompt, lines, clip, self.student)

    @property
    def timestamp_rate(self) -> float | None:
        """Instants in a second at which the planner can have things happen; `None` for one that writes no cues."""
        return self.pipe.planner.config.timestamp_rate if self.pipe.planner.writes_cues else None

    @property
    def num_plans(self) -> int:
        """How many plans are drawn by default, so that the best can be taken; 1 where nothing can choose."""
        return PlanRequest().num_candidates(self.pipe) if self.timestamp_rate is not None else 1

    def drawn(self, plan: SemanticPlan) -> tuple[PlanCandidate, ...]:
        """The different plans among which one was chosen, the best first; none if there was no choice. A planner may write a sheet that
        it cannot read, for example with a word that it made up: such a sheet cannot be taken, and is left out."""
        if plan.candidates is None:
            return ()
        length = tokenize_prompts(
            self.pipe.planner_tokenizer, list(plan.prompts), self.pipe.planner.config.system_prompt
        )[0].shape[1]
        drawn = {}
        for candidate in plan.candidates[0]:
            with suppress(ValueError):
                if candidate.sheet != plan.sheets[0]:
                    check_cues(self.pipe, [candidate.sheet], length, plan.duration)
                drawn[candidate.sheet] = candidate
        return tuple(drawn.values()) if len(drawn) > 1 else ()

    def session(self, key: str) -> Session:
        """
        The session of a browser tab; a new one for a new tab.

        Raises:
            ValueError: if there are too many.
        """
        self.sweep()
        with self._lock:
            if key not in self._sessions:
                if len(self._sessions) >= MAX_SESSIONS:
                    raise ValueError(f"{MAX_SESSIONS} people use this studio already: try again in some minutes.")
                self._sessions[key] = Session(self)
            self._sessions[key].keep(IDLE_SECONDS)
            return self._sessions[key]

    def leave(self, key: str) -> None:
        """Notes that a tab is gone. What it renders is cancelled; its clips are deleted a little later, unless it comes back."""
        session = self._sessions.get(key)
        if session is not None:
            session.cancel()
            session.keep(GRACE_SECONDS)

    def sweep(self) -> None:
        """Ends the sessions whose time is over."""
        with self._lock:
            over = [key for key, session in self._sessions.items() if session.is_over]
            for session in [self._sessions.pop(key) for key in over]:
                session.close()

    def close_all(self) -> None:
        """Ends every session."""
        for session in self._sessions.values():
            session.keep(0)
        self.sweep()


class Session:
    """
    What one tab has made, and what it can do next.

    Args:
        studio ([`Studio`]): where it belongs.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.id = studio, secrets.token_urlsafe(8)
        self.versions: dict[int, Version] = {}
        self.current: Version | None = None
        self.note: str | None = None  # what the page should say beside what was asked for
        self._next_number = 1
        self._redo: dict[int | None, int] = {}  # from a version to the one that `redo` goes to
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._cancelled_attempt, self._redraws = -1, 0
        self._is_closed = False
        self._ends_at = time.monotonic() + IDLE_SECONDS

    def keep(self, seconds: float) -> None:
        """Keeps the session for so long from now."""
        self._ends_at = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether nobody has used the session for so long that it is not kept any more."""
        return time.monotonic() >= self._ends_at

    # Plans

    def plan(self, request: Request) -> Version:
        """Plans a prompt. With a planner that writes cues, the seed decides when things happen.

        Raises:
            ValueError: as the pipeline, or if the clip would be too large.
        """
        prompt, seed = _checked_prompt(request.prompt), _checked_seed(request.seed)
        size, plans = self._asked_size(request), None if request.plans == self.studio.num_plans else request.plans
        if plans is not None and (type(plans) is not int or not 1 <= plans <= MAX_PLANS):
            raise ValueError(
                f"The best of {plans!r} plans cannot be taken: write a whole number from 1 to {MAX_PLANS}."
            )
        self.note = self.studio.remark(prompt)
        with self._warnings():
            plan = self.studio.pipe.plan(prompt, **asdict(size), generator=_generator(seed), num_plan_candidates=plans)
        more = "" if plans is None else f"num_plan_candidates={plans}, "
        line = f"plan = pipe.plan(prompt, {self._written_size(size)}{more}{written_generator(seed)})"
        return self._add("planned", prompt, seed, plan, self.studio.recipe(prompt, line), size)

    def choose(self, request: Request, number: int) -> Version:
        """Takes another one of the plans that were drawn with the plan that the page shows.

        Raises:
            ValueError: if there is no such plan.
        """
        base = self._shown(request)
        drawn = base.drawn
        if type(number) is not int or not 0 <= number < len(drawn):
            raise ValueError(
                f"There is no plan {number!r} among the {len(drawn)} that were drawn: press Another plan."
            )
        sheet = drawn[number].sheet
        with self._warnings():
            plan = self.studio.pipe.plan(base.prompt, **asdict(base.size), cues=sheet)
        plan = replace(plan, candidates=base.plan.candidates)
        line = f"plan = pipe.plan(prompt, {self._written_size(base.size)}cues={sheet!r})"
        made = self.studio.recipe(base.prompt, line)
        return self._add(
            f"took plan {number + 1} of {len(drawn)}", base.prompt, base.seed, plan, made, base.size, parent=base
        )

    def edit(self, request: Request, what: str = "edited") -> Version:
        """Plans anew what a change on the page's timeline changes.

        Raises:
            ValueError: as the pipeline, or if the timeline is no sheet.
        """
        base, plan, made, changed = self._edited(request)
        if plan is base.plan:
            return base
        seed = _checked_seed(request.seed)
        return self._add(what[:80], plan.prompts[0], seed, plan, made, base.size, parent=base, changed=changed)

    def redraw(self, request: Request, what: str = "edited") -> Iterator[Progress | Version]:
        """The same, and renders it with the student at once.

        Raises:
            ValueError: as `edit`.
            Cancelled: if `cancel` was called.
        """
        base, plan, made, changed = self._edited(request)
        seed = _checked_seed(request.seed)
        self.cancel()  # what the edit before is rendering
        self._redraws += 1
        yield from self._render(request._replace(quick=True), what[:80], base, plan, made, seed, changed)

    def _edited(self, request: Request) -> tuple[Version, SemanticPlan, Recipe, tuple[float, float] | None]:
        """The version that the page shows, and under the timeline that the page shows its plan, recipe and the span that changed."""
        base, sheet = self._shown(request), shown.sheet_from_json(request.sheet)
        if sheet == base.sheet:
            return base, base.plan, base.recipe, base.changed
        prompt = _checked_prompt(request.prompt)
        own = prompt if prompt != base.prompt else None  # else the pipeline says what the edited sheet is asked for by
        with self._warnings():
            plan = self.studio.pipe.edit_plan(base.plan, sheet, own)
        lines = [f"plan = pipe.edit_plan(plan, {sheet!r}{f', {own!r}' if own else ''})", "prompt = plan.prompts[0]"]
        changed = _changed_span(base.sheet, plan.sheets[0], plan.duration)
        return base, plan, base.recipe.planned(*lines), changed

    def live(self, request: Request, draws: bool = False) -> list[dict[str, Any]]:
        """Pictures of what the page's timeline says while an event is dragged. It makes no version.

        Args:
            request ([`Request`]): what the page says.
            draws (`bool`, defaults to `False`): have the student render them, instead of showing the plan by its decoder.

        Raises:
            ValueError: as `edit`.
            Cancelled: if `redraw` renders what was dragged.
        """
        base, sheet = self._shown(request), shown.sheet_from_json(request.sheet)
        plan = self.studio.pipe.edit_plan(base.plan, sheet)
        if not draws or self.studio.student is None:
            return self._look(plan).pictures
        generator, redraws = _generator(_checked_seed(request.seed)), self._redraws

        def watch(pipe: BatonPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> None:
            if self._redraws != redraws:  # the event was dropped: its clip is rendered instead
                raise Cancelled

        with self.studio.drawing(quick=True) as pipe:
            draft = pipe(
                plan.prompts[0],
                plan=plan,
                **asdict(base.size),
                generator=generator,
                only="video",
                output_type="np",
                callback_on_step_end=watch,
            )
        return shown.storyboard(draft.clip()[0], draft.frame_rate)

    def open(self, path: str | Path, name: str, request: Request) -> Version:
        """
        Reads the plan off a clip of one's own, and with a prompt also its cues. The page shows the clip as it was read, never the
        file itself.

        Args:
            path (`str` or `Path`): the file.
            name (`str`): what it is called.
            request ([`Request`]): its prompt says what happens in the clip.

        Raises:
            ValueError: if the file cannot be read, is too long or too short, or the pipeline reads no plans.
        """
        pipe, prompt, self.note = self.studio.pipe, _text(request.prompt), None
        if pipe.video_semantic_encoder is None or pipe.audio_semantic_encoder is None:
            raise ValueError(
                "This checkpoint reads no plans off clips: open the studio with one that has semantic encoders."
            )
        try:
            clip = self._read_upload(Path(path))
        except ValueError as error:  # where it lies on this machine is nobody's business
            raise ValueError(str(error).replace(str(path), name)) from None
        rate = clip.sampling_rate
        key, opened = self._new_file(".mp4", "opened.mp4")
        waveform, aac_rate = to_aac_rate(clip.waveform, rate)
        write_clip(opened, clip.frames, waveform, clip.frame_rate, aac_rate)
        clip = read_clip(opened, sampling_rate=rate)  # so that what is downloaded is what is worked with
        plan = pipe.extract_plan(*clip)
        lines = [f'clip = read_clip("opened.mp4", sampling_rate={rate})', "plan = pipe.extract_plan(*clip)"]
        if prompt and pipe.planner.writes_cues:
            prompt, number, seed = _checked_prompt(prompt), len(clip.frames), _checked_seed(request.seed)
            with self._warnings():
                sheets = pipe.prepare_cues(prompt, number, generator=_generator(seed), given_plan=plan)
            plan = replace(plan, prompts=(prompt,), sheets=tuple(sheets))
            lines.append(f"plan = replace(plan, prompts=(prompt,), sheets={plan.sheets!r})")
        made = self.studio.recipe(prompt, *lines, clip=tuple(lines))
        size = ClipSize(pipe.config.height, pipe.config.width, len(clip.frames))
        return self._add(f"opened {name}"[:80], prompt, request.seed, plan, made, size, clip, opened=key)

    def _read_upload(self, path: Path) -> Clip:
        """Picture and sound of a file at the pipeline's rates, small, and no longer than the pipeline's clips."""
        pipe = self.studio.pipe
        try:
            picture = ffmpeg.read_picture(path)
        except ffmpeg.Unreadable as error:
            raise ValueError(f"{path} {error}") from error
        shrink = min(1.0, MAX_SIDE / max(picture.height, picture.width))
        height, width = (max(2, round(side * shrink / 2) * 2) for side in (picture.height, picture.width))
        frames, frame_rate = read_video(path, pipe.frame_rate, (height, width), MAX_UPLOAD_SECONDS)
        sampling_rate = pipe.audio_semantic_encoder.sampling_rate
        waveform, _ = read_audio(path, sampling_rate, MAX_UPLOAD_SECONDS)
        if len(waveform) > 2:  # surround sound
            waveform = waveform.mean(axis=0, keepdims=True)
        stride, longest = pipe.latent_format["temporal_stride"], pipe.config.num_frames
        num_frames = (min(len(frames), longest) - 1) // stride * stride + 1
        duration = coordinates.clip_duration(num_frames, frame_rate)
        num_samples = coordinates.num_samples(duration, sampling_rate)
        if waveform.shape[1] < num_samples // 2:
            raise ValueError(
                f"{path} has {waveform.shape[1] / sampling_rate:.2f} s of sound for {duration:.2f} s of picture: cut it."
            )
        waveform = np.pad(waveform, ((0, 0), (0, max(0, num_samples - waveform.shape[1]))))[:, :num_samples]
        if len(frames) > num_frames:
            self.note = f"The first {duration:.2f} s of the clip were read: this checkpoint's clips last no longer."
        return Clip(frames[:num_frames], waveform, frame_rate, sampling_rate)

    # Clips

    def render(self, request: Request) -> Iterator[Progress | Version]:
        """Renders the plan that the page shows. Reports each step, and the version in the end.

        Raises:
            ValueError: as the pipeline, or if this session is rendering already.
            Cancelled: if `cancel` was called.
        """
        base, seed = self._shown(request), _checked_seed(request.seed)
        what = "prompt" if _text(request.prompt) != base.prompt else "size"
        if what == "prompt" or self._asked_size(request, base.size) != base.size:
            base = self.plan(request)
            self.note = f"The {what} had changed: it was planned anew." + (f" {self.note}" if self.note else "")
        yield from self._render(request, "rendered", base, base.plan, base.recipe, seed)

    def _render(
        self,
        request: Request,
        what: str,
        base: Version,
        plan: SemanticPlan,
        made: Recipe,
        seed: int,
        changed: tuple[float, float] | None = None,
    ) -> Iterator[Progress | Version]:
        """Renders a plan of the size of `base`, and adds the clip as a version after it."""
        prompt, size = _checked_prompt(plan.prompts[0] if plan.prompts else base.prompt), base.size
        quick = request.quick and self.studio.student is not None

        def work(watch: Callable) -> BatonPipelineOutput:
            with self.studio.drawing(quick) as pipe:
                return pipe(prompt, plan=plan, **asdict(size), generator=_generator(seed), callback_on_step_end=watch)

        line = f"clip = pipe(prompt, plan=plan, {self._written_size(size)}{written_generator(seed)})"
        for report in self._follow(request, work, quick):
            if not isinstance(report, Progress):
                made = made.rendered(line, quick)
                report = self._add(what, prompt, seed, plan, made, size, report, base, changed=changed)
            yield report

    def retake(self, request: Request) -> Iterator[Progress | Version]:
        """Renders the marked span of the last clip anew, under the plan that the page shows. Another seed is another take.

        Raises:
            ValueError: as the pipeline, or if there is no clip or no span.
            Cancelled: if `cancel` was called.
        """
        base, seed = self._shown(request), _checked_seed(request.seed)
        source = self.versions.get(base.source)
        if source is None:
            raise ValueError("There is no clip to retake a part of: press Render first.")
        if request.span is None:
            raise ValueError("Mark a span first: drag on the ruler, or write its seconds.")
        start, end = request.span
        prompt, quick = (
            _checked_prompt(base.prompt or request.prompt),
            request.quick and self.studio.student is not None,
        )
        parts = {name: value for name in ("modality", "actor") if (value := getattr(request, name)) is not None}

        def work(watch: Callable) -> BatonPipelineOutput:
            with self.studio.drawing(quick) as pipe:
                return pipe.retake(
                    source.clip,
                    start,
                    end,
                    prompt,
                    plan=base.plan,
                    generator=_generator(seed),
                    callback_on_step_end=watch,
                    **parts,
                )

        told = [f"{start:g}, {end:g}", "prompt" if base.prompt else repr(prompt), "plan=plan"]
        told += [f"{name}={value!r}" for name, value in parts.items()]
        line = f"clip = pipe.retake(clip, {', '.join(told)}, {written_generator(seed)})"
        of = " of ".join({"video": "picture", "audio": "sound"}.get(part, part) for part in parts.values())
        what = f"retook {of}{', ' if of else ''}{start:.2f} to {end:.2f} s"[:80]
        for report in self._follow(request, work, quick):
            if not isinstance(report, Progress):
                made = base.recipe.retaken(line, quick)
                report = self._add(what, prompt, seed, base.plan, made, base.size, report, base)
            yield report

    def cancel(self, attempt: int = -1) -> None:
        """
        Ends what is being rendered.

        Args:
            attempt (`int`): of the page's renders, the last one that is not wanted: it may be on its way still.
        """
        with self._lock:
            self._cancelled_attempt = max(self._cancelled_attempt, attempt)
            run, self._run = self._run, None
        if run is not None:
            self.studio.line.cancel(run)

    def _follow(self, request: Request, work: Callable, quick: bool) -> Iterator[Progress | BatonPipelineOutput]:
        """Runs a call of the pipeline in a thread of its own, and reports what it does. `work` is given the callback to hand on."""
        steps = self.studio.quick_steps if quick else self.studio.steps
        run = Run(steps)
        with self._lock:
            if self._run is not None:
                raise ValueError("This tab is rendering already: wait for it, or press Cancel.")
            if 0 < request.attempt <= self._cancelled_attempt:
                raise Cancelled
            self._run = run
        glimpse = Glimpse(self.studio.pipe)

        def watch(pipe: BatonPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> None:
            if run.is_cancelled:
                raise Cancelled
            run.reports.put(Progress(index + 1, steps, glimpse.look(index, tensors["latents"])))

        def render() -> None:
            try:
                with self.studio.line.turn(run), self._warnings():
                    result = work(watch)
            except BaseException as error:  # the thread that waits raises it
                result = error
            run.reports.put(result)

        threading.Thread(target=render, name="baton-render", daemon=True).start()
        try:
            yield Progress(0, steps)
            while isinstance(report := run.reports.get(), Progress):
                yield report
            if isinstance(report, BaseException):
                raise report
            if run.is_cancelled:
                raise Cancelled
            yield report
        finally:
            with self._lock:
                if self._run is run:
                    self._run = None
            self.studio.line.cancel(run)  # nobody waits any more

    # Versions

    def resume(self, request: Request) -> Version:
        """Takes up what a page of before showed, after a restart or a reload.

        Raises:
            ValueError: as `plan`.
        """
        return self._shown(request)

    def undo(self) -> Version:
        """Goes to the version that the current one was made from.

        Raises:
            ValueError: if there is none.
        """
        parent = self.versions.get(self.current.parent) if self.current else None
        if parent is None:
            raise ValueError("There is nothing to undo.")
        self._redo[parent.number] = self.current.number
        self.current = parent
        return parent

    def redo(self) -> Version:
        """Goes to the version that `undo` left.

        Raises:
            ValueError: if there is none.
        """
        child = self.versions.get(self._redo.get(self.current.number)) if self.current else None
        if child is None:
            raise ValueError("There is nothing to redo.")
        self.current = child
        return child

    def go(self, number: int) -> Version:
        """Goes to a version.

        Raises:
            ValueError: if there is no such version.
        """
        if not isinstance(number, int) or number not in self.versions:
            raise ValueError(f"Version {number} is gone: the oldest ones make room for new ones.")
        self.current = self.versions[number]
        return self.current

    def view(self) -> dict[str, Any]:
        """What the page shows, as JSON."""
        studio, version = self.studio, self.current
        view = {
            "session": self.id,
            "stamp": secrets.token_hex(4),  # shows the session again where the page has moved on
            "note": self.note,
            "version": None,
            "places": studio.places,
            "has_student": studio.student is not None,
            "has_decoder": studio.pipe.video_plan_decoder is not None,
            "timestamp_rate": studio.timestamp_rate,
            "duration": studio.pipe.clip_duration(studio.pipe.config.num_frames),
            "versions": [
                {"number": one.number, "what": one.what, "clip": one.files.get("clip")}
                for one in self.versions.values()
            ],
        }
        if version is None:
            return view
        return view | {
            "version": version.number,
            "prompt": version.prompt,
            "seed": version.seed,
            "duration": version.plan.duration,
            "sheet": None if version.sheet is None else shown.sheet_to_json(version.sheet),
            "pictures": version.pictures,
            "peaks": version.peaks,
            "files": version.files,
            "span": version.changed,
            "seconds": round(version.plan.duration, 2),
            "height": version.size.height,
            "width": version.size.width,
            "drawn": [
                {"sheet": shown.sheet_to_json(sheet), "score": score, "is_taken": sheet == version.sheet}
                for sheet, score in version.drawn
            ],
            "can_retake": version.source in self.versions,
            "can_undo": version.parent in self.versions,
            "can_redo": self._redo.get(version.number) in self.versions,
        }

    def close(self) -> None:
        """Ends the session: cancels what it renders, and deletes its files."""
        self.cancel()
        with self._lock:
            self._is_closed = True
            for number in list(self.versions):
                self._drop(number)

    def _shown(self, request: Request) -> Version:
        """The version that the page shows. After a restart, it is planned again from what is on the page."""
        self.note = None
        if request.session in (None, self.id):
            if request.version in self.versions:
                return self.versions[request.version]
            return self.plan(request)
        if request.sheet is None:
            version = self.plan(request)
        else:
            prompt, sheet = _checked_prompt(request.prompt), shown.sheet_from_json(request.sheet)
            size = self._asked_size(request)
            line = f"plan = pipe.plan(prompt, {self._written_size(size)}cues={sheet!r})"
            with self._warnings():
                plan = self.studio.pipe.plan(prompt, **asdict(size), cues=sheet)
            version = self._add("taken up", prompt, request.seed, plan, self.studio.recipe(prompt, line), size)
        self.note = FORGOTTEN
        return version

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        """Makes what the package warns of in this thread the session's note."""
        words: list[str] = []
        thread = threading.get_ident()
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: words.append(record.getMessage()) if record.thread == thread else None
        package = logging.getLogger(__name__.partition(".")[0])
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            if words:
                self.note = " ".join(dict.fromkeys(words))

    def _add(
        self,
        what: str,
        prompt: str,
        seed: int,
        plan: SemanticPlan,
        made: Recipe,
        size: ClipSize,
        clip: BatonPipelineOutput | Clip | None = None,
        parent: Version | None = None,
        opened: str | None = None,
        changed: tuple[float, float] | None = None,
    ) -> Version:
        """Adds a version after its parent, by default the current one, writes its files, and goes to it."""
        parent = parent or self.current
        with self._lock:  # edits may overtake each other
            number = self._next_number
            self._next_number += 1
        source = number if clip is not None else parent and parent.source
        version = Version(
            number, parent.number if parent else None, what, prompt, seed, plan, made, size, clip, source, changed
        )
        if opened is None and clip is None and parent is not None and what != "planned":
            opened = parent.files.get("opened")
        files = self._write(version, opened)
        if clip is None:
            look = self._look(plan)
            if look.waveform is not None:
                files["sound"], path = self._new_file(".wav", "scratch.wav")
                write_audio(path, look.waveform, look.sampling_rate)
        else:
            frames, waveform = clip[:2] if isinstance(clip, Clip) else clip.clip()
            look = Look(shown.storyboard(frames, clip.frame_rate), waveform, clip.sampling_rate)
            version = replace(version, num_bytes=frames.nbytes + waveform.nbytes)
        peaks = [] if look.waveform is None else shown.outline(look.waveform)
        version = replace(version, pictures=look.pictures, peaks=peaks, files=files, drawn=self.studio.drawn(plan))
        with self._lock:
            self.versions[number] = self.current = version
            self._redo.pop(version.parent, None)
            while len(self.versions) > MAX_VERSIONS or (
                len(self.versions) > 1 and sum(one.num_bytes for one in self.versions.values()) > MAX_CLIP_BYTES
            ):
                self._drop(next(iter(self.versions)))
            if self._is_closed:  # while the clip was rendered
                self._drop(number)
                raise Cancelled
        return version

    def _look(self, plan: SemanticPlan) -> Look:
        """What a plan says, by the plan decoders that the pipeline has."""
        pipe = self.studio.pipe
        if pipe.video_plan_decoder is None and pipe.audio_plan_decoder is None:
            return Look([])
        preview = pipe.preview(plan)
        frames, waveform = preview.clip()
        pictures = [] if frames is None else shown.storyboard(frames, preview.frame_rate)
        return Look(pictures, waveform, preview.sampling_rate)

    def _asked_size(self, request: Request, default: ClipSize | None = None) -> ClipSize:
        """The size of clips that the page asks for; where it says nothing, the default or the checkpoint's own.

        Raises:
            ValueError: if the models make none of that size, or it would take too long.
        """
        pipe = self.studio.pipe
        usual = ClipSize(pipe.config.height, pipe.config.width, pipe.config.num_frames)
        size, seconds = default or usual, request.seconds
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
                raise ValueError(f"A clip of {seconds!r} seconds cannot be made: write a number above 0.")
            frames = coordinates.num_frames_nearest(seconds, pipe.frame_rate, pipe.latent_format["temporal_stride"])
            size = replace(size, num_frames=frames)
        size = replace(
            size, **{name: value for name in ("height", "width") if (value := getattr(request, name)) is not None}
        )
        size.check(pipe)
        times = math.prod(astuple(size)) / math.prod(astuple(usual))
        if times > MAX_TIMES:
            raise ValueError(
                f"{pipe.clip_duration(size.num_frames):.2f} s of {size.width} x {size.height} pixels are {times:.1f} times what this "
                f"checkpoint makes by default, and at most {MAX_TIMES} times are rendered here: make it shorter or smaller."
            )
        return size

    def _written_size(self, size: ClipSize) -> str:
        """What a recipe says of a size: arguments, as far as they are not the checkpoint's own."""
        usual = self.studio.pipe.config
        told = {name: value for name, value in asdict(size).items() if value != getattr(usual, name)}
        return "".join(f"{name}={value}, " for name, value in told.items())

    def _write(self, version: Version, opened: str | None) -> dict[str, str]:
        """Writes what can be downloaded of a version."""
        files = {} if opened is None else {"opened": opened}
        scale = None
        if isinstance(version.clip, Clip):
            files["clip"], scale = opened, 1
        elif version.clip is not None:
            scale = max(1, LEAST_SIDE // version.clip.clip()[0].shape[1])
            files["clip"], path = self._new_file(".mp4", "clip.mp4")
            version.clip.save(path, scale=scale)
        files["plan"], path = self._new_file(".safetensors", "plan.safetensors")
        version.plan.save(path)
        files["script"], path = self._new_file(".py", "clip.py")
        path.write_text(version.recipe.script(scale))
        return files

    def _new_file(self, suffix: str, name: str) -> tuple[str, Path]:
        """A key, and the path of the file that it stands for. Nobody can guess either."""
        key = secrets.token_urlsafe(18)
        self.studio.files[key] = File(self.studio.folder / f"{secrets.token_hex(16)}{suffix}", name)
        return key, self.studio.files[key].path

    def _drop(self, number: int) -> None:
        """Forgets a version, with the files that no other one has."""
        gone = set(self.versions.pop(number).files.values())
        for key in gone.difference(*(version.files.values() for version in self.versions.values())):
            self.studio.files.pop(key).path.unlink(missing_ok=True)


def _changed_span(before: str, after: str, duration: float) -> tuple[float, float] | None:
    """The seconds in which two sheets differ; `None` where they have another cast."""
    sheets = parse_sheet(before), parse_sheet(after)
    if sheets[0].cast != sheets[1].cast:
        return None
    times = [cue.time for cue in set(sheets[0].cues) ^ set(sheets[1].cues)]
    return max(0.0, min(times) - LONGEST_CUE / 2), min(duration, max(times) + LONGEST_CUE)


def _text(prompt: Any) -> str:
    """A prompt without blanks around it; nothing where a request holds no text."""
    return prompt.strip() if isinstance(prompt, str) else ""


def _checked_prompt(prompt: Any) -> str:
    text = _text(prompt)
    if not text:
        raise ValueError("The prompt is empty: write what is to be seen and heard.")
    if len(text) > MAX_LETTERS:
        raise ValueError(f"The prompt has {len(text)} letters: write at most {MAX_LETTERS}.")
    return text


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, float)) or not 0 <= seed < 2**53 or seed != int(seed):
        raise ValueError(f"The seed is {seed!r}: write a whole number from 0 on.")
    return int(seed)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
