"""Plans that are corrected on their cue sheet: the planner plans the edited sheet, and tokens that the edit does not change
stay. Ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers.utils import logging

from ..cues import Sheet, format_sheet, parse_sheet
from ..models.plan_checker import PlanChecker
from ..models.va_planner import snap_cues, tokenize_prompts
from ..plan import SemanticPlan
from .checks import check_plan, check_texts
from .components import PipelineParts
from .cue_fitting import readable_sheet
from .planning import PlanRequest, check_cues, make_plan, places_of, ready_plan, warn_of_disagreement


logger = logging.get_logger(__name__)

# An edit changes the tokens that differ between both plans by more than this, in root mean square over their spread.
CHANGED = 0.1

# Times that differ by less, in seconds, are the same: cutting and joining a plan changes their last bit.
_SLACK = 1e-5


@torch.no_grad()
def edit_plan(
    pipe: PipelineParts, plan: SemanticPlan, sheet: Sheet | str, prompt: str | None, device: torch.device
) -> SemanticPlan:
    """A plan that follows an edited sheet, see `BatonPipeline.edit_plan`."""
    if pipe.planner is None or not pipe.planner.writes_cues or pipe.planner_tokenizer is None:
        raise ValueError(
            "a plan is edited on its sheet by a planner that knows timestamps (`pipe.planner.writes_cues`) with its tokenizer: load "
            "the pipeline with one, or edit the plan's tokens (`plan.splice`, `plan.shift`)."
        )
    check_plan("plan", plan)
    longest = PlanRequest().longest_clip(pipe)
    if plan.duration > longest:
        raise ValueError(
            f"`plan` lasts {plan.duration:g} seconds, but the planner plans {longest:g} at most: slice it."
        )
    before = plan.sheet
    if not isinstance(sheet, (str, Sheet)):
        raise ValueError(f"`sheet` is {sheet!r}, but must be a `Sheet` such as `plan.sheet`, or its text.")
    after = parse_sheet(sheet) if isinstance(sheet, str) else sheet
    after = parse_sheet(
        readable_sheet(snap_cues(format_sheet(after), pipe.planner.config.timestamp_rate), places_of(pipe))
    )
    if prompt is not None:
        check_texts("prompt", prompt)
    prompts = [plan.prompts[0] if plan.prompts else before.to_prompt()]
    prompts.append(
        prompt if prompt is not None else prompts[0] if _tells_the_same(before, after) else after.to_prompt()
    )
    sheets = [plan.sheets[0], format_sheet(after)]
    length = tokenize_prompts(pipe.planner_tokenizer, prompts, pipe.planner.config.system_prompt)[0].shape[1]
    check_cues(pipe, sheets, length, plan.duration)
    _warn_of_crowded_cues(pipe, after)
    _warn_of_unknown_facts(pipe, after)

    num_frames = round(plan.duration * pipe.frame_rate)
    written = [  # one by one, so that a plan does not depend on the batch
        ready_plan(pipe, make_plan(pipe, [text], num_frames, [cues], device), None, device)
        for text, cues in zip(prompts, sheets, strict=True)
    ]
    plan = ready_plan(pipe, plan, None, device)
    widths = [(one.video_tokens.shape[2], one.audio_tokens.shape[2]) for one in (plan, written[1])]
    if widths[0] != widths[1]:
        raise ValueError(
            f"`plan` has tokens of width {widths[0][0]} (video) and {widths[0][1]} (audio), but the planner writes {widths[1][0]} and "
            f"{widths[1][1]}: use a plan made for this checkpoint."
        )
    layouts = [(one.video_times, one.video_centres, one.audio_times) for one in (plan, written[1])]
    if not all(
        ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=_SLACK)
        for ours, theirs in zip(*layouts, strict=True)
    ):
        raise ValueError(
            "the plan's tokens do not lie where the planner writes them, so that an edit cannot keep any: edit the sheet first, and "
            "shift, stretch or splice afterwards."
        )
    plan = replace(keep_unchanged(plan, *written), prompts=None, sheets=(sheets[1],), candidates=None)
    warn_of_disagreement(pipe, plan, prompts[1:], 1, device)
    return replace(plan, prompts=(prompts[1],))


def keep_unchanged(plan: SemanticPlan, before: SemanticPlan, after: SemanticPlan) -> SemanticPlan:
    """`after`, with the tokens of `plan` where `before` and `after` agree; all of one clip and one layout."""
    tokens = {}
    for name in ("video_tokens", "audio_tokens"):
        ours, old, new = (getattr(one, name).float() for one in (plan, before, after))
        spread = old.std(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True).sqrt()
        changed = (new - old).square().mean(dim=-1, keepdim=True).sqrt() > CHANGED * spread
        tokens[name] = torch.where(changed, new, ours).to(getattr(plan, name).dtype)
    return replace(plan, **tokens)


def _tells_the_same(before: Sheet, after: Sheet) -> bool:
    """Whether two sheets differ in instants alone. Prompts do not mention instants."""
    return before.cast == after.cast and [cue.text for cue in before.cues] == [cue.text for cue in after.cues]


def _warn_of_crowded_cues(pipe: PipelineParts, sheet: Sheet) -> None:
    config = pipe.planner.config
    gap = config.min_cue_gap / config.timestamp_rate
    for cue, later in zip(sheet.cues, sheet.cues[1:], strict=False):
        if later.time - cue.time < gap - 0.5 / config.timestamp_rate:
            logger.warning(
                f"{cue.text!r} at {cue.time:g} and {later.text!r} at {later.time:g} seconds lie closer together than the "
                f"{gap:g} seconds that this planner has learnt, and one of them may be missing: move them apart."
            )


def _warn_of_unknown_facts(pipe: PipelineParts, sheet: Sheet) -> None:
    """Warns of an actor, a place or a deed that the plan checker has not learnt: the planner has rarely seen it, too."""
    if not isinstance(pipe.plan_checker, PlanChecker):
        return
    config = pipe.plan_checker.config
    for member in sheet.cast:
        for fact, known in ((member.name, config.names), (member.place, config.places)):
            if fact not in known:
                _warn_of_unknown(fact, known)
    for number, cue in enumerate(sheet.cues):
        if (actor := sheet.actor_of(number)) is not None:
            deed, known = cue.text[len(actor) :].strip(), config.deeds.get(actor.split()[-1], [])
            if deed not in known:
                _warn_of_unknown(f"{actor} {deed}", [f"{actor} {other}" for other in known])


def _warn_of_unknown(fact: str, known: Sequence[str]) -> None:
    logger.warning(
        f"the sheet has {fact!r}, which the plan checker does not know, so the planner may not know it either: choose among "
        f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}."
    )
