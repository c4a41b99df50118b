"""The proof of the film's scorer: the truth holds, and each damage to it is found for what it is."""

import numpy as np
import pytest

from baton_diffusers.stage import Action, Actor, Scene
from baton_diffusers.stage.film_scoring import FilmScorer, score_film
from baton_diffusers.stage.films import FilmScene, film_prompts, render_film, sample_film, shot_events
from baton_diffusers.stage.scene import SPOTS
from baton_diffusers.stage.sound import event_sound


SEED = 3
SEAMS = (2.5, 5.0, 7.5, 10.0)
CAST = (Actor("ball", "red", "left"), Actor("face", "orange", "middle"), Actor("face", "purple", "right"))
FILM = FilmScene(
    (
        Scene(CAST, (Action("bounce", 0, 2), Action("say", 1, 1, ("two",)))),
        Scene(CAST, (Action("say", 2, 2, ("six", "one")),)),
        Scene(CAST, (Action("bounce", 0, 1), Action("say", 1, 2, ("nine", "four")))),
        Scene(CAST, (Action("say", 2, 1, ("three",)), Action("bounce", 0, 3))),
    )
)
BALLS = FilmScene(
    tuple(
        Scene((Actor("ball", "red", "left"), Actor("ball", "blue", "right")), (Action("bounce", actor, 2),))
        for actor in (0, 1, 0)
    )
)


def rendered(film=FILM, seed=SEED):
    clips = list(render_film(film, seed))
    return np.concatenate([clip.frames for clip in clips]), np.concatenate([clip.waveform for clip in clips])


def score(frames, waveform, film=FILM, prompts=None):
    return score_film([(frames, waveform)], film, prompts, SEAMS[: round(film.seconds / 3)])


def failing(found):
    return {fact.aspect for fact in found.across if not fact.holds}


def columns(actor):
    return slice(int(actor.x) - 10, int(actor.x) + 11)


def empty(frames, place):
    frames[:, :56, place], frames[:, 56:, place] = frames[:, :1, :1], frames[:, 63:, :1]


def resound(waveform, film, shot, change):
    """Replace the sounds of a shot by others: `change` maps (kind, colour, word)."""
    for event in shot_events(film, SEED, shot):
        own = (event.kind, film.shots[shot].actors[event.actor].colour, event.word)
        start = 48000 * shot + 1000 * event.frame
        for sound, sign in ((event_sound(*own), -1), (event_sound(*change(*own)), 1)):
            waveform[start : start + len(sound)] += sign * sound[: len(waveform) - start]


@pytest.mark.parametrize(("seconds", "style"), [(12, "whole"), (24, "callbacks")])
def test_in_the_truth_all_facts_hold(seconds, style):
    for seed in range(3):
        film = sample_film(seed, seconds, "validation")
        seams = np.arange(2.5, seconds - 0.1, 2.5)
        found = score_film(
            ((clip.frames, clip.waveform) for clip in render_film(film, seed)),
            film,
            film_prompts(film, seed, style),
            seams,
        )
        assert found.strict and found.p_acc == found.across_acc == 1 and len(found.seams) == len(seams)
        assert sum(seam.jump + seam.click + seam.step for seam in found.seams) <= 1  # an instant that lies on one
        assert all(level.shade == 0 and level.noise == -70 and abs(level.gain or 0) < 0.1 for level in found.levels)


@pytest.mark.slow
def test_in_many_truths_all_facts_hold():
    seams = []
    for seed in range(60):
        film = sample_film(100 + seed, 24)
        found = score_film(
            ((c.frames, c.waveform) for c in render_film(film, seed)), film, seams=np.arange(2.5, 23, 2.5)
        )
        assert found.strict, seed
        seams += found.seams
    assert np.mean([(seam.click, seam.jump, seam.step) for seam in seams], axis=0).max() <= 0.01


def test_parts_of_any_length_give_one_score_and_little_is_kept():
    frames, waveform = rendered()
    scorer, most = FilmScorer(FILM, seams=SEAMS), 0
    for start in range(0, len(frames), 7):
        scorer.add(frames[start : start + 7], waveform[None, 1000 * start : 1000 * (start + 7)])
        most = max(most, scorer.held)
    assert scorer.finish() == score(frames, waveform)
    assert most <= 48 + 2 * 16 + 7
    with pytest.raises(
        ValueError, match="the film lasts 12.0 seconds, but picture and sound end at 5.0: add the rest"
    ):
        score(frames[:80], waveform)


def test_an_event_on_a_seam_and_on_the_border_of_a_shot_counts():
    """The same film scores the same wherever its seams are, and events go whole over the border of shots."""
    frames, waveform = rendered()
    at = [shot * 3 + event.time for shot in range(4) for event in shot_events(FILM, SEED, shot)]
    found = score_film([(frames, waveform)], FILM, seams=at)
    assert found.strict and len(found.seams) == len(at) and not any(seam.step for seam in found.seams)
    for early in (-1, 1):  # every instant a frame early or late
        moved = np.roll(frames, early, axis=0), np.roll(waveform, 1000 * early)
        assert score(*moved).strict


def recoloured(frames, waveform):
    frames[96:, :56, columns(CAST[0])] = frames[96:, :56, columns(CAST[0])][..., [1, 2, 0]]


def exchanged(frames, waveform):
    one, two = frames[96:, :, columns(CAST[1])].copy(), frames[96:, :, columns(CAST[2])].copy()
    frames[96:, :, columns(CAST[1])], frames[96:, :, columns(CAST[2])] = two, one


def lost(frames, waveform):
    empty(frames[96:], columns(CAST[0]))


def revoiced(frames, waveform):
    resound(waveform, FILM, 2, lambda kind, colour, word: (kind, "purple" if word else colour, word))


def swapped(frames, waveform):
    """Shots 1 and 2 in the other order."""
    for array, rate in ((frames, 48), (waveform, 48000)):
        array[rate : 3 * rate] = np.concatenate([array[2 * rate : 3 * rate], array[rate : 2 * rate]])


@pytest.mark.parametrize(
    ("damage", "aspects"),
    [
        (recoloured, {"colour"}),
        (exchanged, {"stands"}),
        (lost, {"colour", "stands", "number", "sequence"}),
        (revoiced, {"voice", "sequence"}),
        (swapped, {"voice", "sequence"}),
    ],
)
def test_a_damage_across_shots_is_found_for_what_it_is(damage, aspects):
    frames, waveform = rendered()
    damage(frames, waveform)
    found = score(frames, waveform)
    assert failing(found) == aspects and found.across_acc < 1 and not found.strict
    if damage in (recoloured, exchanged):  # once it has happened, it stays as it is
        assert [fact.subject[:6] for fact in found.across if not fact.holds] == ["shot 2"] * (
            1 + (damage is exchanged)
        )


def test_an_actor_that_is_doubled_is_found():
    frames, waveform = rendered(BALLS)
    frames[96:, :, SPOTS["middle"] - 10 : SPOTS["middle"] + 11] = frames[96:, :, columns(BALLS.shots[0].actors[0])]
    found = score(frames, waveform, BALLS)
    assert failing(found) == {"number"} and [s.facts[-2].holds for s in found.shots] == [True, True, False]


def test_a_callback_that_is_taken_for_the_other_one_is_found():
    prompts = film_prompts(BALLS, SEED, "callbacks")
    assert score(*rendered(BALLS), BALLS, prompts).strict
    clips = [*render_film(BALLS, SEED)][:2] + [*render_film(FilmScene((BALLS.shots[1],)), SEED)]
    frames = np.concatenate([clip.frames for clip in clips])
    found = score(frames, np.concatenate([clip.waveform for clip in clips]), BALLS, prompts)
    assert {"callback", "sequence"} <= failing(found)


def test_what_a_prompt_leaves_open_is_told_by_the_one_before():
    prompts = film_prompts(BALLS, SEED, "callbacks")
    assert not any(prompts[2].places)
    frames, waveform = rendered(BALLS)
    exchanged = frames.copy()
    one, two = (columns(actor) for actor in BALLS.shots[0].actors)
    exchanged[96:, :, one], exchanged[96:, :, two] = frames[96:, :, two], frames[96:, :, one]
    found = score(exchanged, waveform, BALLS, prompts)
    assert {fact.aspect for fact in found.shots[2].facts if not fact.holds} == {"place"}


def clicking(frames, waveform):
    waveform[40000] += 0.1


def skipping(frames, waveform):
    frames[40:60, :, 11:] = frames[40:60, :, 8:-3]


def brightening(frames, waveform):
    frames[40:60] = (frames[40:60].astype(int) + 40).clip(0, 255)


def hissing(frames, waveform):
    waveform[40000:] += np.random.default_rng(0).normal(0, 0.002, len(waveform) - 40000)


@pytest.mark.parametrize(
    ("damage", "faults"),
    [(clicking, (1, 0, 0)), (skipping, (0, 1, 0)), (brightening, (0, 1, 0)), (hissing, (0, 0, 1))],
)
def test_what_happens_at_a_seam_is_found_there(damage, faults):
    frames, waveform = rendered()
    damage(frames, waveform)
    seams = score(frames, waveform).seams
    assert (seams[0].click, seams[0].jump, seams[0].step) == faults
    assert not any(seam.click or seam.jump or seam.step for seam in seams[1:])


def test_drift_is_measured():
    frames, waveform = rendered()
    darker = np.linspace(0, 40, len(frames))[:, None, None, None]
    fainter = np.linspace(1, 0.5, len(waveform), dtype=np.float32)
    hiss = np.random.default_rng(0).normal(0, 0.01, len(waveform)) * np.linspace(0, 1, len(waveform)) ** 2
    found = score((frames - darker).clip(0, 255).astype(np.uint8), (waveform * fainter + hiss).astype(np.float32))
    shades, noises, gains = (
        np.array([getattr(level, n) for level in found.levels]) for n in ("shade", "noise", "gain")
    )
    assert (np.diff(shades) > 5).all() and (np.diff(noises) > 5).all() and (np.diff(gains) < -0.5).all()
