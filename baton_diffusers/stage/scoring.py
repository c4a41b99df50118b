"""Score clips against their scenes, from the frames and the samples alone.

Three measures, as in Baton's evaluation: P-Acc, the share of a scene's atomic facts that hold; M-WER, the word error rate
of each speaker; and DeSync, the distance in time between what is seen and what is heard. Where Baton asks judge models,
Stage knows the answer: the clip is searched for everything that Stage can show and sound (`sight.py`, `hearing.py`), and
what was found is compared with the scene.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .hearing import Sound, hear
from .scene import EVENTS, TIERS, VOICES, Actor, Scene
from .sight import Sight, watch


ASPECTS = ("present", "seen", "heard", "pitch", "order")
UNMATCHED = 0.5  # seconds that an instant counts which is only seen or only heard, and the most that any counts


@dataclass(frozen=True)
class Fact:
    """An atomic fact of a scene, and whether it `holds` in the clip.

    The `aspect` is *present*: an actor stands on its spot in its colour; *seen* or *heard*: an action happens as often as
    the script says, in the picture or in the sound (a hit reaches its target, which jolts); *pitch*: its sound has the
    pitch of the actor's colour or the face's voice; *order*: in picture and sound, it comes after the actions before it
    and before those after it, and nothing that is not in the script comes just before it (or after the last action).
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
    """

    tier: str
    facts: tuple[Fact, ...]
    references: dict[str, str]
    hypotheses: dict[str, str]
    desync: float
    cast: tuple[Actor, ...]
    sights: tuple[Sight, ...]
    sounds: tuple[Sound, ...]

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
class _Run:
    """Instants of one doer in succession."""

    doer: Hashable
    instants: tuple


def score_clip(video: np.ndarray, audio: np.ndarray, scene: Scene) -> ClipScore:
    """Score a clip against its scene.

    Args:
        video: RGB uint8, (frames, 64, 64, 3), at 16 frames/s.
        audio: Mono float, (samples,), in [-1, 1], at 16 kHz.
        scene: What the clip was to show.
    """
    cast, sights = watch(video)
    sounds = hear(audio)
    found = _recognise(scene.actors, cast)
    facts = [
        Fact("present", actor.name, i in found and cast[found[i]] == actor) for i, actor in enumerate(scene.actors)
    ]

    sight_runs = _runs(sights, lambda sight: sight.actor)
    sight_doers = [found.get(action.actor) for action in scene.script]
    sound_runs = _runs(sounds, lambda sound: (sound.kind, sound.colour))
    sound_doers = [(EVENTS[action.verb], scene.actors[action.actor].colour) for action in scene.script]
    seen = _assign(sight_doers, sight_runs)
    heard = _assign(sound_doers, sound_runs, alike=lambda doer: doer[0])
    seen_in_order = _in_order(seen, len(scene.script), len(sight_runs))
    heard_in_order = _in_order(heard, len(scene.script), len(sound_runs))
    for i, action in enumerate(scene.script):
        subject = f"{i + 1}. {scene.actors[action.actor].name} {action.verb}"
        picture = sight_runs[seen[i]].instants if i in seen else ()
        sound = sound_runs[heard[i]] if i in heard else _Run(None, ())
        aimed = action.target is None or all(sight.target == found.get(action.target) for sight in picture)
        facts += [
            Fact("seen", subject, len(picture) == action.count and aimed),
            Fact("heard", subject, len(sound.instants) == action.count),
            Fact("pitch", subject, sound.doer == sound_doers[i]),
            Fact("order", subject, seen_in_order[i] and heard_in_order[i]),
        ]

    references = {voice: [] for voice in VOICES.values()}
    hypotheses = {voice: [] for voice in VOICES.values()}
    for action in scene.script:
        if action.verb == "say":
            references[VOICES[scene.actors[action.actor].colour]] += action.words
    for sound in sounds:
        if sound.kind == "word":
            hypotheses[VOICES[sound.colour]].append(sound.word)
    return ClipScore(
        tier=scene.tier,
        facts=tuple(facts),
        references={voice: " ".join(words) for voice, words in references.items()},
        hypotheses={voice: " ".join(words) for voice, words in hypotheses.items()},
        desync=_desync(scene, sights, sounds),
        cast=cast,
        sights=sights,
        sounds=sounds,
    )


def _recognise(expected: Sequence[Actor], cast: Sequence[Actor]) -> dict[int, int]:
    """Who of the cast that was found plays which expected actor: one of its kind, if possible of its colour, on its spot."""
    found: dict[int, int] = {}
    for same in (
        lambda a, b: a == b,
        lambda a, b: a.name == b.name,
        lambda a, b: (a.kind, a.spot) == (b.kind, b.spot),
        lambda a, b: a.kind == b.kind,
    ):
        for i, actor in enumerate(expected):
            for j, other in enumerate(cast):
                if i not in found and j not in found.values() and same(actor, other):
                    found[i] = j
    return found


def _runs(instants: Iterable, doer: Callable[[Sight | Sound], Hashable]) -> list[_Run]:
    return [_Run(key, tuple(group)) for key, group in groupby(instants, key=doer)]


def _assign(doers: Sequence, runs: Sequence[_Run], alike: Callable | None = None) -> dict[int, int]:
    """The run of each action, by its index: the actions of a doer take its runs in turn. Actions and runs that are left
    over take each other in turn where the doers are `alike` (of a kind, though not of a pitch)."""
    assigned: dict[int, int] = {}
    for same in (lambda doer: doer, alike) if alike else (lambda doer: doer,):
        for i, doer in enumerate(doers):
            for j, run in enumerate(runs):
                if (
                    i not in assigned
                    and j not in assigned.values()
                    and doer is not None
                    and same(run.doer) == same(doer)
                ):
                    assigned[i] = j
    return assigned


def _in_order(assigned: dict[int, int], num_actions: int, num_runs: int) -> list[bool]:
    """Whether each action of the script is in its place, see [`Fact`]."""
    # A run that no action accounts for breaks the place of the action that follows it, or of the last one.
    broken = set()
    for j in set(range(num_runs)) - set(assigned.values()):
        later = [k for k in assigned.values() if k > j]
        broken.add(min(later) if later else max(assigned.values(), default=None))
    order = []
    for i in range(num_actions):
        right = all((j < i) == (assigned[j] < assigned[i]) for j in assigned if j != i) if i in assigned else False
        order.append(right and assigned[i] not in broken)
    return order


def _desync(scene: Scene, sights: Sequence[Sight], sounds: Sequence[Sound]) -> float:
    """Mean distance in seconds between the picture's instants and the sound's, each kind of its own. As many as possible
    are matched, in the order of time; an instant without its other half counts `UNMATCHED`, as does a missing one."""
    distance, number = 0.0, 0
    for kind in EVENTS.values():
        expected = sum(action.count for action in scene.script if EVENTS[action.verb] == kind)
        few, many = sorted(([x.time for x in found if x.kind == kind] for found in (sights, sounds)), key=len)
        total = max(expected, len(many))
        distance += _least_distance(few, many) + UNMATCHED * (total - len(few))
        number += total
    return distance / number


def _least_distance(few: Sequence[float], many: Sequence[float]) -> float:
    """Sum of the distances between `few` and as many of the `many`, in order, such that it is least."""
    least = np.zeros(len(many) + 1)  # for the first i of few and the first j of many
    for i, time in enumerate(few):
        pairs = least[:-1] + np.minimum(np.abs(np.asarray(many) - time), UNMATCHED)
        pairs[:i] = np.inf
        least = np.concatenate([[np.inf], np.minimum.accumulate(pairs)])
    return float(least[-1])


def summarise(scores: Sequence[ClipScore], num_resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Summarise the scores of a corpus of clips, as a whole and by tier.

    Args:
        scores: One for each clip.
        num_resamples: Number of bootstrap samples, of as many clips, drawn with replacement.
        seed: Seed of the bootstrap; the same scores and seed give the same summary.

    Returns:
        For "all" and for each tier with clips: `clips`, their number; `p_acc`, `strict`, `m_wer` and `desync` (seconds),
        each `{"value", "low", "high"}` with the bounds of a 95% interval; and `facts`, the share of the facts of each
        aspect that hold. `m_wer` pools the word errors over all clips; it is `None` where nobody is to speak.
    """
    if not scores:
        raise ValueError("`scores` is empty: score at least one clip.")
    summary = {}
    for tier in ("all", *TIERS):
        chosen = [score for score in scores if tier in ("all", score.tier)]
        if chosen:
            summary[tier] = _summarise(chosen, num_resamples, np.random.default_rng(seed))
    return summary


def _summarise(scores: Sequence[ClipScore], num_resamples: int, rng: np.random.Generator) -> dict:
    samples = rng.integers(len(scores), size=(num_resamples, len(scores)))
    errors, words = np.array([score.word_errors for score in scores]).T

    def estimate(value: float, resampled: np.ndarray) -> dict[str, float]:
        low, high = np.nanpercentile(resampled, (2.5, 97.5))
        return {"value": float(value), "low": float(low), "high": float(high)}

    def mean(values: Iterable[float]) -> dict[str, float]:
        values = np.array(list(values), dtype=float)
        return estimate(values.mean(), values[samples].mean(axis=1))

    pooled = errors[samples].sum(axis=1) / np.maximum(words[samples].sum(axis=1), 1)
    facts = [fact for score in scores for fact in score.facts]
    return {
        "clips": len(scores),
        "p_acc": mean(score.p_acc for score in scores),
        "strict": mean(score.strict for score in scores),
        "m_wer": estimate(errors.sum() / words.sum(), pooled) if words.sum() else None,
        "desync": mean(score.desync for score in scores),
        "facts": {a: float(np.mean([fact.holds for fact in facts if fact.aspect == a])) for a in ASPECTS},
    }
