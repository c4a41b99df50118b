"""Films that are scored in several ways: what is measured, kept, summed up and refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from baton_diffusers import BatonPipeline
from baton_diffusers.evaluation.films import (
    FilmScoreFile,
    draw_films,
    format_films,
    run_films,
    score_way,
    summarise_films,
)
from baton_diffusers.guiders import presets
from baton_diffusers.shipped import default_checkpoint
from baton_diffusers.stage.film_scoring import Level, Seam
from baton_diffusers.stage.films import SHOT_SECONDS
from baton_diffusers.stage.scoring import Fact
from tests.cli.commands import loaded_in_vain


@pytest.fixture(scope="module")
def examples():
    return draw_films(2, 12.0)


@pytest.fixture(scope="module")
def truths(examples):
    return run_films(loaded_in_vain, examples, ["render"])["render"]


@pytest.fixture(scope="module")
def nano():
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(**presets()["none"])
    return pipe


def failed(score, shots=(), across=0, **levels):
    """A score in which all facts of some shots, and the first ones across, do not hold, and levels rise from shot to shot."""
    facts = [replace(fact, holds=fact.holds and i >= across) for i, fact in enumerate(score.across)]
    return replace(
        score,
        shots=tuple(
            replace(s, facts=tuple(replace(f, holds=f.holds and i not in shots) for f in s.facts))
            for i, s in enumerate(score.shots)
        ),
        across=tuple(facts),
        levels=tuple(
            replace(level, **{name: rise * i for name, rise in levels.items()}) for i, level in enumerate(score.levels)
        ),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda examples: draw_films(1, 10.0), "`seconds` is 10.0, but a film of Stage lasts a multiple of 3"),
        (lambda examples: draw_films(1, 12.0, style="long"), "`style` is 'long'"),
        (lambda examples: score_way(None, examples[0], "again"), "`way` is 'again': choose one of"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call, message, examples):
    with pytest.raises(ValueError, match=message):
        call(examples)


def test_films_are_asked_for_by_the_prompts_of_their_shots(examples):
    for example in examples:
        shots = example.shots
        assert sum(shot.seconds for shot in shots) == example.film.seconds == 12
        assert {number for number, shot in enumerate(shots) if shot.cut} == set(example.film.cuts)
        assert [shot.prompt for shot in shots] == [prompt.text for prompt in example.told]


def test_the_truth_has_full_marks_and_what_is_kept_is_not_measured_again(examples, truths, tmp_path):
    assert all(score.strict and score.p_acc == score.across_acc == 1 for score in truths)
    path = tmp_path / "films.jsonl"
    kept = FilmScoreFile(path)
    kept.add("weights", "render", examples[0], truths[0])
    path.write_text(path.read_text() + '{"settings": "wei')  # the process ended here
    again = FilmScoreFile(path)
    found = again.get("weights", "render", examples[0])
    assert found.p_acc == 1 and found.across == truths[0].across and found.seams == truths[0].seams
    assert found.elsewhere == truths[0].elsewhere and len(found.elsewhere) > 1
    assert again.get("other", "render", examples[0]) is None and again.get("weights", "film", examples[0]) is None
    again.add("weights", "film", examples[0], truths[0])
    assert run_films(loaded_in_vain, examples[:1], ["render", "film"], "weights", kept=FilmScoreFile(path))["film"]
    path.write_text('{"settings": 1}\n')
    with pytest.raises(ValueError, match="films.jsonl, line 1 holds no score"):
        FilmScoreFile(path)


def test_figures_tell_ways_apart(truths):
    seamed = [
        replace(score, seams=(Seam(2.0, True, False, False), Seam(4.0, False, False, False))) for score in truths
    ]
    drifting = [failed(score, (3,), 2, shade=6.0, noise=3.0) for score in seamed]
    alone = [replace(score, across=(), seams=(), levels=()) for score in truths]
    summary = summarise_films({"clips": alone, "film": drifting, "render": truths})
    film, render = summary["film"], summary["render"]
    assert (
        film["p_acc"]["value"] == 0.75 and film["against_clips"]["value"] == -0.25 and film["strict"]["value"] == 0.75
    )
    assert [quarter["value"] for quarter in film["quarters"]] == [1, 1, 1, 0] and film["last_quarter"]["value"] == -1
    assert film["across"]["value"] < render["across"]["value"] == 1 and render["against_clips"]["value"] == 0
    assert (
        film["seams"]["click"]["value"] == 0.5 and film["seams"]["jump"]["value"] == 0 and film["number_of_seams"] == 4
    )
    assert film["drift"]["shade"]["value"] == pytest.approx(6 * 60 / SHOT_SECONDS)
    assert film["drift"]["noise"]["value"] == pytest.approx(60)
    assert summary["clips"]["across"] is None and summary["clips"]["against_clips"] is None
    table = format_films(summary)
    assert (
        "| film | 2 of 12 s | 0.750 " in table
        and "| film | 4 | 0.500 " in table
        and "click elsewhere" in table
        and "+120.00 [" in table
    )
    assert table.count("| clips |") == 1  # it has no seams, and nothing drifts


def test_the_last_quarter_is_compared_with_the_first(truths):
    """What is lost evenly is no drift."""
    even = [failed(score, shots=(0, 3)) for score in truths]
    summary = summarise_films({"film": even})["film"]
    assert summary["last_quarter"]["value"] == 0 and summary["quarters"][0]["value"] == 0


def test_levels_that_are_not_known_are_left_out(truths):
    score = replace(truths[0], levels=(Level(1.5, 0.0, 0.0, None, None), Level(4.5, 1.0, 0.0, -60.0, None)))
    drift = summarise_films({"film": [score]})["film"]["drift"]
    assert set(drift) == {"shade", "grain"} and drift["shade"]["value"] == pytest.approx(20)
    assert Fact("colour", "shot 1: red ball", True) not in score.across


def test_codecs_keep_what_holds_across_shots(nano, examples):
    found = score_way(nano, examples[0], "codecs")
    assert found.across_acc == 1 and found.p_acc > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("way", ["film", "window plans", "continue_from", "clips"])
def test_every_way_makes_the_whole_film(nano, way):
    example = draw_films(1, 6.0)[0]
    found = score_way(copy.copy(nano), example, way, 1)
    assert len(found.shots) == 2 and 0 <= found.p_acc <= 1
    assert (len(found.seams) >= 1) == (way != "clips") and np.isfinite(found.across_acc)
