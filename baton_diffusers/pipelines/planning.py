"""The plan of a call: what is asked for, cue sheets, the planner's plan, and plans that are read off clips.

None of it needs the transformer. The functions take a pipeline, or another object with its components, see
[`~components.PipelineParts`].
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from diffusers.utils import logging

from .. import coordinates
from ..cues import CastMember, Cue, PlanCandidate, Sheet, format_sheet, parse_sheet
from ..media import fit_sound
from ..models.plan_checker import PlanChecker, PlanCheckerOutput
from ..models.semantic_encoders import read_plan
from ..models.va_planner import SheetOutline, plan_prompts, snap_cues, tokenize_cues, tokenize_prompts
from ..plan import NotFinite, SemanticPlan
from .checks import check_plan, check_texts, check_whole_number
from .components import MAX_SECONDS, ClipSize, PipelineParts
from .conditions import model_frames, model_waveform
from .cue_fitting import continue_cues, end_of_beginning, fit_cues, readable_sheet
from .given import Given, channels_last
from .texts import Texts, read_texts, unknown_words


Generators = torch.Generator | list[torch.Generator] | None


_CANDIDATES = 8
_READINGS = 3  # of a prompt, that every other candidate follows in turn
MAX_CANDIDATES = 1024  # they are written together, and fill the memory
_DISAGREEMENT = 6.0  # nats by which a plan's sheet may be less likely than the likeliest reading of a prompt


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PlanRequest:
    """What a call says about its plan. `BatonPipeline.__call__` describes the arguments."""

    plan: SemanticPlan | str | os.PathLike | None = None
    use_plan: bool = True
    cues: str | list[str] | None = None
    cue_temperature: float | None = None
    num_cue_candidates: int = 64
    num_plan_candidates: int | None = None

    def read(self) -> PlanRequest:
        """The request with its plan loaded, if it is a file.

        Raises:
            ValueError: as `SemanticPlan.load`, or the plan is neither a plan nor a file.
        """
        if isinstance(self.plan, (str, os.PathLike)):
            return replace(self, plan=SemanticPlan.load(self.plan))
        if self.plan is not None:
            check_plan("plan", self.plan)
        return self

    def uses_planner(self, pipe: PipelineParts) -> bool:
        """Whether the pipeline's planner makes the plan."""
        return self.plan is None and self.use_plan and pipe.planner is not None

    def longest_clip(self, pipe: PipelineParts) -> float:
        """Seconds of the longest clip: what the planner can plan, if it plans and knows a limit."""
        if not self.uses_planner(pipe) or not pipe.planner.writes_cues:
            return MAX_SECONDS
        return pipe.planner.config.num_timestamps / pipe.planner.config.timestamp_rate

    def num_candidates(self, pipe: PipelineParts) -> int:
        """Sheets that are written for each clip."""
        if self.num_plan_candidates is None:
            return 1 if pipe.plan_checker is None or pipe.text_encoder is None else _CANDIDATES
        return self.num_plan_candidates

    def temperature(self, pipe: PipelineParts) -> float:
        """The temperature of the sheets: with a checker they may vary more."""
        if self.cue_temperature is None:
            return 1.0 if self.num_candidates(pipe) > 1 else 0.5
        return float(self.cue_temperature)

    def check(self, pipe: PipelineParts, texts: Texts, num_videos_per_prompt: int, num_frames: int) -> None:
        """Refuses plans and cues that do not fit the clips, and prompts that cannot be planned.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        num_clips = texts.batch_size * num_videos_per_prompt
        if self.plan is not None:
            self._check_plan(pipe, texts.batch_size, num_videos_per_prompt, num_frames)
        elif self.uses_planner(pipe):
            if pipe.planner_tokenizer is None:
                raise ValueError(
                    "`planner` needs `planner_tokenizer`: set it, give `plan`, or call with `use_plan=False`."
                )
            if texts.prompt is None:
                raise ValueError(
                    "the planner reads the prompt itself, not `prompt_embeds`: give `plan` (for example from "
                    "`pipe.prepare_plan`), or call with `use_plan=False`."
                )
            length = tokenize_prompts(pipe.planner_tokenizer, texts.prompts, pipe.planner.config.system_prompt)[
                0
            ].shape[1]
            pipe.planner.check_lengths(length, pipe.clip_duration(num_frames))
        if self.cues is not None:
            if not self.uses_planner(pipe) or not pipe.planner.writes_cues:
                raise ValueError(
                    "`cues` are for a planner that knows timestamps (`pipe.planner.writes_cues`), and here none plans: leave "
                    "them out."
                )
            check_texts("cues", self.cues)
            if len(_listed(self.cues)) not in (1, texts.batch_size, num_clips):
                raise ValueError(
                    f"`cues` has {len(_listed(self.cues))} sheets for {texts.batch_size} prompts with {num_videos_per_prompt} "
                    "videos each: give one, one for each prompt, or one for each clip."
                )
            check_cues(pipe, _listed(self.cues), length, pipe.clip_duration(num_frames))
        self.check_numbers(pipe)

    def check_numbers(self, pipe: PipelineParts) -> None:
        """Refuses an invalid temperature or number of candidates.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        temperature = self.cue_temperature
        is_number = isinstance(temperature, Real) and not isinstance(temperature, bool)
        if temperature is not None and (not is_number or not 0 <= temperature < math.inf):
            raise ValueError(f"`cue_temperature` is {temperature!r}, but must be a number from 0 on.")
        check_whole_number("num_cue_candidates", self.num_cue_candidates, least=0, most=MAX_CANDIDATES)
        if self.num_plan_candidates is not None:
            check_whole_number("num_plan_candidates", self.num_plan_candidates, most=MAX_CANDIDATES)
            if self.num_plan_candidates > 1 and (pipe.plan_checker is None or pipe.text_encoder is None):
                raise ValueError(
                    f"`num_plan_candidates` is {self.num_plan_candidates}, but to choose takes `plan_checker` and `text_encoder`: load "
                    "the pipeline with both, or set it to 1."
                )

    def _check_plan(self, pipe: PipelineParts, batch_size: int, num_videos_per_prompt: int, num_frames: int) -> None:
        plan = self.plan
        check_plan("plan", plan)
        if not self.use_plan:
            raise ValueError("`plan` was given together with `use_plan=False`: leave one of them out.")
        if pipe.transformer is not None:
            self.check_widths(pipe)
        duration = pipe.clip_duration(num_frames)
        if abs(plan.duration - duration) > 0.5 / pipe.frame_rate:
            raise ValueError(
                f"`plan` lasts {plan.duration:.4f} seconds, but {num_frames} frames at {pipe.frame_rate:g} per second last "
                f"{duration:.4f}: use `plan.slice`, `SemanticPlan.concat`, or another `num_frames`."
            )
        if plan.batch_size not in (1, batch_size, batch_size * num_videos_per_prompt):
            raise ValueError(
                f"`plan` is for {plan.batch_size} clips, but there are {batch_size} prompts with {num_videos_per_prompt} videos "
                "each: give one for all, one for each prompt, or one for each clip."
            )
        plan.check_values()

    def check_widths(self, pipe: PipelineParts) -> None:
        """Refuses a given plan whose tokens the transformer does not take.

        Raises:
            ValueError: naming the widths.
        """
        config = pipe.transformer.config
        if config.video_plan_dim is None:
            raise ValueError("`plan` was given, but the transformer has no plan layers: leave it out.")
        widths = self.plan.video_tokens.shape[2], self.plan.audio_tokens.shape[2]
        if widths != (config.video_plan_dim, config.audio_plan_dim):
            raise ValueError(
                f"`plan` has tokens of width {widths[0]} (video) and {widths[1]} (audio), but the transformer takes "
                f"{config.video_plan_dim} and {config.audio_plan_dim}: use a plan made for this checkpoint."
            )

    def make(
        self,
        pipe: PipelineParts,
        prompts: list[str] | None,
        given: Given,
        num_clips: int,
        size: ClipSize,
        generator: Generators,
        device: torch.device,
    ) -> SemanticPlan | None:
        """
        The plan of all clips, with the cue sheets that it follows and the candidates among which they were chosen; `None` for clips
        without a plan.

        Media that fix the timing decide the cues: these are fitted to them, never sampled against them.

        Args:
            pipe: with `planner` and `planner_tokenizer`, if they plan; with semantic encoders, if cues are fitted.
            prompts (`list[str]`, *optional*): what to plan; not read if a plan is given.
            given ([`Given`]): media that the cues are fitted to.
            num_clips (`int`): prompts times videos per prompt.
            size ([`ClipSize`]): of the clips.
            generator (`torch.Generator` or a list with one for each clip, *optional*): decides which cues are written.
            device (`torch.device`): where the planner runs.

        Raises:
            ValueError: if the planner's plan holds NaN.
        """
        if not self.uses_planner(pipe):
            if self.plan is None or not self.use_plan:
                return None
            warn_of_disagreement(pipe, self.plan, prompts, num_clips, device)
            return ready_plan(pipe, self.plan, num_clips, device)
        cues = candidates = None
        if pipe.planner.writes_cues:
            fixes_timing = given.fixes_timing(pipe, size.num_frames)
            if self.cues is not None:
                cues = share_cues(pipe, _listed(self.cues), num_clips)
            elif fixes_timing and (
                observed := observe_plan(pipe, given, size, device) if self.num_cue_candidates else None
            ):
                number, goes_on = self.num_cue_candidates, given.goes_on
                cues = fit_to_plan(pipe, prompts, num_clips, observed, number, generator, device, goes_on)
            elif fixes_timing:
                cues = [""] * num_clips
            else:
                candidates = write_cues(pipe, prompts, num_clips, size.num_frames, self, generator, device)
                cues = [best.sheet for best, *_ in candidates]
        plan = make_plan(pipe, prompts, size.num_frames, cues, device)
        if candidates is not None:
            plan = replace(plan, candidates=tuple(map(tuple, candidates)))
        return ready_plan(pipe, plan, num_clips, device)


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


# Cue sheets


def check_cues(pipe: PipelineParts, sheets: list[str], prompt_length: int, duration: float) -> None:
    """Refuses cue sheets that the planner cannot read: in a wrong form, with unknown words, too long, or beyond the clip's end.

    Args:
        pipe: with `planner` and `planner_tokenizer`.
        sheets (`list[str]`): cue sheets.
        prompt_length (`int`): tokens of the longest prompt.
        duration (`float`): seconds that the clip lasts.

    Raises:
        ValueError: naming what is wrong with the first such sheet.
    """
    planner, tokenizer = pipe.planner, pipe.planner_tokenizer
    parsed = [parse_sheet(sheet) for sheet in sheets]
    words = [text for sheet in parsed for member in sheet.cast for text in member]
    words += [cue.text for sheet in parsed for cue in sheet.cues]
    if unknown := unknown_words(tokenizer, words):
        raise ValueError(
            f"`cues` have words that the planner does not know: {', '.join(unknown)}. Write them as it does "
            "(`pipe.prepare_cues(prompt)` shows how)."
        )
    written = max(len(tokenizer(sheet, add_special_tokens=False, verbose=False).input_ids) for sheet in sheets) + 1
    planner.check_lengths(prompt_length + written, duration)
    rate = planner.config.timestamp_rate
    last = (coordinates.num_timestamps_within(duration, rate) - 1) / rate
    for sheet in parsed:
        late = [cue.time for cue in sheet.cues if coordinates.nearest_timestamp(cue.time, rate) > last]
        if late:
            raise ValueError(
                f"`cues` name {late[0]} seconds, but the clip ends at {duration:.4f} and the last timestamp before is {last:g}."
            )


def share_cues(pipe: PipelineParts, sheets: list[str], num_clips: int) -> list[str]:
    """Given sheets for all clips, each repeated in a row, with their instants moved to the planner's timestamps.

    Raises:
        ValueError: if the clips cannot be shared out among the sheets.
    """
    repeats, rate = _repeats(num_clips, sheets, "sheets of `cues`"), pipe.planner.config.timestamp_rate
    return [snap_cues(sheet, rate) for sheet in sheets for _ in range(repeats)]


def write_cues(
    pipe: PipelineParts,
    prompts: list[str],
    num_clips: int,
    num_frames: int,
    request: PlanRequest,
    generator: Generators,
    device: torch.device,
) -> list[list[PlanCandidate]]:
    """Sheets that the planner writes for each clip, the best first. See `BatonPipeline.prepare_cues`."""
    repeats, number = _repeats(num_clips, prompts, "prompts"), request.num_candidates(pipe)
    rows = [text for text in prompts for _ in range(repeats * number)]
    input_ids, attention_mask = tokenize_prompts(pipe.planner_tokenizer, rows, pipe.planner.config.system_prompt)
    generator = _for_cues(generator)
    if isinstance(generator, list):
        generator = [one for one in generator for _ in range(number)]
    read = outlines = None
    if number > 1:
        read = _read_prompts(pipe, prompts, device)
        if pipe.planner.config.cast_separator_id is not None:
            # Every second sheet follows one of the checker's likeliest readings; the planner chooses only instants and open
            # places.
            known = [_outlines(pipe, read, row, _READINGS) for row in range(len(prompts))]
            turns = [known[i // (repeats * number)] for i in range(len(rows))]
            outlines = [
                ways[i % number // 2 % len(ways)] if i % number % 2 == 0 else None for i, ways in enumerate(turns)
            ]
    written = pipe.planner.generate_cues(
        input_ids.to(device),
        attention_mask.to(device),
        pipe.clip_duration(num_frames),
        request.temperature(pipe),
        generator,
        outlines=outlines,
    )
    sheets = [readable_sheet(sheet, places_of(pipe)) for sheet in pipe.planner_tokenizer.batch_decode(written)]
    if number == 1:
        return [[PlanCandidate(sheet)] for sheet in sheets]
    scores = pipe.plan_checker.score(read, sheets)
    candidates = [PlanCandidate(*pair) for pair in zip(sheets, scores, strict=True)]
    likelihoods = _likelihoods(pipe, rows, sheets, device)
    starts = range(0, len(rows), number)
    return [_best_first(candidates[i : i + number], likelihoods[i : i + number]) for i in starts]


def _best_first(candidates: list[PlanCandidate], likelihoods: list[float]) -> list[PlanCandidate]:
    """The candidates of one clip by their scores. Of equal candidates that say the same, and differ in what the prompt leaves open, the
    planner's likeliest comes first: it has learnt which places suit the events."""
    # Rounded, so that neither the batch nor a tiny difference between two open places decides.
    fits = [round(candidate.score, 1) for candidate in candidates]
    order = sorted(range(len(candidates)), key=lambda row: -fits[row])
    contents = [_content(candidates[row].sheet) for row in order]
    turns = {row: contents.index(content) for row, content in zip(order, contents, strict=True)}
    order.sort(key=lambda row: (-fits[row], turns[row], -round(likelihoods[row], 1)))
    return [candidates[row] for row in order]


def _content(sheet: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Who is in a sheet, and what happens in which order; neither where nor when."""
    cast, cues = parse_sheet(sheet)
    return frozenset(member.name for member in cast), tuple(cue.text for cue in cues)


@torch.no_grad()
def _likelihoods(pipe: PipelineParts, prompts: list[str], sheets: list[str], device: torch.device) -> list[float]:
    """The log-probability of each sheet after its prompt, by the planner's language model."""
    config = pipe.planner.config
    ids, mask, labels = tokenize_cues(
        pipe.planner_tokenizer, prompts, sheets, config.system_prompt, config.timestamp_rate
    )
    _, errors = pipe.planner(ids.to(device), mask.to(device), None, labels=labels.to(device))
    return (-errors.float().cpu() * (labels[:, 1:] != -100).sum(dim=1)).tolist()


def warn_of_disagreement(
    pipe: PipelineParts, plan: SemanticPlan, prompts: list[str] | None, num_clips: int, device: torch.device
) -> None:
    """Warns of a plan that disagrees with the prompt: picture and sound follow the plan.

    The checker reads the prompt, and compares what it reads with the plan's sheet. Without a checker, a sheet or a text encoder, the
    prompt is compared with the plan's own as text.
    """
    if prompts is None or (plan.prompts is None and plan.sheets is None):
        return
    shown, asked = num_clips // plan.batch_size, num_clips // len(prompts)
    pairs = dict.fromkeys((row // shown, prompts[row // asked]) for row in range(num_clips))
    pairs = [(row, prompt) for row, prompt in pairs if plan.prompts is None or plan.prompts[row] != prompt]
    sheets = [plan.sheets and plan.sheets[row] for row, _ in pairs]
    if pairs and all(sheets) and pipe.plan_checker is not None and pipe.text_encoder is not None:
        read = _read_prompts(pipe, [prompt for _, prompt in pairs], device)
        readings = [_reading(pipe.plan_checker, read, number) for number in range(len(pairs))]
        scores = pipe.plan_checker.score(
            read, [sheet for pair in zip(sheets, readings, strict=True) for sheet in pair]
        )
        for (_, prompt), sheet, reading, ours, best in zip(
            pairs, sheets, readings, scores[::2], scores[1::2], strict=True
        ):
            if ours < best - _DISAGREEMENT:
                logger.warning(
                    f"`plan` shows {sheet!r}, but the prompt {prompt!r} reads as {parse_sheet(reading).to_prompt()!r}, and what happens "
                    f"follows the plan: plan this prompt, or ask for {parse_sheet(sheet).to_prompt()!r}."
                )
                return
        return
    for row, prompt in pairs if plan.prompts is not None else ():
        logger.warning(
            f"`plan` was made from the prompt {plan.prompts[row]!r}, but the clip is asked for by {prompt!r}, and what happens "
            "follows the plan: plan this prompt, or give the plan's own."
        )
        return


def _read_prompts(pipe: PipelineParts, prompts: list[str], device: torch.device) -> PlanCheckerOutput:
    return pipe.plan_checker(read_texts(pipe, prompts, device).to(pipe.plan_checker.dtype))


def _reading(checker: PlanChecker, read: PlanCheckerOutput, row: int) -> str:
    """The likeliest reading of a prompt as a sheet. Open places become the first free ones, and times are arbitrary."""
    (cast, cues), *_ = checker.readings(read, row)
    free = [place for place in checker.config.places if [place] not in cast.values()]
    members = [
        CastMember(name, places[0] if len(places) == 1 or not free else free.pop(0)) for name, places in cast.items()
    ]
    return format_sheet(Sheet(tuple(members), tuple(Cue(float(i), text) for i, text in enumerate(cues))))


def _outlines(pipe: PipelineParts, read: PlanCheckerOutput, row: int, number: int = 1) -> list[SheetOutline]:
    """The checker's likeliest readings of a prompt, as tokens of the planner."""

    def ids(text: str) -> list[int]:
        return pipe.planner_tokenizer(text, add_special_tokens=False).input_ids

    return [
        SheetOutline(
            {tuple(ids(name)): tuple(ids(place)[-1] for place in allowed) for name, allowed in cast.items()},
            [ids(text) for text in cues],
        )
        for cast, cues in pipe.plan_checker.readings(read, row, number)
    ]


def places_of(pipe: PipelineParts) -> list[str]:
    """Places of a cast in the order in which the planner writes them, if the checker knows it."""
    return [] if pipe.plan_checker is None else list(pipe.plan_checker.config.places)


def fit_to_plan(
    pipe: PipelineParts,
    prompts: list[str],
    num_clips: int,
    observed: SemanticPlan,
    num_candidates: int,
    generator: Generators,
    device: torch.device,
    goes_on: bool = False,
) -> list[str]:
    """Sheets whose plans agree best with the observed part of the clips, see [`fit_cues`]. If a clip `goes_on`, the sheets have
    the observed events and then the prompt's, see [`continue_cues`]."""
    repeats = _repeats(num_clips, prompts, "prompts")
    plans = observed.repeat_interleave(num_clips // observed.batch_size).to(device)
    generator = _for_cues(generator)
    generators = generator if isinstance(generator, list) else [generator] * num_clips
    checker, read = pipe.plan_checker, None
    if checker is not None and pipe.text_encoder is not None and pipe.planner.config.cast_separator_id is not None:
        read = _read_prompts(pipe, prompts, device)
    sheets = []
    for clip in range(num_clips):
        row = clip // repeats
        parts = {
            "planner": pipe.planner,
            "tokenizer": pipe.planner_tokenizer,
            "prompt": prompts[row],
            "given": plans[clip],
            "num_candidates": num_candidates,
            "generator": generators[clip],
        }
        if read is not None and goes_on:
            sheets.append(continue_cues(**parts, checker=checker, told=checker.readings(read, row)[0]))
            continue
        known = {}
        if read is not None:
            known = {"outline": _outlines(pipe, read, row)[0], "open_names": checker.open_names(read, row)}
        earliest = end_of_beginning(plans[clip].trimmed()) if goes_on else 0.0
        sheets.append(fit_cues(**parts, **known, places=places_of(pipe), earliest=earliest))
    return sheets


def _repeats(num_clips: int, texts: list[str], name: str) -> int:
    if num_clips % len(texts):
        raise ValueError(f"{num_clips} clips cannot be shared out among {len(texts)} {name}: give as many, or one.")
    return num_clips // len(texts)


def _for_cues(generator: Generators) -> torch.Generator | list[torch.Generator]:
    """Generators of the same state for the planner, so that the noise of a clip does not depend on it. Without one, PyTorch's
    default generator gives a seed, and advances."""
    if isinstance(generator, list):
        return [_for_cues(one) for one in generator]
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
    fork = torch.Generator(generator.device)
    fork.set_state(generator.get_state())
    return fork


# Plans


def make_plan(
    pipe: PipelineParts, prompts: list[str], num_frames: int, cues: list[str] | None, device: torch.device
) -> SemanticPlan:
    """The planner's plan, one for each cue sheet, or without sheets one for each prompt.

    Raises:
        ValueError: if the plan holds NaN.
    """
    config = pipe.planner.config
    if cues is None:
        input_ids, attention_mask = tokenize_prompts(pipe.planner_tokenizer, prompts, config.system_prompt)
    else:
        prompts = [text for text in prompts for _ in range(len(cues) // len(prompts))]
        texts = plan_prompts(prompts, cues, config.plans_from_sheets)
        input_ids, attention_mask, _ = tokenize_cues(
            pipe.planner_tokenizer, texts, cues, config.system_prompt, config.timestamp_rate
        )
    try:
        plan = pipe.planner(input_ids.to(device), attention_mask.to(device), pipe.clip_duration(num_frames))
        plan.check_values()
    except NotFinite as error:
        raise ValueError(
            "the planner's plan holds NaN or infinite values: usually the weights of `planner` are damaged; load them again, or call "
            "with `use_plan=False`."
        ) from error
    return replace(plan, prompts=tuple(prompts), sheets=None if cues is None else tuple(cues))


def ready_plan(pipe: PipelineParts, plan: SemanticPlan, num_clips: int | None, device: torch.device) -> SemanticPlan:
    """A plan as the transformer reads it: on its device, in its dtype, without tokens beyond the end, one for each clip."""
    reader = pipe.planner if getattr(pipe, "transformer", None) is None else pipe.transformer
    plan = plan.to(device, plan.video_tokens.dtype if reader is None else reader.dtype).trimmed()
    return plan.repeat_interleave((num_clips or plan.batch_size) // plan.batch_size)


@torch.no_grad()
def observe_plan(pipe: PipelineParts, given: Given, size: ClipSize, device: torch.device) -> SemanticPlan | None:
    """The part of the plan that the given media show. See `BatonPipeline.prepare_given_plan`."""
    config, num_frames = pipe.planner.config, size.num_frames
    duration, frame_rate = pipe.clip_duration(num_frames), pipe.frame_rate
    layout = pipe.planner.plan_layout(duration)
    num_clips = max(number for name, number in given.num_clips.items() if name != "reference audio")
    video_tokens = torch.zeros(num_clips, len(layout.video_times), config.video_dim, device=device)
    audio_tokens = torch.zeros(num_clips, len(layout.audio_times), config.audio_dim, device=device)
    known = torch.zeros(len(layout.video_times), dtype=torch.bool)
    audio_known = torch.zeros(len(layout.audio_times), dtype=torch.bool)
    if given.video is not None and pipe.video_semantic_encoder is not None:
        frames = model_frames(given.video, num_frames, frame_rate, size.height, size.width)
        video_tokens[:] = pipe.video_semantic_encoder.encode(frames.to(device), frame_rate)
        new = coordinates.units_in_spans(given.video.new, frame_rate, num_frames)
        known = ~new[coordinates.nearest_frames(layout.video_times, num_frames, frame_rate)]
    if given.audio is not None and pipe.audio_semantic_encoder is not None:
        encoder = pipe.audio_semantic_encoder
        num_samples = coordinates.num_samples(duration, encoder.sampling_rate)
        waveform = model_waveform(given.audio, num_samples, encoder.sampling_rate)[:, None].to(device)
        waveform = waveform.expand(-1, encoder.audio_channels, -1)
        audio_tokens[:] = encoder.encode(waveform, encoder.sampling_rate)
        rate = config.audio_tokens_per_chunk / config.chunk_duration
        within = [(start, end) for start, end in given.audio.new if start < duration]
        audio_known = layout.audio_mask & ~coordinates.units_in_spans(within, rate, len(audio_known))
    if not known.any() and not audio_known.any():
        return None
    plan = SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)
    masks = known.to(device).expand(num_clips, -1), audio_known.to(device).expand(num_clips, -1)
    return replace(plan, video_mask=masks[0], audio_mask=masks[1])


@torch.no_grad()
def extract_plan(
    pipe: PipelineParts,
    frames: np.ndarray,
    waveform: np.ndarray,
    frame_rate: float,
    sampling_rate: int,
    device: torch.device,
) -> SemanticPlan:
    """The plan of a real clip. See `BatonPipeline.extract_plan`."""
    for name in ("video_semantic_encoder", "audio_semantic_encoder"):
        if getattr(pipe, name) is None:
            raise ValueError(f"`extract_plan` needs `{name}`, which this pipeline lacks: load it with one.")
    try:
        frames, waveform = np.asarray(frames), np.asarray(waveform, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`frames` and `waveform` must be arrays of numbers: {error}.") from error
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"`frames` has shape {frames.shape}, but must be (num_frames, height, width, 3).")
    if waveform.ndim not in (1, 2):
        raise ValueError(
            f"`waveform` has shape {waveform.shape}, but must be (num_samples,) or (num_channels, num_samples)."
        )
    if not np.isfinite(waveform).all():
        raise ValueError("`waveform` holds NaN or infinite values: give finite samples in [-1, 1].")
    frames = channels_last("frames", frames)
    if frames.dtype == np.uint8:
        frames = frames.astype(np.float32) / 255
    waveform = waveform if waveform.ndim == 1 else waveform.mean(axis=0)
    if frame_rate > 0 and sampling_rate > 0:
        duration = coordinates.clip_duration(len(frames), frame_rate)
        waveform = fit_sound(waveform[None], sampling_rate, duration, 1 / frame_rate, "`waveform`")[0]
    video = torch.from_numpy(frames.astype(np.float32)).permute(3, 0, 1, 2)[None] * 2 - 1
    return read_plan(
        pipe.video_semantic_encoder,
        pipe.audio_semantic_encoder,
        video.to(device),
        frame_rate,
        torch.from_numpy(waveform)[None, None].to(device),
        sampling_rate,
    )
