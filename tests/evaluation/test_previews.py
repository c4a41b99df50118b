"""How previews are scored: by the sheet that their plan follows, however often the clip would have been right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baton_diffusers.coordinates import plan_layout
from baton_diffusers.evaluation.previews import format_previews, measure_previews, summarise_previews
from baton_diffusers.evaluation.scores import draw_examples
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.stage import render_clip, write_cues


LAYOUT = plan_layout(3.0625, 6.0, (2, 4), 16)


class Drawn:
    """A pipeline whose plan has the sheet of the scene, and whose preview is the scene's own render, `late` by so many frames."""

    def __init__(self, examples, late=0, sheet=None):
        self.examples = {example.prompt: example for example in examples}
        self.late, self.sheet, self.calls = late, sheet, 0

    def plan(self, prompt, generator):
        example = self.examples[prompt]
        tokens = torch.zeros(1, len(LAYOUT.video_times), 2), torch.zeros(1, len(LAYOUT.audio_times), 2)
        plan = SemanticPlan.laid_out(LAYOUT, *tokens, 3.0625)
        sheet = write_cues(example.scene, example.seed) if self.sheet is None else self.sheet
        return replace(plan, prompts=(prompt,), sheets=(sheet,))

    def preview(self, plan):
        example = self.examples[plan.prompts[0]]
        clip = render_clip(example.scene, example.seed)
        frames = np.concatenate([clip.frames[:1]] * self.late + [clip.frames])[:49]
        sound = np.concatenate([np.zeros(1000 * self.late, np.float32), clip.waveform])[:49_000]
        return BatonPipelineOutput(frames[None] / 255, sound[None, None], 16, 16_000, plan, "np")

    def __call__(self, prompt, **call):
        self.calls += 1


@pytest.fixture(scope="module")
def examples():
    return draw_examples(2)


def test_all_of_a_render_is_found_at_its_time(examples):
    pipe = Drawn(examples)
    scores = measure_previews(pipe, examples, num_timed=2)
    summary = summarise_previews(scores)
    assert all(value["value"] == 1 for name, value in summary["shares"].items() if name != "M-WER")
    assert summary["shares"]["M-WER"]["value"] == 0 and summary["untold"] == 0
    assert pipe.calls == 3 and len(scores.seconds) == 2 and summary["seconds"]["ratio"] > 0
    assert "% of its clip's time" in format_previews(summary)


def test_what_comes_a_quarter_of_a_second_late_is_not_found(examples):
    summary = summarise_previews(measure_previews(Drawn(examples, late=4), examples, num_timed=0))
    shares = summary["shares"]
    assert shares["events within 0.125 s"]["value"] < 0.5 and shares["cast with place and colour"]["value"] == 1
    assert "% of its" not in format_previews(summary)


def test_a_sheet_that_tells_no_scene_is_counted_apart(examples):
    scores = measure_previews(Drawn(examples, sheet="red ball left <|0.50|> red ball sings"), examples, num_timed=0)
    assert scores.untold == len(examples) and not scores.counts
    assert summarise_previews(scores)["shares"] == {}
