"""Cues for what is given: written, chosen and moved until their plan agrees with it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.cues import format_cues, format_sheet, parse_cues, parse_sheet
from baton_diffusers.models.va_planner import tokenize_cues, tokenize_prompts
from baton_diffusers.pipelines.cue_fitting import _joined, _moved, _recoloured, disagreement, fit_cues
from baton_diffusers.pipelines.given import read_given
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage import Action, Actor, Scene, render_clip, sample_scene, write_cues, write_prompt

from ..tiny import (
    DURATION,
    FRAME_RATE,
    NUM_FRAMES,
    SAMPLING_RATE,
    SIZE,
    random_clip,
    random_plan,
    tiny_cue_parts,
    tiny_pipeline,
    tiny_video_semantic_encoder,
)
from .calls import OTHER, PROMPT, forbid, make, quiet, record, seeds


FRAMES, WAVEFORM = random_clip()
STRIDE = 4


def given_plan_of(pipe, **given):
    given = read_given(pipe.frame_rate, pipe.sampling_rate, STRIDE, **given)
    return pipe.prepare_given_plan(given, SIZE, SIZE, NUM_FRAMES)


def plan_of(sheet, planner, planner_tokenizer, prompt=PROMPT):
    tokens = tokenize_cues(planner_tokenizer, [prompt], [sheet], timestamp_rate=planner.config.timestamp_rate)
    with torch.no_grad():
        return planner(*tokens[:2], DURATION)


def test_disagreement_counts_what_is_known_alone():
    plans, given = random_plan(3, seed=1).trimmed(), random_plan(seed=2).trimmed()
    known, audio_known = given.video_times < 0.5, given.audio_times >= 0.75
    masked = replace(given, video_mask=known[None], audio_mask=audio_known[None])
    video = (plans.video_tokens - given.video_tokens)[:, known].square().mean(dim=(1, 2))
    audio = (plans.audio_tokens - given.audio_tokens)[:, audio_known].square().mean(dim=(1, 2))
    torch.testing.assert_close(disagreement(plans, masked), video + audio)
    without = replace(masked, audio_mask=torch.zeros_like(masked.audio_mask))
    torch.testing.assert_close(disagreement(plans, without), video)
    assert torch.equal(disagreement(given, given), torch.zeros(1))


def test_cues_are_moved_until_the_plan_agrees():
    parts = tiny_cue_parts()
    prompts = tokenize_prompts(parts["planner_tokenizer"], [PROMPT])
    drawn = parts["planner"].generate_cues(*prompts, DURATION, 0.7, seeds(0))
    (written,) = parts["planner_tokenizer"].batch_decode(drawn)
    cues = parse_cues(written)
    assert cues[0].time > 0
    earlier = format_cues([cue._replace(time=cue.time - 1 / FRAME_RATE) for cue in cues])
    fitted = fit_cues(
        **parts_of(parts), prompt=PROMPT, given=plan_of(earlier, **parts), num_candidates=1, generator=seeds(0)
    )
    assert fitted == earlier != written


def parts_of(parts):
    return {"planner": parts["planner"], "tokenizer": parts["planner_tokenizer"]}


def test_more_candidates_agree_no_worse():
    parts, given = tiny_cue_parts(), random_plan(seed=3)

    def error(num_candidates):
        sheet = fit_cues(
            **parts_of(parts), prompt=OTHER, given=given, num_candidates=num_candidates, generator=seeds(1)
        )
        return disagreement(plan_of(sheet, **parts, prompt=OTHER).trimmed(), given.trimmed()).item()

    tokens = tokenize_prompts(parts["planner_tokenizer"], [OTHER] * 8)
    drawn = parts["planner"].generate_cues(*tokens, DURATION, 0.7, seeds(1))
    written = parts["planner_tokenizer"].batch_decode(drawn)
    chosen = [
        disagreement(plan_of(sheet, **parts, prompt=OTHER).trimmed(), given.trimmed()).item() for sheet in written
    ]
    assert error(8) <= min(chosen) * (1 + 1e-5)
    assert len(set(chosen)) > 1


def test_only_cues_within_what_is_given_are_moved():
    sheet, plan = "<|0.25|> a <|0.50|> b <|1.00|> c", random_plan().trimmed()
    early = replace(plan, video_mask=(plan.video_times <= 0.5)[None], audio_mask=(plan.audio_times < 0.5)[None])
    moved = [parse_cues(m) for m in _moved(sheet, early, 6.0, FRAME_RATE)]
    assert moved
    for cues in moved:
        assert [cue.text for cue in cues] == ["a", "b", "c"]
        assert [cue.time for cue in cues] == sorted(cue.time for cue in cues)
        assert cues[0].time != 0.25 or cues[1].time != 0.5
        assert all(0 <= cue.time < DURATION for cue in cues)
    assert any(cues[2].time == 1.0 for cues in moved)
    assert {cues[2].time for cues in map(parse_cues, _moved(sheet, plan, 6.0, FRAME_RATE))} > {1.0, 0.75}


def test_actors_whose_names_are_open_take_other_colours():
    sheet = "red ball left; red box right <|0.50|> red box hits red ball"
    assert _recoloured(sheet, [["red ball", "blue ball", "green ball"]]) == [
        "blue ball left; red box right <|0.50|> red box hits blue ball",
        "green ball left; red box right <|0.50|> red box hits green ball",
    ]
    assert _recoloured("red ball left; blue ball right", [["red ball", "blue ball"]]) == []
    assert _recoloured(sheet, []) == []


def test_nano_reads_a_colour_that_is_not_told_off_the_picture():
    pipe = quiet(BatonPipeline.from_pretrained(default_checkpoint()))
    scene = Scene((Actor("ball", "green", "middle"),), (Action("bounce", 0, 2),))
    clip = render_clip(scene, 3)
    plan = pipe.prepare_given_plan(
        read_given(pipe.frame_rate, pipe.sampling_rate, STRIDE, video=clip.frames),
        *clip.frames.shape[1:3],
        len(clip.frames),
    )
    (sheet,) = pipe.prepare_cues("A ball bounces twice.", generator=seeds(0), given_plan=plan)
    assert [member.name for member in parse_sheet(sheet).cast] == ["green ball"]


def test_nano_tells_a_beginning_from_what_comes_then():
    pipe = quiet(BatonPipeline.from_pretrained(default_checkpoint()))
    cast = (Actor("ball", "green", "left"), Actor("bell", "blue", "middle"), Actor("face", "purple", "right"))
    script = (Action("say", 2, 1, ("four",)), Action("bounce", 0, 1), Action("ring", 1, 2))
    scene = Scene(cast, script)
    clip, past = render_clip(scene, 2), [cue for cue in parse_cues(write_cues(scene, 2)) if cue.time > 2]
    plan = pipe.prepare_given_plan(
        read_given(pipe.frame_rate, pipe.sampling_rate, STRIDE, continue_from=(clip.frames, clip.waveform)),
        *clip.frames.shape[1:3],
        len(clip.frames),
    )
    # The colour of the bell is told otherwise, who stands where not at all, and the bell has rung before.
    prompt = "The red bell rings, and then the face says two."
    (text,) = pipe.prepare_cues(prompt, generator=seeds(0), given_plan=plan, goes_on=True)
    sheet = parse_sheet(text)
    assert sheet.cast == parse_sheet(write_cues(scene, 2)).cast
    assert [cue.text for cue in sheet.cues] == [*(cue.text for cue in past), "blue bell rings", "purple face says two"]
    assert all(abs(cue.time - own.time + 2) < 0.13 for cue, own in zip(sheet.cues, past, strict=False))
    assert sheet.cues[len(past)].time > 1.06


@pytest.mark.parametrize(
    "seen, told, cast, names",
    [
        # who is there
        ("red ball left; blue bell right", {"blue bell": ["left", "middle"]}, None, {"blue bell": "blue bell"}),
        # one of the same kind
        ("red ball left; blue bell right", {"red bell": ["left"]}, None, {"red bell": "blue bell"}),
        # of two of the same kind the one at its place
        ("red ball left; blue ball right", {"green ball": ["right"]}, None, {"green ball": "blue ball"}),
        # somebody new at a free place, its own if that is free
        ("red ball left", {"blue bell": ["right"]}, "red ball left; blue bell right", {"blue bell": "blue bell"}),
        ("red ball left", {"blue bell": ["left"]}, "red ball left; blue bell middle", {"blue bell": "blue bell"}),
        # or in the place of somebody whom the prompt leaves out
        (
            "red ball left; red box middle; blue box right",
            {"red ball": ["left"], "blue bell": ["right"]},
            "red ball left; red box middle; blue bell right",
            {"red ball": "red ball", "blue bell": "blue bell"},
        ),
    ],
)
def test_a_prompt_means_those_who_are_seen(seen, told, cast, names):
    joined, called = _joined(parse_sheet(seen), told, ["left", "middle", "right"])
    assert format_sheet(joined) == (cast or seen) and called == names


def test_a_planner_that_casts_nobody_goes_on_after_the_beginning(cue_pipe):
    output = make(cue_pipe, continue_from=(FRAMES, WAVEFORM), continue_seconds=0.6, num_cue_candidates=4)
    assert all(cue.time > 0.5 for cue in parse_cues(output.cues[0]))


def test_the_given_plan_is_what_the_encoders_read(cue_pipe):
    whole = cue_pipe.extract_plan(FRAMES, WAVEFORM, FRAME_RATE, SAMPLING_RATE)
    film = given_plan_of(cue_pipe, video=FRAMES)
    torch.testing.assert_close(film.video_tokens, whole.video_tokens)
    assert film.video_mask.all() and not film.audio_mask.any()
    sound = given_plan_of(cue_pipe, audio=WAVEFORM)
    torch.testing.assert_close(sound.audio_tokens, whole.audio_tokens)
    assert torch.equal(sound.audio_mask, whole.audio_mask) and not sound.video_mask.any()

    beginning = given_plan_of(cue_pipe, continue_from=(FRAMES, WAVEFORM), continue_seconds=0.6)
    times, audio_times = beginning.video_times, beginning.audio_times
    seconds = 0.625  # one frame and four
    assert torch.equal(beginning.video_mask[0], (times * FRAME_RATE + 0.5).floor() < seconds * FRAME_RATE)
    half = 0.5 * (audio_times[1] - audio_times[0])
    assert torch.equal(beginning.audio_mask[0], audio_times + half <= seconds + 1e-5)


def test_what_is_given_settles_the_cues(cue_pipe):
    film = {"video": FRAMES, "video_frame_rate": FRAME_RATE}
    output = make(cue_pipe, **film, seed=3)
    given = given_plan_of(cue_pipe, video=FRAMES)
    expected = fit_cues(cue_pipe.planner, cue_pipe.planner_tokenizer, PROMPT, given, 64, seeds(3))
    assert output.cues == [expected]
    plan = plan_of(expected, cue_pipe.planner, cue_pipe.planner_tokenizer).trimmed()
    torch.testing.assert_close(output.plan.video_tokens, plan.video_tokens)
    assert make(cue_pipe, **film, cues="<|0.25|> red circle").cues == ["<|0.25|> red circle"]


def test_each_clip_of_a_batch_is_fitted_alone(cue_pipe):
    films = [FRAMES, random_clip(1)[0]]
    few = {"num_cue_candidates": 4}
    together = make(cue_pipe, [PROMPT, OTHER], video=films, generator=seeds(3, 4), **few)
    alone = (
        make(cue_pipe, PROMPT, 3, video=films[:1], **few).cues + make(cue_pipe, OTHER, 4, video=films[1:], **few).cues
    )
    assert together.cues == alone
    for_all = make(cue_pipe, [PROMPT, OTHER], video=FRAMES, generator=seeds(3, 4), **few)
    assert for_all.cues[0] == together.cues[0]


@pytest.mark.parametrize("changes", [{"num_cue_candidates": 0}, {"encoder": None}])
def test_where_nothing_can_be_compared_nothing_is_written(changes):
    pipe = quiet(tiny_pipeline(**tiny_cue_parts()))
    if "encoder" in changes:
        pipe.register_modules(video_semantic_encoder=changes.pop("encoder"))
    calls = record(pipe.planner)
    assert make(pipe, video=FRAMES, **changes).cues == [""]
    assert len(calls) == 1


def test_a_first_picture_settles_no_times(cue_pipe):
    assert make(cue_pipe, image=FRAMES[0]).cues == make(cue_pipe).cues != [""]


@pytest.mark.parametrize("number", [-1, 2.5, 2**70])
def test_a_wrong_number_of_candidates_is_refused_before_any_model_runs(number):
    with pytest.raises(ValueError, match=f"`num_cue_candidates` is {number}"):
        make(forbid(tiny_pipeline(**tiny_cue_parts())), video=FRAMES, num_cue_candidates=number)


def test_encoders_of_another_checkpoint_are_refused():
    encoder = tiny_video_semantic_encoder()
    encoder.register_to_config(keyframe_rate=3.0)
    with pytest.raises(ValueError, match=r"planner's `keyframe_rate` is .*`video_semantic_encoder` has 3.0"):
        tiny_pipeline(**tiny_cue_parts(), video_semantic_encoder=encoder)


def test_nano_hears_and_sees_when_things_happen():
    pipe = quiet(BatonPipeline.from_pretrained(default_checkpoint()))
    scene = sample_scene(5, tier="medium", split="test")
    clip, truth = render_clip(scene, 5), parse_cues(write_cues(scene, 5))

    def found(**given):
        given = read_given(pipe.frame_rate, pipe.sampling_rate, STRIDE, **given)
        plan = pipe.prepare_given_plan(given, *clip.frames.shape[1:3], len(clip.frames))
        (sheet,) = pipe.prepare_cues(write_prompt(scene, 5), generator=seeds(0), given_plan=plan)
        return parse_cues(sheet)

    assert len(truth) > 1
    for cues, slack in ((found(audio=clip.waveform), 1 / 32), (found(video=clip.frames), 0.13)):
        assert [cue.text.split()[:2] for cue in cues] == [cue.text.split()[:2] for cue in truth]
        assert max(abs(a.time - b.time) for a, b in zip(cues, truth, strict=True)) < slack
    end = parse_cues(format_cues(truth))[0].time + 0.3
    beginning = (clip.frames[: math.ceil(end * clip.frame_rate)], clip.waveform[: int(end * clip.sampling_rate)])
    assert np.isclose(found(continue_from=beginning, continue_seconds=end)[0].time, truth[0].time, atol=0.07)
