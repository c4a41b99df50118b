import numpy as np
import pytest
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.evaluation.plan_variants import SHEET_LENGTH
from baton_diffusers.evaluation.scores import (
    DIRECTIONS,
    Example,
    draw_examples,
    evaluate,
    facts_by_verb,
    format_summary,
    format_verbs,
    generated_clips,
    hits_by_neighbours,
    p_acc_made,
    reconstructed_clips,
    scored_batches,
    summarise,
)
from baton_diffusers.guiders import presets
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage import Action, Actor, Scene
from baton_diffusers.stage.prompts import describe
from baton_diffusers.stage.scene import VERBS


@pytest.fixture(scope="module")
def examples():
    return draw_examples(3)


@pytest.fixture(scope="module")
def nano():
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(**presets()["none"])
    return pipe


def rendered(batch):
    return [(example.clip.frames, example.clip.waveform[None]) for example in batch]


def silent(batch):
    return [(example.clip.frames, 0 * example.clip.waveform[None]) for example in batch]


class Renderer:
    """A pipeline that has learned Stage by heart: it renders the scene whose prompt it reads."""

    planner = object()
    frame_rate, sampling_rate = 16, 16000

    def __init__(self, examples):
        self.known = {example.prompt: example for example in examples}
        self.calls = []

    def __call__(self, prompt, generator, **settings):
        self.calls.append(settings | {"seeds": [g.initial_seed() for g in generator]})
        clips = [self.known[text].clip for text in prompt]
        frames = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 1, 4, 2, 3) / 255
        audio = torch.stack([torch.from_numpy(clip.waveform) for clip in clips])[:, None]
        return BatonPipelineOutput(frames, audio, clips[0].frame_rate, clips[0].sampling_rate)


def test_examples_are_different_scenes_of_the_validation_split(examples):
    assert [example.scene.tier for example in examples] == ["simple"] * 3 + ["medium"] * 3 + ["complex"] * 3
    assert len({example.scene.digest for example in examples}) == 9
    assert all(example.scene.split == "validation" for example in examples)
    assert draw_examples(3) == examples and draw_examples(3, seed=1) != examples
    assert draw_examples(2)[:2] == examples[:2]


def test_the_test_splits_are_scenes_or_wordings_that_no_training_stream_yields():
    for split in ("test", "test-combinations"):
        chosen = draw_examples(2, split)
        assert {example.scene.split for example in chosen} == {split}
        assert [example.told for example in chosen] == [describe(e.scene, e.seed) for e in chosen]
    said, paraphrased = draw_examples(2, "test"), draw_examples(2, "test-paraphrase")
    assert [example.scene for example in said] == [example.scene for example in paraphrased]
    assert [example.told for example in paraphrased] == [describe(e.scene, e.seed, "held-out") for e in said]


@pytest.mark.parametrize(
    "arguments, message", [((0,), "`scenes_per_tier` is 0"), ((1, "train"), "`split` is 'train'")]
)
def test_impossible_examples_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_examples(*arguments)


def test_what_a_prompt_leaves_open_is_not_scored():
    example = next(e for e in draw_examples(20) if not all(e.told.places) and len(e.scene.actors) < 3)
    aspects = [fact.aspect for fact in example.score(example.clip.frames, example.clip.waveform[None]).facts]
    assert aspects.count("place") == sum(example.told.places) < aspects.count("present")


def test_the_truth_scores_full_marks_and_shuffled_prompts_do_not(examples):
    pipe = Renderer(examples)
    truth = evaluate(generated_clips(pipe, examples, num_inference_steps=7), examples, batch_size=4)
    assert np.mean([score.p_acc for score in truth]) >= 0.99
    assert [len(call["seeds"]) for call in pipe.calls] == [4, 4, 1]
    assert pipe.calls[0]["num_inference_steps"] == 7 and pipe.calls[0]["use_plan"] and pipe.calls[0]["plan"] is None
    assert sum((call["seeds"] for call in pipe.calls), []) == [example.seed for example in examples]
    shuffled = evaluate(generated_clips(pipe, examples, shuffle_prompts=True), examples)
    assert np.mean([score.p_acc for score in shuffled]) < 0.7
    generated_clips(pipe, examples, plan="none")(examples[:1])
    assert not pipe.calls[-1]["use_plan"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"plan": "oracle"}, "`plan` is 'oracle'"),
        ({"direction": "t2v"}, "`direction` is 't2v': choose one of .*'v2a'"),
        ({"direction": "v2a", "given_from": "disk"}, "`given_from` is 'disk': choose one of"),
        ({"given_from": "mp4"}, "in the direction t2av nothing is given"),
        ({"cues": "spoken"}, "`cues` is 'spoken': choose one of"),
        ({"plan": "none", "cues": "none"}, "`cues` is 'none', but no planner"),
        ({"shuffle_prompts": True}, "the simple tier has one scene"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(examples, settings, message):
    with pytest.raises(ValueError, match=message):
        generated_clips(Renderer(examples), examples[2:], **settings)


def test_plans_need_a_planner(examples):
    pipe = Renderer(examples)
    pipe.planner = None
    with pytest.raises(ValueError, match="no planner"):
        generated_clips(pipe, examples)


def test_given_from_an_mp4_is_what_the_pipeline_made_itself(examples):
    pipe = Renderer(examples)
    (example,) = examples[-1:]
    make = generated_clips(pipe, examples, direction="v2a", given_from="mp4")
    assert example.score(*make([example])[0]).strict
    free, given = pipe.calls
    assert "video" not in free and free["seeds"] == given["seeds"]
    frames, truth = given["video"][0].astype(int), example.clip.frames
    assert frames.shape == truth.shape and 0 < np.abs(frames - truth).mean() < 10  # what H.264 loses


@pytest.mark.parametrize(
    "direction, given, plan", [("a2v", 1, "planner"), ("v2a", 0, "none"), ("v2a", 0, "ground truth")]
)
def test_a_given_modality_is_scored_as_it_is_with_what_is_made_for_it(nano, examples, direction, given, plan):
    batch = [examples[0], examples[-1]]
    clips = generated_clips(nano, examples, 1, plan, direction=direction)(batch)
    for made, truth in zip(clips, rendered(batch), strict=True):
        assert np.array_equal(made[given], truth[given])
        assert made[1 - given].shape == truth[1 - given].shape and not np.array_equal(
            made[1 - given], truth[1 - given]
        )


def test_without_the_text_the_plan_alone_tells_what_to_make(nano, examples):
    (clip,) = generated_clips(nano, examples, 1, text=False)(examples[-1:])
    generator = torch.Generator().manual_seed(examples[-1].seed)
    cues = nano.prepare_cues(examples[-1].prompt, generator=generator)
    plan = nano.prepare_plan(examples[-1].prompt, cues=cues)
    expected = nano("", plan=plan, generator=generator, num_inference_steps=1, output_type="np").clip()
    assert all(np.array_equal(part, other) for part, other in zip(clip, expected, strict=True))


def test_a_sheet_can_be_read_as_text_in_place_of_a_plan(nano, examples, monkeypatch):
    monkeypatch.setattr(nano, "_internal_dict", nano.config)  # put back at the end
    nano.register_to_config(max_sequence_length=nano.config.max_sequence_length + SHEET_LENGTH)

    def clip(plan, cues="ground truth"):
        return generated_clips(nano, examples, 1, plan, cues=cues)(examples[-1:])[0][0]

    alone, read = clip("none", "written"), clip("sheet as text")
    assert not np.array_equal(read, alone) and np.array_equal(read, clip("sheet as text"))
    assert not np.array_equal(read, clip("sheet as text", "none"))


def test_a_first_frame_or_second_is_given_and_goes_on(nano, examples):
    batch = examples[-2:]
    free, begun, continued = (
        generated_clips(nano, examples, 1, "none", direction=d)(batch) for d in ("t2av", "i2av", "continuation")
    )
    for i, (frames, waveform) in enumerate(reconstructed_clips(nano)(batch)):

        def error(clip, span, truth=frames):
            return np.abs(clip[0][span] - 1.0 * truth[span]).max()

        # What is given returns as the autoencoders render it. Both are causal.
        assert error(begun[i], slice(0, 1)) <= 1 < 50 < error(free[i], slice(0, 1))
        assert error(continued[i], slice(0, 17)) <= 1 < 50 < error(continued[i], slice(17, None))
        assert all(
            clip[0].shape == frames.shape and clip[1].shape == waveform.shape for clip in (begun[i], continued[i])
        )


def test_what_is_given_does_not_count_as_made(examples):
    truth, mute = evaluate(rendered, examples), evaluate(silent, examples)
    assert [p_acc_made(score, direction) for score in truth for direction in DIRECTIONS] == [1.0] * 45
    # Of a silent clip the picture's facts hold. Those of the sound do not, nor is anything in its place.
    assert [p_acc_made(score, "v2a") for score in mute] == [0.0] * 9
    assert [p_acc_made(score, "t2av") for score in mute] == [score.p_acc for score in mute]
    for score in mute:
        kinds = [fact.aspect for fact in score.facts]
        visible, placed = sum(map(kinds.count, ("present", "place", "alone", "seen"))), kinds.count("order")
        assert p_acc_made(score, "a2v") == visible / (visible + placed)

    lines = {d: format_summary(summarise(mute, d)).splitlines() for d in ("t2av", "v2a")}
    assert lines["t2av"][0].startswith("| tier | clips | P-Acc | strict |")
    assert lines["v2a"][0].startswith("| tier | clips | P-Acc | made | strict |")
    assert all("| 0.000 [0.000, " in line for line in lines["v2a"][2:])
    assert len({line.count("|") for line in lines["v2a"]}) == 1


def test_facts_are_told_apart_by_their_verb(examples):
    truth, mute = evaluate(rendered, examples), evaluate(silent, examples)
    summary = summarise(mute)
    verbs = summary["all"]["verbs"]
    acting = {action.verb for example in examples for action in example.scene.script}
    assert set(verbs) == acting | {VERBS[actor.kind] for example in examples for actor in example.scene.actors}
    for verb, of in verbs.items():
        times = sum(action.verb == verb for example in examples for action in example.scene.script)
        actors = sum(VERBS[actor.kind] == verb for example in examples for actor in example.scene.actors)
        assert of["present"] == {"share": 1.0, "facts": actors}
        if verb in acting:
            assert of["seen"] == {"share": 1.0, "facts": times}
            assert of["heard"] == of["pitch"] == of["order"] == {"share": 0.0, "facts": times}
    for tier, values in summary.items():  # together they are the shares of the aspects
        for aspect, share in values["facts"].items():
            counts = [of[aspect] for of in values["verbs"].values() if aspect in of]
            if share is None or aspect in ("alone", "quiet"):  # nobody says a word; facts of the clip
                assert not counts
                continue
            number = sum(count["facts"] for count in counts)
            assert share == pytest.approx(sum(count["share"] * count["facts"] for count in counts) / number), tier
    assert {of["heard"]["share"] for verb, of in facts_by_verb(truth).items() if verb in acting} == {1.0}

    lines = format_verbs(verbs | {"ring": {"present": {"share": 0.5, "facts": 2}}}).splitlines()
    assert lines[0] == "| verb | present | place | seen | heard | pitch | words | order |" and len(lines) == 2 + len(
        {*verbs, "ring"}
    )
    assert "| ring | 0.50 of 2 | - | - | - | - | - | - |" in lines


def test_scores_come_batch_by_batch(examples):
    asked = []

    def make(batch):
        asked.append(len(batch))
        return rendered(batch)

    batches = scored_batches(make, examples, batch_size=4)
    assert len(next(batches)) == 4 and asked == [4]
    assert [len(batch) for batch in batches] == [4, 1]


def test_the_table_has_a_row_for_each_tier(examples):
    lines = format_summary(summarise(evaluate(rendered, examples))).splitlines()
    assert lines[0].startswith(
        "| tier | clips | P-Acc | strict | M-WER | DeSync (s) | present | place | alone | seen |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| all", "| simple", "| medium", "| complex"]
    assert len({line.count("|") for line in lines}) == 1
    assert "1.000 [" in lines[3]


def test_hits_are_told_apart_by_how_many_neighbours_the_box_has():
    box, ball, bell = Actor("box", "red", "middle"), Actor("ball", "blue", "left"), Actor("bell", "blue", "right")
    one = Example(Scene((box, bell), (Action("hit", 0, target=1), Action("ring", 1, 1))), 0)
    two, other = (Example(Scene((ball, box, bell), (Action("hit", 1, target=target),)), 0) for target in (0, 2))
    clips = rendered([one, two, two])
    scores = [e.score(*clip) for e, clip in zip((one, two, other), clips, strict=True)]
    hits = hits_by_neighbours(scores, [one, two, other])
    assert (hits[1]["value"], hits[1]["hits"], hits[2]["value"], hits[2]["hits"]) == (1.0, 1, 0.5, 2)
    assert hits_by_neighbours(scores[:1], [one])[2] is None
