"""Cues in the pipeline: when things happen, written by the planner or given."""

import pytest
import torch

from baton_diffusers.cues import parse_cues
from baton_diffusers.models.va_planner import tokenize_cues
from baton_diffusers.pipelines.components import SETTINGS
from baton_diffusers.pipelines.pipeline_baton import BatonPipeline

from ..tiny import DURATION, tiny_cue_parts, tiny_pipeline, tiny_plan_checker
from .calls import OTHER, PROMPT, assert_same, differ, forbid, make, quiet, record, seeds


def test_a_clip_follows_the_cues_that_its_planner_wrote(cue_pipe):
    output = make(cue_pipe)
    (sheet,) = output.cues
    assert parse_cues(sheet) and all(cue.time < DURATION for cue in parse_cues(sheet))
    assert_same(make(cue_pipe, cues=sheet), output)
    assert make(cue_pipe, cues=sheet).cues == [sheet]
    plan = cue_pipe.prepare_plan(PROMPT, cues=[sheet])
    torch.testing.assert_close(plan.video_tokens, output.plan.video_tokens)
    assert_same(make(cue_pipe, plan=plan), output)
    assert_same(make(cue_pipe, plan=cue_pipe.prepare_plan(PROMPT, generator=seeds(0))), output)


def test_other_cues_make_another_clip_from_the_same_noise(cue_pipe):
    output = make(cue_pipe, cues="<|0.25|> red circle")
    assert differ(output, make(cue_pipe, cues="<|0.75|> red circle"))
    assert differ(output, make(cue_pipe, cues=""))
    noise, other = ([], [])
    for into, cues in ((noise, "<|0.25|> red circle"), (other, None)):
        make(
            cue_pipe, cues=cues, callback_on_step_end=lambda pipe, i, t, k, into=into: into.append(k["latents"]) or {}
        )
    assert len(noise) == len(other) > 0


def test_the_noise_does_not_depend_on_what_the_planner_wrote(cue_pipe):
    without = tiny_pipeline()
    for pipe in (cue_pipe, without):
        pipe.set_progress_bar_config(disable=True)
    expected = make(without, use_plan=False, num_inference_steps=2)
    assert_same(make(cue_pipe, use_plan=False, num_inference_steps=2), expected)
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    cue_pipe.prepare_cues(PROMPT, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_each_clip_of_a_batch_has_the_cues_that_it_has_alone(cue_pipe):
    together = make(cue_pipe, [PROMPT, OTHER], generator=seeds(3, 4))
    assert together.cues == make(cue_pipe, PROMPT, 3).cues + make(cue_pipe, OTHER, 4).cues
    free = {"num_videos_per_prompt": 2, "cue_temperature": 1.0}
    videos = make(cue_pipe, PROMPT, generator=seeds(3, 4), **free)
    assert videos.cues[0] == make(cue_pipe, PROMPT, 3, cue_temperature=1.0).cues[0] != videos.cues[1]
    assert make(cue_pipe, [PROMPT, OTHER], cues=["", "<|0.25|> green star"]).cues == ["", "<|0.25|> green star"]
    assert make(cue_pipe, [PROMPT, OTHER], cues="").cues == ["", ""]


def test_a_clip_tells_the_instants_that_it_was_made_for(cue_pipe):
    output = make(cue_pipe, cues="<|0.27|> red circle")  # between timestamps a quarter of a second apart
    assert output.cues == ["<|0.25|> red circle"]
    assert_same(output, make(cue_pipe, cues="<|0.25|> red circle"))


def test_cues_in_words_that_the_planner_does_not_know_are_refused(cue_pipe):
    with pytest.raises(ValueError, match="words that the planner does not know: dragon, roars"):
        make(cue_pipe, cues="<|0.25|> green dragon roars")


def test_the_likeliest_cues_need_no_seed(cue_pipe):
    written = {make(cue_pipe, seed=seed, cue_temperature=0.0).cues[0] for seed in range(3)}
    assert len(written) == 1
    drawn = [cue_pipe.prepare_cues(PROMPT, cue_temperature=1.0, generator=seeds(seed)) for seed in range(5)]
    assert len({sheet for (sheet,) in drawn}) > 1


def test_a_planner_without_timestamps_has_no_cues(pipe):
    assert make(pipe).cues is None and pipe.prepare_cues(PROMPT) is None


def test_under_offload_the_planner_is_there_to_write(cue_pipe, monkeypatch):
    """A hook on the planner's forward alone would leave its weights behind."""
    moved = []

    class Hook:
        def pre_forward(self, module, *args, **kwargs):
            moved.append(module)
            return args, kwargs

    monkeypatch.setattr(cue_pipe.planner, "_hf_hook", Hook(), raising=False)
    cue_pipe.prepare_cues(PROMPT)
    assert moved == [cue_pipe.planner]


def test_cues_are_saved_with_the_planner(cue_pipe, tmp_path):
    cue_pipe.save_pretrained(tmp_path)
    loaded = quiet(type(cue_pipe).from_pretrained(tmp_path))
    assert loaded.planner.writes_cues
    expected = make(cue_pipe)
    assert make(loaded).cues == expected.cues
    assert_same(make(loaded), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"cues": ["", "", ""]}, "3 sheets for 1 prompts with 1 videos each"),
        ({"cues": "<|2.00|> red circle"}, r"name 2.0 seconds, but the clip ends at 1.1250"),
        ({"cues": "<|1.12|> red circle"}, r"name 1.12 seconds, .* the last timestamp before is 1"),
        ({"cues": "<|0.25|> red circle " * 90}, r"\d+ text tokens and .* exceed the language model's 256 positions"),
        ({"num_frames": 25}, r"lasts 3.125 seconds, but the planner knows times up to 2.5 seconds"),
        ({"num_frames": 25, "cues": ""}, r"knows times up to 2.5 seconds"),
        ({"cues": "circle"}, "needs a name and a place"),
        ({"cues": [3]}, "cues.*list of at least one string"),
        ({"cues": "", "use_plan": False}, "leave them out"),
        ({"cue_temperature": -1.0}, "cue_temperature.*-1.0"),
    ],
)
def test_wrong_cues_are_refused_before_any_model_runs(call, message):
    with pytest.raises(ValueError, match=message):
        make(forbid(tiny_pipeline(**tiny_cue_parts())), **call)


def test_clips_are_shared_out_among_prompts_and_sheets(cue_pipe):
    assert len(cue_pipe.prepare_cues([PROMPT, OTHER], num_clips=4, generator=seeds(0, 1, 2, 3))) == 4
    with pytest.raises(ValueError, match="3 clips cannot be shared out among 2 prompts"):
        cue_pipe.prepare_cues([PROMPT, OTHER], num_clips=3)
    with pytest.raises(ValueError, match="2 clips cannot be shared out among 3 sheets"):
        cue_pipe.prepare_cues([PROMPT, OTHER], cues=["", "", ""])


def test_the_plan_of_a_call_with_several_videos_can_be_given_again(cue_pipe):
    several = {"num_videos_per_prompt": 2, "cue_temperature": 1.0}
    output = make(cue_pipe, **several, generator=seeds(0, 1))
    assert_same(make(cue_pipe, **several, generator=seeds(0, 1), plan=output.plan), output, atol=1e-6)


def test_cues_for_a_planner_without_timestamps_are_refused(idle_pipe):
    with pytest.raises(ValueError, match="writes_cues"):
        make(idle_pipe, cues="<|0.25|> red circle")


def test_steps_are_the_planners_passes_and_no_more(cue_pipe):
    calls = record(cue_pipe.planner)
    make(cue_pipe, cues="")
    assert len(calls) == 1


@pytest.fixture(scope="module")
def checked_pipe():
    return quiet(tiny_pipeline(**tiny_cue_parts(), plan_checker=tiny_plan_checker()))


def test_the_best_of_several_sheets_is_planned(checked_pipe):
    output = make(checked_pipe, [PROMPT, OTHER], generator=seeds(3, 4))
    for sheet, candidates in zip(output.cues, output.plan_candidates, strict=True):
        scores = [round(candidate.score, 1) for candidate in candidates]
        assert len(candidates) == 8 and scores == sorted(scores, reverse=True) and sheet == candidates[0].sheet
    # each clip chooses among the sheets that it has alone
    alone = make(checked_pipe, OTHER, 4)
    assert [set(c.sheet for c in group) for group in output.plan_candidates[1:]] == [
        set(c.sheet for c in group) for group in alone.plan_candidates
    ]
    assert make(checked_pipe, num_plan_candidates=1).plan_candidates[0][0].score is None
    assert make(checked_pipe, cues="").plan_candidates is None


def test_of_sheets_that_say_the_same_the_planner_takes_the_likeliest(checked_pipe, monkeypatch):
    written = [
        f"<|{time}|> {text}" for time in ("0.00", "0.25", "0.50", "0.75") for text in ("red circle", "blue square")
    ]
    monkeypatch.setattr(checked_pipe.planner_tokenizer, "batch_decode", lambda ids, **kwargs: written)
    monkeypatch.setattr(checked_pipe.plan_checker, "score", lambda read, sheets: [-1.0] * len(sheets))
    (candidates,) = make(checked_pipe, PROMPT, 3).plan_candidates
    sheets = [candidate.sheet for candidate in candidates]
    assert [parse_cues(sheet)[0].text for sheet in sheets] == ["red circle"] * 4 + ["blue square"] * 4
    ids, mask, labels = tokenize_cues(checked_pipe.planner_tokenizer, [PROMPT] * 8, sheets)
    with torch.no_grad():
        _, errors = checked_pipe.planner(ids, mask, None, labels=labels)
    likelihoods = [
        round(-float(error) * int((row != -100).sum()), 1) for error, row in zip(errors, labels, strict=True)
    ]
    for half in (likelihoods[:4], likelihoods[4:]):
        assert half == sorted(half, reverse=True) and half[0] > half[-1]


def test_several_sheets_take_a_checker(cue_pipe):
    with pytest.raises(ValueError, match="`num_plan_candidates` is 4.*plan_checker"):
        make(cue_pipe, num_plan_candidates=4)


def test_a_plan_alone_is_the_one_that_its_clip_follows(checked_pipe):
    plan = checked_pipe.plan(PROMPT, generator=seeds(3))
    expected = make(checked_pipe, PROMPT, 3)
    torch.testing.assert_close(plan.video_tokens, expected.plan.video_tokens, rtol=0, atol=0)
    assert list(plan.sheets) == expected.cues and plan.candidates == expected.plan.candidates
    output = make(checked_pipe, PROMPT, 3, plan=plan)
    assert_same(output, expected)
    assert output.cues == expected.cues and output.plan_candidates == expected.plan_candidates
    several = checked_pipe.plan([PROMPT, OTHER], num_videos_per_prompt=2, generator=seeds(1, 2, 3, 4))
    assert several.prompts == (PROMPT, PROMPT, OTHER, OTHER) and several.batch_size == len(several.sheets) == 4
    assert checked_pipe.plan(PROMPT, cues="<|0.25|> red circle").sheets == ("<|0.25|> red circle",)


def test_a_plan_needs_no_transformer_and_a_planner_need_not_write_cues():
    whole = tiny_pipeline()
    parts = {**whole.components, **dict.fromkeys(("transformer", "vae", "audio_vae", "vocoder"))}
    plan = BatonPipeline(**parts, **{name: whole.config[name] for name in SETTINGS}).plan(PROMPT)
    assert plan.sheets is None and plan.prompts == (PROMPT,)
    torch.testing.assert_close(plan.video_tokens, whole.plan(PROMPT).video_tokens)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": 3}, "`prompt`"),
        ({"num_frames": 8}, "8"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` is 0"),
        ({"cues": "<|9.00|> red circle"}, "`cues` name 9.0 seconds"),
        ({"generator": [torch.Generator()] * 3}, "generator"),
        ({"num_plan_candidates": 0}, "`num_plan_candidates` is 0"),
        ({"num_plan_candidates": 2**70}, "`num_plan_candidates` is 1180591620717411303424, but must be at most 1024"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, message):
    pipe = forbid(tiny_pipeline(**tiny_cue_parts()))
    with pytest.raises(ValueError, match=message):
        pipe.plan(**{"prompt": PROMPT, **arguments})


def test_a_plan_needs_a_planner():
    with pytest.raises(ValueError, match="`planner` is missing"):
        tiny_pipeline(planner=None).plan(PROMPT)
