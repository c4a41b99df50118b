"""Wordings with made-up words, from which a text encoder learns to understand unknown words.

People use more words than any list has. Most of a prompt can be understood without them: a bell rings, whatever the verb is;
"the wodel red ball" is a red ball; "..., and grontly a face says two" says what comes next. So in half of the training prompts,
words without a meaning of their own are replaced by words made up letter by letter.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from .wordings import TRAIN, Sequence, Verb, Wordings, verb


NUM_STRANGE_WORDINGS = 1000
_ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sl sp st str t th tr v w wh y".split()
)
_VOWELS = "a e i o u a e i o ea ou ai oo ee".split()
_CODAS = ["", "", *"n r s t l m d ck nd rt st ng mp ll ss ct ve ce nt".split()]
_ENDINGS = ["", "", "", *"ly ed er ing ion ment ous al y ward ish".split()]
_SIGNS = (" >> ", " & ", " + ", " | ", " -- ", " ~ ", " ==> ", " .. ")


def strange_word(rng: random.Random) -> str:
    """A word that looks like English and means nothing, e.g. "grontly"."""
    draw = rng.choice
    start = "".join(draw(_ONSETS) + draw(_VOWELS) for _ in range(draw((0, 0, 0, 1, 1, 2))))
    return start + draw(_ONSETS) + draw(_VOWELS) + draw(_CODAS) + draw(_ENDINGS)


@cache
def strange_wordings(number: int) -> Wordings:
    """One of `NUM_STRANGE_WORDINGS` sets with many made-up words. Colours, kinds, sides, numbers and voices keep their own
    words."""
    rng = random.Random(number)

    def w() -> str:
        return strange_word(rng)

    def some(known: tuple[str, ...], *made: str, number: int = 6) -> tuple[str, ...]:
        """A few of the known phrases, and the made ones with fresh words in place of each "_"."""
        return tuple(rng.sample(known, min(number, len(known)))) + tuple(_filled(text, w) for text in made)

    def verbs(known: tuple[Verb, ...], *made: str) -> tuple[Verb, ...]:
        return tuple(rng.sample(known, min(4, len(known)))) + tuple(verb(_filled(text, w)) for text in made)

    def sides(place: str, known: tuple[str, ...]) -> tuple[str, ...]:
        made = ("_ the {}", "in the {} _", "at the {} _", "on the _ {}", "_ _ the {}", "_ the {} _", "_ {}")
        return some(known, *(text.format(place) for text in made))

    def times(number: int, word: str, numeral: str) -> tuple[str, ...]:
        plural = "" if number == 1 else "s"
        made = (
            f"on {numeral} _",
            f"_ {word}",
            f"{word} _",
            f"{numeral} time{plural} _",
            f"_ _ {numeral} time{plural}",
        )
        return some(TRAIN.counts[number], *made, f"_ _ {word}", f"{numeral} _ time{plural}", number=8)

    numerals = {1: ("once", "one"), 2: ("twice", "two"), 3: ("three times", "three")}
    voices = {"orange": ("low", "deep"), "purple": ("high", "female")}
    people = {"orange": "man", "purple": "woman"}
    return replace(
        TRAIN,
        notes=True,
        colours={
            colour: some(known, f"_ {colour}", f"{colour}-_", f"{colour} _", f"_-_ {colour}", number=5)
            for colour, known in TRAIN.colours.items()
        },
        kinds={
            kind: some(known, f"_ {kind}", f"_-_ {kind}", f"_ _ {kind}", f"{kind} _", number=6)
            for kind, known in TRAIN.kinds.items()
        },
        people={
            colour: some(known, f"_ {people[colour]}", f"_ {tone}-voiced face", f"_ {people[colour]} of {tone} voice")
            for colour, known in TRAIN.people.items()
            for tone in voices[colour][:1]
        },
        voices={
            colour: some(known, *(f"_ {tone} voice" for tone in voices[colour]))
            for colour, known in TRAIN.voices.items()
        },
        tones={
            colour: some(known, *(f"_ the voice _ {tone}" for tone in voices[colour]), f"_ a {voices[colour][0]} voice")
            for colour, known in TRAIN.tones.items()
        },
        places={
            "left": sides("left", TRAIN.places["left"]),
            "middle": sides("middle", TRAIN.places["middle"]) + (f"{w()} the centre",),
            "right": sides("right", TRAIN.places["right"]),
        },
        counts={number: times(number, *words) for number, words in numerals.items()},
        numerals={
            number: some(TRAIN.numerals[number], f"_ {numeral}", f"{numeral} _")
            for number, (_, numeral) in numerals.items()
        },
        verbs={
            "bounce": verbs(TRAIN.verbs["bounce"], "_", "_", "_", "_ _", "_ up", "_ its bounce", "_ to bounce", "_ a jump", "_ off the _"),
            "ring": verbs(TRAIN.verbs["ring"], "_", "_", "_", "_ _", "_ out", "_ its ring", "_ to ring", "_ a ring", "_ _ and _"),
            "hit": verbs(TRAIN.verbs["hit"], "_", "_ into", "_ into", "_ with", "_ against", "_ _ with", "_ up to + hit", "_ a hit to"),
            "say": verbs(TRAIN.verbs["say"], "_", "_", "_", "ask", "wonder", "_ out", "_ _", "_ to say", "_ us", "_ the _"),
        },
        passives=some(TRAIN.passives, "_ed", "_ed into", "_ into", number=4),
        nouns={
            "bounce": some(TRAIN.nouns["bounce"], "_ jump", "_ bounce", number=3),
            "ring": some(TRAIN.nouns["ring"], "_ ring", "_ ding", number=3),
        },
        light_verbs={name: verbs(known, "_", "_", "_ _") for name, known in TRAIN.light_verbs.items()},
        again=some(TRAIN.again, "_ again", "again _", number=4),
        sizes=some(TRAIN.sizes, "_", "_", "_", "_", number=3),
        speech=(" ", " ", ": ", *(_filled(text, w) for text in (" _: ", " - _ _ - ", " the _ ", " _ ", " (_) "))),
        stands=some(TRAIN.stands, "_ its _", "is _", "_ _", number=4),
        there=some(TRAIN.there, "_ {is} ", "the _ _ ", "_ _: ", "_ _ _ {is} ", number=6),
        idle={
            kind: some(known, *(("_ no _", "does not _", "_ nothing", "never _") if not kind else ()), number=5)
            for kind, known in TRAIN.idle.items()
        },
        still=some(TRAIN.still, "nothing _", "no _ and no _", "not a _ _", number=4),
        scenes=some(TRAIN.scenes, "_ _: ", "the _ _ how ", "_ this: ", "in this _ ", number=5),
        shows=some(TRAIN.shows, "_ ", "a _ of ", "_ _ a _ of ", number=5),
        asks=some(TRAIN.asks, "_ let ", "_ _ make ", number=4),
        wishes=some(TRAIN.wishes, "_ ", "the _ wants ", number=4),
        ends=some(TRAIN.ends, " _.", " _ _.", " _, _ _.", number=4),
        sequences=TRAIN.sequences
        + tuple(
            (weight, Sequence(**{name: value if name in ("moods", "steps") else tuple(_filled(t, w) for t in value) for name, value in parts.items()}))
            for weight, parts in _SEQUENCES
        )
        + ((3.0, Sequence(links=(rng.choice(_SIGNS),), moods=("note", "note"))),),
    )  # fmt: skip


def _filled(text: str, word: Callable[[], str]) -> str:
    while "_" in text:
        text = text.replace("_", word(), 1)
    return text


# Ways of telling steps in their order, whose words for "then" are made up.
_SEQUENCES = (
    (14.0, {"links": (", _ ", ", and _ ", ", _ _ ", "; _ "), "lasts": (", and _ ", ", and _ _, ", ", _ ")}),
    (9.0, {"links": (". _, ", ". _ _, ", ". _ _ _: "), "lasts": (". _ _, ", ". _ _ _, ")}),
    (5.0, {"opens": ("_ 1: ", "_ one: "), "links": (". _ {n}: ", "; _ {n}: ")}),
    (4.0, {"opens": ("_ _, ", "_ "), "links": (", _ ", ", _ _ "), "lasts": (", _ _, ", ", and _ ")}),
    (3.0, {"links": (" & _: ", " + _ ", " _ "), "moods": ("note", "note")}),
    (
        5.0,
        {"opens": ("shows",), "links": (", _ by ", " and _ ", ", _ "), "moods": ("ing", "ing"), "steps": (1, 4)},
    ),
    (
        3.0,
        {"opens": ("asks",), "links": (", _ let ", ", _ make "), "moods": ("base", "base"), "steps": (1, 4)},
    ),
    (3.0, {"opens": ("wishes",), "links": (", and _ ", ", _ "), "moods": ("to", "to"), "steps": (1, 4)}),
    (4.0, {"opens": ("scenes",), "links": (", _ ", ". _ "), "lasts": (", and _ ",), "steps": (1, 4)}),
)
