"""Films of Stage: what they refuse, that their shots fit together, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest

from baton_diffusers.stage import Action, Actor, Scene, render_clip
from baton_diffusers.stage.films import (
    SHOT_FRAMES,
    FilmScene,
    callbacks,
    film_prompts,
    render_film,
    sample_film,
    shot_events,
    shot_seed,
)


CAST = (Actor("ball", "red", "left"), Actor("ball", "blue", "middle"), Actor("box", "green", "right"))
FIRST, SECOND = Scene(CAST, (Action("bounce", 1, 2),)), Scene(CAST, (Action("bounce", 0, 1),))
HIT = Scene(CAST, (Action("hit", 2, target=1),))


@pytest.mark.parametrize(
    ("shots", "cuts", "message"),
    [
        ((), (), "`shots` is empty"),
        ((FIRST, SECOND), (2,), r"`cuts` is \[2\]"),
        ((FIRST, Scene(CAST[:2], SECOND.script)), (), "have one cast, but the cast of shot 1 differs"),
        ((FIRST, Scene((CAST[0], replace(CAST[1], spot="right")), (Action("bounce", 0, 1),))), (1,), "have one cast"),
        ((FIRST, Scene((replace(CAST[1], spot="left"), replace(CAST[0], spot="middle"), CAST[2]), (Action("bounce", 1),))), (), "shot 1 stands elsewhere than before: make it a cut"),
        ((HIT, SECOND), (), "a box hits in shot 0, and stays there: only a cut can follow"),
        ((FIRST, FIRST), (), "the blue ball ends shot 0 and begins shot 1: make it one action"),
    ],
)  # fmt: skip
def test_a_film_that_cannot_be_is_refused(shots, cuts, message):
    with pytest.raises(ValueError, match=message):
        FilmScene(shots, frozenset(cuts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 10}, "`seconds` is 10, but a film of Stage lasts a multiple of 3 seconds"),
        ({"seconds": 0}, "`seconds` is 0"),
        ({"split": "all"}, "`split` is 'all'"),
    ],
)
def test_a_film_that_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_film(0, **arguments)


def test_films_have_their_length_and_shots_of_their_split():
    for seed, seconds in enumerate((12, 24, 60)):
        film = sample_film(seed, seconds, "validation")
        assert film == sample_film(seed, seconds, "validation") != sample_film(seed + 10, seconds, "validation")
        assert film.seconds == seconds and len(film.shots) == seconds // 3
        assert {scene.split for scene in film.shots} == {"validation"}
    films = [sample_film(seed, 24) for seed in range(30)]
    spoken = [
        {action.actor for action in scene.script if action.verb == "say"} for film in films for scene in film.shots
    ]
    assert any(film.cuts for film in films) and any(scene.slides for film in films for scene in film.shots)
    assert any(len(faces) == 2 for faces in spoken)


def test_the_frame_at_the_end_of_a_clip_begins_the_next_shot():
    """Alone, a shot looks and sounds as its clip; in the film its last sound and look go on into the next."""
    say, answer = (
        Scene((Actor("face", "orange", "left"), Actor("face", "purple", "right")), (Action("say", i, 1, (word,)),))
        for i, word in ((0, "seven"), (1, "two"))
    )
    for seed in range(40):
        first = shot_events(FilmScene((say, answer)), seed, 0)[0].frame
        if first == 43:
            break
    film = FilmScene((say, answer))
    one, two = render_film(film, seed)
    alone = render_clip(say, shot_seed(seed, 0))
    assert np.array_equal(one.frames, alone.frames[:SHOT_FRAMES]) and len(two.frames) == SHOT_FRAMES + 1
    assert np.array_equal(one.waveform, alone.waveform[:48000]) and len(two.waveform) == 49000
    assert np.array_equal(two.frames[0], alone.frames[48]) and np.array_equal(
        two.waveform[:1000], alone.waveform[48000:]
    )
    _, cut = render_film(FilmScene((say, answer), frozenset({1})), seed)
    assert not np.array_equal(cut.frames[0], alone.frames[48]) and np.array_equal(cut.waveform, two.waveform)


def test_callbacks_call_an_actor_by_what_it_did():
    film = FilmScene((FIRST, SECOND, replace(FIRST, script=(Action("bounce", 1, 3), Action("bounce", 0, 1)))))
    assert callbacks(film, 0) == {}
    assert callbacks(film, 1) == {1: "ball that bounced first", 0: "ball that has not bounced yet"}
    assert callbacks(film, 2) == {1: "ball that bounced first", 0: "ball that bounced second"}
    whole, short = film_prompts(film, 0), film_prompts(film, 0, "callbacks")
    assert all(all(prompt.places) and all(prompt.colours) for prompt in whole)
    assert short[0] == whole[0] and "all that has not" not in short[2].text
    assert "all that has not bounced yet" in short[1].text and not any(short[1].places)
    assert "he ball that bounced first" in short[2].text and "he ball that bounced second" in short[2].text
    with pytest.raises(ValueError, match="`style` is 'long': choose one of"):
        film_prompts(film, 0, "long")
