import copy
import json

import pytest

from baton_diffusers.cli import loading
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage.scene import COLOURS
from tests.cli.commands import loaded_in_vain, run


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure, printed",
    [("editing", "| recolour | 3 |"), ("retake", "100% of 3 clips are equal outside of the second")],
)
def test_evaluate_measures_editing_and_retakes(measure, printed, tmp_path, capsys, nano):
    path = tmp_path / "measure.json"
    assert run("evaluate", "--measure", measure, "--scenes-per-tier", 1, "--steps", 2, "--json", path) == 0
    assert printed in capsys.readouterr().out and json.loads(path.read_text())["measure"] == measure


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
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: copy.copy(nano))
    assert run("evaluate", "--ablation", arms, "--scenes-per-tier", 1, "--json", path) == 0
    printed = capsys.readouterr().out
    assert "| all | led | free | " in printed and len((tmp_path / "scores.jsonl").read_text().splitlines()) == 6
    assert json.loads(path.read_text())["tiers"]["all"]["led"]["against"].keys() == {"free"}

    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    path.unlink()
    assert run("evaluate", "--ablation", arms, "--scenes-per-tier", 1, "--json", path) == 0
    assert capsys.readouterr().out == printed and path.is_file()


def test_evaluate_scores_films_and_goes_on(tmp_path, capsys, nano, monkeypatch):
    path, options = (
        tmp_path / "films.json",
        ("--tier", "film", "--seconds", 12, "--scenes-per-tier", 2, "--ways", "render"),
    )
    assert run("evaluate", *options, "--json", path) == 0
    printed = capsys.readouterr().out
    assert "| render | 2 of 12 s | 1.000 " in printed and "2 films made in" in printed and "quarter 4" in printed
    assert json.loads(path.read_text())["ways"]["render"]["across"]["value"] == 1
    assert len(path.with_suffix(".jsonl").read_text().splitlines()) == 2
    assert run("evaluate", *options, "--json", path) == 0
    assert "0 films made in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ("--tier", "film", "--seconds", 3, "--ways", "film,clips"),
        pytest.param(("--measure", "preview"), marks=pytest.mark.slow),
    ],
)
def test_evaluate_measures_a_student(options, tmp_path, monkeypatch):
    pipe = loading.load_pipeline(None)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pipe)
    path = tmp_path / "scores.json"
    assert run("evaluate", *options, "--turbo", "--scenes-per-tier", 1, "--json", path) == 0
    assert pipe.config.num_inference_steps == 4 and path.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tier", "long"), "--tier long is not known: give film"),
        (("--seconds", 12), "--seconds, --ways and --style are for films: add --tier film"),
        (("--tier", "film", "--no-plan"), "--tier film makes films in several --ways"),
        (("--measure", "bells", "--codec-only", "--turbo"), "leave --guidance and --codec-only out"),
        (("--measure", "retake", "--codec-only"), "--measure retake generates clips: leave --codec-only out"),
        (("--tier", "film", "--measure", "bells"), "--tier film makes films in several --ways"),
        (("--tier", "film", "--ways", "film,fast"), "--ways has 'fast': choose among render, codecs, clips, film"),
        (("--tier", "film", "--seconds", 10), "`seconds` is 10.0, but a film of Stage lasts a multiple of 3"),
        (("--tier", "film", "--style", "long"), "`style` is 'long'"),
    ],
)
def test_evaluate_refuses_films_that_it_cannot_make(options, message, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    assert run("evaluate", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
