"""Scenes of Stage: the cast, what it does in which order, and when.

A [`Scene`] says what a prompt says: a cast and a script, without times. [`timeline`] draws the exact instants of a scene
for one render seed; the picture and the sound are both made from it, so they agree to the frame.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np


FRAME_RATE = 16
NUM_FRAMES = 49
SAMPLING_RATE = 16000
NUM_SAMPLES = NUM_FRAMES * SAMPLING_RATE // FRAME_RATE
FRAME_SIZE = 64
FLOOR = 56

SPOTS = {"left": 11, "middle": 32, "right": 53}  # x of the centre, in pixels
KINDS = ("ball", "box", "bell", "face")
COLOURS = ("red", "green", "blue", "yellow")  # of ball, box and bell, from the lowest pitch to the highest
VOICES = {"orange": "low", "purple": "high"}  # colours of a face, and the voice each one has
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TIERS = ("simple", "medium", "complex")
SPLITS = ("train", "validation", "test", "test-combinations")
VERBS = {"ball": "bounce", "bell": "ring", "box": "hit", "face": "say"}
EVENTS = {"bounce": "landing", "ring": "flash", "hit": "contact", "say": "word"}

HALF_WIDTH = {"ball": 8.5, "box": 7.0, "bell": 8.5, "face": 8.5}  # pixels
MIN_SLIDE = 4.0  # pixels that a box slides at least
JOLT = 3.0  # pixels that an actor is thrown back when it is hit
MAX_COUNT = 3
MAX_ACTIONS = 4

# Combinations that only the scenes of "test-combinations" show: who does what beside whom (for a hit: to whom), and kinds that
# act one after another. The other splits still have each actor, each of its actions, and each kind in each place of a script.
HELD_OUT_PAIRS = {
    ("yellow ball", "bounce", "green bell"),
    ("blue ball", "bounce", "purple face"),
    ("green bell", "ring", "blue ball"),
    ("yellow bell", "ring", "red box"),
    ("red box", "hit", "blue ball"),
    ("green box", "hit", "orange face"),
    ("purple face", "say", "red ball"),
}
HELD_OUT_ORDERS = {("bell", "box", "face"), ("ball", "face", "box"), ("box", "ball", "bell")}

# Times in frames. Consecutive instants lie at least GAP apart, so that sounds do not overlap.
GAP = 6
JUMP = 6  # from take-off to landing
INTERVAL = {"bounce": JUMP, "ring": 6, "say": 7, "hit": GAP}  # between the instants of one action
HOLD = {"bounce": 1, "ring": 3, "say": 5, "hit": 3}  # what the picture shows from the instant on
FIRST_FRAME = 2  # of the earliest movement
LAST_FRAME = NUM_FRAMES - GAP  # of the latest instant
IDLE_SHARE = 0.04  # share of the simple scenes in which nothing happens
MIN_SLACK = 4  # frames by which every script can be shifted


@dataclass(frozen=True)
class Actor:
    """A member of the cast: its `kind` (ball, box, bell, face), `colour` and `spot` (left, middle, right)."""

    kind: str
    colour: str
    spot: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` is {self.kind!r}, but has to be one of {KINDS}.")
        colours = tuple(VOICES) if self.kind == "face" else COLOURS
        if self.colour not in colours:
            raise ValueError(f"`colour` of a {self.kind} is {self.colour!r}, but has to be one of {colours}.")
        if self.spot not in SPOTS:
            raise ValueError(f"`spot` is {self.spot!r}, but has to be one of {tuple(SPOTS)}.")

    @property
    def x(self) -> float:
        """Centre of the actor's spot, in pixels."""
        return float(SPOTS[self.spot])

    @property
    def name(self) -> str:
        """Colour and kind, e.g. "red ball"; unique within a scene."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Action:
    """A step of the script.

    Args:
        verb: bounce, ring, hit or say.
        actor: Index into the cast of who acts.
        count: How often: landings, flashes or words (1 to 3); 1 for a hit.
        words: The digits that a face says, in order; `count` of them.
        target: Index into the cast of who is hit.
    """

    verb: str
    actor: int
    count: int = 1
    words: tuple[str, ...] = ()
    target: int | None = None

    def __post_init__(self) -> None:
        if self.verb not in EVENTS:
            raise ValueError(f"`verb` is {self.verb!r}, but has to be one of {tuple(EVENTS)}.")
        if not 1 <= self.count <= (1 if self.verb == "hit" else MAX_COUNT):
            raise ValueError(f"`count` of {self.verb} is {self.count}, but has to be 1 to {MAX_COUNT} (1 for a hit).")
        if len(self.words) != (self.count if self.verb == "say" else 0) or not set(self.words) <= set(DIGITS):
            raise ValueError(f"`words` is {self.words}: give `count` digits of {DIGITS} to say, and none otherwise.")
        if (self.target is not None) != (self.verb == "hit"):
            raise ValueError(f"`target` of {self.verb} is {self.target}: a hit has a target, nothing else has one.")


class Slide(NamedTuple):
    """The path of a box in the action of this index: x at its `start` and `end`, the `distance` towards its target, and the
    `room` behind the target, all in pixels."""

    action: int
    start: float
    end: float
    distance: float
    room: float


@dataclass(frozen=True)
class Scene:
    """A cast of one to three actors, ordered from left to right, and a script of up to four actions. Without a script nothing
    happens.

    Raises a `ValueError` if two actors share a spot or a name, an action does not suit its actor, the same actor acts twice in
    succession, the path of a box to its target is blocked, the target has no room to jolt, or the script does not fit the clip.
    """

    actors: tuple[Actor, ...]
    script: tuple[Action, ...]

    def __post_init__(self) -> None:
        spots = [tuple(SPOTS).index(actor.spot) for actor in self.actors]
        if not self.actors or spots != sorted(set(spots)):
            raise ValueError(f"`actors` have to be at different spots, from left to right, but are {self.actors}.")
        if len({actor.name for actor in self.actors}) < len(self.actors):
            raise ValueError(f"`actors` have to differ in kind or colour, but are {self.actors}.")
        if len(self.script) > MAX_ACTIONS:
            raise ValueError(f"`script` has {len(self.script)} actions, but may have {MAX_ACTIONS} at most.")
        previous = None
        for action in self.script:
            if not 0 <= action.actor < len(self.actors):
                raise ValueError(f"`actor` is {action.actor}, but the cast has {len(self.actors)} actors.")
            kind = self.actors[action.actor].kind
            if VERBS[kind] != action.verb:
                raise ValueError(f"A {kind} cannot {action.verb}; it can {VERBS[kind]}.")
            if action.actor == previous:
                raise ValueError(f"Actor {previous} acts twice in succession: make it one action.")
            previous = action.actor
        for slide in self.slides:
            action = self.script[slide.action]
            if abs(action.target - action.actor) != 1 or slide.distance < MIN_SLIDE or slide.room < JOLT:
                raise ValueError(f"Actor {action.actor} cannot hit {action.target} in action {slide.action}: no room.")
        if self.slack < MIN_SLACK:
            raise ValueError(
                f"The script is {MIN_SLACK - self.slack} frames too long: use fewer actions or lower counts."
            )

    @cached_property
    def slides(self) -> tuple[Slide, ...]:
        """How the box moves in each hit, in the order of the script. A box stays where it has hit."""
        x = [actor.x for actor in self.actors]
        slides = []
        for index, action in enumerate(self.script):
            if action.verb != "hit":
                continue
            if not 0 <= action.target < len(x) or action.target == action.actor:
                raise ValueError(f"`target` is {action.target}, but has to be another of the {len(x)} actors.")
            side = 1 if action.target > action.actor else -1
            end = x[action.target] - side * self._reach(action.actor, action.target)
            behind = action.target + side
            room = FRAME_SIZE
            if 0 <= behind < len(x):
                room = side * (x[behind] - x[action.target]) - self._reach(action.target, behind)
            slides.append(Slide(index, x[action.actor], end, side * (end - x[action.actor]), room))
            x[action.actor] = end
        return tuple(slides)

    def _reach(self, one: int, other: int) -> float:
        """The distance between the centres of two actors that touch."""
        return HALF_WIDTH[self.actors[one].kind] + HALF_WIDTH[self.actors[other].kind]

    @cached_property
    def earliest(self) -> tuple[int, ...]:
        """The earliest frame of each action's first instant."""
        distances = {slide.action: slide.distance for slide in self.slides}
        frames = []
        last = None
        for index, action in enumerate(self.script):
            lead = {"bounce": JUMP, "hit": slide_frames(distances.get(index, 0.0))}.get(action.verb, 0)
            if last is None:
                first = FIRST_FRAME + lead
            else:
                first = last + max(GAP, HOLD[self.script[index - 1].verb] + 1 + lead)
            frames.append(first)
            last = first + (action.count - 1) * INTERVAL[action.verb]
        return tuple(frames)

    @cached_property
    def slack(self) -> int:
        """The number of frames by which the script can be delayed."""
        if not self.script:
            return NUM_FRAMES
        last = self.script[-1]
        return LAST_FRAME - self.earliest[-1] - (last.count - 1) * INTERVAL[last.verb]

    @property
    def begins_with(self) -> str | None:
        """The name of who acts first."""
        return self.actors[self.script[0].actor].name if self.script else None

    @property
    def ends_with(self) -> str | None:
        """The name of who acts last."""
        return self.actors[self.script[-1].actor].name if self.script else None

    @property
    def tier(self) -> str:
        """simple (one action, or none), medium (two) or complex (three or four)."""
        return TIERS[min(max(len(self.script), 1), 3) - 1]

    @cached_property
    def digest(self) -> int:
        """A 64-bit hash of the canonical form: cast and script, no seed."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big")

    @property
    def has_held_out_combination(self) -> bool:
        """Whether the scene shows one of `HELD_OUT_PAIRS` or `HELD_OUT_ORDERS`."""
        for action in self.script:
            others = range(len(self.actors)) if action.target is None else (action.target,)
            name = self.actors[action.actor].name
            if any((name, action.verb, self.actors[other].name) in HELD_OUT_PAIRS for other in others):
                return True
        kinds = [self.actors[action.actor].kind for action in self.script]
        return any(order in HELD_OUT_ORDERS for order in zip(kinds, kinds[1:], kinds[2:], strict=False))

    @property
    def split(self) -> str:
        """Scenes with a held-out combination are "test-combinations". Of the others one in ten is "test", one in ten
        "validation", the rest "train". The split depends on cast and script alone."""
        if self.has_held_out_combination:
            return "test-combinations"
        return {0: "test", 1: "validation"}.get(self.digest % 10, "train")

    def to_dict(self) -> dict[str, Any]:
        """The canonical form, ready for JSON."""
        return {
            "actors": [asdict(a) for a in self.actors],
            "script": [asdict(a) | {"words": list(a.words)} for a in self.script],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        """The scene that [`Scene.to_dict`] wrote."""
        script = (Action(**(action | {"words": tuple(action["words"])})) for action in data["script"])
        return cls(tuple(Actor(**actor) for actor in data["actors"]), tuple(script))


@dataclass(frozen=True)
class Event:
    """An instant at which picture and sound coincide.

    Args:
        kind: landing, flash, contact or word.
        actor: Index into the cast of who acts.
        action: Index into the script.
        frame: Frame of the instant.
        word: The digit that is said, for a word.
        target: Index into the cast of who is hit, for a contact.
    """

    kind: str
    actor: int
    action: int
    frame: int
    word: str | None = None
    target: int | None = None

    @property
    def time(self) -> float:
        """The instant in seconds, on the frame grid."""
        return self.frame / FRAME_RATE


def slide_frames(distance: float) -> int:
    """The frames that a box takes to slide `distance` pixels."""
    return 4 if distance < 15 else 6


def render_generator(scene: Scene, seed: int, purpose: int) -> np.random.Generator:
    """The random numbers of one render: a stream of its own for each `purpose`."""
    return np.random.default_rng([seed, scene.digest, purpose])


@lru_cache(maxsize=64)
def timeline(scene: Scene, seed: int) -> tuple[Event, ...]:
    """Draw the instants of `scene` for one render `seed`, in order of time; gaps between actions are random."""
    rng = render_generator(scene, seed, purpose=0)
    delays = np.sort(rng.integers(0, scene.slack + 1, len(scene.script)))
    events = []
    for index, (action, first, delay) in enumerate(zip(scene.script, scene.earliest, delays, strict=True)):
        for i in range(action.count):
            word = action.words[i] if action.words else None
            frame = int(first + delay) + i * INTERVAL[action.verb]
            events.append(Event(EVENTS[action.verb], action.actor, index, frame, word, action.target))
    return tuple(events)


def sample_scene(seed: int, tier: str | None = None, split: str | None = None) -> Scene:
    """Draw a scene.

    Args:
        seed: The same seed, tier and split give the same scene.
        tier: "simple", "medium" or "complex"; `None` draws each as often as the others. A third of the complex scenes
            is built around several steps, a third around a hit, and a third around a dialogue of both faces. In some of the
            simple scenes nothing happens.
        split: "train", "validation", "test" or "test-combinations", see [`Scene.split`]; `None` takes any scene.
    """
    if tier not in (None, *TIERS):
        raise ValueError(f"`tier` is {tier!r}, but has to be one of {TIERS} or None.")
    if split not in (None, *SPLITS):
        raise ValueError(f"`split` is {split!r}, but has to be one of {SPLITS} or None.")
    rng = np.random.default_rng([seed, 0x57A6E])
    tier = tier or TIERS[rng.integers(3)]
    idle = tier == "simple" and np.random.default_rng([seed, 0x1D1E]).random() < IDLE_SHARE
    for scene in _draw_scenes(rng, tier):
        if idle and split != "test-combinations":  # a scene without actions shows no combination
            scene = Scene(scene.actors, ())
        if split is None or scene.split == split:
            return scene
    raise AssertionError("the stream of scenes is endless")


def _draw_scenes(rng: np.random.Generator, tier: str) -> Iterator[Scene]:
    """Endless stream of valid scenes of one tier. The core of the scene is chosen before the rest is drawn. Otherwise scripts
    that seldom fit would be rarer than scripts that always fit."""

    def kinds(number: int) -> list[str]:
        return [KINDS[i] for i in rng.integers(len(KINDS), size=number)]

    while True:
        if tier == "simple":
            core, extras, num_actions, idea = kinds(1), rng.choice(3, p=[0.4, 0.4, 0.2]), 1, "steps"
        elif tier == "medium":
            core, extras, num_actions, idea = kinds(2), rng.integers(2), 2, "steps"
        else:
            idea = ("steps", "hit", "dialogue")[rng.integers(3)]
            core = {"steps": kinds(2), "hit": ["box"], "dialogue": ["face", "face"]}[idea]
            extras, num_actions = rng.integers(idea == "hit", 4 - len(core)), rng.integers(3, 5)
        for _ in range(100):
            scene = _try_scene(rng, core, int(extras), int(num_actions))
            if scene is not None and _shows(scene, idea):
                yield scene
                break


def _shows(scene: Scene, idea: str) -> bool:
    said = {action.actor for action in scene.script if action.verb == "say"}
    hit = any(action.verb == "hit" for action in scene.script)
    return {"steps": True, "hit": hit, "dialogue": len(said) == 2}[idea]


def _try_scene(rng: np.random.Generator, core: list[str], extras: int, num_actions: int) -> Scene | None:
    """A random scene whose first actions are those of the core actors, or None if the draw is not a valid scene."""
    kinds = core + [KINDS[i] for i in rng.integers(len(KINDS), size=extras)]
    spots = [tuple(SPOTS)[i] for i in rng.permutation(3)[: len(kinds)]]
    palette = {kind: tuple(VOICES) if kind == "face" else COLOURS for kind in KINDS}
    cast = [Actor(k, palette[k][rng.integers(len(palette[k]))], s) for k, s in zip(kinds, spots, strict=True)]
    order = sorted(range(len(cast)), key=lambda i: SPOTS[cast[i].spot])
    leads = [order.index(i) for i in rng.permutation(len(core))][:num_actions]
    acting = leads + [int(i) for i in rng.integers(len(cast), size=num_actions - len(leads))]
    if len(acting) > 2:
        acting = [acting[i] for i in rng.permutation(len(acting))]
    script = []
    for index in acting:
        verb = VERBS[cast[order[index]].kind]
        count = 1 if verb == "hit" else int(rng.integers(1, MAX_COUNT + 1))
        words = tuple(DIGITS[i] for i in rng.integers(10, size=count)) if verb == "say" else ()
        neighbours = [i for i in (index - 1, index + 1) if 0 <= i < len(cast)]
        if verb == "hit" and not neighbours:
            return None
        target = neighbours[rng.integers(len(neighbours))] if verb == "hit" else None
        script.append(Action(verb, index, count, words, target))
    try:
        return Scene(tuple(cast[i] for i in order), tuple(script))
    except ValueError:
        return None
