import os
import subprocess
import sys

import pytest

from baton_diffusers import __version__
from tests.cli.commands import PROMPT, run


def test_help_and_version_answer_without_importing_torch():
    code = "import sys; from baton_diffusers.cli.entry import run; run(['--version']); run(['--help']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith(f"baton {__version__}\n")
    assert all(command in result.stdout for command in ("generate", "stage", "evaluate", "Exit codes"))


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


CLIP = ["generate", PROMPT, "-o", "clip.mp4"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "Missing command"),
        (["orchestrate"], "No such command 'orchestrate'"),
        (["generate"], "Missing option '--output'"),
        (["generate", PROMPT], "Missing option '--output'"),
        (["generate", PROMPT, "-o", "clip.gif"], "clip.gif ends in '.gif'"),
        (["generate", PROMPT, "-o", "no/folder/clip.mp4"], "no/folder is not a folder"),
        (["generate", PROMPT, "-o", "clip.wav", "--only", "video"], "clip.wav ends in '.wav'"),
        ([*CLIP, "--only", "sound"], "--only sound is no modality: give video or audio"),
        ([*CLIP, "--only", "audio", "--sheet", "c.png"], "--sheet draws picture and sound"),
        ([*CLIP, "--sheet", "clip.mp4"], "clip.mp4 ends in '.mp4'"),
        ([*CLIP, "--steps", "0"], "'--steps'"),
        ([*CLIP, "--seed", "one"], "'--seed'"),
        ([*CLIP, "--seed", str(2**64)], f"--seed {2**64} is not between 0 and 2**64 - 1"),
        (["stage", "-o", "scenes", "--seed", "-1"], "--seed -1 is not between 0 and 2**64 - 1"),
        (["generate", "caf\udce9", "-o", "clip.mp4"], r"PROMPT holds bytes that are not UTF-8: 'caf\udce9'"),
        ([*CLIP, "--negative-prompt", "\ud800"], "--negative-prompt holds bytes"),
        ([*CLIP, "--no-plan", "--plan", "x"], "exclude each other"),
        ([*CLIP, "--plan", "missing.safetensors"], "missing.safetensors"),
        ([*CLIP, "--save-plan", "plan.pt"], "plan.pt ends in '.pt'"),
        ([*CLIP, "--no-plan", "--save-plan", "p.safetensors"], "leave --no-plan and"),
        ([*CLIP, "--recipe", "cheap"], "--recipe cheap is not known: choose one of gpu, "),
        ([*CLIP, "--image", "missing.png"], "missing.png is not a file"),
        ([*CLIP, "--model", "nowhere"], "nowhere is neither a folder nor a Hub id"),
        ([*CLIP, "--model", "."], "model_index.json"),
        ([*CLIP, "--model", "baton-11b"], "conversion_scripts/convert_ovi_to_diffusers.py"),
        (["evaluate", "--model", "baton-11b"], "holds configurations without weights"),
        (["stage", "-o", "scenes", "--tier", "easy"], "easy"),
        (["evaluate", "--json", "no/folder/scores.json"], "no/folder is not a folder"),
        ([*CLIP, "--guidance", "strong"], "choose one of none, text, "),
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
