"""Cues for given media: found by analysis through synthesis.

A prompt does not say when things happen; a given video, sound or beginning does. The planner cannot read media. Semantic
encoders can, and their features are plan tokens. So many sheets are planned, and the sheet whose plan is nearest to the
encoders' features has the right times. Media that are given whole show what the prompt describes: the planner writes sheets of
the prompt, and the times of the best one are refined ([`fit_cues`]). The prompt of a clip to continue does not describe its
beginning: cast and events of the beginning are read off the clip ([`read_beginning`]). Ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from transformers import PreTrainedTokenizerBase

from .. import coordinates
from ..cues import CastMember, Sheet, format_sheet, parse_sheet
from ..models.plan_checker import PlanChecker
from ..models.va_planner import SheetOutline, VAPlannerModel, plan_prompts, tokenize_cues, tokenize_prompts
from ..plan import SemanticPlan


# Temperature of the candidates, near the planner's training: the sheet that fits is not always the likeliest.
_TEMPERATURE = 0.7
_CANDIDATES_AT_ONCE = 16
_MOVES = (-2, -1, 1, 2)  # timestamps
_MAX_ROUNDS = 8
_LEAST_GAIN = 0.005  # of the disagreement, in a round: less is what cues of other instants do to one another

# Of a beginning. What is seen of an event may come before its cue: a ball jumps before it lands.
_LEAD = 0.375  # seconds
_EVENT_STEP = 0.125  # seconds between the instants that are tried first
_SAME_PICTURE = 0.04  # of squared features: a still picture that is nearer shows the cast
_CAST_GAIN = 0.1  # of the disagreement, for another actor to be seen than the prompt tells
_EVENT_GAIN = 0.1  # of the disagreement, for an event to be seen and heard
_LEAST_EVENT = 0.05  # of squared features, in a second: less is no event


Measure = Callable[[SemanticPlan, SemanticPlan], torch.Tensor]


@dataclass(frozen=True)
class Synthesis:
    """
    Plans sheets, and compares the plans with the given media.

    Args:
        planner (`VAPlannerModel`): a planner that writes cues.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompt (`str`): what the planner reads before each sheet, unless it plans from sheets alone.
        given (`SemanticPlan`): one clip's plan as the semantic encoders read it; its masks mark the tokens that they could read.
    """

    planner: VAPlannerModel
    tokenizer: PreTrainedTokenizerBase
    prompt: str
    given: SemanticPlan

    def errors(self, sheets: Sequence[str], measure: Measure | None = None) -> torch.Tensor:
        """The distance of each sheet's plan from the given media, by [`disagreement`] or another measure, `(num_sheets,)`."""
        config, device, parts = self.planner.config, self.given.video_tokens.device, []
        for start in range(0, len(sheets), _CANDIDATES_AT_ONCE):
            some = list(sheets[start : start + _CANDIDATES_AT_ONCE])
            texts = plan_prompts([self.prompt] * len(some), some, config.plans_from_sheets)
            tokens = tokenize_cues(self.tokenizer, texts, some, config.system_prompt, config.timestamp_rate)
            plan = self.planner(tokens[0].to(device), tokens[1].to(device), self.given.duration)
            parts.append((measure or disagreement)(plan.trimmed(), self.given))
        return torch.cat(parts)

    def best(self, sheets: Sequence[Sheet], measure: Measure | None = None) -> tuple[Sheet, float]:
        """The sheet whose plan comes nearest, and its error."""
        values = self.errors([format_sheet(sheet) for sheet in sheets], measure)
        number = int(values.argmin())
        return sheets[number], float(values[number])


@torch.no_grad()
def fit_cues(
    planner: VAPlannerModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    given: SemanticPlan,
    num_candidates: int = 64,
    generator: torch.Generator | None = None,
    outline: SheetOutline | None = None,
    places: Sequence[str] = (),
    open_names: Sequence[Sequence[str]] = (),
    earliest: float = 0.0,
) -> str:
    """
    The cue sheet of a prompt whose plan agrees best with the given media.

    The planner writes `num_candidates` sheets. The best of them is then refined: each of its cues within the given media, alone
    or with all later cues, is moved by one or two timestamps as long as the plan improves. Actors whose names the prompt leaves
    open take other colours in the same way. Cues outside of the given media stay as they were written.

    Args:
        planner (`VAPlannerModel`): a planner that writes cues.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompt (`str`): what happens in the clip.
        given (`SemanticPlan`): one clip's plan as the semantic encoders read it; its masks mark the tokens that they could read.
        num_candidates (`int`, defaults to 64): sheets to choose from. Moving the best one takes up to half as many plans again for
            each of its cues.
        generator (`torch.Generator`, *optional*): what sheets are drawn from.
        outline ([`SheetOutline`], *optional*): what every sheet has to say; the given media cannot decide the rest of the clip.
        places (`Sequence[str]`): places of a cast, in the order in which the planner writes them.
        open_names (`Sequence[Sequence[str]]`): groups of names between which the prompt leaves the choice.
        earliest (`float`, defaults to 0.0): seconds before which no cue is written.

    Returns:
        `str`: the sheet.
    """
    config, given = planner.config, given.trimmed()
    synthesis = Synthesis(planner, tokenizer, prompt, given)
    written = _write(planner, tokenizer, prompt, given, num_candidates, generator, outline, earliest)
    candidates = list(dict.fromkeys(readable_sheet(sheet, places) for sheet in written))
    best, least = "", float("inf")
    measured: set[str] = set()
    for _ in range(1 + _MAX_ROUNDS):
        values = synthesis.errors(candidates)
        measured.update(candidates)
        if not values.min() < (1 - _LEAST_GAIN) * least:
            break
        best, least = candidates[int(values.argmin())], float(values.min())
        changed = _recoloured(best, open_names)
        changed += _moved(best, given, config.keyframe_rate, config.timestamp_rate, earliest)
        candidates = [sheet for sheet in changed if sheet not in measured]
        if not candidates:
            break
    return best


def _write(
    planner: VAPlannerModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    given: SemanticPlan,
    number: int,
    generator: torch.Generator | None,
    outline: SheetOutline | None,
    earliest: float,
) -> list[str]:
    """Sheets of a prompt that a planner writes."""
    input_ids, attention_mask = (
        values.repeat(number, 1).to(given.video_tokens.device)
        for values in tokenize_prompts(tokenizer, [prompt], planner.config.system_prompt)
    )
    outlines = None if outline is None else [outline] * number
    written = planner.generate_cues(
        input_ids, attention_mask, given.duration, _TEMPERATURE, generator, outlines=outlines, earliest=earliest
    )
    return tokenizer.batch_decode(written)


# A clip that goes on


@torch.no_grad()
def continue_cues(
    planner: VAPlannerModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    given: SemanticPlan,
    checker: PlanChecker,
    told: tuple[dict[str, list[str]], list[str]],
    num_candidates: int = 64,
    generator: torch.Generator | None = None,
) -> str:
    """
    The cue sheet of a clip whose beginning is the end of another clip, and whose prompt describes what comes then. First the
    cast and the events of the beginning are read off it. Then the planner writes the times of the prompt's events, all after
    the beginning. The cast is the one in the picture. If the prompt names an actor that is not there, it means the actor of the
    same kind that is; if there is none, the actor is added.

    Args:
        planner (`VAPlannerModel`): a planner that writes cues and casts.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompt (`str`): what happens after the beginning.
        given (`SemanticPlan`): one clip's plan as the semantic encoders read it; its masks mark the beginning.
        checker ([`PlanChecker`]): knows which actors exist, and what each can do.
        told (`tuple`): what it reads in the prompt, see [`PlanChecker.readings`].
        num_candidates (`int`, defaults to 64): sheets of the prompt's events to choose from, at most 16, since only their times
            differ.
        generator (`torch.Generator`, *optional*): what the times are drawn from.

    Returns:
        `str`: the sheet.
    """
    config, given, (cast, cues) = planner.config, given.trimmed(), told
    places = list(checker.config.places)
    synthesis = Synthesis(planner, tokenizer, prompt, given)
    seen = read_beginning(synthesis, checker, _placed(cast, places))
    sheet, names = _joined(seen, cast, places)
    outline = SheetOutline(
        {
            tuple(_ids(tokenizer, member.name)): (_ids(tokenizer, member.place)[-1],)
            for member in sorted(sheet.cast, key=lambda member: places.index(member.place))
        },
        [_ids(tokenizer, _renamed(text, names)) for text in cues],
    )
    step = 1 / config.timestamp_rate  # who acts on the first new frame is not seen at rest
    after = [cue.time + config.min_cue_gap * step for cue in sheet.cues]
    earliest = max([end_of_beginning(given) + step, *after])
    number = min(max(num_candidates, 1), _CANDIDATES_AT_ONCE)
    written = _write(planner, tokenizer, prompt, given, number, generator, outline, earliest)
    coming = [parse_sheet(readable_sheet(text, places)) for text in written]
    # An event may be visible before its cue, and would then contradict the beginning.
    best, _ = synthesis.best([one._replace(cues=(*sheet.cues, *one.cues)) for one in coming])
    return format_sheet(best)


def read_beginning(synthesis: Synthesis, checker: PlanChecker, start: Sheet) -> Sheet:
    """
    The cast and the events of a beginning, from its picture and sound.

    Args:
        synthesis ([`Synthesis`]): of the beginning.
        checker ([`PlanChecker`]): knows who may be there, and what each may do.
        start ([`Sheet`]): a cast to begin with.

    Returns:
        [`Sheet`]: the cast, and cues with times from the start of the beginning.
    """
    names, places = list(checker.config.names), list(checker.config.places)
    given, config, sheet = synthesis.given, synthesis.planner.config, start._replace(cues=())
    sees = bool(_is_known(given, "video").any())
    if sees:
        sheet = _seen_cast(synthesis, sheet, names, places)
    able = checker.possible_deeds([member.name for member in sheet.cast])
    # One deed of each kind is tried first: the time of speech is found sooner than its words.
    first = {(name, deed.split()[0]): f"{name} {deed}" for name, deeds in able.items() for deed in reversed(deeds)}
    end, step, gap = end_of_beginning(given), 1 / config.timestamp_rate, config.min_cue_gap / config.timestamp_rate
    # The picture decides the time, and the sound helps to decide the deed: the encoder was not trained on a vocoder's sound.
    when = _seen_disagreement if sees else disagreement
    _, least = synthesis.best([sheet], when)
    while least > _LEAST_EVENT / end:
        free = [
            time
            for time in (i * _EVENT_STEP for i in range(1 + math.floor((end + _LEAD) / _EVENT_STEP)))
            if all(abs(time - cue.time) >= gap for cue in sheet.cues)
        ]
        tried = [sheet.add_event(time, text) for text in first.values() for time in free]
        if not tried:
            break
        best, error = synthesis.best(tried, when)
        if least - error < max(_EVENT_GAIN * least, _LEAST_EVENT / end):
            break
        event = next(number for number, cue in enumerate(best.cues) if cue not in sheet.cues[number : number + 1])
        shifted = [best.cues[event].time + steps * step for steps in (-1, 0, 1)]
        best, least = synthesis.best([best.retime(event, time) for time in shifted if time >= 0], when)
        event = next(number for number, cue in enumerate(best.cues) if cue not in sheet.cues)
        sheet, _ = synthesis.best([best.reword(event, deed) for deed in able[best.actor_of(event)]])
    return sheet


def _seen_cast(synthesis: Synthesis, sheet: Sheet, names: Sequence[str], places: Sequence[str]) -> Sheet:
    """The cast after all single changes that bring its still picture nearer to the given one."""
    _, least = synthesis.best([sheet], _still_disagreement)
    while least > _SAME_PICTURE:
        changed, error = synthesis.best(list(_recast(sheet, names, places)), _still_disagreement)
        if error >= (1 - _CAST_GAIN) * least:
            break
        sheet, least = changed, error
    return sheet


def _recast(sheet: Sheet, names: Sequence[str], places: Sequence[str]) -> Iterator[Sheet]:
    """Casts that differ at one place, or of which two places are exchanged."""
    at = {member.place: member.name for member in sheet.cast}
    changes = [{place: name} for place in places for name in (None, *names) if name is None or name not in at.values()]
    changes += [{one: at.get(other), other: at.get(one)} for one, other in combinations(places, 2)]
    for change in changes:
        changed = {**at, **change}
        if any(at.get(place) != name for place, name in change.items()):
            yield Sheet(tuple(CastMember(changed[place], place) for place in places if changed.get(place)))


def _placed(cast: Mapping[str, Sequence[str]], places: Sequence[str]) -> Sheet:
    """A cast with a place for each name: its own, or the first one that is free."""
    told = {name: own[0] for name, own in cast.items() if len(own) == 1}
    free = iter([place for place in places if place not in told.values()])
    return Sheet(tuple(CastMember(name, told.get(name) or next(free)) for name in cast))


def _joined(seen: Sheet, cast: Mapping[str, Sequence[str]], places: Sequence[str]) -> tuple[Sheet, dict[str, str]]:
    """The seen cast, with the further actors of the prompt; and for each actor of the prompt its name in the sheet."""
    names = {name: name for name in cast}
    for name, own in cast.items():
        members = {member.name: member.place for member in seen.cast}
        if name in members:
            continue
        others = [other for other in members if other not in cast and other not in names.values()]
        alike = [other for other in others if other.split()[-1] == name.split()[-1]]
        free = [place for place in places if place not in members.values()]
        if alike:
            names[name] = next((other for other in alike if members[other] in own), alike[0])
        elif free:
            seen = seen.add_actor(name, next((place for place in own if place in free), free[0]))
        else:
            gone = next((other for other in others if members[other] in own), others[0])
            seen = seen.remove_actor(gone).add_actor(name, members[gone])
    return seen, names


def _renamed(text: str, names: Mapping[str, str]) -> str:
    pattern = "|".join(map(re.escape, names))
    return re.sub(rf"\b({pattern})\b", lambda found: names[found[1]], text) if names else text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def end_of_beginning(given: SemanticPlan) -> float:
    """Seconds to the last known token of a beginning."""
    known = [
        getattr(given, f"{modality}_times")[_is_known(given, modality)].tolist() for modality in ("video", "audio")
    ]
    return max(time for times in known for time in times)


def readable_sheet(text: str, places: Sequence[str] = ()) -> str:
    """A sheet in canonical form, its cast in the order of the `places`, if it has no others. Decoding keeps to the grammar of
    tokens; if a language model spells a word with other tokens, the text may still break the grammar, and counts as an empty
    sheet."""
    try:
        sheet = parse_sheet(text)
    except ValueError:
        return ""
    if all(member.place in places for member in sheet.cast):
        sheet = sheet._replace(cast=tuple(sorted(sheet.cast, key=lambda member: places.index(member.place))))
    return format_sheet(sheet)


def disagreement(plan: SemanticPlan, given: SemanticPlan) -> torch.Tensor:
    """
    How far plans lie from one that is known in part: the mean squared difference of the known tokens, both modalities' added up.

    Args:
        plan (`SemanticPlan`): a batch of plans, of one layout with `given`.
        given (`SemanticPlan`): one clip's, whose masks say what is known.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, float32.
    """
    total = torch.zeros(plan.batch_size, device=plan.video_tokens.device)
    for modality in ("video", "audio"):
        tokens, known = (getattr(p, f"{modality}_tokens").float() for p in (plan, given))
        mask = _is_known(given, modality)
        if mask.any():
            total += (tokens - known)[:, mask].square().mean(dim=(1, 2))
    return total


def _seen_disagreement(plan: SemanticPlan, given: SemanticPlan) -> torch.Tensor:
    """The same for the picture alone."""
    error = (plan.video_tokens.float() - given.video_tokens.float())[:, _is_known(given, "video")]
    return error.square().mean(dim=(1, 2))


def _still_disagreement(plan: SemanticPlan, given: SemanticPlan) -> torch.Tensor:
    """The same for the third of the keyframes that agree best, so that motion in the others does not count."""
    known, times = _is_known(given, "video"), given.video_times
    errors = (plan.video_tokens.float() - given.video_tokens.float()).square().mean(dim=2)
    keyframes = torch.stack([errors[:, known & (times == time)].mean(dim=1) for time in times[known].unique()], dim=1)
    return keyframes.sort(dim=1).values[:, : math.ceil(keyframes.shape[1] / 3)].mean(dim=1)


def _is_known(given: SemanticPlan, modality: str) -> torch.Tensor:
    """Which tokens of one clip's plan are known, `(num_tokens,)`."""
    mask, times = getattr(given, f"{modality}_mask"), getattr(given, f"{modality}_times")
    return torch.ones_like(times, dtype=torch.bool) if mask is None else mask[0]


def _moved(
    sheet: str, given: SemanticPlan, keyframe_rate: float, timestamp_rate: float, earliest: float = 0.0
) -> list[str]:
    """Sheets in which one cue, or it and all later ones, happen a little earlier or later, in the same order."""
    known = torch.cat([given.video_times[_is_known(given, "video")], given.audio_times[_is_known(given, "audio")]])
    last = (coordinates.num_timestamps_within(given.duration, timestamp_rate) - 1) / timestamp_rate
    written = parse_sheet(sheet)
    cues, sheets = written.cues, []
    for first in range(len(cues)):
        for end in (first + 1, len(cues)):
            for steps in _MOVES:
                moved = [
                    cue._replace(time=cue.time + steps / timestamp_rate) if first <= i < end else cue
                    for i, cue in enumerate(cues)
                ]
                times = [cue.time for cue in moved]
                instants = torch.tensor([cues[first].time, times[first]], device=known.device)
                is_known = (known[:, None] - instants).abs().amin(dim=0) <= 0.5 / keyframe_rate
                if times == sorted(times) and times[0] >= earliest and times[-1] <= last and is_known.all():
                    sheets.append(format_sheet(written._replace(cues=tuple(moved))))
    return list(dict.fromkeys(sheets))


def _recoloured(sheet: str, open_names: Sequence[Sequence[str]]) -> list[str]:
    """Sheets in which one actor has another colour, if the prompt leaves its name open."""
    written, sheets = parse_sheet(sheet), []
    taken = {member.name for member in written.cast}
    for name in taken:
        others = {other for group in open_names if name in group for other in group} - taken
        sheets += [format_sheet(written.recolour(name, other.split()[0])) for other in sorted(others)]
    return sorted(sheets)
