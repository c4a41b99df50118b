import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baton_diffusers import BatonPipeline
from baton_diffusers.cli import loading
from baton_diffusers.evaluation import arms as ablation
from baton_diffusers.evaluation.scores import DIRECTIONS, draw_examples, evaluate, generated_clips, reconstructed_clips
from baton_diffusers.guiders import PlanGuidance, presets
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.schedulers import LeadFlowMatchScheduler
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage.scoring import score_clip
from tests.cli.commands import run


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
    for seed in ("seed0", "seed1"):
        for file in ("model_index.json", "planner/config.json", "transformer/config.json"):
            (tmp_path / seed / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(default_checkpoint() / file, tmp_path / seed / file)
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
        ('transformer = "apart"', 'transformer = "seed1"', "seed1/text_encoder of arm 'trained apart' has no"),
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
        ("lead = -0.25", 'student = "owner/turbo"', "has a `student`, which brings its guiders and schedulers"),
        ("text = false\nguider", 'student = "nowhere"\n#', "the student 'nowhere' is neither"),
        ("lead = -0.25", "lead = 2.0", "Expected `lead` to be between"),
        ("text = false", "prose = false", "unknown key `prose`"),
        ("text = false", "codec_only = true", "is `codec_only`, which generates nothing: leave `guider` out"),
        ("text = false", 'plan = "oracle"', "the `plan` 'oracle'"),
        ("text = false", 'plan_rope = "spatial"', "the `plan_rope` 'spatial': choose one of full, temporal, none"),
        ("text = false", 'text = false\nplan = "none"', "neither text nor plan"),
        ("text = false", 'text = false\nplan = "sheet as text"', "neither text nor plan"),
        ("PlanGuidance", "PlainGuidance", "`guider` is of class 'PlainGuidance'"),
        ("guidance_scale = 1.5", "scale = 1.5", "`guider` has 'scale', but PlanGuidance takes guidance_scale, "),
    ],
)
def test_wrong_arms_are_refused(folder, old, new, message):
    assert old in ARMS
    (folder / "arms.toml").write_text(ARMS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        ablation.load_arms("arms.toml")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "told, message",
    [
        ("", 'the arm \'x\' has the `plan` "planner", but seed1 has no planner: set `plan = "none"`, or `planner` to'),
        ('plan = "ground truth"', 'but seed1 has no video_semantic_encoder: set `plan = "none"`.'),
        ('plan = "none"', None),
        ('plan = "sheet as text"', 'has the `plan` "sheet as text", but seed1 has no planner'),
        ('plan = "sheet as text"\nplanner = "seed0/planner"\ncues = "none"', None),
        ("codec_only = true", None),
        ('planner = "seed0/planner"', None),
        ('planner = "silent"\ncues = "none"', "the planner in silent knows no timestamps: leave `cues` out"),
        ('planner = "silent"', None),
        ('models = "seed0"', None),
        ('models = "seed0"\ncues = "none"', None),
        ('models = "mute"\ncues = "none"', "mute of arm 'x' has no model_index.json: give the folder of a checkpoint"),
        ('models = "seed0"\nguidance = "ovi"', "the arm 'x' with the transformer of seed0: `guider` leaves out the"),
        ('models = "seed0"\nguidance = "ovi"\ntransformer = "deep"', None),
        (
            'models = "seed0"\nguidance = "ovi"\nguider = {skip_layers = []}\naudio_guider = {skip_layers = [5]}',
            "`audio_guider` leaves out the blocks [5] of the transformer, whose blocks are 0 to 4",
        ),
        ('models = "seed0"\nguidance = "ovi"\nguider = {skip_layers = []}\naudio_guider = {skip_layers = [4]}', None),
        ('models = "somebody/of-the-hub"\ncues = "none"\nguidance = "ovi"', None),
    ],
)
def test_what_the_folders_lack_for_an_arm_is_found_before_the_first_clip(folder, told, message):
    edit(folder / "seed1" / "model_index.json", planner=[None, None], video_semantic_encoder=[None, None])
    shutil.copytree(folder / "seed1" / "planner", folder / "silent")
    edit(folder / "silent" / "config.json", first_timestamp_id=None)
    (folder / "mute").mkdir()
    shutil.copytree(folder / "apart", folder / "deep")
    edit(folder / "deep" / "transformer" / "config.json", num_layers=30)
    model = "" if "models" in told else 'models = "seed1"'
    (folder / "arms.toml").write_text(f'[[arm]]\nname = "x"\n{model}\n{told}')
    if message is None:
        assert [arm.name for arm in ablation.load_arms("arms.toml")] == ["x"]
        return
    with pytest.raises(ValueError) as error:
        ablation.load_arms("arms.toml")
    assert str(error.value).startswith("arms.toml: ") and message in str(error.value)


def test_arms_are_compared_scene_by_scene(examples):
    truth, mute = evaluate(rendered, examples), evaluate(silent, examples)
    arms = [ablation.Arm(name, ("nano",)) for name in ("truth", "twice")]
    arms.append(ablation.Arm("mute", ("nano",), against=("twice", "truth")))
    arms += [ablation.Arm("film", ("nano",), direction="v2a"), ablation.Arm("mute film", ("nano",), direction="v2a")]
    scores = {"truth": truth, "twice": truth + truth, "mute": mute, "film": truth, "mute film": mute}
    table = ablation.summarise_arms(arms, scores, examples)
    assert list(table) == ["all", "simple", "medium", "complex"]
    for tier in table.values():
        against = [list(arm["against"]) for arm in tier.values()]
        assert against == [[], ["truth"], ["twice", "truth"], [], ["film"]]
        assert tier["twice"]["clips"] == 2 * tier["truth"]["clips"]
        nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
        assert tier["twice"]["against"]["truth"]["p_acc"] == {"difference": nothing, "relative": nothing}
        for figure in ("p_acc", "m_wer", "desync"):
            change = tier["mute"]["against"]["twice"][figure]["difference"]
            if tier["mute"][figure] is not None:
                lost = tier["mute"][figure]["value"] - tier["truth"][figure]["value"]
                assert change["value"] == pytest.approx(lost) and change["low"] <= change["value"] <= change["high"]
        assert tier["mute film"]["against"]["film"]["p_acc_made"]["relative"]["value"] == -1.0
    change = table["all"]["mute"]["against"]["truth"]
    assert change["p_acc"]["difference"]["high"] < 0 < change["desync"]["difference"]["low"]
    assert change["p_acc"]["relative"]["value"] == pytest.approx(table["all"]["mute"]["p_acc"]["value"] - 1)
    assert change["m_wer"]["relative"] is None  # the truth has no word wrong, of which there are no parts

    figures, differences = (part.splitlines() for part in ablation.format_arms(table).split("\n\n"))
    assert len(figures) == 2 + 4 * 5 and len(differences) == 2 + 4 * 4
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
        assert (
            replace(score, cast=(), sights=(), sounds=(), strays=((), ())) == other
            and score.word_errors == other.word_errors
        )

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
        replace(arm, plan_rope="none"),
        replace(arm, transformer=(apart,)),
        replace(arm, shuffle_prompts=True),
        ablation.Arm("nano", (NANO,), codec_only=True),
    ]
    settings = [ablation.settings_of(x, NANO, *x.transformer[:1] or (None,), 1) for x in (arm, *others)]
    settings.append(ablation.settings_of(arm, NANO, None, 2))
    assert len(set(settings)) == 12
    assert ablation.settings_of(replace(arm, name="by another name"), NANO, None, 1) == settings[0]


def test_a_shuffled_clip_is_known_by_the_scenes_it_was_shuffled_with(examples):
    arm = ablation.Arm("control", (NANO,), shuffle_prompts=True, **QUICK)
    of = {n: ablation.settings_of(arm, NANO, None, 1, examples[:n]) for n in (2, 4)}
    assert of[2] != of[4] and of[2] == ablation.settings_of(arm, NANO, None, 1, examples[:2])
    plain = replace(arm, shuffle_prompts=False)
    assert len({ablation.settings_of(plain, NANO, None, 1, examples[:n]) for n in (2, 4)}) == 1


def test_the_ceiling_and_the_control_are_arms(load, nano, examples):
    (score,) = ablation.run_arm(ablation.Arm("ceiling", (NANO,), codec_only=True), load, examples[:1])
    assert score == evaluate(reconstructed_clips(nano), examples[:1])[0]
    pipe = copy.copy(nano)
    pipe.register_modules(**presets()["none"])
    shuffled = evaluate(generated_clips(pipe, examples[:2], 1, "none", shuffle_prompts=True), examples[:2])
    control = ablation.Arm("control", (NANO,), shuffle_prompts=True, **QUICK)
    assert ablation.run_arm(control, load, examples[:2]) == shuffled


def test_a_part_that_is_not_read_may_change(tmp_path, examples):
    shutil.copytree(NANO, tmp_path / "nano")
    model = str(tmp_path / "nano")
    planned, unplanned = ablation.Arm("planned", (model,)), ablation.Arm("unplanned", (model,), plan="none")

    def settings():
        return [ablation.settings_of(arm, model, None, None) for arm in (planned, unplanned)]

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
    assert ablation.settings_of(arm, "somebody/nano", None, None) == ablation.settings_of(arm, NANO, None, None)
    with (tmp_path / "snapshot" / "planner" / "config.json").open("a") as file:  # another revision
        file.write("\n")
    assert ablation.settings_of(arm, "somebody/nano", None, None) != ablation.settings_of(arm, NANO, None, None)
    assert downloaded == ["somebody/nano"] * 2


def test_the_arms_of_nano_can_be_read(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    arms = ablation.load_arms("examples/configs/nano/ablation.toml")
    names = [arm.name for arm in arms]
    assert all(
        names.index(f"{block}, no plan") < names.index(block) for block in ("A2V", "V2A")
    )  # as the card compares them
    assert {arm.plan for arm in arms} == {"planner", "ground truth", "none"} and arms[0].name == "planner"
    assert {arm.direction for arm in arms} == set(DIRECTIONS)
    assert {type(arm.build_guiders()["guider"]).__name__ for arm in arms if arm.guidance} >= {
        "PlanGuidance",
        "SyncGuidance",
        "ContextGuidance",
    }


# The command


@pytest.fixture
def command(load, nano, monkeypatch):
    """Runs `baton evaluate` on a scene of each tier with nano, loaded once; gives the exit code."""
    monkeypatch.setattr(loading, "load_pipeline", load)
    return lambda *told: run("evaluate", "--scenes-per-tier", 1, "--batch-size", 1, *told)


@pytest.fixture
def arms_file(tmp_path):
    path = tmp_path / "arms.toml"
    path.write_text(
        f'[defaults]\nmodels = "{NANO}"\nplan = "none"\nguidance = "none"\nsteps = 1\n'
        '[[arm]]\nname = "free"\n[[arm]]\nname = "led"\nlead = 0.5\n[[arm]]\nname = "late"\nlead = -0.5\n'
    )
    return path


def ending_after(number, error):
    """`score_clip` for this many clips, then an error."""
    left = iter(range(number))

    def score(*clip):
        if next(left, None) is None:
            raise error
        return score_clip(*clip)

    return score


def test_an_interrupted_ablation_prints_what_is_complete(command, arms_file, monkeypatch, capsys):
    monkeypatch.setattr("baton_diffusers.evaluation.scores.score_clip", ending_after(7, KeyboardInterrupt()))
    assert command("--ablation", arms_file) == 130
    printed = capsys.readouterr()
    assert "| all | free | 3 |" in printed.out and "| all | led | free |" in printed.out and "late" not in printed.out
    assert "2 of 3 arms are complete" in printed.err
    assert "7 clips were scored, and none is kept: with --json FILE.json, the same command goes on" in printed.err


def test_a_failing_ablation_prints_what_is_complete(command, arms_file, monkeypatch, capsys):
    monkeypatch.setattr("baton_diffusers.evaluation.scores.score_clip", ending_after(4, RuntimeError("too hot")))
    path = arms_file.with_name("scores.json")
    assert command("--ablation", arms_file, "--json", path) == 1
    printed = capsys.readouterr()
    assert "| all | free | 3 |" in printed.out and "led" not in printed.out and "baton: too hot" in printed.err
    assert f"{path.with_suffix('.jsonl')} keeps what was scored: the same command goes on from there" in printed.err
    assert list(json.loads(path.read_text())["tiers"]["all"]) == ["free"]


def test_an_evaluation_goes_on_and_knows_its_settings(command, tmp_path, monkeypatch, capsys):
    path = tmp_path / "scores.json"
    told = ("--json", path, "--no-plan", "--guidance", "none", "--steps", 1)
    monkeypatch.setattr("baton_diffusers.evaluation.scores.score_clip", ending_after(2, KeyboardInterrupt()))
    assert command(*told) == 130 and not path.exists()
    printed = capsys.readouterr()
    assert printed.out == "" and "scores.jsonl keeps what was scored: the same command goes on" in printed.err

    monkeypatch.setattr(
        "baton_diffusers.evaluation.scores.score_clip", ending_after(1, AssertionError("measured twice"))
    )
    assert command(*told) == 0
    printed = capsys.readouterr().out
    assert f"3 clips, 2 of them kept in {path.with_suffix('.jsonl')}, in " in printed
    went_on = json.loads(path.read_text())
    assert went_on["settings"]["clips_measured"] == 1 and went_on["settings"]["clips"] == "plan: none"

    monkeypatch.setattr("baton_diffusers.evaluation.scores.score_clip", score_clip)
    path.with_suffix(".jsonl").unlink()
    assert command(*told) == 0
    at_once = capsys.readouterr().out.splitlines()
    assert any(line.startswith("3 clips in ") for line in at_once)
    assert any(line.startswith("| verb | present |") for line in at_once)
    assert json.loads(path.read_text())["tiers"] == went_on["tiers"]
    assert command("--codec-only", "--json", path) == 0
    assert json.loads(path.read_text())["settings"]["clips_measured"] == 3

    # An ablation's arm of the same settings is the same measurement.
    monkeypatch.setattr(
        "baton_diffusers.evaluation.scores.score_clip", ending_after(0, AssertionError("measured twice"))
    )
    arms = tmp_path / "arms.toml"
    arms.write_text(f'[[arm]]\nname = "free"\nmodels = "{NANO}"\nplan = "none"\nguidance = "none"\nsteps = 1\n')
    assert command("--ablation", arms, "--json", path) == 0
