"""Score clips against their scenes, from the frames and the samples alone.

Three measures, as in Baton's evaluation: P-Acc, the share of a scene's atomic facts that hold; M-WER, the word error rate
of each speaker; and DeSync, the distance in time between what is seen and what is heard. Baton asks judge models; Stage knows
the answer. The scorer searches the clip for everything that Stage can show and sound (`sight.py`, `hearing.py`), and compares
what it finds with the scene. Sights and sounds that the scene does not explain count against the clip.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from .hearing import Sound, hear, stray_sounds
from .scene import EVENTS, FRAME_RATE, VOICES, Action, Actor, Scene
from .sight import Picture, Sight, watch


ASPECTS = ("present", "place", "alone", "seen", "heard", "pitch", "words", "order", "quiet")
UNMATCHED = 0.5  # seconds that count for an instant that is only seen or only heard, and at most for any instant
PAUSE = 9.5 / FRAME_RATE  # seconds; instants of one actor that lie closer together belong to one action


@dataclass(frozen=True)
class Fact:
    """An atomic fact of a scene, and whether it `holds` in the clip. The `aspect` is, for each actor,

    - *present*: it is there in its colour, in every frame, once, and apart from the others;
    - *place*: it stands on its spot. A place that the prompt leaves open is not a fact;

    for each action,

    - *seen*, *heard*: it happens as often as the script says, in the picture and in the sound (a hit reaches its own target,
      which jolts);
    - *pitch*: its sounds have the pitch of the actor's colour or the face's voice;
    - *words*: the right words are said, in their order;
    - *order*: in picture and sound, it comes after the actions before it and before those after it;

    and of the clip,

    - *alone*: something of the scene is seen, and nothing else: no other actor or object, no other motion, no flicker, no noise;
    - *quiet*: something of the scene is heard, and nothing else.
    """

    aspect: str
    subject: str
    holds: bool


@dataclass(frozen=True)
class ClipScore:
    """The scores of a clip.

    Args:
        tier: The tier of its scene.
        facts: The atomic facts of the scene.
        references: The words of each voice in the scene, joined by spaces, by voice.
        hypotheses: The words of each voice that were heard.
        desync: Mean distance in seconds between an instant in the picture and in the sound.
        cast, sights, sounds: What was found in the clip.
        strays: Times in seconds at which something is seen, and at which something is heard, that nothing explains.
    """

    tier: str
    facts: tuple[Fact, ...]
    references: dict[str, str]
    hypotheses: dict[str, str]
    desync: float
    cast: tuple[Actor, ...]
    sights: tuple[Sight, ...]
    sounds: tuple[Sound, ...]
    strays: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @property
    def p_acc(self) -> float:
        """The share of the facts that hold."""
        return sum(fact.holds for fact in self.facts) / len(self.facts)

    @property
    def strict(self) -> bool:
        """Whether all facts hold."""
        return all(fact.holds for fact in self.facts)

    @property
    def word_errors(self) -> tuple[int, int]:
        """Substitutions, deletions and insertions over both voices, and the number of words of the scene."""
        import jiwer  # of the extra `eval`: looking at Stage needs no scores

        output = jiwer.process_words(list(self.references.values()), list(self.hypotheses.values()))
        errors = output.substitutions + output.deletions + output.insertions
        return errors, output.hits + output.substitutions + output.deletions


@dataclass(frozen=True)
class Run:
    """Instants of one `doer` in close succession, in order of time."""

    doer: Hashable
    instants: tuple

    @property
    def start(self) -> float:
        """The time of the first instant in seconds."""
        return self.instants[0].time

    @property
    def end(self) -> float:
        """The time of the last instant in seconds."""
        return self.instants[-1].time


def score_clip(
    video: np.ndarray,
    audio: np.ndarray,
    scene: Scene,
    places: Sequence[bool] | None = None,
    colours: Sequence[bool] | None = None,
) -> ClipScore:
    """Score a clip against its scene.

    Args:
        video: RGB uint8, (frames, 64, 64, 3), at 16 frames/s.
        audio: Mono float, (samples,), in [-1, 1], at 16 kHz.
        scene: The scene that was asked for.
        places: For each actor, whether the prompt says where it stands; by default it does. An actor whose place is left open
            may stand on any spot.
        colours: For each actor, whether the prompt says its colour (or the voice of a face); by default it does. An actor whose
            colour is left open may have any colour, and its sounds have to match the colour that is seen.
    """
    sounds = hear(audio)
    return judge(scene, watch(video), sounds, stray_sounds(audio, sounds), places, colours)


def judge(
    scene: Scene,
    picture: Picture,
    sounds: Sequence[Sound],
    stray: tuple[float, ...],
    places: Sequence[bool] | None = None,
    colours: Sequence[bool] | None = None,
) -> ClipScore:
    """Compare what was found in a clip with its scene.

    Args:
        scene: The scene that was asked for.
        picture, sounds, stray: What was found, see [`watch`], [`hear`] and [`stray_sounds`].
        places, colours: As for [`score_clip`].
    """
    places = [True] * len(scene.actors) if places is None else places
    colours = [True] * len(scene.actors) if colours is None else colours
    found = recognise(scene.actors, picture.cast, places, colours)
    actors = [
        actor if stated or i not in found else replace(actor, colour=picture.cast[found[i]].colour)
        for i, (actor, stated) in enumerate(zip(scene.actors, colours, strict=True))
    ]
    facts = []
    for i, (expected, actor) in enumerate(zip(scene.actors, actors, strict=True)):
        same = i in found and picture.cast[found[i]].name == actor.name
        facts.append(Fact("present", expected.name, same and picture.whole[found[i]]))
        if places[i]:
            facts.append(Fact("place", expected.name, i in found and picture.cast[found[i]].spot == actor.spot))

    script = scene.script
    sight_runs = runs_of(picture.sights, lambda sight: sight.actor)
    sound_runs = runs_of(sounds, lambda sound: (sound.kind, sound.colour))
    sound_doers = [(EVENTS[action.verb], actors[action.actor].colour) for action in script]
    seen, unseen = _assign(script, [found.get(action.actor) for action in script], sight_runs)
    heard, unheard = _assign(script, sound_doers, sound_runs, kind=lambda doer: doer[0])
    seen_in_order, heard_in_order = _in_order(seen), _in_order(heard)
    for i, action in enumerate(script):
        subject = f"{i + 1}. {scene.actors[action.actor].name} {action.verb}"
        sights, said = (run.instants if run else () for run in (seen[i], heard[i]))
        aimed = action.target is None or all(
            sight.target is not None and sight.target == found.get(action.target) for sight in sights
        )
        pitched = bool(said) and all((sound.kind, sound.colour) == sound_doers[i] for sound in said)
        facts += [
            Fact("seen", subject, len(sights) == action.count and aimed),
            Fact("heard", subject, len(said) == action.count),
            Fact("pitch", subject, pitched),
        ]
        if action.verb == "say":
            facts.append(Fact("words", subject, tuple(sound.word for sound in said) == action.words))
        facts.append(Fact("order", subject, seen_in_order[i] and heard_in_order[i]))
    strangers = set(range(len(picture.cast))) - set(found.values())
    facts += [
        Fact("alone", "the picture", bool(found) and not (strangers or unseen or picture.strays)),
        Fact("quiet", "the sound", (any(heard) or not script) and not (unheard or stray)),
    ]

    references = {voice: [] for voice in VOICES.values()}
    hypotheses = {voice: [] for voice in VOICES.values()}
    for action in script:
        if action.verb == "say":
            references[VOICES[actors[action.actor].colour]] += action.words
    for sound in sounds:
        if sound.kind == "word":
            hypotheses[VOICES[sound.colour]].append(sound.word)
    return ClipScore(
        tier=scene.tier,
        facts=tuple(facts),
        references={voice: " ".join(words) for voice, words in references.items()},
        hypotheses={voice: " ".join(words) for voice, words in hypotheses.items()},
        desync=_desync(scene, picture.sights, sounds),
        cast=picture.cast,
        sights=picture.sights,
        sounds=sounds,
        strays=(picture.strays, stray),
    )


def recognise(
    expected: Sequence[Actor], cast: Sequence[Actor], places: Sequence[bool], colours: Sequence[bool]
) -> dict[int, int]:
    """Which found actor plays which expected one: an actor of its kind, if possible of its colour, on its spot."""
    found: dict[int, int] = {}
    for colour, place in ((True, True), (True, False), (False, True), (False, False)):
        for i, actor in enumerate(expected):
            for j, other in enumerate(cast):
                alike = actor.kind == other.kind
                alike &= not (colour and colours[i]) or actor.colour == other.colour
                alike &= not (place and places[i]) or actor.spot == other.spot
                if alike and i not in found and j not in found.values():
                    found[i] = j
    return found


def runs_of(instants: Iterable, doer: Callable[[Sight | Sound], Hashable]) -> list[Run]:
    """Each actor's instants, split at its pauses."""
    runs: dict[Hashable, list[list]] = {}
    for instant in instants:
        own = runs.setdefault(doer(instant), [])
        if own and instant.time - own[-1][-1].time < PAUSE:
            own[-1].append(instant)
        else:
            own.append([instant])
    return [Run(key, tuple(run)) for key, own in runs.items() for run in own]


def _assign(
    script: Sequence[Action], doers: Sequence[Hashable], runs: list[Run], kind: Callable | None = None
) -> tuple[list[Run | None], list[Run]]:
    """The run of each action of the script, and the runs that are left. Each actor's runs are assigned to its own actions, so
    that counts, words and order fit as well as possible. Then the remaining actions take remaining runs of actors of the same
    `kind` but another pitch. At last, an action that lacks instants takes those close to it: one wrong note is one fault.
    """
    assigned: list[Run | None] = [None] * len(script)
    for same in (lambda doer: doer, kind) if kind else (lambda doer: doer,):
        options = []
        for key in dict.fromkeys(same(doer) for doer in doers if doer is not None):
            open_actions = [
                i for i, doer in enumerate(doers) if assigned[i] is None and doer is not None and same(doer) == key
            ]
            options.append(list(_pairings(open_actions, [run for run in runs if same(run.doer) == key])))
        best = min(
            (dict(pair for option in choice for pair in option) for choice in product(*options)),
            key=lambda pairs: _misfit(script, [pairs.get(i, run) for i, run in enumerate(assigned)]),
        )
        assigned = [best.get(i, run) for i, run in enumerate(assigned)]
        taken = {id(run) for run in best.values()}
        runs = [run for run in runs if id(run) not in taken]
    return _complete(script, doers, assigned, runs, kind)


def _pairings(actions: Sequence[int], runs: Sequence[Run]) -> Iterator[list[tuple[int, Run]]]:
    """All assignments in which as many actions as possible take a run each, in order."""
    number = min(len(actions), len(runs))
    for some in combinations(actions, number):
        for others in combinations(runs, number):
            yield list(zip(some, others, strict=True))


def _misfit(script: Sequence[Action], runs: Sequence[Run | None]) -> float:
    """How badly the runs fit the actions of the script: wrong counts, then wrong order, then wrong words."""
    misfit = 0.0
    for action, run in zip(script, runs, strict=True):
        if run is not None:
            misfit += abs(len(run.instants) - action.count) - min(len(run.instants), action.count)
            words = [getattr(instant, "word", None) for instant in run.instants]
            misfit += 0.1 * sum(a != b for a, b in zip(words, action.words, strict=False))
    return misfit + 0.5 * _in_order(runs).count(False)


def _complete(
    script: Sequence[Action],
    doers: Sequence[Hashable],
    assigned: Sequence[Run | None],
    left: Sequence[Run],
    kind: Callable | None,
) -> tuple[list[Run | None], list[Run]]:
    """Give actions that lack instants those beside them: runs that are left, or instants that their neighbours have too many
    of."""
    assigned, left = list(assigned), list(left)

    def beside(run: Run, other: Run) -> bool:
        gap = max(other.start - run.end, run.start - other.end)
        if run.doer != other.doer:
            return gap < PAUSE
        between = (min(run.end, other.end), max(run.start, other.start))
        others = [r for r in (*assigned, *left) if r is not None and r is not run and r is not other]
        return not any(between[0] < instant.time < between[1] for r in others for instant in r.instants)

    def offers(i: int) -> Iterator[tuple[Run, Callable[[], None]]]:
        """The instants that action `i` could take, and how to take them from their run."""
        for run in left:
            yield run, lambda run=run: left.remove(run)
        for j, run in enumerate(assigned):
            if j != i and run is not None and len(run.instants) > script[j].count:
                for spare, rest in ((slice(0, 1), slice(1, None)), (slice(-1, None), slice(0, -1))):
                    kept = Run(run.doer, run.instants[rest])
                    yield Run(run.doer, run.instants[spare]), lambda j=j, kept=kept: assigned.__setitem__(j, kept)

    def take(i: int) -> bool:
        for more, remove in offers(i):
            run, doer = assigned[i], doers[i]
            suits = more.doer == doer or (kind is not None and kind(more.doer) == kind(doer))
            if suits and len(run.instants) + len(more.instants) <= script[i].count and beside(run, more):
                remove()
                assigned[i] = Run(run.doer, tuple(sorted(run.instants + more.instants, key=lambda x: x.time)))
                return True
        return False

    while any(take(i) for i, run in enumerate(assigned) if run is not None):
        pass
    return assigned, left


def _in_order(runs: Sequence[Run | None]) -> list[bool]:
    """Whether each action's run lies after those of the actions before it, and before those of the actions after it."""
    return [
        run is not None
        and all(
            other is None or i == j or (other.end < run.start if j < i else run.end < other.start)
            for j, other in enumerate(runs)
        )
        for i, run in enumerate(runs)
    ]


def _desync(scene: Scene, sights: Sequence[Sight], sounds: Sequence[Sound]) -> float:
    """Mean distance in seconds between the picture's instants and the sound's, for each kind separately. As many as possible
    are matched, in the order of time; an instant without its other half counts `UNMATCHED`, as does a missing one."""
    distance, number = 0.0, 0
    for kind in EVENTS.values():
        expected = sum(action.count for action in scene.script if EVENTS[action.verb] == kind)
        few, many = sorted(([x.time for x in found if x.kind == kind] for found in (sights, sounds)), key=len)
        total = max(expected, len(many))
        distance += _least_distance(few, many) + UNMATCHED * (total - len(few))
        number += total
    return distance / max(number, 1)


def _least_distance(few: Sequence[float], many: Sequence[float]) -> float:
    """The least sum of distances between `few` and as many of the `many`, in order."""
    least = np.zeros(len(many) + 1)  # for the first i of few and the first j of many
    for i, time in enumerate(few):
        pairs = least[:-1] + np.minimum(np.abs(np.asarray(many) - time), UNMATCHED)
        pairs[:i] = np.inf
        least = np.concatenate([[np.inf], np.minimum.accumulate(pairs)])
    return float(least[-1])
