"""The plan of a film: all its shots in one time frame, planned before anything is rendered.

A planner knows clips of a certain length. A longer shot is split at its sentences into sections, a section is planned as the
beginning of a clip of that length, and the film's plan is these plans one after another. Its cast is one: whoever is named in one
shot stands at the same place in the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..cues import CastMember, Sheet, format_sheet, parse_sheet, sheet_turns
from ..models.va_planner import tokenize_prompts
from ..plan import SemanticPlan
from ..shots import Shot
from .components import PipelineParts
from .planning import PlanRequest, check_cues, make_plan, share_cues, write_cues
from .texts import read_texts


# How a prompt names an actor by what it did before: "the ball that bounced first", "the bell that has not rung yet".
_CALLBACK = re.compile(
    r"\b(?P<kind>\w+) (?:that|who|which) (?:(?P<idle>has not|hasn't) )?(?P<deed>\w+)(?: \w+)? (?P<which>first|second|third|last|yet)\b",
    re.IGNORECASE,
)
_ORDER = {"first": 0, "second": 1, "third": 2}

# Frames of the shortest section of a shot that is split, as a share of a clip.
_SHORTEST_SHARE = 0.5


@dataclass(frozen=True)
class Section:
    """A part of a shot that is planned at once.

    Args:
        prompt (`str`): what happens in it.
        start (`int`): its first frame, from the take's start.
        num_frames (`int`): how long it lasts.
        shot (`int`): which shot of the film it is a part of.
        idle (`bool`): whether the shot's events are over, so that only its cast is seen.
        sheet (`str`, *optional*): its cue sheet, with times from its start.
    """

    prompt: str
    start: int
    num_frames: int
    shot: int
    idle: bool = False
    sheet: str | None = None


def is_split(pipe: PipelineParts, shot: Shot, number: int, num_frames: int) -> bool:
    """
    Whether a shot of `num_frames` is longer than the planner's clips, and planned in sections.

    Raises:
        ValueError: if so, and it has a cue sheet, which says when things happen in the whole of it.
    """
    most = pipe.config.num_frames
    writes = pipe.planner is not None and pipe.planner.writes_cues
    if num_frames <= most or shot.plan is not None or not writes:
        return False
    if shot.cues is not None:
        raise ValueError(
            f"shot {number + 1} lasts {shot.seconds:g} seconds and has `cues`, but the planner plans {pipe.clip_duration(most):g} at "
            "once: split it into shots of that length, each with its own."
        )
    return True


def split_shot(pipe: PipelineParts, shot: Shot, number: int, start: int, num_frames: int) -> list[Section]:
    """
    The sections of a shot: the shot itself, or, if it is longer than the planner's clips, some of its sentences each. Time is shared
    out by the cues that the planner writes for them; what is left is idle.

    Args:
        pipe: with `planner`, if it plans.
        shot ([`Shot`]): the shot.
        number (`int`): which one it is.
        start, num_frames (`int`): where it lies in its take.

    Raises:
        ValueError: as `is_split`.
    """
    most = pipe.config.num_frames
    if not is_split(pipe, shot, number, num_frames):
        return [Section(shot.prompt, start, num_frames, number)]
    texts = re.split(r"(?<=[.!?])\s+", shot.prompt.strip())
    weights = [1 + num_cues for num_cues in _numbers_of_cues(pipe, texts)]
    while len(texts) > 1 and min(weights) * num_frames / sum(weights) < _SHORTEST_SHARE * most:
        pairs = [first + second for first, second in zip(weights, weights[1:], strict=False)]
        i = pairs.index(min(pairs))
        texts[i : i + 2], weights[i : i + 2] = [f"{texts[i]} {texts[i + 1]}"], [pairs[i]]
    sections: list[Section] = []
    end, total = start, 0
    for text, weight in zip(texts, weights, strict=True):
        total += weight
        last = start + round(num_frames * total / sum(weights))
        idle = False
        while end < last:
            # Equal parts, none longer than a clip: the first one has the events.
            length = math.ceil((last - end) / math.ceil((last - end) / most))
            sections.append(Section(text, end, length, number, idle))
            end, idle = end + length, True
    return sections


def _numbers_of_cues(pipe: PipelineParts, texts: list[str]) -> list[int]:
    request, generator = PlanRequest(cue_temperature=0.0, num_plan_candidates=1), torch.Generator().manual_seed(0)
    device = pipe._execution_device
    written = [
        write_cues(pipe, [text], 1, pipe.config.num_frames, request, generator, device)[0][0].sheet for text in texts
    ]
    return [len(parse_sheet(sheet).cues) for sheet in written]


def calls_back(prompt: str) -> bool:
    """Whether a prompt names somebody by what it did before."""
    return _CALLBACK.search(prompt) is not None


def resolve_callbacks(prompt: str, sheets: Sequence[Sheet]) -> str:
    """
    A prompt with names in place of what somebody did before: "the ball that bounced first" becomes "the red ball". What the sheets do not
    settle stays as it is.

    Args:
        prompt (`str`): of a section of a film.
        sheets (`Sequence[Sheet]`): of all sections before, in order.
    """

    def name(found: re.Match) -> str:
        kind, deed, which = (found[group].lower() for group in ("kind", "deed", "which"))
        cast = dict.fromkeys(m.name for sheet in sheets for m in sheet.cast if m.name.split()[-1] == kind)
        turns = [turn for sheet in sheets for turn in sheet_turns(sheet, 0.0, list(cast)) if turn.who in cast]
        deeds = {word.split()[0] for turn in turns for word in turn.deeds if word}
        if len(deeds) > 1:  # only whoever did this
            turns = [turn for turn in turns if any(word[:3] == deed[:3] for word in turn.deeds)]
        acted = list(dict.fromkeys(turn.who for turn in turns))
        if (which == "yet") != bool(found["idle"]):
            return found[0]
        if which == "yet":
            idle = [who for who in cast if who not in acted]
            return idle[0] if len(idle) == 1 else found[0]
        if which == "last":
            return turns[-1].who if turns else found[0]
        return acted[_ORDER[which]] if _ORDER[which] < len(acted) else found[0]

    return _CALLBACK.sub(name, prompt)


def write_sheets(
    pipe: PipelineParts,
    sections: Sequence[Section],
    shots: Sequence[Shot],
    request: PlanRequest,
    seed: int,
    before: Sequence[Sheet] = (),
) -> list[Section]:
    """
    The sections of a take with their cue sheets, of one cast.

    Args:
        pipe: with a planner that writes cues; without one, sections stay as they are.
        sections (`Sequence[Section]`): all sections of the take.
        shots (`Sequence[Shot]`): all shots of the film; one with `cues` keeps them.
        request ([`PlanRequest`]): how freely sheets are written, and how many.
        seed (`int`): the film's.
        before (`Sequence[Sheet]`): the sheets of the takes before, for prompts that name somebody by an earlier deed.
    """
    if pipe.planner is None or not pipe.planner.writes_cues:
        return list(sections)
    device, config = pipe._execution_device, pipe.planner.config
    tail = math.ceil(config.min_cue_gap / config.timestamp_rate * pipe.frame_rate)
    sheets: list[Sheet] = []
    called = []
    for section in sections:
        shot = shots[section.shot]
        section = replace(section, prompt=resolve_callbacks(section.prompt, [*before, *sheets]))
        called.append(section)
        if shot.plan is not None:
            sheets.append(Sheet())
            continue
        if shot.cues is not None:
            sheets.append(parse_sheet(share_cues(pipe, [shot.cues], 1)[0]))
            continue
        generator = torch.Generator().manual_seed(seed_of(seed, "cues", section.shot, section.prompt))
        # What happens last needs its time before the section ends, as it would before the next cue.
        frames = max(min(section.num_frames, pipe.config.num_frames) - tail, 1)
        sheet = parse_sheet(write_cues(pipe, [section.prompt], 1, frames, request, generator, device)[0][0].sheet)
        sheets.append(sheet._replace(cues=()) if section.idle else sheet)
    sections = called
    told = [_told_places(pipe, section.prompt) for section in sections]
    places = film_cast(sheets, told, _all_places(pipe))
    return [
        section
        if shots[section.shot].plan is not None
        else replace(
            section,
            sheet=format_sheet(
                sheet if shots[section.shot].cues is not None else with_cast(sheet, places, _all_places(pipe))
            ),
        )
        for section, sheet in zip(sections, sheets, strict=True)
    ]


def _all_places(pipe: PipelineParts) -> list[str]:
    return [] if pipe.plan_checker is None else list(pipe.plan_checker.config.places)


def _told_places(pipe: PipelineParts, prompt: str) -> dict[str, str]:
    """The places that a prompt names, by actor. The plan checker reads them; without one there are none."""
    if pipe.plan_checker is None or pipe.text_encoder is None:
        return {}
    read = pipe.plan_checker(read_texts(pipe, [prompt], pipe._execution_device).to(pipe.plan_checker.dtype))
    (cast, _), *_ = pipe.plan_checker.readings(read, 0)
    return {name: places[0] for name, places in cast.items() if len(places) == 1}


def film_cast(sheets: Sequence[Sheet], told: Sequence[dict[str, str]], all_places: Sequence[str]) -> dict[str, str]:
    """
    The cast of a take: each name with its place. The place is the one that a prompt names, or else the place in the first sheet with
    this actor. An actor whose place is taken gets a free one.

    Args:
        sheets (`Sequence[Sheet]`): the sheets of its sections, in order.
        told (`Sequence[dict]`): the places that their prompts name, by actor.
        all_places (`Sequence[str]`): the known places, from which a free one is taken.
    """
    names = {member.name for sheet in sheets for member in sheet.cast}
    cast: dict[str, str] = {}
    for places in told:
        for name, place in places.items():
            if name in names and place not in cast.values():
                cast.setdefault(name, place)
    for sheet in sheets:
        for name, place in sheet.cast:
            if name in cast:
                continue
            free = [other for other in (place, *all_places) if other not in cast.values()]
            if free:
                cast[name] = free[0]
    return cast


def with_cast(sheet: Sheet, cast: dict[str, str], all_places: Sequence[str]) -> Sheet:
    """A sheet with the whole cast of its take, each at its place. An actor without a place in the take stands where the sheet has it,
    and takes the place of an actor that the sheet does not name."""
    members = {member.name: cast.get(member.name, member.place) for member in sheet.cast}
    for name, place in cast.items():
        if name not in members and place not in members.values():
            members[name] = place
    order = {place: number for number, place in enumerate(all_places)}
    ordered = sorted(members.items(), key=lambda member: order.get(member[1], 0))
    return sheet._replace(cast=tuple(CastMember(*member) for member in ordered))


def plan_take(pipe: PipelineParts, sections: Sequence[Section], shots: Sequence[Shot]) -> SemanticPlan | None:
    """The plan of a take, joined from the plans of its sections; `None` without a planner.

    A section is planned as the beginning of a clip of the pipeline's length, which is what a planner has learnt.
    """
    plans = []
    for section in sections:
        given = shots[section.shot].plan
        num_frames = max(section.num_frames, pipe.config.num_frames)
        if given is not None:
            plan, num_frames = given, section.num_frames
        elif pipe.planner is None:
            return None
        else:
            sheets = None if section.sheet is None else [section.sheet]
            plan = make_plan(pipe, [section.prompt], num_frames, sheets, pipe._execution_device)
        duration = pipe.clip_duration(section.num_frames)
        if plan.duration - duration > 1e-6:
            plan = plan.slice(0.0, duration)
        plans.append(replace(plan, duration=duration).to(torch.float32))
    return SemanticPlan.concat(plans)


def check_shot(pipe: PipelineParts, shot: Shot, number: int, num_frames: int) -> None:
    """Refuses a shot of `num_frames` that the planner cannot plan.

    Raises:
        ValueError: naming the shot.
    """
    duration = pipe.clip_duration(pipe.config.num_frames if is_split(pipe, shot, number, num_frames) else num_frames)
    try:
        if shot.plan is not None:
            plan = shot.plan.check_values()
            if plan.batch_size != 1 or abs(plan.duration - duration) > 0.5 / pipe.frame_rate:
                raise ValueError(
                    f"its `plan` is for {plan.batch_size} clips of {plan.duration:.4f} seconds, but the shot is one of "
                    f"{duration:.4f}: use `plan.slice` or another `seconds`."
                )
            PlanRequest(plan).check_widths(pipe)
        elif pipe.planner is not None:
            ids, _ = tokenize_prompts(pipe.planner_tokenizer, [shot.prompt], pipe.planner.config.system_prompt)
            longest = max(duration, pipe.clip_duration(pipe.config.num_frames))
            pipe.planner.check_lengths(ids.shape[1], longest)
            if shot.cues is not None:
                check_cues(pipe, [shot.cues], ids.shape[1], duration)
    except ValueError as error:
        raise ValueError(f"shot {number + 1}: {error}") from error


def seed_of(seed: int, *parts: object) -> int:
    """A seed of its own for each part of a film, by what the part is: other parts do not change it."""
    import hashlib

    digest = hashlib.sha256("\0".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
