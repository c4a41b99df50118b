"""Films of Stage: shots with one cast. Each shot is a scene of its own, so it can be held out like any scene."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .prompts import Prompt, describe, describe_on
from .render import Clip, background, draw_frames, perform
from .scene import (
    COLOURS,
    DIGITS,
    FRAME_RATE,
    KINDS,
    MAX_COUNT,
    NUM_FRAMES,
    SAMPLING_RATE,
    SPLITS,
    SPOTS,
    VERBS,
    VOICES,
    Action,
    Actor,
    Event,
    Scene,
    timeline,
)
from .sound import event_sound


SHOT_FRAMES = NUM_FRAMES - 1  # the last frame of a clip is the first one of the next shot
SHOT_SECONDS = SHOT_FRAMES / FRAME_RATE
IDEAS = ("steps", "dialogue", "callback")
STYLES = ("whole", "callbacks")
CUT_SHARE = 0.12  # of the shots that may begin with a hard cut
HIT_SHARE = 0.6  # of the shots in which a box may hit
NUM_ACTIONS = (0.4, 0.4, 0.2)  # how often a shot has one, two or three
TRIES = 300  # of a shot, before the film is drawn anew

_PAST = {"bounce": "bounced", "ring": "rang", "hit": "hit something", "say": "spoke"}
_PARTICIPLE = {"bounce": "bounced", "ring": "rung", "hit": "hit anything", "say": "spoken"}


@dataclass(frozen=True)
class FilmScene:
    """
    Shots of 3 seconds with one cast. Continuous shots form a *take*; a hard cut begins a new one, on another background, in which the
    cast may stand elsewhere.

    Args:
        shots: The scene of each shot.
        cuts: The shots that begin with a hard cut.

    Raises:
        ValueError: if there is no shot; a cut is not the number of a later shot; the cast changes; an actor moves without a cut; a box
            hits before the last shot of a take (it would not return to its place); or one actor ends a shot and begins the next.
    """

    shots: tuple[Scene, ...]
    cuts: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.shots:
            raise ValueError("`shots` is empty: give at least one scene.")
        if not self.cuts <= set(range(1, len(self.shots))):
            raise ValueError(
                f"`cuts` is {sorted(self.cuts)}, but the shots after the first are 1 to {len(self.shots) - 1}."
            )
        for number, (before, scene) in enumerate(zip(self.shots, self.shots[1:], strict=False), start=1):
            if {actor.name for actor in before.actors} != {actor.name for actor in scene.actors}:
                raise ValueError(f"`shots` have one cast, but the cast of shot {number} differs from the one before.")
            if number not in self.cuts and before.actors != scene.actors:
                raise ValueError(f"the cast of shot {number} stands elsewhere than before: make it a cut.")
            if number not in self.cuts and before.slides:
                raise ValueError(f"a box hits in shot {number - 1}, and stays there: only a cut can follow.")
            if before.script and scene.script and before.ends_with == scene.begins_with:
                raise ValueError(
                    f"the {before.ends_with} ends shot {number - 1} and begins shot {number}: make it one action."
                )

    @property
    def seconds(self) -> float:
        """How long the film is; the frame at its end is shown too."""
        return len(self.shots) * SHOT_SECONDS

    @property
    def num_frames(self) -> int:
        """Its frames, the last one included."""
        return len(self.shots) * SHOT_FRAMES + 1

    @cached_property
    def takes(self) -> tuple[range, ...]:
        """The shots of each take."""
        borders = [0, *sorted(self.cuts), len(self.shots)]
        return tuple(range(first, last) for first, last in zip(borders, borders[1:], strict=False))

    def take(self, shot: int) -> range:
        """The take of a shot."""
        return next(take for take in self.takes if shot in take)


def shot_seed(seed: int, shot: int) -> int:
    """The seed of a shot's times and of its prompt, in the film of this seed."""
    return seed * 1009 + shot


def shot_events(film: FilmScene, seed: int, shot: int) -> tuple[Event, ...]:
    """The instants of a shot, in frames from its start."""
    return timeline(film.shots[shot], shot_seed(seed, shot))


def render_film(film: FilmScene, seed: int) -> Iterator[Clip]:
    """The picture and the sound of a film, shot by shot: 48 frames and 48,000 samples each, the last one 49 and 49,000."""
    for shot, scene in enumerate(film.shots):
        take = film.take(shot)
        num_frames = SHOT_FRAMES + (shot == len(film.shots) - 1)
        events = shot_events(film, seed, shot)
        before = [
            replace(event, frame=event.frame - SHOT_FRAMES)
            for event in (shot_events(film, seed, shot - 1) if shot else ())
        ]
        shown = [replace(e, frame=e.frame + SHOT_FRAMES) for e in (*(before if shot > take.start else ()), *events)]
        slides = {slide.action: slide for slide in scene.slides}
        rows = perform(scene.actors, shown, slides, SHOT_FRAMES + num_frames)[SHOT_FRAMES:]
        frames = draw_frames(scene.actors, rows, background(film.shots[take.start], shot_seed(seed, take.start)))
        waveform = np.zeros(num_frames * SAMPLING_RATE // FRAME_RATE, dtype=np.float32)
        casts = [*[film.shots[shot - 1].actors] * len(before), *[scene.actors] * len(events)]
        for actors, event in zip(casts, (*before, *events), strict=True):
            start = round(event.time * SAMPLING_RATE)
            sound = event_sound(event.kind, actors[event.actor].colour, event.word)[max(-start, 0) :]
            end = max(start, 0) + len(sound)
            waveform[max(start, 0) : end] += sound[: len(waveform[max(start, 0) : end])]
        yield Clip(frames, waveform)


def film_prompts(film: FilmScene, seed: int, style: str = "whole") -> tuple[Prompt, ...]:
    """
    The prompt of each shot.

    Args:
        film: The film.
        seed: Chooses the words.
        style: "whole": every prompt names the whole cast with its colours and places. "callbacks": only the first prompt of a take does.
            The others call an actor by its colour or by an earlier deed: "the ball that bounced first".

    Raises:
        ValueError: for another `style`.
    """
    if style not in STYLES:
        raise ValueError(f"`style` is {style!r}: choose one of {STYLES}.")
    prompts = []
    for shot, scene in enumerate(film.shots):
        number = shot_seed(seed, shot)
        if style == "callbacks" and shot > film.take(shot).start:
            prompts.append(describe_on(scene, number, callbacks(film, shot)))
            continue
        told = (describe(scene, number + 1_000_003 * draw) for draw in range(1000))
        prompts.append(next(prompt for prompt in told if all(prompt.places) and all(prompt.colours)))
    return tuple(prompts)


def callbacks(film: FilmScene, shot: int) -> dict[int, str]:
    """Names of actors of a shot by what they did in the film so far, if another actor is of the same kind, e.g. `{0: "ball that
    bounced first"}`."""
    acted = [past.actors[action.actor] for past in film.shots[:shot] for action in past.script]
    names = [actor.name for actor in dict.fromkeys(replace(actor, spot="left") for actor in acted)]
    called = {}
    actors = film.shots[shot].actors
    for i, actor in enumerate(actors):
        alike = [other.name for other in actors if other.kind == actor.kind]
        order = [name for name in names if name in alike]
        verb = VERBS[actor.kind]
        if len(alike) < 2 or not order:
            continue
        if actor.name == order[0]:
            called[i] = f"{actor.kind} that {_PAST[verb]} first"
        elif len(alike) - len(order) == 1 and actor.name not in order:
            called[i] = f"{actor.kind} that has not {_PARTICIPLE[verb]} yet"
        elif actor.name in order and order.index(actor.name) == 1:
            called[i] = f"{actor.kind} that {_PAST[verb]} second"
    return called


def sample_film(seed: int, seconds: float = 24.0, split: str | None = None) -> FilmScene:
    """
    Draw a film.

    A third of the films is built around several steps, a third around a dialogue whose speakers take turns from shot to shot, and a third
    around two actors of one kind, whom callbacks tell apart.

    Args:
        seed: The same seed, length and split give the same film.
        seconds: Its length, a multiple of 3.
        split: The split of every shot's scene; `None` takes any.

    Raises:
        ValueError: if `seconds` is no positive multiple of 3, or `split` no split.
    """
    number = round(seconds / SHOT_SECONDS)
    if number < 1 or number * SHOT_SECONDS != seconds:
        raise ValueError(f"`seconds` is {seconds}, but a film of Stage lasts a multiple of {SHOT_SECONDS:g} seconds.")
    if split not in (None, *SPLITS):
        raise ValueError(f"`split` is {split!r}, but has to be one of {SPLITS} or None.")
    rng = np.random.default_rng([seed, 0xF113])
    idea = IDEAS[rng.integers(len(IDEAS))]
    while True:
        film = _try_film(rng, idea, number, split)
        if film is not None:
            return film


def _try_film(rng: np.random.Generator, idea: str, number: int, split: str | None) -> FilmScene | None:
    cast = _draw_cast(rng, idea)
    if cast is None:
        return None
    cuts = frozenset(shot for shot in range(2, number) if rng.random() < CUT_SHARE)
    shots: list[Scene] = []
    for shot in range(number):
        if shot in cuts:
            spots = [tuple(SPOTS)[i] for i in rng.permutation(3)[: len(cast)]]
            moved = [replace(actor, spot=spot) for actor, spot in zip(cast, spots, strict=True)]
            cast = tuple(sorted(moved, key=lambda actor: SPOTS[actor.spot]))
        for _ in range(TRIES):
            scene = _try_shot(rng, idea, cast, shots, may_hit=shot + 1 in cuts or shot + 1 == number)
            if scene is not None and (split is None or scene.split == split):
                shots.append(scene)
                break
        else:
            return None
    return FilmScene(tuple(shots), cuts)


def _draw_cast(rng: np.random.Generator, idea: str) -> tuple[Actor, ...] | None:
    """Two or three actors, of whom two can act in every shot."""
    if idea == "steps":
        kinds = [KINDS[i] for i in rng.integers(len(KINDS), size=rng.integers(2, 4))]
    elif idea == "dialogue":
        kinds = ["face", "face", *[KINDS[i] for i in rng.integers(3, size=rng.integers(2))]]
    else:
        kinds = [("ball", "bell")[rng.integers(2)]] * 2
        kinds += [KINDS[i] for i in rng.integers(len(KINDS), size=rng.integers(2))]
    spots = [tuple(SPOTS)[i] for i in rng.permutation(3)[: len(kinds)]]
    palette = {kind: tuple(VOICES) if kind == "face" else COLOURS for kind in KINDS}
    cast = [Actor(k, palette[k][rng.integers(len(palette[k]))], s) for k, s in zip(kinds, spots, strict=True)]
    if len({actor.name for actor in cast}) < len(cast) or sum(kind != "box" for kind in kinds) < 2:
        return None
    return tuple(sorted(cast, key=lambda actor: SPOTS[actor.spot]))


def _try_shot(
    rng: np.random.Generator, idea: str, cast: tuple[Actor, ...], before: list[Scene], may_hit: bool
) -> Scene | None:
    """A scene of this cast that may follow those before, or None if the draw makes none."""
    last = before[-1].ends_with if before else None
    spoken = [s.actors[a.actor].name for s in before for a in s.script if a.verb == "say"]
    script: list[Action] = []
    hits = may_hit and rng.random() < HIT_SHARE
    for _ in range(1 + rng.choice(3, p=NUM_ACTIONS)):
        options = [i for i, actor in enumerate(cast) if actor.name != last and (hits or actor.kind != "box")]
        if idea == "dialogue" and spoken:  # who spoke last lets the other speak
            options = [i for i in options if cast[i].name != spoken[-1]]
        if not options:
            return None
        index = int(rng.choice(options))
        verb = VERBS[cast[index].kind]
        count = 1 if verb == "hit" else int(rng.integers(1, MAX_COUNT + 1))
        words = tuple(DIGITS[i] for i in rng.integers(10, size=count)) if verb == "say" else ()
        beside = [i for i in (index - 1, index + 1) if 0 <= i < len(cast)]
        script.append(Action(verb, index, count, words, int(rng.choice(beside)) if verb == "hit" else None))
        last = cast[index].name
        spoken += [last] if verb == "say" else []
    if idea == "callback" and not before:  # one of the pair acts first
        kinds = [actor.kind for actor in cast]
        if kinds.count(cast[script[0].actor].kind) < 2:
            return None
    try:
        return Scene(cast, tuple(script))
    except ValueError:
        return None
