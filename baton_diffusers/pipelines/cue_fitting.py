"""Cues for given media: the planner samples sheets; the one whose plan agrees best with the media is kept, and its times are moved.

A prompt does not say when things happen; a film, a sound or a beginning does. No part of the planner reads them, but semantic
encoders do, in the same terms in which it plans. So cues can be found by analysis through synthesis: many sheets are written,
each is planned, and the plan that comes nearest to what the encoders read tells when things happen. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .. import coordinates
from ..cues import format_sheet, parse_sheet
from ..models.va_planner import SheetOutline, VAPlannerModel, plan_prompts, tokenize_cues, tokenize_prompts
from ..plan import SemanticPlan


# Candidates are drawn nearly as freely as the planner was trained to write: what fits is not always what is likeliest.
_TEMPERATURE = 0.7
_CANDIDATES_AT_ONCE = 16
_MOVES = (-2, -1, 1, 2)  # timestamps
_MAX_ROUNDS = 8
_LEAST_GAIN = 0.005  # of the disagreement, in a round: less is what cues of other instants do to one another


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
) -> str:
    """
    The cue sheet under which a planner's plan of a prompt agrees best with what is given of the clip.

    The planner writes `num_candidates` sheets. The best of them is then improved: each of its cues that lies within what is given,
    alone or with all later ones, is moved by one or two timestamps as long as that helps; likewise actors whose names the prompt
    leaves open take other colours. What happens where nothing is given is left as it was written.

    Args:
        planner (`VAPlannerModel`): a planner that writes cues.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompt (`str`): what happens in the clip.
        given (`SemanticPlan`): one clip's plan as the semantic encoders read it; its masks mark the tokens that they could read.
        num_candidates (`int`, defaults to 64): sheets to choose from. Moving the best one takes up to half as many plans again for
            each of its cues.
        generator (`torch.Generator`, *optional*): what sheets are drawn from.
        outline ([`SheetOutline`], *optional*): what every sheet has to say; what is given tells nothing of the rest of the clip.
        places (`Sequence[str]`): places of a cast, in the order in which the planner writes them.
        open_names (`Sequence[Sequence[str]]`): groups of names between which the prompt leaves the choice.

    Returns:
        `str`: the sheet.
    """
    config, given = planner.config, given.trimmed()
    device = given.video_tokens.device
    input_ids, attention_mask = (
        values.repeat(num_candidates, 1).to(device)
        for values in tokenize_prompts(tokenizer, [prompt], config.system_prompt)
    )
    outlines = None if outline is None else [outline] * num_candidates
    written = planner.generate_cues(
        input_ids, attention_mask, given.duration, _TEMPERATURE, generator, outlines=outlines
    )

    def errors(sheets: list[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(sheets), _CANDIDATES_AT_ONCE):
            some = sheets[start : start + _CANDIDATES_AT_ONCE]
            texts = plan_prompts([prompt] * len(some), some, config.plans_from_sheets)
            tokens = tokenize_cues(tokenizer, texts, some, config.system_prompt, config.timestamp_rate)
            plan = planner(tokens[0].to(device), tokens[1].to(device), given.duration)
            parts.append(disagreement(plan.trimmed(), given))
        return torch.cat(parts)

    candidates = list(dict.fromkeys(readable_sheet(sheet, places) for sheet in tokenizer.batch_decode(written)))
    best, least = "", float("inf")
    measured: set[str] = set()
    for _ in range(1 + _MAX_ROUNDS):
        values = errors(candidates)
        measured.update(candidates)
        if not values.min() < (1 - _LEAST_GAIN) * least:
            break
        best, least = candidates[int(values.argmin())], float(values.min())
        changed = _moved(best, given, config.keyframe_rate, config.timestamp_rate) + _recoloured(best, open_names)
        candidates = [sheet for sheet in changed if sheet not in measured]
        if not candidates:
            break
    return best


def readable_sheet(text: str, places: Sequence[str] = ()) -> str:
    """A sheet as one writes it, its cast in the order of the `places`, if it has no others. Decoding holds to the grammar in tokens;
    words that a language model spells in a way of its own may still break it, and such a sheet counts as empty."""
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


def _is_known(given: SemanticPlan, modality: str) -> torch.Tensor:
    """Which tokens of one clip's plan are known, `(num_tokens,)`."""
    mask, times = getattr(given, f"{modality}_mask"), getattr(given, f"{modality}_times")
    return torch.ones_like(times, dtype=torch.bool) if mask is None else mask[0]


def _moved(sheet: str, given: SemanticPlan, keyframe_rate: float, timestamp_rate: float) -> list[str]:
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
                if times == sorted(times) and times[0] >= 0 and times[-1] <= last and is_known.all():
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
