"""Prompts of Stage: English from a small grammar with paraphrase, and captions of single frames."""

import numpy as np

from ..cues import format_cues
from .render import Pose, poses
from .scene import SPOTS, Action, Actor, Scene, render_generator, timeline


PLACES = {
    "left": ("on the left", "at the left", "on the left side"),
    "middle": ("in the middle", "in the centre", "at the centre"),
    "right": ("on the right", "at the right", "on the right side"),
}
COUNTS = {1: ("once", "one time"), 2: ("twice", "two times"), 3: ("three times",)}
NUMBERS = {1: "one", 2: "two", 3: "three"}
VERB_FORMS = {
    "bounce": (("bounces", "bouncing"), ("jumps", "jumping"), ("hops", "hopping")),
    "ring": (("rings", "ringing"), ("chimes", "chiming"), ("flashes and rings", "flashing and ringing")),
    "hit": (("hits", "hitting"), ("slides into", "sliding into"), ("bumps into", "bumping into")),
    "say": (("says", "saying"), ("speaks", "speaking"), ("calls out", "calling out")),
}
THENS = ("then", "after that", "next", "and then", "afterwards")
LASTS = ("and finally", "finally", "at last", "then", "and then")
STANDS = ("is", "stands", "waits")


class _Writer:
    """The choices of one prompt. An actor is introduced by "a" and its place, and is "the" from then on."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.introduced: set[int] = set()

    def choose(self, options: tuple) -> object:
        return options[self.rng.integers(len(options))]

    def name(self, index: int) -> str:
        actor = self.scene.actors[index]
        if index in self.introduced:
            return f"the {actor.name}"
        self.introduced.add(index)
        return f"{_article(actor)} {actor.name} {self.choose(PLACES[actor.spot])}"

    def join(self, phrases: list[str]) -> str:
        return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"

    def presence(self, indices: list[int], elsewhere: bool) -> str:
        """A sentence that says which actors are there."""
        there = " also" if elsewhere and self.rng.random() < 0.5 else ""
        if self.rng.random() < 0.5:
            verb = "is" if len(indices) == 1 else "are"
            return f"there {verb}{there} {self.join([self.name(i) for i in indices])}."
        names, verb = [], self.choose(STANDS)
        for i in indices:
            actor = self.scene.actors[i]
            self.introduced.add(i)
            names.append(
                f"{_article(actor)} {actor.name}{f' {verb}' if not names else ''} {self.choose(PLACES[actor.spot])}"
            )
        return self.join(names) + "."

    def deed(self, action: Action, form: int) -> str:
        """What is done, e.g. "bounces twice"; `form` 0 is finite ("bounces"), 1 the participle ("bouncing")."""
        verb = self.choose(VERB_FORMS[action.verb])[form]
        if action.verb == "hit":
            return f"{verb} {self.name(action.target)}"
        if action.verb == "say":
            return f"{verb} {self.choose((' ', ', ')).join(action.words)}"
        return f"{verb} {self.choose(COUNTS[action.count])}"

    def clause(self, action: Action) -> str:
        subject = self.name(action.actor)
        return f"{subject} {self.deed(action, 0)}"

    def script(self) -> list[str]:
        """The script as sentences: chained by commas, split in two, or with the first step as "after ..."."""
        script = self.scene.script
        sentences, current = [], ""
        start = 0
        if len(script) > 1 and self.rng.random() < 0.25:
            current = f"after {self.clause(script[0])}, {self.clause(script[1])}"
            start = 2
        for i in range(start, len(script)):
            if not i:
                current = self.clause(script[0])
                continue
            link = self.choose(LASTS if i == len(script) - 1 and i > 1 else THENS)
            if self.rng.random() < 0.3:
                sentences.append(current + ".")
                current = f"{link.removeprefix('and ')}{'' if link.endswith('then') else ','} {self.clause(script[i])}"
            else:
                current = f"{current}, {link} {self.clause(script[i])}"
        return sentences + [current + "."]


def _article(actor: Actor) -> str:
    return "an" if actor.colour[0] in "aeiou" else "a"


def write_prompt(scene: Scene, seed: int) -> str:
    """Describe `scene` in English, e.g. "A red ball on the left bounces twice, then a purple face on the right says three
    nine." Each `seed` chooses its own words and order of clauses; every actor's colour and spot, every count and every
    word is mentioned."""
    rng = render_generator(scene, seed, purpose=2)
    writer = _Writer(scene, rng)
    everyone = list(range(len(scene.actors)))
    busy = {a.actor for a in scene.script} | {a.target for a in scene.script if a.target is not None}
    idle = [i for i in everyone if i not in busy]
    first, last = everyone if rng.random() < 0.35 else [], []
    if not first and idle:
        first, last = (idle, []) if rng.random() < 0.5 else ([], idle)
    sentences = [writer.presence(first, False)] if first else []
    sentences += writer.script()
    sentences += [writer.presence(last, True)] if last else []
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def write_cues(scene: Scene, seed: int) -> str:
    """The cue sheet of the render of `scene`: for each instant who acts, and the word that is said, e.g.
    "<|0.50|> red ball <|1.56|> purple face three"."""
    names = [actor.name for actor in scene.actors]
    return format_cues(
        (event.time, names[event.actor] + (f" {event.word}" if event.word else "")) for event in timeline(scene, seed)
    )


def describe_frame(scene: Scene, seed: int, frame_index: int) -> str:
    """Caption one frame of the render of `scene`: who is where, and what is to be seen of it at this instant.

    E.g. "a red ball on the left in the air, a purple face on the right with its mouth open".
    """
    rows = poses(scene, seed)
    if not 0 <= frame_index < len(rows):
        raise ValueError(f"`frame_index` is {frame_index}, but the clip has frames 0 to {len(rows) - 1}.")
    row, before = rows[frame_index], rows[max(frame_index - 1, 0)]
    after = rows[min(frame_index + 1, len(rows) - 1)]
    hit = {e.target for e in timeline(scene, seed) if e.kind == "contact" and 0 <= frame_index - e.frame < 3}
    phrases = []
    for i, actor in enumerate(scene.actors):
        sliding = actor.kind == "box" and i not in hit and (row[i].x != before[i].x or row[i].x != after[i].x)
        state = " being hit" if i in hit else " sliding" if sliding else _state(actor, row[i])
        phrases.append(f"{_article(actor)} {actor.name} {_place(row[i].x)}{state}")
    return ", ".join(phrases)


def _place(x: float) -> str:
    return PLACES[min(SPOTS, key=lambda spot: abs(SPOTS[spot] - x))][0]


def _state(actor: Actor, pose: Pose) -> str:
    if pose.y > 0:
        return " in the air"
    if pose.look == "landed":
        return " landing"
    if pose.look == "flash":
        return " flashing white"
    if actor.kind == "face":
        return " with its mouth open" if pose.look == "open" else " with its mouth closed"
    return ""
