"""Prompts of Stage: many English wordings of a scene, cue sheets, and captions of single frames."""

import json
import random
import re
from bisect import bisect
from collections.abc import Mapping
from collections.abc import Sequence as Choices
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeVar

from ..cues import CastMember, Cue, Sheet, format_sheet
from .render import Pose, poses
from .scene import DIGITS, SPOTS, Action, Actor, Scene, timeline
from .strange_words import NUM_STRANGE_WORDINGS, strange_wordings
from .wordings import PLAIN, TRAIN, WORDINGS, Sequence, Verb, Wordings, verb


MAX_PROMPT_CHARACTERS = 320
TRAINING_WORDINGS = ("train", "strange", "notes", "strange")
NOTE_SHARE = 0.1  # of the prompts with notes that are a list, a screenplay or a record
PLACES = PLAIN.places
EVENT_VERBS = {"landing": "bounces", "flash": "rings", "contact": "hits", "word": "says"}  # of a cue sheet
T = TypeVar("T")

_TENSES = ("finite",) * 9 + ("past", "will", "is")
_BE = {
    "finite": "is ",
    "past": "was ",
    "will": "will be ",
    "is": "is being ",
    "ing": "being ",
    "base": "be ",
    "to": "to be ",
    "has": "has been ",
    "that": "that is ",
}
_BARE_PLACES = {"left": ("left",), "middle": ("middle", "center", "centre"), "right": ("right",)}
_SIDES = {
    "left": ("left", "left", "left-hand", "leftmost"),
    "middle": ("middle", "middle", "central", "center"),
    "right": ("right", "right", "right-hand", "rightmost"),
}
_BOTH = ("both silent", "both still", "both quiet", "both idle", "neither moves", "both only there", "both do nothing")
_STANDING = ("is", "is", "stands", "sits", "is standing", "waits")
_FROM_LEFT = ("from left to right: ", "from left to right there are ", "left to right: ", "from left to right we see ")
_RELATIONS = ("to the left of", "left of", "on the left of", "next to", "beside", "and, to the right of it,")
_HE = (
    "man",
    "guy",
    "gentleman",
    "old man",
    "fellow",
    "mister",
    "dad",
    "low-voiced man",
    "deep-voiced man",
    "grown man",
    "tall man",
)
_SHE = ("woman", "lady", "girl", "young woman", "high-voiced woman", "mom", "mum", "old woman", "tall woman")
_ADVERBS = {
    "bounce": ("happily", "high", "slowly", "quickly", "a little", "in place", "on the spot"),
    "ring": ("loudly", "brightly", "softly", "clearly", "loud", "with a flash"),
}
_TWICE = (
    "{0} and {1} again",
    "{0}, then {1} again",
    "{0} and then {1} once more",
    "{0} once and {1} again",
    "{0} and {1}",
)
_THRICE = (
    "{0}, {1} and {1} again",
    "{0}, {1}, {1}",
    "{0} and {1} and {1}",
    "{0} once, twice, three times",
    "{0}, {1}, and {1} a third time",
)
_LAST_WORD = (" and ", ", and ", " then ", ", then ", " and then ")
_ANSWERS = tuple(verb(base) for base in ("answer", "reply", "respond", "answer with", "say back"))
_MOVES = {
    side: tuple(
        verb(f"{go} {way} + {hit}")
        for go in ("slide", "move", "go", "glide")
        for way in (f"to the {side}", side, f"over to the {side}")
        for hit in ("hit", "hit", "bump", "bump into", "push")
    )
    for side in ("left", "right")
}
_PUSHES = ("a push", "a shove", "a nudge", "a bump", "a knock", "a bang")
_GIVE, _GO, _COUNT = verb("give"), verb("go"), verb("count")
_SOUNDS = {"bounce": ("boing", "thud", "bounce", "hop"), "ring": ("ding", "ring", "dong", "ding")}
_NOISES = {
    "bounce": ("with a thud", "with a low thud", "with a dull sound"),
    "ring": ("with a clear sound", "with a ding", "with a bright tone"),
    "hit": ("with a clack", "with a bang", "hard", "which jolts", "from the side"),
}
_SAME = {
    "say": tuple(verb(base) for base in ("say the same", "repeat that", "repeat it", "say it too")),
    "bounce": tuple(verb(base) for base in ("do the same", "do so too", "follow", "do likewise")),
    "ring": tuple(verb(base) for base in ("do the same", "do so too", "answer the same way")),
}
_HEADINGS = (
    "test {}: ",
    "test case {}. ",
    "shot {}: ",
    "scene {}. ",
    "take {}: ",
    "no. {}: ",
    "#{} ",
    "idea {} - ",
    "clip {}. ",
    "edge case: ",
)
_BEATS = ("beat.", "(beat)", "pause.", "(pause)", "hold.", "silence.", "a moment passes.", "wait.", "cut.")
_QUIET = ("stay quiet", "stay silent", "do nothing", "do not move", "stay still", "make no sound")
_EMPTY = ("empty", "nothing", "nobody", "(empty)", "-", "~", "none")
_CORRECTIONS = (
    ", no wait, ",
    ", no, ",
    ", sorry, ",
    ", I mean ",
    " - no, ",
    ", make that ",
    ", or rather ",
    " ... no, actually ",
)
_ORDINALS = ("first", "second", "third", "fourth")
_AUXILIARIES = ("will ", "to ", "has ", "is ", "that ")
_CAPITALS = re.compile(r"(?:^|[.!?] |\n)[^a-z\n]{0,2}[a-z]")
_LONG_WORDS = re.compile(r"[A-Za-z]{5,}")
_WORDS = re.compile(r"[A-Za-z]{3,}")
_MISTAKEN = dict(zip("aeioucszvgm", "eaeuaksswjn", strict=True))  # letters that sound alike or lie side by side


@dataclass(frozen=True)
class Prompt:
    """
    A prompt of a scene, and what it leaves open.

    Args:
        text: The prompt.
        places: For each actor of the scene whether the text names its place.
        colours: For each actor whether the text names its colour, or the voice of a face.
    """

    text: str
    places: tuple[bool, ...]
    colours: tuple[bool, ...]


def describe(scene: Scene, seed: int, wordings: str = "train") -> Prompt:
    """
    Say in English what happens in `scene`, e.g. "A red ball on the left bounces twice, then a purple face says three nine."

    Each `seed` chooses its own words, order of clauses and sloppiness. A text says only what is true, and can be understood
    without the scene. It names every actor's kind, and every action with its count, target, words and place in the order. It
    often leaves places open, and seldom a colour: only if no other actor is of the same kind.

    Args:
        scene: The scene.
        seed: Chooses the words.
        wordings: "train"; "held-out" for words and turns that "train" never uses; "notes", which adds notes and slips as people
            write them; or "strange", which adds them too and has many made-up words (`strange_words.py`).

    Raises:
        ValueError: if there are no such `wordings`.
    """
    if wordings not in (*WORDINGS, "notes", "strange"):
        raise ValueError(f"`wordings` is {wordings!r}, but has to be one of {(*WORDINGS, 'notes', 'strange')}.")
    rng = random.Random(scene.digest * 31 + seed)
    while True:
        if wordings == "strange":
            chosen = strange_wordings(rng.randrange(NUM_STRANGE_WORDINGS))
        elif wordings == "notes":
            chosen = _NOTES
        else:
            chosen = PLAIN if wordings == "train" and rng.random() < 0.25 else WORDINGS[wordings][-1]
        writer = _NoteWriter if chosen.notes and rng.random() < NOTE_SHARE else _Writer
        prompt = writer(scene, chosen, rng).write()
        if len(prompt.text) <= MAX_PROMPT_CHARACTERS:
            return prompt


def write_prompt(scene: Scene, seed: int, wordings: str = "train") -> str:
    """The text of [`describe`]."""
    return describe(scene, seed, wordings).text


def describe_on(scene: Scene, seed: int, callbacks: Mapping[int, str]) -> Prompt:
    """
    Say what happens in a shot that continues with a known cast: no actor is introduced, and idle actors are not mentioned.

    Args:
        scene: The shot's scene.
        seed: Chooses the words.
        callbacks: Names of actors by what they did before, e.g. `{0: "ball that bounced first"}`.
    """
    rng = random.Random(scene.digest * 31 + seed)
    while True:
        prompt = _Follower(scene, callbacks, rng).write()
        if len(prompt.text) <= MAX_PROMPT_CHARACTERS:
            return prompt


def training_prompt(scene: Scene, seed: int) -> str:
    """A training prompt in one of `TRAINING_WORDINGS`: half of them have made-up words."""
    return write_prompt(scene, seed, TRAINING_WORDINGS[seed % len(TRAINING_WORDINGS)])


class _Writer:
    """The choices of one prompt, made in the order of the text.

    An actor has its full name at first mention, and later a shorter one if that is unambiguous.
    """

    def __init__(self, scene: Scene, wordings: Wordings, rng: random.Random) -> None:
        self.scene, self.wordings, self.rng, self.chance = scene, wordings, rng, rng.random
        actors = scene.actors
        number = len(actors)
        plain = wordings.plain
        self.free = wordings is TRAIN or wordings.notes
        self.last: int | None = None  # who was named last
        self.listed: list[int] = []  # all actors, in the order of a list at the beginning of the text
        self.introduced: list[int] = []
        self.placed = [False] * number
        self.coloured = [False] * number
        draw = self.chance()
        if plain or draw < 0.5:
            self.tells_place = [True] * number
        else:
            self.tells_place = [draw < 0.65 and self.chance() < 0.5 for _ in actors]
        kinds = [actor.kind for actor in actors]
        self.alone = [kinds.count(kind) == 1 for kind in kinds]
        self.article = "a" if plain else self.choose(("a", "a", "a", "a", "the", "the", "the", ""))
        self.late = not plain and self.chance() < 0.05  # whether places are named at the end
        self.in_order = True  # whether the text has the steps in their order
        self.tense = "finite" if plain else self.choose(_TENSES)
        self.digits = not plain and self.chance() < 0.25
        self.spoken = {action.actor for action in scene.script if action.verb == "say"}
        self.targets = {action.target for action in scene.script} - {None}
        self.busy = {action.actor for action in scene.script} | self.targets
        self.colours = [self._choose_colour(actor) for actor in actors]
        self.nouns = self._choose_nouns()

    def choose(self, options: Choices[T]) -> T:
        return options[int(self.chance() * len(options))]

    def _choose_colour(self, actor: Actor) -> str:
        others = self.wordings.colours.get(actor.colour)
        return self.choose(others) if others and self.chance() < 0.3 else actor.colour

    def _choose_nouns(self) -> list[str]:
        """One noun for each kind, so that two balls are two balls; a face may be a man, a woman or no more than a voice."""
        wordings, actors = self.wordings, self.scene.actors
        names = {
            kind: self.choose(others) if others and self.chance() < 0.35 else kind
            for kind in dict.fromkeys(actor.kind for actor in actors)
            for others in (wordings.kinds.get(kind),)
        }
        nouns = [names[actor.kind] for actor in actors]
        self.reveals = [False] * len(actors)  # whether the noun implies the voice, and with it the colour
        self.heard = [False] * len(actors)  # whether the actor is called a voice
        by_voice = bool(wordings.people) and self.chance() < 0.25
        for i, actor in enumerate(actors):
            if actor.kind == "face" and by_voice:
                self.reveals[i] = self.alone[i] = True
                self.heard[i] = (
                    i in self.spoken and i not in self.targets and not self.tells_place[i] and self.chance() < 0.4
                )
                nouns[i] = self.choose((wordings.voices if self.heard[i] else wordings.people)[actor.colour])
        # A colour may stay open if no other actor is of that kind.
        omit = not wordings.plain and self.chance() < 0.12
        self.late_colours = omit and self.chance() < 0.25  # told in a sentence of its own
        self.tells_colour = [
            self.chance() < 0.3 if self.reveals[i] else not (omit and self.alone[i]) for i in range(len(actors))
        ]
        return nouns

    # Names

    def name(self, index: int, subject: bool = False, place: bool = True) -> str:
        """The name of an actor at this point of the text."""
        last, self.last = self.last, index
        if index in self.introduced:
            by_order = self._name_by_order(index, last) if self.wordings.notes else None
            return by_order or self._name_again(index, subject)
        self.introduced.append(index)
        actor, noun, article = self.scene.actors[index], self.nouns[index], self.article
        tells_colour = self.tells_colour[index]
        self.coloured[index] = tells_colour or self.reveals[index]
        core = f"{self.colours[index]} {noun}" if tells_colour else noun
        sizes = self.wordings.sizes
        if sizes:
            draw = self.chance()
            if draw < 0.05 and not self.reveals[index]:
                core = f"{self.choose(sizes)} {core}"
            elif draw < 0.09 and tells_colour and not self.heard[index]:
                core = f"{noun}{self.choose((' that is {}', ' ({})', ' which is {}', ' in {}', ' coloured {}', ' of {} colour')).format(actor.colour)}"
        if self.wordings.notes and tells_colour and self.chance() < 0.015:  # "a red, no, a blue ball"
            other = self.choose([colour for colour in self.wordings.colours if colour != actor.colour])
            wrong, article = self._with_article(f"{other} {noun}", article), self.choose((article, article, ""))
            return f"{wrong}{self.choose(_CORRECTIONS)}{self._with_article(core, article)}"
        if self.late or not (place and self.tells_place[index]):
            return self._with_article(core, article)
        self.placed[index] = True
        where = self.place(index)
        if self.wordings.notes and index == 1 and len(self.introduced) == 3 and self.chance() < 0.5:
            where = self.choose(("between them", "between the two", "in between"))
        if self.wordings.plain:
            return f"{self._with_article(core, article)} {where}"
        draw = self.chance()
        if draw < 0.07:
            return f"{self._with_article(core, article)} that {self.choose(_STANDING)} {where}"
        if draw < 0.12:
            return f"{self._with_article(core, article)} {self.choose(('standing', 'sitting', 'placed', 'waiting'))} {where}"
        if draw < 0.17:
            return f"{self._with_article(core, article)} ({self.choose((where, *_BARE_PLACES[actor.spot]))})"
        if not article and draw > 0.6:
            return f"{core} {self.choose(_BARE_PLACES[actor.spot])}"
        if draw < 0.25:
            return self._with_article(f"{self.choose(_SIDES[actor.spot])} {core}", article and "the")
        return f"{self._with_article(core, article)} {where}"

    def _name_by_order(self, index: int, last: int | None) -> str | None:
        """A name of an actor relative to the others: "the other one", "the first", or a pronoun that can only mean it."""
        number, draw = len(self.scene.actors), self.chance()
        if number == 2 and len(self.introduced) == 2 and last not in (None, index) and draw < 0.12:
            same = self.nouns[0] == self.nouns[1]
            return self.choose(
                ("the other one", "the other one", f"the other {self.nouns[index]}" if same else "the other")
            )
        if len(self.listed) == number > 1 and draw < 0.25:
            place = self.listed.index(index)
            nth = self.choose((_ORDINALS[place], "last")) if place == number - 1 else _ORDINALS[place]
            return f"the {nth}{self.choose((' one', ' one', f' {self.nouns[index]}' if len(set(self.nouns)) == 1 else ''))}"
        pronoun = self.pronoun(index)
        if draw > 0.75 and all(self.pronoun(other) != pronoun for other in self.introduced if other != index):
            return pronoun
        return None

    def _with_article(self, core: str, article: str) -> str:
        if not article:
            return core
        if article == "a":
            return f"{'an' if core[0] in 'aeiou' else 'a'} {core}"
        return f"the {core}"

    def _speaker(self, index: int) -> str:
        """The name of an actor in a note. A face may be its colour alone, since nothing else is orange or purple."""
        if self.scene.actors[index].kind == "face" and self.tells_colour[index] and self.chance() < 0.25:
            if index not in self.introduced:
                self.introduced.append(index)
            self.coloured[index] = True
            return self.colours[index]
        return self.name(index)

    def _name_again(self, index: int, subject: bool) -> str:
        actor, noun, colour = self.scene.actors[index], self.nouns[index], self.colours[index]
        if self.wordings.plain:
            return f"the {actor.name}"
        article = "the " if self.article or self.chance() < 0.5 else ""
        if self.wordings.notes and self.placed[index] and self.chance() < 0.3:  # "the left one"
            return f"{article}{self.choose(_SIDES[actor.spot])} {self.choose(('one', noun))}"
        draw = self.chance()
        if subject and self.introduced == [index] and draw < 0.6:
            return self.pronoun(index)
        if self.alone[index] and (draw < 0.5 or not self.tells_colour[index]):
            return article + noun
        if self.placed[index] and draw < 0.58:
            return f"the {self.choose((noun, noun, 'one'))} {self.choose(PLACES[actor.spot])}"
        if draw < 0.66 and sum(other.colour == actor.colour for other in self.scene.actors) == 1:
            return f"the {colour} one"
        return f"{article}{colour} {noun}"

    def pronoun(self, index: int, object_form: bool = False) -> str:
        noun = self.nouns[index]
        if noun in _HE:
            return "him" if object_form else "he"
        if noun in _SHE:
            return "her" if object_form else "she"
        return "it"

    def place(self, index: int) -> str:
        return self.choose((PLACES if self.chance() < 0.4 else self.wordings.places)[self.scene.actors[index].spot])

    def join(self, phrases: list[str]) -> str:
        if len(phrases) == 1:
            return phrases[0]
        last = (
            " and " if self.wordings.plain else self.choose((" and ", " and ", ", and ", ", ", " and also ", " plus "))
        )
        return f"{', '.join(phrases[:-1])}{last}{phrases[-1]}"

    # Sentences that tell who is there

    def presence(self, indices: list[int], elsewhere: bool) -> str:
        """A sentence that says which actors are there."""
        wordings, chance = self.wordings, self.chance
        placed = all(self.tells_place[i] for i in indices) and not self.late
        be = "is" if len(indices) == 1 else "are"
        if wordings.notes and placed and chance() < 0.2:  # "left: a ball; right: a box"
            parts, middle = [], self.choose((": ", ": ", " - ", " = ", " "))
            for i in indices:
                self.placed[i] = True
                parts.append(
                    f"{self.choose(_BARE_PLACES[self.scene.actors[i].spot])}{middle}{self.name(i, place=False)}"
                )
            return self.choose((", ", "; ", ". ", " | ")).join(parts if chance() < 0.5 else parts[::-1]) + "."
        if wordings.notes and len(indices) == 2 and not self.busy & set(indices) and chance() < 0.4:
            return (
                f"{self.choose((' and ', ' & ', ', ')).join([self.name(i) for i in indices])}, {self.choose(_BOTH)}."
            )
        if wordings.notes and len(indices) == len(self.scene.actors) > 1 and chance() < 0.25:
            if pair := self._pair(indices):
                return pair
            names = [self.name(i) for i in indices]
            self.listed = list(self.introduced)
            return f"{self.choose(wordings.there).format(**{'is': be})}{self.join(names)}."
        if not wordings.plain:
            draw = chance()
            if placed and len(indices) == 3 and draw < 0.2:
                for i in indices:
                    self.placed[i] = True
                names = [self.name(i, place=False) for i in indices]
                self.listed = list(self.introduced)
                return f"{self.choose(_FROM_LEFT)}{self.join(names)}."
            if placed and len(indices) == 3 and draw < 0.25:
                self.placed = [True] * 3
                left, middle, right = self.place(0), "between them", self.place(2)
                names = [self.name(i, place=False) for i in (0, 2, 1)]
                return f"{left} is {names[0]}, {right} is {names[1]}, and {middle} is {names[2]}."
            if len(indices) == len(self.scene.actors) == 2 and not placed and draw < 0.35:
                return f"there is {self.name(0)} {self.choose(_RELATIONS)} {self.name(1)}."
            if placed and draw < 0.35:  # "on the left is a ball, on the right a box"
                parts, middle = [], self.choose((" is ", " there is ", ", ", ": ", " stands ", " we see "))
                for i in indices:
                    self.placed[i] = True
                    parts.append(f"{self.place(i)}{middle}{self.name(i, place=False)}")
                return self.choose((", ", ", and ", "; ", ". ")).join(parts) + "."
            if draw < 0.5 and (elsewhere or not self.scene.script):  # "a ball does nothing"
                return self.join([f"{self.name(i)} {self.choose(self._idle(i))}" for i in indices]) + "."
            if draw < 0.75:
                there = self.choose(wordings.there).format(**{"is": be})
                return f"{there}{self.join([self.name(i) for i in indices])}."
        there = " also" if elsewhere and chance() < 0.5 else ""
        if not placed or chance() < 0.5:
            return f"there {be}{there} {self.join([self.name(i) for i in indices])}."
        names, stands = [], self.choose(wordings.stands)
        for i in indices:
            self.placed[i] = True
            name = self.name(i, place=False)
            names.append(f"{name}{f' {stands}' if not names else ''} {self.place(i)}")
        return self.join(names) + "."

    def _pair(self, indices: list[int]) -> str | None:
        """Two actors of a kind in one phrase, "two bells, one red and one blue", or None of others."""
        if len(indices) != 2 or len(set(self.nouns)) > 1 or not all(self.tells_colour):
            return None
        self.introduced += indices
        self.listed = list(indices)
        self.coloured = [True, True]
        noun = self.nouns[0]
        parts = [f"{self.choose(('one', 'a', 'one'))} {colour}" for colour in self.colours]
        if all(self.tells_place) and not self.late:
            self.placed = [True, True]
            parts = [f"{part}{self.choose((' one ', ' '))}{self.place(i)}" for i, part in enumerate(parts)]
        start = self.choose(("two", "there are two", "2", "we see two", "two little"))
        return f"{start} {_plural(noun)}{self.choose((', ', ': ', ' - '))}{' and '.join(parts)}."

    def _aside(self, indices: list[int]) -> str:
        """The other actors, as the end of a sentence."""
        if self.chance() < 0.5:
            names = [self.name(i) for i in indices]
            return f"{self.choose((', with ', ' and there is also ', ', and there is '))}{self.join(names)}{self.choose(('', '', ' watching', ' nearby', ' in the scene'))}."
        return f", while {self.join([f'{self.name(i)} {self.choose(self._idle(i))}' for i in indices])}."

    def _late(self) -> str:
        """A sentence that adds what the text has not said yet: places, or colours."""
        parts = []
        for index in self.introduced:
            if self.late and self.tells_place[index]:
                parts.append(f"{self._name_again(index, True)} {self.choose(_STANDING)} {self.place(index)}")
                self.placed[index] = True
            elif self.late_colours and not self.coloured[index]:
                parts.append(f"{self._name_again(index, True)} is {self.colours[index]}")
                self.coloured[index] = True
        return f"{self.join(parts)}." if parts else ""

    def _idle(self, index: int) -> tuple[str, ...]:
        idle = self.wordings.idle
        return idle[""] + idle[self.scene.actors[index].kind]

    # Clauses

    def clause(self, step: int, mood: str) -> str:
        """What happens in a step of the script, e.g. "the red ball bounces twice"."""
        action = self.scene.script[step]
        if mood == "finite":
            mood = self.tense
        if self.wordings.plain:
            return f"{self.name(action.actor)} {self.deed(step, mood)}"
        draw = self.chance()
        if (
            self.wordings.notes
            and action.verb in _SOUNDS
            and mood in ("note", "finite")
            and draw > (0.85 if mood == "note" else 0.985)
        ):
            sounds = self.choose((" ", " ", ", ")).join([self.choose(_SOUNDS[action.verb])] * action.count)
            return f"{sounds} ({self.name(action.actor)})"
        if mood == "note":
            if draw < 0.4 and action.verb != "hit":
                return f"{self._speaker(action.actor)}{self.choose((': ', ' - ', ', ', ' '))}{self._note(action)}"
            mood = "finite"
        full = mood in ("finite", "past")
        if self._is_same(step) and draw < 0.35 and self.free:
            return f"{self.name(action.actor)} {self._form(self.choose(_SAME[action.verb]), mood)}"
        if (
            self.wordings.notes and action.verb == "hit" and mood in ("finite", "base") and draw > 0.8
        ):  # "hit it with the box"
            return f"{self._verb('hit').base} {self.name(action.target)} with {self.name(action.actor)}"
        if action.verb == "hit" and draw < 0.2:  # the target is hit by the box
            target = self.name(action.target, subject=mood != "that")
            being = "gets " if mood == "finite" and draw < 0.05 else _BE[mood]
            return f"{target} {being}{self.choose(self.wordings.passives)} by {self.name(action.actor)}"
        if action.verb == "say" and full and draw < 0.1:
            says = self.choose(self.wordings.verbs["say"][: 8 if self.wordings.verbs is TRAIN.verbs else 3])
            said = self.choose(('"{},"', "'{},'", '"{}"', "“{},”", "{},")).format(self.words(action))
            return f"{said} {says.past if mood == 'past' else says.finite} {self.name(action.actor)}"
        if action.verb == "say" and full and draw < 0.13 and self.free:
            said = self.choose(('"{}"', "{}", "'{}'")).format(self.words(action))
            return f"{said} {'was' if mood == 'past' else 'is'} {self.choose(('said', 'spoken'))} by {self.name(action.actor)}"
        if (
            self.wordings.notes and action.verb in ("bounce", "ring") and mood == "finite" and draw > 0.97
        ):  # "twice rings the bell"
            does = self._form(self._verb(action.verb), mood)
            return f"{self.choose(self.wordings.counts[action.count])} {does} {self.name(action.actor)}"
        if action.verb in ("bounce", "ring") and mood == "ing" and draw < 0.12:
            return f"{self._number_of(action)} {self.choose(('of', 'from', 'by'))} {self.name(action.actor)}"
        if full and draw > 0.96:
            sense = "hear" if action.verb in ("say", "ring") else "see"
            subject = self.name(action.actor)
            return f"{self.choose(('we', 'you', 'you can', 'we can'))} {sense} {subject} {self.deed(step, 'base')}"
        return f"{self.name(action.actor, subject=mood != 'that')} {self.deed(step, mood)}"

    def _is_same(self, step: int) -> bool:
        """Whether a step comes right after one that is the same, in the text too."""
        if not step or not self.in_order or self.scene.script[step].verb == "hit":
            return False
        action, before = self.scene.script[step], self.scene.script[step - 1]
        return (action.verb, action.count, action.words) == (before.verb, before.count, before.words)

    def deed(self, step: int, mood: str) -> str:
        """What is done, e.g. "bounces twice"."""
        action, wordings, chance = self.scene.script[step], self.wordings, self.chance
        if action.verb == "hit":
            hits = self._form(self._verb("hit"), mood)
            target = action.target
            if self.free:
                draw = chance()
                if draw < 0.06 and self.tells_place[target] and self.tells_place[action.actor]:
                    hits = self._form(self.choose(_MOVES["right" if target > action.actor else "left"]), mood)
                elif draw < 0.1:
                    return f"{self._form(_GIVE, mood)} {self.name(target)} {self.choose(_PUSHES)}"
            if (
                not wordings.plain
                and target in self.introduced
                and {action.actor, target} >= set(self.introduced)
                and chance() < 0.3
            ):
                return f"{hits} {self.pronoun(target, True)}"
            noise = f" {self.choose(_NOISES['hit'])}" if self.free and chance() < 0.04 else ""
            return f"{hits} {self.name(target)}{noise}"
        if action.verb == "say":
            return self._saying(step, mood)
        if wordings.plain:
            return f"{self._form(self._verb(action.verb), mood)} {self.choose(wordings.counts[action.count])}"
        draw = chance()
        before = any(earlier.actor == action.actor for earlier in self.scene.script[:step])
        if before and action.count == 1 and draw < 0.4:
            return f"{self._form(self._verb(action.verb), mood)} {self.choose(wordings.again)}"
        if draw < 0.14:
            return f"{self._form(self.choose(wordings.light_verbs[action.verb]), mood)} {self._number_of(action)}"
        if action.verb == "ring" and draw < 0.22:
            return f"{_BE[mood]}rung {self.choose(wordings.counts[action.count])}"
        if draw > 0.97 and self.free:
            sounds = [self.choose(_SOUNDS[action.verb])] * action.count
            return f"{self._form(_GO, mood)} {self.choose((' ', ', ', ' ', '-')).join(sounds)}"
        does = self._verb(action.verb)
        if action.count > 1 and draw < 0.27:
            first = self._form(does, mood)
            second = first.removeprefix(next((be for be in _AUXILIARIES if first.startswith(be)), ""))
            if action.count == 2:
                return self.choose(_TWICE).format(first, second)
            return self.choose(_THRICE).format(first, second)
        if action.count == 1 and draw > 0.7:
            return self._form(does, mood)
        if draw > 0.67 and self.free:
            return f"{self._form(does, mood)} {self.choose(wordings.counts[action.count])} {self.choose(_NOISES[action.verb])}"
        if draw > 0.64:
            adverb = self.choose(_ADVERBS[action.verb])
            return f"{self._form(does, mood)} {adverb} {self.choose(wordings.counts[action.count])}"
        return f"{self._form(does, mood)} {self.choose(wordings.counts[action.count])}"

    def _saying(self, step: int, mood: str) -> str:
        action, wordings = self.scene.script[step], self.wordings
        says = self._form(self._verb("say"), mood)
        if wordings.plain:
            return f"{says} {self.choose((' ', ', ')).join(action.words)}"
        index = action.actor
        earlier = self.scene.script[step - 1] if step else None
        if earlier and earlier.verb == "say" and self.chance() < 0.3 and self.free:
            says = self._form(self.choose(_ANSWERS), mood)
        tone = ""
        if (
            not self.reveals[index]
            and not self.tells_colour[index]
            and not self.coloured[index]
            and self.chance() < 0.6
        ):
            self.coloured[index] = True
            tone = f" {self.choose(wordings.tones[self.scene.actors[index].colour])}"
        elif self.chance() < 0.03:
            tone = f" {self.choose(wordings.tones[self.scene.actors[index].colour])}"
        if tone and self.chance() < 0.5:
            says, tone = says + tone, ""
        values = [DIGITS.index(word) for word in action.words]
        step_by = values[1] - values[0] if len(values) > 1 else 0
        if abs(step_by) == 1 and values == [values[0] + step_by * i for i in range(len(values))] and self.free:
            if self.chance() < (0.7 if wordings.notes else 0.4):
                ends = [str(value) if self.digits else DIGITS[value] for value in (values[0], values[-1])]
                way = self.choose(("", " up" if step_by > 0 else " down"))
                return f"{self._form(_COUNT, mood)} from {ends[0]}{way} to {ends[1]}{tone}"
        words, draw = self.words(action), self.chance()
        lead = self.choose(wordings.speech)
        if len(action.words) > 1 and lead.endswith(("number ", "word ", "digit ")):
            lead = f"{lead[:-1]}s "
        if wordings.notes and len(action.words) > 1 and self.chance() < 0.06:
            number = self.choose((str(len(action.words)), DIGITS[len(action.words)]))
            lead = f" {number} {self.choose(('words', 'numbers', 'digits'))}{self.choose((': ', ', ', ' - '))}"
        if wordings.notes and len(action.words) == 1 and self.chance() < 0.02:
            other = self.choose(DIGITS)
            words = f"{other}{self.choose(_CORRECTIONS)}{words}"
        if draw < 0.3:
            if wordings.notes and self.chance() < 0.3:
                words += self.choose("?!.")
            words = self.choose(('"{}"', "'{}'", '"{}"', "“{}”", "‘{}’", "«{}»")).format(words)
            lead = lead if len(lead) > 2 else self.choose((" ", " ", ": ", ", "))
        if self.wordings.notes and self.chance() < 0.5:
            before = [other.words for other in self.scene.script[:step] if other.actor == index]
            if action.words in before and self.in_order:
                tone += f" {self.choose(('again', 'once more', 'again', 'one more time'))}"
        return f"{says}{lead}{words}{tone}"

    def words(self, action: Action) -> str:
        """The spoken digits, in one of the ways in which people write a short list."""
        words = [str(DIGITS.index(word)) if self.digits else word for word in action.words]
        number = len(words)
        if number == 1:
            return words[0]
        draw = self.chance()
        if self.digits and draw < 0.08:
            return "".join(words)
        often = {2: "twice", 3: "three times"}[number]
        if len(set(words)) == 1 and draw < 0.3 and self.free and not often.startswith(words[0]):
            return f"{words[0]} {often}"
        if draw < 0.4:
            return " ".join(words)
        if draw < 0.65:
            return ", ".join(words)
        if draw < 0.85:
            return f"{', '.join(words[:-1])}{self.choose(_LAST_WORD)}{words[-1]}"
        return self.choose(("-", "... ", "! ", " then ", " and ", " ", "; ", " - ")).join(words)

    def _note(self, action: Action) -> str:
        """What an actor does, as short as can be."""
        if action.verb == "say":
            return self.choose(('"{}"', "{}", "'{}'", "says {}")).format(self.words(action))
        does, draw = self._verb(action.verb), self.chance()
        if draw < 0.4:
            return self._number_of(action)
        return f"{does.base if draw < 0.7 else does.finite} {self.choose(self.wordings.counts[action.count])}"

    def _number_of(self, action: Action) -> str:
        noun = self.choose(self.wordings.nouns[action.verb])
        if action.count > 1:
            noun += "es" if noun.endswith("h") else "s"
        return f"{self.choose(self.wordings.numerals[action.count])} {noun}"

    def _verb(self, name: str) -> Verb:
        verbs = self.wordings.verbs[name]
        return verbs[0] if self.wordings.verbs is TRAIN.verbs and self.chance() < 0.35 else self.choose(verbs)

    def _form(self, verb: Verb, mood: str) -> str:
        if mood == "finite":
            return verb.finite
        if mood in ("ing", "base", "past"):
            return getattr(verb, mood)
        if mood == "that":
            return f"that {verb.finite}"
        if mood == "has":
            return f"has {verb.participle}"
        if mood == "is":
            return f"is {verb.ing}"
        return f"{mood} {verb.base}"  # "will bounce", "to bounce"

    # Texts

    def script(self) -> str:
        """The script as text: its steps, joined in one of the ways that state their order."""
        number = len(self.scene.script)
        sequence = self._choose_sequence(number)
        opening = self.choose(sequence.opens)
        if opening in ("shows", "asks", "wishes", "scenes"):
            opening = self.choose(getattr(self.wordings, opening))
        first_mood, mood = sequence.moods
        if mood == "note":
            self.article = self.choose(("", "", "a", "the"))
        order = list(range(number))
        if sequence.last_first:
            order = [number - 1, *order[:-1]]
            self.in_order = False
        text = opening + self.clause(order[0], first_mood)
        for place in range(1, number):
            if place == 1 and sequence.seconds:
                link = self.choose(sequence.seconds)
            elif place == number - 1 and place > 1 and sequence.lasts:
                link = self.choose(sequence.lasts)
            else:
                link = self.choose(sequence.links)
                if "{" in link:
                    link = link.format(n=place + 1, nth=_ORDINALS[place])
            text += link + self.clause(order[place], mood)
        return text + ("?" if opening.startswith("can you") else sequence.close)

    def _choose_sequence(self, number: int) -> Sequence:
        fitting = [
            (weight, sequence)
            for weight, sequence in self.wordings.sequences
            if sequence.steps[0] <= number <= sequence.steps[1]
        ]
        cumulative = list(accumulate(weight for weight, _ in fitting))
        return fitting[bisect(cumulative, self.chance() * cumulative[-1])][1]

    def write(self) -> Prompt:
        """The whole prompt."""
        chance, scene, wordings = self.chance, self.scene, self.wordings
        everyone = list(range(len(scene.actors)))
        idle = [i for i in everyone if i not in self.busy]
        first, last = everyone if not scene.script or chance() < 0.3 else [], []
        if not first and idle:
            first, last = (idle, []) if chance() < 0.5 else ([], idle)
        sentences = [self.presence(first, False)] if first else []
        if scene.script:
            sentences.append(self.script())
        elif wordings.plain or chance() < 0.5:
            sentences.append(self.choose(wordings.still) + ".")
        if last and self.free and chance() < 0.35:  # "..., with a blue box on the right"
            sentences[-1] = sentences[-1].removesuffix(".") + self._aside(last)
        elif last:
            if sentences[-1][-1] not in ".!":
                sentences[-1] += self.choose((".", ",", ";"))
            sentences.append(self.presence(last, True))
        if late := self._late():
            if sentences[-1][-1] not in ".!?":
                sentences[-1] += "."
            sentences.append(late)
        if wordings.notes:
            noun = {self.nouns[i] for i in idle}
            if len(idle) == 2 and len(noun) == 1 and chance() < 0.4:
                sentences.append(f"the {_plural(noun.pop())} {self.choose(_QUIET)}.")
            if scene.script and scene.script[0].verb in _SOUNDS and self.in_order and chance() < 0.05:
                first = scene.script[0]
                sounds = [self.choose(_SOUNDS[first.verb])] * self.choose((first.count, first.count, 1))
                sentences.insert(0, f"{' '.join(sounds)}{self.choose(('!', '!!', '.', ' -'))}")
        text = " ".join(sentences)
        if wordings.plain:
            text = _CAPITALS.sub(_capital, text)
        else:
            text = self._as_typed(text)
        return Prompt(text, tuple(self.placed), tuple(self.coloured))

    def _as_typed(self, text: str) -> str:
        """The text with capitals and full stops as people write them, and sometimes with a slip."""
        if self.wordings.notes:
            if self.chance() < 0.05:
                text = self.choose(_HEADINGS).format(1 + int(40 * self.chance())) + text
            if self.chance() < 0.05 and ". " in text:
                text = text.replace(". ", f". {self.choose(_BEATS)} ", 1 + int(2 * self.chance()))
        draw = self.chance()
        if draw < 0.05:
            text += self.choose(self.wordings.ends) if text.endswith(".") else ""
        elif draw < 0.3 and text.endswith("."):
            text = text[:-1]
        elif draw < 0.33 and text.endswith("."):
            text = text[:-1] + self.choose(("!", "...", " ."))
        draw = self.chance()
        if draw < 0.7:
            text = _CAPITALS.sub(_capital, text)
        elif draw < (0.8 if self.wordings.notes else 0.72):
            text = text.upper()
        if self.wordings.notes and self.chance() < 0.12:
            for _ in range(1 + int(4 * self.chance())):
                text = self._with_slip(text, _WORDS)
        elif self.free and self.chance() < 0.05:
            text = self._with_slip(text, _LONG_WORDS)
        return text

    def _with_slip(self, text: str, pattern: re.Pattern) -> str:
        """One letter lost, doubled, mistaken or exchanged with the next, within a word that fits the pattern."""
        words = [match for match in pattern.finditer(text) if match.group().lower() not in DIGITS]
        if not words:
            return text
        match = self.choose(words)
        place = match.start() + 1 + int(self.chance() * (len(match.group()) - 2))
        draw = self.chance()
        if draw < 0.4:
            return text[:place] + text[place + 1 :]
        if draw < 0.6:
            return text[:place] + text[place] + text[place:]
        if draw < 0.75 and text[place].lower() in _MISTAKEN:
            return text[:place] + _MISTAKEN[text[place].lower()] + text[place + 1 :]
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


class _NoteWriter(_Writer):
    """The choices of a prompt that is not prose: a list, a screenplay or a record for a program."""

    def write(self) -> Prompt:
        """The whole prompt."""
        self.late = self.late_colours = False
        layout = self.choose((self._list, self._screenplay, self._record))
        text = layout()
        return Prompt(self._as_typed(text), tuple(self.placed), tuple(self.coloured))

    def _list(self) -> str:
        """ "- left: a red ball", then who does what, line by line."""
        everyone, bullet = range(len(self.scene.actors)), self.choose(("- ", "* ", "", "> ", "• "))
        sign, end = (
            self.choose((": ", " - ", " = ", ", ", " | ", " -> ")),
            self.choose(("\n", "\n", "; ", ". ", " / ")),
        )
        cast = []
        for i in everyone:
            name = self.name(i, place=False)
            if self.tells_place[i]:
                self.placed[i] = True
                where = self.choose(_BARE_PLACES[self.scene.actors[i].spot])
                name = self.choose((f"{where}{sign}{name}", f"{name}{sign}{where}"))
            cast.append(bullet + name)
        free = [spot for spot in SPOTS if spot not in [actor.spot for actor in self.scene.actors]]
        if free and all(self.placed) and self.chance() < 0.4:
            spot = self.choose(free)
            cast.insert(
                list(SPOTS).index(spot), f"{bullet}{self.choose(_BARE_PLACES[spot])}{sign}{self.choose(_EMPTY)}"
            )
        steps = [f"{bullet}{self._step(step, sign)}" for step in range(len(self.scene.script))]
        if not steps:
            steps = [bullet + self.choose(self.wordings.still)]
        heads = self.choose((("", ""), ("", ""), ("cast:", "script:"), ("who:", "what:"), ("scene:", "action:")))
        lines = [heads[0], *cast, heads[1], *steps]
        return end.join(line for line in lines if line)

    def _step(self, step: int, sign: str) -> str:
        action = self.scene.script[step]
        if action.verb == "hit" or self.chance() < 0.4:
            return self.clause(step, "finite")
        return f"{self._speaker(action.actor)}{sign}{self._note(action)}"

    def _screenplay(self) -> str:
        """ "ORANGE FACE: four." for who speaks, sounds in brackets or after "SFX"."""
        text = [self.presence(list(range(len(self.scene.actors))), False)] if self.chance() < 0.6 else []
        between = self.choose(("\n", "\n", "\n\n", " "))
        effect = self.choose(("({})", "[{}]", "SFX: {}.", "sound: {}.", "action: {}."))
        for step, action in enumerate(self.scene.script):
            if action.verb == "say":
                who, said = self._speaker(action.actor), self.words(action)
                mark = self.choose((": ", ":\n", "\n", " - ")) if between != " " else ": "
                text.append(
                    f"{who.upper() if self.chance() < 0.7 else who}{mark}{self.choose(('{}.', '{}', chr(34) + '{}' + chr(34))).format(said)}"
                )
            else:
                text.append(effect.format(self.clause(step, "finite")))
        if not self.scene.script:
            text.append(effect.format(self.choose(self.wordings.still)))
        idle = [i for i in range(len(self.scene.actors)) if i not in self.introduced]
        if idle:
            text.append(self.presence(idle, True))
        return between.join(text)

    def _record(self) -> str:
        """JSON, or calls as of a program."""
        if self.chance() < 0.3:
            return self._calls()
        choose = self.choose
        kind, colour, place = choose(
            (
                ("type", "color", "pos"),
                ("kind", "colour", "place"),
                ("actor", "color", "position"),
                ("object", "colour", "at"),
            )
        )
        actors = []
        for i, actor in enumerate(self.scene.actors):
            row = {kind: actor.kind}
            if self.tells_colour[i]:
                row[colour] = actor.colour
                self.coloured[i] = True
            if self.tells_place[i]:
                row[place] = choose(_BARE_PLACES[actor.spot])
                self.placed[i] = True
            actors.append(row)
        self.introduced = list(range(len(actors)))
        who, what, count = choose(
            (("who", "do", "n"), ("actor", "action", "times"), ("subject", "verb", "count"), ("who", "what", "count"))
        )
        steps = []
        for action in self.scene.script:
            row = {who: self._short(action.actor), what: self._verb(action.verb).base}
            if action.verb == "hit":
                row[choose(("target", "whom", "to"))] = self._short(action.target)
            elif action.verb == "say":
                row[choose(("words", "text", "says"))] = (
                    self.words(action) if self.chance() < 0.5 else list(action.words)
                )
            else:
                row[count] = action.count
            steps.append(row)
        names = choose((("actors", "script"), ("cast", "steps"), ("objects", "events"), ("scene", "timeline")))
        text = json.dumps(dict(zip(names, (actors, steps), strict=True)))
        if self.chance() < 0.4:
            text = text.replace('"', "")
        return text.replace(", ", ",") if self.chance() < 0.3 else text

    def _short(self, index: int) -> str:
        """The kind alone, if it identifies the actor."""
        actor = self.scene.actors[index]
        alone = [other.kind for other in self.scene.actors].count(actor.kind) == 1
        return actor.kind if alone and self.chance() < 0.7 else self._coloured_name(index)

    def _coloured_name(self, index: int) -> str:
        self.coloured[index] = True
        return self.scene.actors[index].name

    def _calls(self) -> str:
        """ "red_ball.bounce(2)"."""
        join = self.choose(("_", " "))
        names, lines = [], []
        for i, actor in enumerate(self.scene.actors):
            names.append(self._coloured_name(i).replace(" ", join))
            place = ""
            if self.tells_place[i]:
                self.placed[i] = True
                place = self.choose(_BARE_PLACES[actor.spot])
            lines.append(
                self.choose(("add({}{})", "spawn({}{})", "{}{}", "new {}{}")).format(
                    names[i], f", {place}" if place else ""
                )
            )
        self.introduced = list(range(len(names)))
        for action in self.scene.script:
            rest = names[action.target] if action.verb == "hit" else ", ".join(action.words) or str(action.count)
            lines.append(f"{names[action.actor]}.{self._verb(action.verb).base}({rest})")
        return self.choose(("; ", "\n", " ")).join(lines)


class _Follower(_Writer):
    """The choices of a prompt that continues a film, in the grammar's plain words."""

    def __init__(self, scene: Scene, callbacks: Mapping[int, str], rng: random.Random) -> None:
        super().__init__(scene, PLAIN, rng)
        self.introduced = list(range(len(scene.actors)))
        self.callbacks = dict(callbacks)

    def _name_again(self, index: int, subject: bool) -> str:
        return f"the {self.callbacks.pop(index, self.scene.actors[index].name)}"

    def write(self) -> Prompt:
        """The whole prompt; it leaves open everything that earlier prompts said."""
        text = self.script() if self.scene.script else self.choose(self.wordings.still) + "."
        open_ = (False,) * len(self.scene.actors)
        return Prompt(_CAPITALS.sub(_capital, text), open_, open_)


_NOTES = replace(
    TRAIN,
    notes=True,
    still=(
        *TRAIN.still,
        "it is totally silent",
        "nothing moves and it is silent",
        "no movement, no sound",
        "nobody moves or makes a sound",
        "complete silence",
        "everything stays still and quiet",
        "all are still",
    ),
    ends=(
        *TRAIN.ends,
        " nothing else on stage.",
        " nobody else is there.",
        " no more.",
        " that is all that happens.",
        " no other sounds.",
        " no other sound.",
        " nothing more.",
        " hold the shot.",
    ),
)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s", "h")) else "s")


def _capital(match: re.Match) -> str:
    return match.group()[:-1] + match.group()[-1].upper()


def _article(actor: Actor) -> str:
    return "an" if actor.colour[0] in "aeiou" else "a"


def write_cues(scene: Scene, seed: int) -> str:
    """
    The cue sheet of the render of `scene`: the cast from left to right, then for each instant who does what, to whom, e.g.
    "red box middle; orange face right <|0.50|> red box hits orange face <|1.25|> orange face says two".
    """
    names = [actor.name for actor in scene.actors]
    cast = tuple(CastMember(actor.name, actor.spot) for actor in scene.actors)
    cues = []
    for event in timeline(scene, seed):
        deed = EVENT_VERBS[event.kind]
        rest = event.word or (names[event.target] if event.target is not None else "")
        cues.append(Cue(event.time, f"{names[event.actor]} {deed} {rest}".rstrip()))
    return format_sheet(Sheet(cast, tuple(cues)))


def describe_frame(scene: Scene, seed: int, frame_index: int) -> str:
    """Caption one frame of the render of `scene`: who is where, and how each actor looks at this instant. E.g. "a red ball on
    the left in the air, a purple face on the right with its mouth open".
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
