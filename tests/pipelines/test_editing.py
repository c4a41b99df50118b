"""Plans that are corrected on their sheet: the planner plans anew what an edit changes, and only that."""

import re
from dataclasses import replace

import pytest
import torch

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.cues import format_sheet
from baton_diffusers.pipelines.editing import keep_unchanged

from ..tiny import random_plan, tiny_cue_parts, tiny_pipeline
from .calls import PROMPT, differ, make, quiet


SHEET = "red circle left; blue square right <|0.25|> red circle moves <|0.62|> blue square jumps"


@pytest.fixture(scope="module")
def plan(cue_pipe):
    return cue_pipe.prepare_plan(PROMPT, cues=[SHEET])


def test_another_instant_is_planned_under_the_same_prompt(cue_pipe, plan):
    edited = cue_pipe.edit_plan(plan, plan.sheet.move(0, 0.26))
    assert edited.prompts == (PROMPT,) and edited.sheet == plan.sheet.retime(0, 0.5)  # the nearest timestamp
    whole = cue_pipe.prepare_plan(PROMPT, cues=list(edited.sheets))
    for name in ("video_tokens", "audio_tokens"):
        ours, old, new = (getattr(one, name) for one in (edited, plan, whole))
        is_new = (ours == new).all(dim=-1)
        assert ((ours == old).all(dim=-1) | is_new).all()
    assert not torch.equal(edited.video_tokens, plan.video_tokens)
    assert differ(make(cue_pipe, plan=edited), make(cue_pipe, plan=plan))


def test_another_cast_or_deed_is_planned_under_the_sheet_in_words_or_a_given_prompt(cue_pipe, plan):
    sheet = plan.sheet.reword(1, "jumps up")
    assert cue_pipe.edit_plan(plan, sheet).prompts == (sheet.to_prompt(),)
    assert cue_pipe.edit_plan(plan, format_sheet(sheet)).sheets == (format_sheet(sheet),)
    assert cue_pipe.edit_plan(plan, sheet, prompt="the blue square jumps up").prompts == ("the blue square jumps up",)


def test_an_edit_that_changes_nothing_keeps_tokens_that_no_planner_wrote(cue_pipe, plan):
    foreign = replace(plan, video_tokens=torch.randn_like(plan.video_tokens))
    assert torch.equal(cue_pipe.edit_plan(foreign, foreign.sheet).video_tokens, foreign.video_tokens)


def test_tokens_that_a_planner_writes_alike_are_kept():
    plan, before = random_plan().trimmed(), random_plan(seed=1).trimmed()
    tokens = before.video_tokens + 0.001
    tokens[:, 5] += 1.0
    kept = keep_unchanged(plan, before, replace(before, video_tokens=tokens))
    is_old = (kept.video_tokens == plan.video_tokens).all(dim=-1)[0]
    assert is_old.tolist() == [number != 5 for number in range(len(is_old))]
    assert torch.equal(kept.video_tokens[:, 5], tokens[:, 5])
    assert torch.equal(kept.audio_tokens, plan.audio_tokens)


def test_events_that_the_planner_has_not_learnt_so_close_are_warned_of(plan, caplog):
    parts = tiny_cue_parts()
    parts["planner"].register_to_config(min_cue_gap=3)
    quiet(tiny_pipeline(**parts)).edit_plan(plan, plan.sheet.move(1, -0.12))
    assert "closer together than the 0.375 seconds" in caplog.text


@pytest.mark.parametrize(
    "change, edit, message",
    [
        ({"sheets": None}, None, "has no cue sheet"),
        ({}, "red circle left <|0.25|> red trumpet", "does not know: trumpet"),
        ({}, "red circle left <|5.00|> red circle", "the clip ends at 1.125"),
        ({}, "red circle", None),
        ({}, "<|soon|> red circle", "is no timestamp"),
        ({"prompts": ("a",)}, "a; b", "needs a name and a place"),
        ({}, 5, "`sheet` is 5"),
        ({"video_tokens": torch.zeros(1, 28, 1)}, None, "has tokens of width 1 .video."),
        ({"duration": 80_000.0}, None, "lasts 80000 seconds, but the planner plans"),
    ],
)
def test_a_plan_or_a_sheet_that_cannot_be_edited_is_refused(cue_pipe, plan, change, edit, message):
    plan = replace(plan, **change)
    if message is None:
        assert cue_pipe.edit_plan(plan, edit).sheets == (edit,)
        return
    with pytest.raises(ValueError, match=message):
        cue_pipe.edit_plan(plan, plan.sheet if edit is None else edit)


def test_a_plan_that_was_cut_and_joined_can_still_be_edited(cue_pipe, plan):
    joined = replace(plan, video_times=plan.video_times + 1e-6)  # rounding
    assert cue_pipe.edit_plan(joined, joined.sheet.delete(0)).sheet == plan.sheet.delete(0)


def test_tokens_that_were_moved_cannot_be_kept(cue_pipe, plan):
    with pytest.raises(ValueError, match="edit the sheet first"):
        cue_pipe.edit_plan(plan.shift(0.1), plan.sheet)


def test_a_planner_without_timestamps_edits_no_sheet(pipe, plan):
    with pytest.raises(ValueError, match="edit the plan's tokens"):
        pipe.edit_plan(plan, plan.sheet)


@pytest.fixture(scope="module")
def nano():
    """The shipped checkpoint, as far as it plans: its checker has learnt to read."""
    unused = dict.fromkeys(("transformer", "vae", "audio_vae", "vocoder"))
    return BatonPipeline.from_pretrained(default_checkpoint(), **unused)


def test_a_plan_that_shows_something_else_than_the_prompt_says_is_warned_of(nano, caplog):
    prompt = "A red ball on the left bounces twice."
    plan = nano.plan(prompt, cues="red ball left <|0.62|> red ball bounces <|1.00|> red ball bounces")
    nano.edit_plan(plan, plan.sheet.move(0, 0.25, last=1), prompt="On the left a red ball jumps two times.")
    nano.edit_plan(plan, plan.sheet.recolour("red ball", "blue"))  # has a prompt of its own
    assert not caplog.records
    nano.edit_plan(plan, plan.sheet.recolour("red ball", "blue"), prompt=prompt)
    assert "shows 'blue ball left" in caplog.text and "reads as 'A red ball is on the left." in caplog.text
    assert "ask for 'A blue ball is on the left. The blue ball bounces twice.'" in caplog.text


@pytest.mark.parametrize(
    "command, message",
    [
        ("reword 0 rings", "has 'red ball rings', which .* choose among red ball bounces."),
        ("move_actor 'red ball' two", "has 'two', which .* choose among left, middle, right."),
        ("recolour 'red ball' orange", "has 'orange ball', which .* choose among red ball, .*, ..."),
    ],
)
def test_what_the_planner_has_hardly_learnt_is_warned_of(nano, caplog, command, message):
    plan = nano.plan("A red ball on the left bounces once.", cues="red ball left <|0.62|> red ball bounces")
    nano.edit_plan(plan, plan.sheet.edit(command))
    assert re.search(message, caplog.text)


def test_an_edit_on_nano_changes_the_tokens_of_its_moment_and_no_others(nano):
    cues = "red ball left; blue bell right <|0.62|> red ball bounces <|2.00|> blue bell rings"
    plan = nano.plan("A red ball on the left bounces once, then a blue bell on the right rings once.", cues=cues)
    edited = nano.edit_plan(plan, plan.sheet.move(1, 0.25))
    changed = (edited.audio_tokens != plan.audio_tokens).any(dim=-1)[0]
    assert changed[(plan.audio_times - 2.25).abs() < 0.1].all() and not changed[plan.audio_times < 0.5].any()
