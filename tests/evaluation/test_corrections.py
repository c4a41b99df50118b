"""Corrections are judged by the scorer: what a true render of the corrected sheet shows holds, and the clip before it does not."""

from dataclasses import replace

import numpy as np
import pytest

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.cues import format_sheet, parse_sheet
from baton_diffusers.evaluation.corrections import (
    EDITS,
    Outcome,
    Retaken,
    draw_correction,
    draw_mixed,
    facts_of,
    format_editing,
    format_retakes,
    measure_editing,
    measure_retake,
    scene_of,
    summarise_editing,
    summarise_retakes,
)
from baton_diffusers.stage import render, sample_scene, scene, sound, write_cues
from baton_diffusers.stage.scene import FRAME_RATE, TIERS


def perform(sheet, monkeypatch):
    """A true render of a sheet, at its times."""
    told = scene_of(sheet)
    drawn = scene.timeline(told, 0)
    frames = [round(cue.time * FRAME_RATE) for cue in sheet.cues]
    events = tuple(replace(event, frame=frame) for event, frame in zip(drawn, frames, strict=True))
    for module in (render, sound):
        monkeypatch.setattr(module, "timeline", lambda *_: events)
    clip = render.render_clip(told, 0)
    return clip.frames, clip.waveform[None]


@pytest.mark.parametrize("seed", range(6))
def test_a_sheet_tells_the_scene_that_wrote_it_and_its_render_shows_it(seed):
    told = sample_scene(seed, TIERS[seed % 3])
    sheet = parse_sheet(write_cues(told, seed))
    assert scene_of(sheet) == told
    clip = render.render_clip(told, seed)
    facts = facts_of(sheet, clip.frames, clip.waveform[None])
    assert all(facts.values()) and sum(aspect == "time" for aspect, _ in facts) == len(sheet.cues)


@pytest.mark.parametrize(
    "sheet",
    [
        "red ball left <|0.50|> blue ball bounces",
        "red ball left <|0.50|> red ball rings",
        "red box left <|0.50|> red box hits blue ball",
        "red ball left <|0.50|> red ball flies",
        "old man left",
    ],
)
def test_a_sheet_of_no_scene_is_refused(sheet):
    with pytest.raises(ValueError):
        scene_of(parse_sheet(sheet))
    assert draw_correction(parse_sheet(sheet), "swap", np.random.default_rng(0)) is None


@pytest.mark.parametrize("edit", EDITS)
def test_a_correction_holds_in_a_true_render_of_it_and_not_in_the_clip_before(edit, monkeypatch):
    found = 0
    for seed in range(20):
        sheet = parse_sheet(write_cues(sample_scene(seed, TIERS[seed % 3]), seed))
        correction = draw_correction(sheet, edit, np.random.default_rng(seed))
        if correction is None:
            continue
        assert format_sheet(correction.after) != format_sheet(sheet)
        old, new = perform(sheet, monkeypatch), perform(correction.after, monkeypatch)
        before, after = correction.holds_before(*old), correction.holds_after(*new)
        assert all(before.values()) and all(after.values())
        stale = correction.holds_after(*old)
        assert not all(stale[key] for key in correction.changed if key in stale)
        assert (before.keys() ^ after.keys()) <= {key for key in before if key[1] not in after}
        found += 1
        if found == 3:
            break
    assert found == 3


def test_scenes_are_drawn_turn_by_turn_of_each_tier():
    assert [example.scene.tier for example in draw_mixed(5)] == [*TIERS, *TIERS[:2]]


def test_outcomes_are_summarised_by_edit_and_by_aspect():
    outcomes = [
        Outcome("move", 1, True, (("seen", True), ("heard", False))),
        Outcome("move", 2, False, (("seen", True), ("seen", True))),
        Outcome("swap", 1, True, ()),
    ]
    rows = summarise_editing(outcomes)
    assert list(rows) == ["all", "move", "swap"] and rows["all"]["scenes"] == 3
    assert rows["move"]["changed"]["value"] == 0.5 and rows["move"]["others"]["value"] == 0.75
    assert rows["move"]["aspects"] == {"seen": 1.0, "heard": 0.0} and rows["swap"]["others"] is None
    assert format_editing(rows).count("\n") == 4 and "| swap | 1 |" in format_editing(rows)


def test_retakes_are_summarised():
    rows = summarise_retakes(
        [Retaken(1, True, (1.0, 0.5), (0, 1, 2), (40.0, 39.0)), Retaken(2, False, (1.0, 1.0), (0, 0, 0), (30.0, 31.0))]
    )
    assert (rows["clips"], rows["kept"]) == (2, 0.5)
    assert [rows[name]["strays"]["value"] for name in ("truth", "before", "after")] == [0.0, 0.25, 0.5]
    assert rows["before"]["psnr"]["value"] == rows["after"]["psnr"]["value"] == 35.0
    assert rows["after"]["p_acc"]["value"] == 0.75 and "one second retaken" in format_retakes(rows)


@pytest.mark.slow
def test_nano_is_measured():
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    outcomes = measure_editing(pipe, draw_mixed(6), 1, num_inference_steps=4)
    assert {outcome.edit for outcome in outcomes} == set(EDITS) and all(outcome.others for outcome in outcomes)
    (taken,) = measure_retake(pipe, draw_mixed(1), num_inference_steps=4)
    assert taken.is_kept and taken.psnr[1] > 20
