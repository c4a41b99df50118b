from pathlib import Path

import numpy as np
import pytest

from baton_diffusers import BatonPipeline
from baton_diffusers.checkpoints import default_checkpoint
from baton_diffusers.guiders import PlanGuidance
from baton_diffusers.training import ablation
from baton_diffusers.training.evaluation import draw_examples, evaluate


ARMS = """
[[arm]]
name = "planner"
models = ["seed0", "seed1"]

[[arm]]
name = "plan without text"
models = ["seed0"]
text = false
guider = {class = "PlanGuidance", guidance_scale = 1.5}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed1").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def examples():
    return draw_examples(2)


def rendered(batch):
    return [(example.clip.frames, example.clip.waveform[None]) for example in batch]


def silent(batch):
    return [(example.clip.frames, 0 * example.clip.waveform[None]) for example in batch]


def test_arms_are_read_from_a_file(folder):
    (folder / "arms.toml").write_text(ARMS)
    first, second = ablation.load_arms("arms.toml")
    assert first == ablation.Arm("planner", ("seed0", "seed1"))
    assert not second.text and second.plan == "planner"
    guider = second.build_guider("guider")
    assert isinstance(guider, PlanGuidance) and guider.config.guidance_scale == 1.5


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[[arm]]", "[[arm", "is not a TOML file"),
        ("[[arm]]", "[[arms]]", r"must hold tables \[\[arm\]\]"),
        ('models = ["seed0"]', "", "arm 2 lacks `models`"),
        ('models = ["seed0"]', "models = []", "has no `models`"),
        ('models = ["seed0"]', 'models = ["seed2"]', "'seed2' of arm 'plan without text' is neither"),
        ('"plan without text"', '"planner"', "two arms are called 'planner'"),
        ("text = false", "prose = false", "unknown key `prose`"),
        ("text = false", 'plan = "oracle"', "the `plan` 'oracle'"),
        ("text = false", 'text = false\nplan = "none"', "neither text nor plan"),
        ("PlanGuidance", "PlainGuidance", "a `guider` of class 'PlainGuidance'"),
        ("guidance_scale", "scale", "`guider` cannot be made: .*'scale'"),
    ],
)
def test_wrong_arms_are_refused(folder, old, new, message):
    assert old in ARMS
    (folder / "arms.toml").write_text(ARMS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ablation.load_arms("arms.toml")


def test_arms_are_compared_scene_by_scene(examples):
    truth, mute = evaluate(rendered, examples), evaluate(silent, examples)
    table = ablation.summarise_arms({"truth": truth, "twice": truth + truth, "mute": mute}, examples)
    assert list(table) == ["all", "simple", "medium", "complex"]
    for tier in table.values():
        assert tier["twice"]["clips"] == 2 * tier["truth"]["clips"]
        assert tier["twice"]["p_acc_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        lost = np.subtract(tier["mute"]["p_acc"]["value"], tier["truth"]["p_acc"]["value"])
        assert tier["mute"]["p_acc_gain"]["value"] == pytest.approx(lost)
    gain = table["all"]["mute"]["p_acc_gain"]
    assert gain["low"] <= gain["value"] <= gain["high"] < 0

    lines = ablation.format_arms(table).splitlines()
    assert len(lines) == 2 + 4 * 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| all | truth | 6 | 1.000 [")


def test_an_arm_uses_its_models_plans_and_guiders(examples):
    loaded = []

    def load(model):
        loaded.append(BatonPipeline.from_pretrained(default_checkpoint()))
        return loaded[-1]

    arm = ablation.Arm("plan alone", ("a", "b"), text=False, guider={"class": "PlanGuidance", "guidance_scale": 1.0})
    scores = ablation.run_arm(arm, load, examples[:2], num_inference_steps=1)
    assert [pipe.guider.config.guidance_scale for pipe in loaded] == [1.0, 1.0]
    assert [pipe.audio_guider.config.guidance_scale for pipe in loaded] != [1.0, 1.0]
    assert len(scores) == 4 and [s.p_acc for s in scores[:2]] == [s.p_acc for s in scores[2:]]


def test_the_arms_of_nano_can_be_read(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    arms = ablation.load_arms("examples/configs/nano/ablation.toml")
    assert [arm.plan for arm in arms[:3]] == ["planner", "ground truth", "none"]
    assert {type(arm.build_guider("guider")).__name__ for arm in arms if arm.guider} == {
        "SyncGuidance",
        "ContextGuidance",
    }
