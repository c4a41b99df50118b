"""
Judge the scorer of Stage's films: how it scores true films that are damaged from their middle on.

    python benchmarks/judge_film_scorer.py --films 20 --seconds 24
"""

import argparse
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from baton_diffusers.evaluation.scores import markdown_table
from baton_diffusers.stage.film_scoring import ASPECTS_ACROSS, FilmScore, score_film
from baton_diffusers.stage.films import SHOT_FRAMES, FilmScene, film_prompts, render_film, sample_film, shot_events
from baton_diffusers.stage.scene import SAMPLING_RATE, SPOTS, VOICES, Actor
from baton_diffusers.stage.sound import event_sound


Damage = Callable[[np.ndarray, np.ndarray, FilmScene, int], bool]
DAMAGES: dict[str, Damage] = {}


def damage(name: str) -> Callable:
    """Registers a damage, in place, of frames, waveform, film and seed; it says whether it applies."""
    return lambda function: DAMAGES.setdefault(name, function)


def middle(film: FilmScene) -> int:
    """The shot in the middle of the longest take, and not its first."""
    take = max(film.takes, key=len)
    return take.start + max(len(take) // 2, 1)


def from_middle(frames: np.ndarray, film: FilmScene) -> np.ndarray:
    """The frames from there to the end of the take."""
    shot = middle(film)
    return frames[shot * SHOT_FRAMES : film.take(shot).stop * SHOT_FRAMES]


def columns(actor: Actor) -> slice:
    return slice(int(actor.x) - 10, int(actor.x) + 11)


@damage("none")
def _(frames, waveform, film, seed):
    return True


@damage("an actor changes its colour")
def _(frames, waveform, film, seed):
    part, place = from_middle(frames, film), columns(film.shots[middle(film)].actors[0])
    part[:, :56, place] = part[:, :56, place][..., [1, 2, 0]]
    return True


@damage("two actors change places")
def _(frames, waveform, film, seed):
    part, (one, two) = from_middle(frames, film), [columns(a) for a in film.shots[middle(film)].actors[:2]]
    part[:, :, one], part[:, :, two] = part[:, :, two].copy(), part[:, :, one].copy()
    return True


@damage("an actor is lost")
def _(frames, waveform, film, seed):
    part, place = from_middle(frames, film), columns(film.shots[middle(film)].actors[-1])
    part[:, :56, place], part[:, 56:, place] = part[:, :1, :1], part[:, 63:, :1]
    return True


@damage("an actor is doubled")
def _(frames, waveform, film, seed):
    actors = film.shots[middle(film)].actors
    free = [x for spot, x in SPOTS.items() if spot not in {actor.spot for actor in actors}]
    part = from_middle(frames, film)
    if free:
        part[:, :, free[0] - 10 : free[0] + 11] = part[:, :, columns(actors[0])]
    return bool(free)


@damage("a face speaks in the other voice")
def _(frames, waveform, film, seed):
    applies = False
    for shot in range(middle(film), film.take(middle(film)).stop):
        for event in shot_events(film, seed, shot):
            colour = film.shots[shot].actors[event.actor].colour
            if event.word is None:
                continue
            applies, start = True, (shot * SHOT_FRAMES + event.frame) * 1000
            other = next(voice for voice in VOICES if voice != colour)
            for sound, sign in (
                (event_sound("word", colour, event.word), -1),
                (event_sound("word", other, event.word), 1),
            ):
                waveform[start : start + len(sound)] += sign * sound[: len(waveform) - start]
    spoke = [
        film.shots[k].actors[a.actor].name
        for k in range(middle(film))
        for a in film.shots[k].script
        if a.verb == "say"
    ]
    speaks = [s.actors[a.actor].name for s in film.shots[middle(film) :] for a in s.script if a.verb == "say"]
    return applies and bool(set(spoke) & set(speaks))


@damage("two shots change places")
def _(frames, waveform, film, seed):
    first = middle(film) - 1
    for array, unit in ((frames, SHOT_FRAMES), (waveform, SHOT_FRAMES * 1000)):
        one, two = slice(first * unit, (first + 1) * unit), slice((first + 1) * unit, (first + 2) * unit)
        array[one], array[two] = array[two].copy(), array[one].copy()
    scripts = [[s.actors[a.actor].name for a in s.script] for s in film.shots[first : first + 2]]
    return scripts[0] != scripts[1]


@damage("what happens in a shot is missing")
def _(frames, waveform, film, seed):
    start = middle(film) * SHOT_FRAMES
    frames[start : start + SHOT_FRAMES] = frames[start + 1]
    waveform[start * 1000 + 500 : (start + SHOT_FRAMES) * 1000] = 0
    return True


@damage("a click at a seam")
def _(frames, waveform, film, seed):
    waveform[round(seam(film) * SAMPLING_RATE)] += 0.1
    return True


@damage("the picture jumps 3 pixels at a seam")
def _(frames, waveform, film, seed):
    part = frames[round(seam(film) * 16) :][:12]
    part[:, :, 3:] = part[:, :, :-3].copy()
    return True


@damage("the picture brightens by 20 at a seam")
def _(frames, waveform, film, seed):
    part = frames[round(seam(film) * 16) :][:12]
    part[:] = np.minimum(part, 235) + 20
    return True


@damage("noise of -54 dB from a seam on")
def _(frames, waveform, film, seed):
    part = waveform[round(seam(film) * SAMPLING_RATE) :][:32000]
    part += np.random.default_rng(seed).normal(0, 0.002, len(part)).astype(np.float32)
    return True


def seam(film: FilmScene) -> float:
    """Where damages of seams are made: between two shots, where nothing happens."""
    return middle(film) * 3.0


def judged(film: FilmScene, seed: int, change: Damage) -> FilmScore | None:
    """The score of a film with this damage, or None where it does not apply."""
    clips = list(render_film(film, seed))
    frames, waveform = (np.concatenate(parts) for parts in zip(*[(c.frames, c.waveform) for c in clips], strict=True))
    if not change(frames, waveform, film, seed):
        return None
    return score_film([(frames, waveform)], film, film_prompts(film, seed), [seam(film)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first film")
    arguments = parser.parse_args()
    films = [
        (sample_film(number, arguments.seconds, "validation"), number)
        for number in range(arguments.seed, arguments.seed + arguments.films)
    ]
    aspects = ASPECTS_ACROSS[:-1]  # callbacks are no facts of prompts that tell everything
    lines = [["damage", "films", "found", "facts lost across shots", *aspects, "click", "jump", "step"]]
    for name, change in tqdm(DAMAGES.items(), desc="damages"):
        scores = [score for film, seed in films if (score := judged(film, seed, change)) is not None]
        lost = [{fact.aspect for fact in score.across if not fact.holds} for score in scores]
        seams = [score.seams[0] for score in scores]
        found = [
            bool(some) or not s.strict or t.click or t.jump or t.step
            for some, s, t in zip(lost, scores, seams, strict=True)
        ]
        rates = [np.mean([aspect in some for some in lost]) for aspect in aspects]
        rates += [np.mean([getattr(each, fault) for each in seams]) for fault in ("click", "jump", "step")]
        facts = np.mean([sum(not fact.holds for fact in score.across) for score in scores])
        lines.append(
            [name, str(len(scores)), f"{np.mean(found):.2f}", f"{facts:.1f}", *(f"{rate:.2f}" for rate in rates)]
        )
    print(markdown_table(lines))
    print("shares of the films in which facts of this aspect, or the seam, show the damage")


if __name__ == "__main__":
    main()
