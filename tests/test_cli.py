import copy
import json
import os
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest
import torch

from baton_diffusers import __version__, cli
from baton_diffusers.checkpoints import default_checkpoint
from baton_diffusers.media import read_audio, read_clip, read_video, write_clip
from baton_diffusers.memory import RECIPES
from baton_diffusers.stage import render_clip, sample_scene
from baton_diffusers.stage.scene import COLOURS


PROMPT = "A red ball on the left bounces twice."


def run(*arguments):
    """The exit code of `baton ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    return exit.value.code


def loaded_in_vain(*_):
    """Stands for loading where nothing is to be loaded."""
    raise AssertionError("loaded in vain")


@pytest.fixture(scope="module")
def loaded():
    return cli._load_pipeline(None)


@pytest.fixture
def nano(loaded, monkeypatch):
    """baton-nano, loaded once for all tests instead of once for each command."""
    guiders = loaded.guider, loaded.audio_guider
    monkeypatch.setattr(cli, "_load_pipeline", lambda *_: loaded)
    yield loaded
    loaded.guider, loaded.audio_guider = guiders


def test_help_and_version_answer_without_importing_torch():
    code = "import sys; from baton_diffusers.cli import _run; _run(['--version']); _run(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith(f"baton {__version__}\n")
    assert all(command in result.stdout for command in ("generate", "stage", "evaluate", "Exit codes"))


@pytest.mark.parametrize("command", [[], ["generate"], ["stage"], ["evaluate"], ["cache"], ["memory"]])
def test_flags_take_no_value(command, capsys):
    assert run(*command, "--help") == 0
    assert "bool" not in capsys.readouterr().out.lower()


@pytest.mark.slow
def test_what_is_imported_is_not_collected():
    code = "import gc; from baton_diffusers.cli import _import_pipeline; _import_pipeline(); print(gc.isenabled(), gc.get_freeze_count())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    enabled, count = result.stdout.split()
    assert enabled == "True" and int(count) > 100_000


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    command = [sys.executable, "-m", "baton_diffusers.cli", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and result.stderr == ""


@pytest.mark.parametrize("own, policy", [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(own, policy, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    assert run("--help") == 0 and os.environ["OMP_WAIT_POLICY"] == policy


def test_generate_writes_a_clip_and_its_sheet(tmp_path, capsys):
    path, sheet = tmp_path / "clip.mp4", tmp_path / "clip.png"
    assert run("generate", PROMPT, "--output", path, "--steps", 2, "--scale", 2, "--sheet", sheet) == 0
    clip = read_clip(path)
    assert clip.frames.shape == (49, 128, 128, 3) and clip.waveform.shape == (1, 49000)
    assert (clip.frame_rate, clip.sampling_rate) == (16, 16000)
    assert PIL.Image.open(sheet).width > 128
    printed = capsys.readouterr().out
    assert "49 frames, 3.06 s; generated in" in printed and "peak memory" in printed


def test_the_options_decide_about_the_clip(tmp_path, nano):
    def frames(*options):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--steps", 1, *options) == 0
        return read_clip(tmp_path / "clip.mp4").frames

    first = frames("--seed", 1)
    assert np.array_equal(first, frames("--seed", 1))
    assert not np.array_equal(first, frames("--seed", 2))
    assert not np.array_equal(first, frames("--seed", 1, "--no-plan"))
    assert not np.array_equal(first, frames("--seed", 1, "--guidance-scale", 1))
    assert not np.array_equal(first, frames("--seed", 1, "--guidance", "ccl"))
    assert not np.array_equal(first, frames("--seed", 1, "--negative-prompt", "A bell rings."))
    assert not np.array_equal(first, frames("--seed", 1, "--audio-negative-prompt", "A bell rings."))
    alone = frames("--seed", 1, "--guidance", "none")
    assert np.array_equal(alone, frames("--seed", 1, "--guidance", "text", "--guidance-scale", 1))


def test_one_modality_is_made_alone(tmp_path, capsys, nano):
    assert run("generate", PROMPT, "-o", tmp_path / "film.mp4", "--steps", 1, "--only", "video") == 0
    assert read_video(tmp_path / "film.mp4")[0].shape == (49, 64, 64, 3)
    with pytest.raises(ValueError, match="has no audio stream"):
        read_audio(tmp_path / "film.mp4")
    assert run("generate", PROMPT, "-o", tmp_path / "sound.wav", "--steps", 1, "--only", "audio") == 0
    assert read_audio(tmp_path / "sound.wav")[0].shape == (1, 49000)
    printed = capsys.readouterr().out
    assert "film.mp4: 49 frames, 3.06 s;" in printed and "sound.wav: 49000 samples, 3.06 s;" in printed


def test_the_size_of_the_clip_is_chosen(tmp_path, nano, capsys):
    path, options = tmp_path / "clip.mp4", ("--steps", 1, "--no-plan", "--guidance", "none")
    size = ("--num-frames", 17, "--height", 48, "--width", 80)
    assert run("generate", PROMPT, "-o", path, *options, *size) == 0
    clip = read_clip(path)
    assert clip.frames.shape == (17, 48, 80, 3) and clip.waveform.shape == (1, 17000)
    path.unlink()
    for option, number in (("--num-frames", 18), ("--height", 50), ("--width", 0)):
        assert run("generate", PROMPT, "-o", path, *options, option, number) == 2
        name = option.strip("-").replace("-", "_")
        assert f"`{name}` is {number}, but " in capsys.readouterr().err
    assert not path.exists()


def test_what_the_checkpoint_is_not_made_for_is_refused(tmp_path, nano, capsys):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--audio-prompt", "rain") == 2
    assert "`audio_prompt` is 'rain', but this checkpoint has no form for it" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("model", [(), ("--model", "baton-nano")])
def test_a_scheme_for_deeper_transformers_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, capsys, model):
    monkeypatch.setattr(cli, "_load_pipeline", loaded_in_vain)
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--guidance", "ovi", *model) == 2
    message = "block 11 of the transformer, and that of baton-nano has the blocks 0 to 4: give --guidance text"
    assert message in capsys.readouterr().err


def test_checkpoints_of_the_package_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nano = default_checkpoint()
    assert cli._find_checkpoint(None) == cli._find_checkpoint("baton-nano") == (nano, nano)
    (tmp_path / "baton-nano").mkdir()  # a folder here comes first
    assert run("generate", PROMPT, "-o", "clip.mp4", "--model", "baton-nano") == 2


def test_what_the_hub_does_not_give_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, cause in (
        ("some-owner/some-model", "outgoing traffic has been disabled"),
        ("a b/c", "Repo id must use"),
    ):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--model", name) == 2
        error = capsys.readouterr().err
        assert f"baton: {name} is no folder here, and could not be loaded from the Hub: " in error and cause in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_followed_as_its_text_says(name):
    followed, told = Mock(), Mock()
    RECIPES[name].follow(followed)
    exec(RECIPES[name].how, {"pipe": told, "torch": torch})
    assert followed.mock_calls == told.mock_calls


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_a_clip_is_made_by_a_recipe(name, tmp_path):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--steps", 2, "--recipe", name) == 0
    assert read_clip(tmp_path / "clip.mp4").frames.shape == (49, 64, 64, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_without_a_gpu_is_refused(tmp_path, capsys):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--recipe", "model-offload") == 2
    assert "--recipe model-offload needs a GPU with CUDA, and there is none here" in capsys.readouterr().err


def test_what_is_given_stays(tmp_path, nano):
    def clip(name, *options):
        assert run("generate", PROMPT, "-o", tmp_path / name, "--steps", 1, "--seed", 3, *options) == 0
        return read_clip(tmp_path / name)

    film = render_clip(sample_scene(0), 0)
    write_clip(tmp_path / "film.mp4", film.frames, film.waveform, film.frame_rate, film.sampling_rate, scale=2)
    heard = clip("heard.mp4", "--video", tmp_path / "film.mp4", "--sheet", tmp_path / "heard.png")
    assert heard.frames.shape == (49, 128, 128, 3) and np.abs(heard.frames[:, ::2, ::2] - 1.0 * film.frames).mean() < 4
    seen = clip("seen.mp4", "--audio", tmp_path / "film.mp4")
    assert np.abs(seen.waveform - film.waveform).mean() < 0.01 and PIL.Image.open(tmp_path / "heard.png").width > 128
    PIL.Image.fromarray(film.frames[0]).save(tmp_path / "first.png")
    begun = clip("begun.mp4", "--image", tmp_path / "first.png")
    styled = clip("styled.mp4", "--image", tmp_path / "first.png", "--reference-audio", tmp_path / "film.mp4")
    assert not np.array_equal(styled.waveform, begun.waveform)
    goes_on = clip("on.mp4", "--continue-from", tmp_path / "film.mp4", "--continue-seconds", 0.5)
    assert np.abs(begun.frames[0] - 1.0 * film.frames[0]).mean() < 16  # the error of the codec in a first frame
    assert np.abs(goes_on.frames[:9] - 1.0 * film.frames[-9:]).mean() < 16


def test_what_an_mp4_does_not_take_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_load_pipeline", loaded_in_vain)
    PIL.Image.new("RGB", (33, 32)).save(tmp_path / "odd.gif")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3.0,\nodd.gif\n#EXT-X-ENDLIST\n")
    for options, message in (
        (("--video", tmp_path / "odd.gif", "--scale", 3), "odd.gif of 96x99 pixels"),
        (("--video", tmp_path / "list.m3u8"), "list.m3u8 is a playlist"),
        (("--audio", tmp_path / "list.m3u8"), "list.m3u8 is a playlist"),
    ):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", *options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "clip.mp4").exists()


def test_a_kept_plan_is_followed(tmp_path, nano, capsys):
    kept = tmp_path / "plan.safetensors"
    options = ("-o", tmp_path / "clip.mp4", "--steps", 2)
    assert run("generate", PROMPT, *options, "--save-plan", kept) == 0
    assert capsys.readouterr().out.endswith(f"{kept}\n")
    planned = read_clip(tmp_path / "clip.mp4").frames
    assert run("generate", PROMPT, *options, "--plan", kept) == 0
    assert np.array_equal(planned, read_clip(tmp_path / "clip.mp4").frames)


def test_a_plan_that_is_not_made_is_not_kept(tmp_path, nano, monkeypatch, capsys):
    monkeypatch.setattr(nano, "planner", None)
    assert run("generate", PROMPT, "-o", tmp_path / "a.mp4", "--save-plan", tmp_path / "plan.safetensors") == 2
    assert "--save-plan keeps what a planner makes, and this checkpoint has none" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_stage_shows_scenes(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert run("stage", "--output", folder, "--tier", "complex", "--count", 2, "--seed", 5, "--scale", 2) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("complex-5.mp4", "complex-5.png", "complex-6.mp4", "complex-6.png")
    ]
    assert read_clip(folder / "complex-5.mp4").frames.shape == (49, 128, 128, 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(".mp4: " in line for line in lines)


def test_evaluate_scores_every_tier(tmp_path, capsys, nano):
    path = tmp_path / "scores.json"
    assert run("evaluate", "--scenes-per-tier", 2, "--codec-only", "--json", path) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("simple", "medium", "complex", "P-Acc", "M-WER", "DeSync"))
    result = json.loads(path.read_text())
    assert set(result["tiers"]) == {"all", "simple", "medium", "complex"}


def test_evaluate_measures_bells_and_round_trips(tmp_path, capsys, nano):
    path, options = tmp_path / "bells.json", ("--scenes-per-tier", 1, "--codec-only")
    assert run("evaluate", "--measure", "bells", *options, "--json", path) == 0
    assert "| yellow | " in capsys.readouterr().out and set(json.loads(path.read_text())["result"]) == set(COLOURS)
    assert run("evaluate", "--measure", "round-trip", *options) == 0
    assert "3 renders, through an mp4 and both autoencoders" in capsys.readouterr().out


def test_evaluate_scores_a_sound_for_a_film(tmp_path, capsys, nano):
    path, options = tmp_path / "scores.json", ("--steps", 1, "--guidance", "none", "--no-plan")
    assert run("evaluate", "--scenes-per-tier", 1, "--direction", "v2a", *options, "--json", path) == 0
    assert "made: P-Acc without what is given, the aspects present, place, alone, seen" in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["settings"]["direction"] == "v2a" and result["settings"]["guidance"] == "none"
    score = result["tiers"]["all"]
    assert score["facts"]["present"] == score["facts"]["seen"] == 1.0
    assert score["p_acc_made"]["value"] < score["p_acc"]["value"]


def test_an_ablation_is_kept_and_goes_on(tmp_path, capsys, nano, monkeypatch):
    arms, path = tmp_path / "arms.toml", tmp_path / "scores.json"
    arms.write_text(
        f'[defaults]\nmodels = "{default_checkpoint()}"\nplan = "none"\nguidance = "none"\nsteps = 1\n'
        '[[arm]]\nname = "free"\n[[arm]]\nname = "led"\nlead = 0.5\n'
    )
    monkeypatch.setattr(cli, "_load_pipeline", lambda *_: copy.copy(nano))
    assert run("evaluate", "--ablation", arms, "--scenes-per-tier", 1, "--json", path) == 0
    printed = capsys.readouterr().out
    assert "| all | led | free | " in printed and len((tmp_path / "scores.jsonl").read_text().splitlines()) == 6
    assert json.loads(path.read_text())["tiers"]["all"]["led"]["against"].keys() == {"free"}

    monkeypatch.setattr(cli, "_load_pipeline", loaded_in_vain)
    path.unlink()
    assert run("evaluate", "--ablation", arms, "--scenes-per-tier", 1, "--json", path) == 0
    assert capsys.readouterr().out == printed and path.is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing command"),
        (["orchestrate"], "No such command 'orchestrate'"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", PROMPT], "Missing option '--output'"),
        (["generate", PROMPT, "-o", "clip.gif"], "clip.gif ends in '.gif'"),
        (["generate", PROMPT, "-o", "no/folder/clip.mp4"], "no/folder is not a folder"),
        (["generate", PROMPT, "-o", "clip.wav", "--only", "video"], "clip.wav ends in '.wav'"),
        (
            ["generate", PROMPT, "-o", "clip.mp4", "--only", "sound"],
            "--only sound is no modality: give video or audio",
        ),
        (
            ["generate", PROMPT, "-o", "c.mp4", "--only", "audio", "--sheet", "c.png"],
            "--sheet draws picture and sound",
        ),
        (["generate", PROMPT, "-o", "clip.mp4", "--sheet", "clip.mp4"], "clip.mp4 ends in '.mp4'"),
        (["generate", PROMPT, "-o", "clip.mp4", "--steps", "0"], "'--steps'"),
        (["generate", PROMPT, "-o", "clip.mp4", "--seed", "one"], "'--seed'"),
        (
            ["generate", PROMPT, "-o", "clip.mp4", "--seed", str(2**64)],
            f"--seed {2**64} is not between 0 and 2**64 - 1",
        ),
        (["stage", "-o", "scenes", "--seed", "-1"], "--seed -1 is not between 0 and 2**64 - 1"),
        (["generate", "caf\udce9", "-o", "clip.mp4"], r"PROMPT holds bytes that are not UTF-8: 'caf\udce9'"),
        (["generate", PROMPT, "-o", "c.mp4", "--negative-prompt", "\ud800"], "--negative-prompt holds bytes"),
        (["generate", PROMPT, "-o", "clip.mp4", "--no-plan", "--plan", "x"], "exclude each other"),
        (["generate", PROMPT, "-o", "clip.mp4", "--plan", "missing.safetensors"], "missing.safetensors"),
        (["generate", PROMPT, "-o", "clip.mp4", "--save-plan", "plan.pt"], "plan.pt ends in '.pt'"),
        (["generate", PROMPT, "-o", "c.mp4", "--no-plan", "--save-plan", "p.safetensors"], "leave --no-plan and"),
        (
            ["generate", PROMPT, "-o", "clip.mp4", "--recipe", "cheap"],
            "--recipe cheap is not known: choose one of gpu, ",
        ),
        (["generate", PROMPT, "-o", "clip.mp4", "--image", "missing.png"], "missing.png is not a file"),
        (["generate", PROMPT, "-o", "clip.mp4", "--model", "nowhere"], "nowhere is neither a folder nor a Hub id"),
        (["generate", PROMPT, "-o", "clip.mp4", "--model", "."], "model_index.json"),
        (
            ["generate", PROMPT, "-o", "clip.mp4", "--model", "baton-11b"],
            "conversion_scripts/convert_ovi_to_diffusers.py",
        ),
        (["evaluate", "--model", "baton-11b"], "holds configurations without weights"),
        (["stage", "-o", "scenes", "--tier", "easy"], "easy"),
        (["evaluate", "--json", "no/folder/scores.json"], "no/folder is not a folder"),
        (["generate", PROMPT, "-o", "clip.mp4", "--guidance", "strong"], "choose one of none, text, "),
        (["evaluate", "--codec-only", "--no-plan"], "exclude"),
        (["evaluate", "--codec-only", "--direction", "v2a"], "--codec-only generates nothing"),
        (["evaluate", "--direction", "t2v"], "`direction` is 't2v'"),
        (["evaluate", "--given-from", "mp4"], "in the direction t2av nothing is given"),
        (["evaluate", "--split", "train"], "`split` is 'train'"),
        (["evaluate", "--measure", "colour"], "--measure colour is not known"),
        (["evaluate", "--measure", "bells", "--no-plan"], "--measure bells makes clips from prompts"),
        (["evaluate", "--measure", "chain", "--split", "test-paraphrase"], "--measure chain generates scenes"),
        (["evaluate", "--guidance", "strong"], "--guidance strong is not known"),
        (["evaluate", "--guidance", "ovi"], "--guidance ovi leaves out block 11 of the transformer"),
        (["evaluate", "--ablation", __file__, "--no-plan"], "--ablation says itself"),
        (["evaluate", "--ablation", __file__, "--direction", "a2v"], "--ablation says itself"),
        (["evaluate", "--ablation", "arms.toml"], "arms.toml"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("baton: ") and printed.err.count("\n") == 1 and message in printed.err
    assert not any(tmp_path.iterdir())


def test_failure_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr("baton_diffusers.media.write_clip", broken)
    assert run("stage", "-o", tmp_path / "scenes") == 1
    assert capsys.readouterr().err == "baton: the disk is full\n"
    monkeypatch.setenv("BATON_DEBUG", "1")
    assert run("stage", "-o", tmp_path / "scenes") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_exit_code_130(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("baton_diffusers.media.write_clip", interrupted)
    assert run("stage", "-o", tmp_path / "scenes") == 130
    assert capsys.readouterr().err.strip() == "baton: interrupted"
