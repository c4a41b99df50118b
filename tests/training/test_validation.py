"""Validation: clips of what is trained so far, as files, with their scores."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.cli import main
from baton_diffusers.media import read_clip
from baton_diffusers.training.config import LoraTraining, TransformerTraining, ValidationConfig, load_config
from baton_diffusers.training.transformer import TransformerWithText
from baton_diffusers.training.validation import Validation
from tests.scripts import load_script


CONFIGS = Path(__file__).parents[2] / "examples" / "configs" / "nano"


@pytest.fixture(scope="module")
def pipe():
    return BatonPipeline.from_pretrained(default_checkpoint())


def test_a_clip_of_ones_own_prompt_is_written_with_a_sheet_and_not_scored(tmp_path, pipe):
    prompt = "A red ball on the left bounces twice."
    config = ValidationConfig(default_checkpoint(), (prompt,), num_inference_steps=1, use_plan=False)
    validation = Validation(config, tmp_path)
    assert validation(TransformerWithText(pipe.transformer, pipe.text_encoder).eval(), step=7) == {}
    path = tmp_path / "step_00000007" / "prompt-0.mp4"
    assert len(read_clip(path).frames) == 49
    assert path.with_suffix(".txt").read_text() == prompt + "\n"
    sheet = Image.open(tmp_path / "step_00000007.jpg")
    assert sheet.width == 1000 and np.asarray(sheet).std() > 20

    # without a text encoder that learns, the pipeline's own; and what is there is made again the same
    before = path.read_bytes()
    validation(TransformerWithText(pipe.transformer).eval(), step=7)
    assert path.read_bytes() == before


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="`prompts`, or `scenes_per_tier`"):
        ValidationConfig("model")
    with pytest.raises(ValueError, match="batch_size.*0"):
        ValidationConfig("model", ("a",), batch_size=0)
    for model in (None, "nowhere"):
        with pytest.raises(ValueError, match=f"`validation.model` is {model!r}"):
            Validation(ValidationConfig(model, ("a",)), tmp_path)
    (tmp_path / "model_index.json").write_text('{"planner": [null, null]}')
    with pytest.raises(ValueError, match="has no planner"):
        Validation(ValidationConfig(str(tmp_path), ("a",)), tmp_path)


@pytest.mark.slow
def test_the_scripts_write_and_score_clips_as_they_train(tmp_path, capsys):
    model, features = default_checkpoint(), tmp_path / "features"
    with pytest.raises(SystemExit) as exit:
        main(["cache", "stage", "--clips", "2", "--text", "--output", str(features)])
    assert exit.value.code == 0
    trainer = ["trainer.steps=2", "trainer.batch_size=2", "trainer.trackers=[]", "trainer.validate_every=1"]
    shared = [f"features={features}", *trainer, "validation.num_inference_steps=1"]
    parts = [f"{name}={model}/{name}" for name in ("vae", "audio_vae", "tokenizer", "planner", "planner_tokenizer")]
    precision = ["trainer.mixed_precision=no", "trainer.compile=false", "trainer.max_minutes=null"]

    unplanned = ["validation.use_plan=false", f"initial_text_encoder={model / 'text_encoder'}"]
    for stage, overrides in {
        "transformer": unplanned,
        "transformer_stage3": [f"initial={tmp_path}/transformer/export"],
    }.items():
        run_dir = tmp_path / stage
        overrides += [f"trainer.run_dir={run_dir}", f"validation.model={model}", "validation.scenes_per_tier=1"]
        used = parts if stage == "transformer_stage3" else parts[:3]
        config = load_config(CONFIGS / f"{stage}.yaml", TransformerTraining, [*shared, *used, *precision, *overrides])
        load_script("examples/train_transformer.py").main(config)
        rows = rows_of(run_dir / "validation.csv")
        assert [row["step"] for row in rows] == ["1", "2"]
        assert all(0 <= float(row["p_acc"]) <= 1 and float(row["desync"]) >= 0 for row in rows)
        for step in (1, 2):
            clips = sorted(path.name.split("-")[0] for path in (run_dir / f"samples/step_{step:08d}").glob("*.mp4"))
            assert clips == ["complex", "medium", "simple"]
            assert (run_dir / f"samples/step_{step:08d}.jpg").is_file()

    lora = [f"model={model}", f"output={tmp_path / 'lora'}", "plan=encoders", "cached_text=true"]
    lora += [
        f"trainer.run_dir={tmp_path / 'lora_run'}",
        "validation.prompts=[A red ball bounces twice., A bell rings.]",
    ]
    train_lora = load_script("examples/train_lora.py").main
    torch.manual_seed(0)
    train_lora(load_config(CONFIGS / "lora.yaml", LoraTraining, [*shared, *lora]))
    clips = [tmp_path / "lora_run" / "samples" / "step_00000002" / f"prompt-{i}.mp4" for i in (0, 1)]
    assert clips[0].read_bytes() != clips[1].read_bytes()
    assert not (tmp_path / "lora_run" / "validation.csv").exists(), "there is nothing to score one's own prompts with"
    assert "load_lora_weights" in capsys.readouterr().out

    # the same LoRA with the text encoder in memory: its losses differ by the rounding of the cache alone
    uncached = [
        f"model={model}",
        f"output={tmp_path / 'other'}",
        "plan=encoders",
        f"features={features}",
        *trainer[:3],
    ]
    torch.manual_seed(0)
    uncached.append(f"trainer.run_dir={tmp_path / 'other_run'}")
    train_lora(load_config(CONFIGS / "lora.yaml", LoraTraining, uncached))
    losses = [float(rows_of(tmp_path / run / "log.csv")[-1]["loss"]) for run in ("lora_run", "other_run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0] != 0


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
