import numpy as np
import pytest

from baton_diffusers.cli import loading
from baton_diffusers.media import read_clip
from baton_diffusers.plan import SemanticPlan
from tests.cli.commands import loaded_in_vain, run


FILM = """
[[shots]]
prompt = "A red ball on the left bounces twice."
seconds = 1.0

[[shots]]
prompt = "A yellow bell rings."
seconds = 1.5
cut = true
"""
QUICK = ("--steps", 1, "--guidance", "none", "--plan-candidates", 1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "film.toml"
    path.write_text(FILM)
    return path


def test_a_film_is_made_of_its_file(tmp_path, file, nano, capsys):
    path, plan = tmp_path / "film.mp4", tmp_path / "plan.safetensors"
    assert run("film", file, "-o", path, *QUICK, "--scale", 2, "--save-plan", plan) == 0
    clip = read_clip(path)
    assert clip.frames.shape == (40, 128, 128, 3) and clip.waveform.shape == (1, 40000)
    assert "40 frames, 2.50 s; made in" in capsys.readouterr().out
    assert SemanticPlan.load(plan).duration == 2.5
    again = tmp_path / "again.mp4"
    assert run("film", file, "-o", again, *QUICK, "--scale", 2, "--plan", plan) == 0
    differences = np.abs(read_clip(again).frames.astype(int) - clip.frames)
    assert differences.mean() < 0.1  # times of a plan that was cut and joined differ in their last bit


def test_two_processes_make_the_film_of_one(tmp_path, file, nano, monkeypatch, capsys):
    assert run("film", file, "-o", tmp_path / "one.mp4", "--work", tmp_path / "one", *QUICK) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run("film", file, "-o", tmp_path / "two.mp4", "--work", tmp_path / "two", *QUICK) == 0
        assert (tmp_path / "two.mp4").exists() == (rank == "1")
    assert "other processes go on with it" in capsys.readouterr().out
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_several_films_are_named_after_their_files_and_a_failure_stops_no_other(
    tmp_path, file, nano, capsys, monkeypatch
):
    other = tmp_path / "other.yaml"
    other.write_text("shots: [{prompt: A bell rings., seconds: 1}]")
    real = type(nano).film

    def film(self, shots, **settings):
        made = real(self, shots, **settings)
        if shots == file:
            monkeypatch.setattr(made, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        return made

    monkeypatch.setattr(type(nano), "film", film)
    assert run("film", file, other, "-o", tmp_path / "films", *QUICK) == 1
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["other.mp4"]
    assert "no space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["film.toml", "--seconds", 3], "--seconds 3 is for a prompt"),
        (["A ball bounces."], "give `seconds`"),
        (["A ball bounces.", "--seconds", 2400], "a shot lasts at most 600"),
        (["A ball bounces.", "film.toml"], "is no film file"),
        (["film.toml", "film.toml"], "two films have the name film"),
        (["missing.toml"], "missing.toml cannot be read"),
        (["wrong.toml"], "wrong.toml, line 8: a shot has no key 'second'"),
    ],
)
def test_refused_before_anything_is_loaded(tmp_path, file, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    (tmp_path / "wrong.toml").write_text(FILM.replace("seconds = 1.5", "second = 1.5"))
    assert run("film", *arguments, "-o", tmp_path / "film.mp4") == 2
    assert message in " ".join(capsys.readouterr().err.split())
