import numpy as np
import pytest
import torch

from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.stage.scoring import summarise
from baton_diffusers.training.evaluation import (
    draw_examples,
    evaluate,
    format_summary,
    generated_clips,
)


@pytest.fixture(scope="module")
def examples():
    return draw_examples(3)


def rendered(batch):
    return [(example.clip.frames, example.clip.waveform[None]) for example in batch]


class Renderer:
    """A pipeline that has learned Stage by heart: it renders the scene whose prompt it reads."""

    planner = object()

    def __init__(self, examples):
        self.known = {example.prompt: example for example in examples}
        self.calls = []

    def __call__(self, prompt, generator, **settings):
        self.calls.append(settings | {"seeds": [g.initial_seed() for g in generator]})
        clips = [self.known[text].clip for text in prompt]
        frames = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 1, 4, 2, 3) / 255
        audio = torch.stack([torch.from_numpy(clip.waveform) for clip in clips])[:, None]
        return BatonPipelineOutput(frames, audio, clips[0].frame_rate, clips[0].sampling_rate)


def test_examples_are_different_scenes_of_the_test_split(examples):
    assert [example.scene.tier for example in examples] == ["simple"] * 3 + ["medium"] * 3 + ["complex"] * 3
    assert len({example.scene.digest for example in examples}) == 9
    assert all(example.scene.split == "test" for example in examples)
    assert draw_examples(3) == examples and draw_examples(3, seed=1) != examples
    assert draw_examples(2)[:2] == examples[:2]
    with pytest.raises(ValueError, match="`scenes_per_tier` is 0"):
        draw_examples(0)


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


def test_what_cannot_be_evaluated_is_refused(examples):
    pipe = Renderer(examples)
    with pytest.raises(ValueError, match="`plan` is 'oracle'"):
        generated_clips(pipe, examples, plan="oracle")
    with pytest.raises(ValueError, match="the simple tier has one scene"):
        generated_clips(pipe, examples[2:], shuffle_prompts=True)
    pipe.planner = None
    with pytest.raises(ValueError, match="no planner"):
        generated_clips(pipe, examples)


def test_the_table_has_a_row_for_each_tier(examples):
    lines = format_summary(summarise(evaluate(rendered, examples))).splitlines()
    assert lines[0].startswith("| tier | clips | P-Acc | strict | M-WER | DeSync (s) | present | seen |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| all", "| simple", "| medium", "| complex"]
    assert len({line.count("|") for line in lines}) == 1
    assert "1.000 [" in lines[3]
