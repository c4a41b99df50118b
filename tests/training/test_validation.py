"""Validation: clips of what is trained so far, as files, with their scores."""

import pytest

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.media import read_clip
from baton_diffusers.training.transformer import TransformerWithText
from baton_diffusers.training.validation import StageValidation


@pytest.mark.slow
def test_clips_are_written_and_scored(tmp_path):
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    validation = StageValidation(default_checkpoint(), tmp_path, scenes_per_tier=1, num_inference_steps=2, scale=1)
    scores = validation(TransformerWithText(pipe.transformer, pipe.text_encoder).eval(), step=7)
    assert {"p_acc", "strict", "desync"} <= set(scores) and 0 <= scores["p_acc"] <= 1
    clips = sorted((tmp_path / "step_00000007").glob("*.mp4"))
    assert sorted(path.name.split("-")[0] for path in clips) == ["complex", "medium", "simple"]
    for path in clips:
        assert len(read_clip(path).frames) == 49
        assert path.with_suffix(".txt").read_text().strip()
