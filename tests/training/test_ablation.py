import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.checkpoints import default_checkpoint
from baton_diffusers.guiders import PlanGuidance, presets
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.schedulers import LeadFlowMatchScheduler
from baton_diffusers.training import ablation
from baton_diffusers.training.evaluation import DIRECTIONS, draw_examples, evaluate


ARMS = """
[defaults]
models = "seed0"
direction = "v2a"

[[arm]]
name = "planner"
models = ["seed0", "seed1"]

[[arm]]
name = "plan without text"
against = "planner"
direction = "t2av"
text = false
guider = {class = "PlanGuidance", guidance_scale = 1.5}

[[arm]]
name = "trained apart"
transformer = "apart"
guidance = "harmony"
audio_guider = {guidance_scale = 2.5}
steps = 8
lead = -0.25
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed1").mkdir()
    for name in ("transformer", "text_encoder"):
        (tmp_path / "apart" / name).mkdir(parents=True)
        (tmp_path / "apart" / name / "config.json").write_text("{}")
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
    first, second, third = ablation.load_arms("arms.toml")
    assert first == ablation.Arm("planner", ("seed0", "seed1"), direction="v2a")
    assert second.models == ("seed0",) and second.direction == "t2av"
    assert not second.text and second.plan == "planner"
    built = second.build_guiders()
    assert isinstance(built["guider"], PlanGuidance) and built["guider"].config.guidance_scale == 1.5
    assert list(built) == ["guider"] and first.build_guiders() == {}
    assert third.transformer == ("apart",) and (third.steps, third.lead) == (8, -0.25)
    built = third.build_guiders()
    assert built["guider"].config == presets()["harmony"]["guider"].config
    published = presets()["harmony"]["audio_guider"].config
    assert built["audio_guider"].config == {**published, "guidance_scale": 2.5}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[[arm]]", "[[arm", "is not a TOML file"),
        ("[[arm]]", "[[arms]]", r"must hold tables \[\[arm\]\]"),
        ("[defaults]", "[common]", r"must hold tables \[\[arm\]\]"),
        ('models = "seed0"', "", "arm 2 lacks `models`"),
        ('models = "seed0"', "models = []", "has no `models`"),
        ('models = "seed0"', 'models = ["seed2"]', "'seed2' of arm 'plan without text' is neither"),
        ('"plan without text"', '"planner"', "two arms are called 'planner'"),
        ('against = "planner"', 'against = "trained apart"', "against` 'trained apart', which is no arm before it"),
        ('direction = "t2av"', 'direction = "t2v"', "'plan without text': `direction` is 't2v'"),
        (
            'transformer = "apart"',
            'transformer = "seed1"',
            "seed1/transformer of arm 'trained apart' has no config.json",
        ),
        (
            'transformer = "apart"',
            'models = ["seed0", "seed1"]\ntransformer = "apart"',
            "has 2 `models`, and `transformer`",
        ),
        ('transformer = "apart"', 'planner = "seed1"', "seed1 of arm 'trained apart' has no config.json"),
        ('transformer = "apart"', 'planner = "seed1"\nplan = "none"', "has a `planner`, but its `plan` is 'none'"),
        ('guidance = "harmony"', 'guidance = "harmonic"', "the `guidance` 'harmonic'"),
        ('guidance = "harmony"', "", "'trained apart': `audio_guider` changes a scheme"),
        ("guidance_scale = 2.5", "strength = 2.5", "`audio_guider` has 'strength', but SyncGuidance takes"),
        ("guidance_scale = 2.5", 'modality = "video"', "has the anchor `mute`, a pass that predicts no audio"),
        ("steps = 8", "steps = 0", "has `steps` 0"),
        ("lead = -0.25", "lead = 2.0", "Expected `lead` to be between"),
        ("text = false", "prose = false", "unknown key `prose`"),
        ("text = false", 'plan = "oracle"', "the `plan` 'oracle'"),
        ("text = false", 'text = false\nplan = "none"', "neither text nor plan"),
        ("PlanGuidance", "PlainGuidance", "`guider` is of class 'PlainGuidance'"),
        ("guidance_scale = 1.5", "scale = 1.5", "`guider` has 'scale', but PlanGuidance takes guidance_scale, "),
    ],
)
def test_wrong_arms_are_refused(folder, old, new, message):
    assert old in ARMS
    (folder / "arms.toml").write_text(ARMS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ablation.load_arms("arms.toml")


def test_arms_are_compared_scene_by_scene(examples):
    truth, mute = evaluate(rendered, examples), evaluate(silent, examples)
    arms = [ablation.Arm(name, ("nano",)) for name in ("truth", "twice")]
    arms.append(ablation.Arm("mute", ("nano",), against="twice"))
    arms += [ablation.Arm("film", ("nano",), direction="v2a"), ablation.Arm("mute film", ("nano",), direction="v2a")]
    scores = {"truth": truth, "twice": truth + truth, "mute": mute, "film": truth, "mute film": mute}
    table = ablation.summarise_arms(arms, scores, examples)
    assert list(table) == ["all", "simple", "medium", "complex"]
    for tier in table.values():
        assert [arm["against"] for arm in tier.values()] == [None, "truth", "twice", None, "film"]
        assert tier["twice"]["clips"] == 2 * tier["truth"]["clips"] and tier["truth"]["differences"] is None
        nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
        assert tier["twice"]["differences"]["p_acc"] == {"difference": nothing, "relative": nothing}
        for figure in ("p_acc", "m_wer", "desync"):
            change = tier["mute"]["differences"][figure]["difference"]
            if tier["mute"][figure] is not None:
                lost = tier["mute"][figure]["value"] - tier["truth"][figure]["value"]
                assert change["value"] == pytest.approx(lost) and change["low"] <= change["value"] <= change["high"]
        assert tier["mute film"]["differences"]["p_acc_made"]["relative"]["value"] == -1.0
    change = table["all"]["mute"]["differences"]
    assert change["p_acc"]["difference"]["high"] < 0 < change["desync"]["difference"]["low"]
    assert change["p_acc"]["relative"]["value"] == pytest.approx(table["all"]["mute"]["p_acc"]["value"] - 1)
    assert change["m_wer"]["relative"] is None  # the truth has no word wrong, of which there are no parts

    figures, differences = (part.splitlines() for part in ablation.format_arms(table).split("\n\n"))
    assert len(figures) == 2 + 4 * 5 and len(differences) == 2 + 4 * 3
    assert all(len({line.count("|") for line in lines}) == 1 for lines in (figures, differences))
    assert figures[0] == "| tier | arm | clips | P-Acc | made | M-WER | DeSync (s) |"
    assert figures[2].startswith("| all | truth | 6 | 1.000 [")
    assert differences[2].startswith("| all | twice | truth | +0.000 [+0.000, +0.000] (+0% [+0%, +0%]) |")


def test_an_interval_of_differences_is_that_of_pairs(examples):
    """What all scenes have in common leaves no doubt, however unlike the scenes are."""
    truth = evaluate(rendered, examples)
    early, late = ([replace(s, desync=i * 0.1 + lag) for i, s in enumerate(truth)] for lag in (0.1, 0.2))
    difference = ablation.paired_differences(late, early, len(examples))["desync"]["difference"]
    assert all(difference[name] == pytest.approx(0.1) for name in ("value", "low", "high"))


def test_nobody_speaks_and_nothing_was_wrong(examples):
    dumb = [
        replace(s, references={"low": "", "high": ""}, hypotheses={"low": "", "high": ""})
        for s in evaluate(rendered, examples)
    ]
    differences = ablation.paired_differences(dumb, dumb, len(examples))
    assert differences["m_wer"] == {"difference": None, "relative": None}


# What is measured, and what need not be


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A folder as `train_transformer.py` exports it."""
    folder = tmp_path_factory.mktemp("apart")
    transformer = DualBranchTransformer.from_pretrained(default_checkpoint(), subfolder="transformer")
    with torch.no_grad():
        transformer.proj_out.bias += 1.0
    transformer.save_pretrained(folder / "transformer")
    shutil.copytree(Path(default_checkpoint()) / "text_encoder", folder / "text_encoder")
    return str(folder)


@pytest.fixture(scope="module")
def nano():
    return BatonPipeline.from_pretrained(NANO)


@pytest.fixture
def load(nano):
    """Gives pipelines of nano's components, and remembers them."""

    def load(model):
        load.pipes.append(copy.copy(nano))
        return load.pipes[-1]

    load.pipes = []
    return load


NANO = str(default_checkpoint())
QUICK = {"plan": "none", "guidance": "none", "steps": 1}


def test_an_arm_uses_its_parts_guiders_and_schedulers(load, examples, apart):
    arm = ablation.Arm("apart", (NANO,), (apart,), direction="a2v", lead=0.5, **QUICK | {"guidance": "ccl"})
    scores = ablation.run_arm(arm, load, examples[:2], batch_size=1)
    (pipe,) = load.pipes
    assert (pipe.transformer.proj_out.bias > 0.5).all() and not pipe.transformer.training
    assert type(pipe.guider).__name__ == type(pipe.audio_guider).__name__ == "ContextGuidance"
    assert isinstance(pipe.scheduler, LeadFlowMatchScheduler) and pipe.scheduler.config.lead == 0.5
    assert pipe.audio_scheduler.config.lead == -0.5 and pipe.audio_scheduler.config.shift == 2.0
    assert len(scores) == 2
    heard = [fact.holds for score in scores for fact in score.facts if fact.aspect in ("heard", "pitch")]
    assert all(heard)  # the sound is the scene's own


def test_the_checkpoints_of_an_arm_are_scored_in_turn(load, tmp_path, examples, apart):
    arm = ablation.Arm("both", (NANO,), (apart, NANO), **QUICK)
    scores = ablation.run_arm(arm, load, examples[:1])
    alone = ablation.run_arm(ablation.Arm("second", (NANO,), **QUICK), load, examples[:1])
    biases = [pipe.transformer.proj_out.bias.mean().item() for pipe in load.pipes]
    assert biases[0] == pytest.approx(biases[1] + 1) and len(scores) == 2 and scores[1] == alone[0]


def test_what_was_measured_with_the_same_settings_is_not_measured_again(load, tmp_path, examples):
    path = tmp_path / "scores.jsonl"
    arm = ablation.Arm("nano", (NANO,), **QUICK)
    first = ablation.run_arm(arm, load, examples[:2], kept=ablation.ScoreFile(path))
    assert len(load.pipes) == 1 and len(path.read_text().splitlines()) == 2

    kept = ablation.ScoreFile(path)
    again = ablation.run_arm(replace(arm, name="by another name"), load, examples[:2], kept=kept)
    assert len(load.pipes) == 1
    for score, other in zip(first, again, strict=True):
        assert replace(score, cast=(), sights=(), sounds=()) == other and score.word_errors == other.word_errors

    # Interrupted while a line was written, it goes on with the scenes that are missing.
    path.write_text(path.read_text()[:-20])
    more = ablation.run_arm(arm, load, examples[:3], kept=ablation.ScoreFile(path))
    assert len(load.pipes) == 2 and len(path.read_text().splitlines()) == 3
    assert [s.facts for s in more[:2]] == [s.facts for s in first]


def test_other_settings_are_measured_apart(apart):
    arm = ablation.Arm("nano", (NANO,), **QUICK)
    others = [
        replace(arm, guidance="text"),
        replace(arm, guidance=None),
        replace(arm, direction="i2av"),
        replace(arm, plan="planner"),
        replace(arm, plan="planner", text=False),
        replace(arm, lead=0.25),
        replace(arm, transformer=(apart,)),
    ]
    settings = [ablation._settings(x, NANO, *x.transformer[:1] or (None,), 1) for x in (arm, *others)]
    settings.append(ablation._settings(arm, NANO, None, 2))
    assert len(set(settings)) == 9
    assert ablation._settings(replace(arm, name="by another name"), NANO, None, 1) == settings[0]


def test_a_part_that_is_not_read_may_change(tmp_path, examples):
    shutil.copytree(NANO, tmp_path / "nano")
    model = str(tmp_path / "nano")
    planned, unplanned = ablation.Arm("planned", (model,)), ablation.Arm("unplanned", (model,), plan="none")

    def settings():
        return [ablation._settings(arm, model, None, None) for arm in (planned, unplanned)]

    before = settings()
    (tmp_path / "nano" / "README.md").write_text("Another card.")
    assert settings() == before
    with (tmp_path / "nano" / "planner" / "config.json").open("a") as file:
        file.write("\n")
    assert settings()[0] != before[0] and settings()[1] == before[1]
    (tmp_path / "nano" / "scheduler" / "scheduler_config.json").unlink()
    assert settings()[1] != before[1]


def test_a_checkpoint_of_the_hub_is_known_by_what_it_holds(tmp_path, monkeypatch):
    shutil.copytree(NANO, tmp_path / "snapshot")
    downloaded = []
    monkeypatch.setattr(
        ablation.DiffusionPipeline, "download", lambda name: downloaded.append(name) or str(tmp_path / "snapshot")
    )
    arm = ablation.Arm("hub", ("somebody/nano",))
    assert ablation._settings(arm, "somebody/nano", None, None) == ablation._settings(arm, NANO, None, None)
    with (tmp_path / "snapshot" / "planner" / "config.json").open("a") as file:  # another revision
        file.write("\n")
    assert ablation._settings(arm, "somebody/nano", None, None) != ablation._settings(arm, NANO, None, None)
    assert downloaded == ["somebody/nano"] * 2


def test_the_arms_of_nano_can_be_read(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    arms = ablation.load_arms("examples/configs/nano/ablation.toml")
    assert {arm.plan for arm in arms} == {"planner", "ground truth", "none"} and arms[0].name == "planner"
    assert {arm.direction for arm in arms} == set(DIRECTIONS)
    assert {type(arm.build_guiders()["guider"]).__name__ for arm in arms if arm.guidance} >= {
        "PlanGuidance",
        "SyncGuidance",
        "ContextGuidance",
    }
