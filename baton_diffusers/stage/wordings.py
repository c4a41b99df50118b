"""The phrases of Stage's prompts: names of colours, kinds and places, verbs, counts, and ways of putting steps in order.

There are three sets. `PLAIN` is a small grammar of full sentences. `TRAIN` is what people may type. `HELD_OUT` has phrases that
the other two never use, for a test of paraphrase. It shares only the plainest words with them ("red", "ball", "left", "twice",
the digits), since nobody can guess an unknown colour. Its other names, its verbs and its ways of stating an order are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple


class Verb(NamedTuple):
    """The forms of a verb with its particles, e.g. "slide into", "slides into", "sliding into", ..."""

    base: str
    finite: str
    ing: str
    past: str
    participle: str


_IRREGULAR = {
    "ring": ("rang", "rung"),
    "spring": ("sprang", "sprung"),
    "hit": ("hit", "hit"),
    "strike": ("struck", "struck"),
    "run": ("ran", "run"),
    "slide": ("slid", "slid"),
    "say": ("said", "said"),
    "speak": ("spoke", "spoken"),
    "tell": ("told", "told"),
    "give": ("gave", "given"),
    "make": ("made", "made"),
    "go": ("went", "gone"),
    "do": ("did", "done"),
    "take": ("took", "taken"),
    "let": ("let", "let"),
    "read": ("read", "read"),
    "come": ("came", "come"),
    "have": ("had", "had"),
    "get": ("got", "got"),
    "put": ("put", "put"),
    "rise": ("rose", "risen"),
    "fall": ("fell", "fallen"),
    "begin": ("began", "begun"),
    "drive": ("drove", "driven"),
    "sing": ("sang", "sung"),
}
_DOUBLED = ("hop", "bob", "ram", "slam", "tap", "hit", "run", "let", "get", "put", "skip", "drop", "begin")


@cache
def verb(phrase: str) -> Verb:
    """All forms of a verb phrase in its base form; what follows the first word stays as it is. "+" joins two phrases by "and"."""
    if " + " in phrase:
        return Verb(*(" and ".join(forms) for forms in zip(*map(verb, phrase.split(" + ")), strict=True)))
    base, _, tail = phrase.partition(" ")
    tail = f" {tail}" if tail else ""
    stem = base + base[-1] if base in _DOUBLED else base.removesuffix("e")
    s = {"go": "goes", "do": "does", "have": "has"}.get(base) or (
        base[:-1] + "ies"
        if base.endswith("y") and base[-2] not in "aeiou"
        else base + ("es" if base.endswith(("s", "sh", "ch", "x")) else "s")
    )
    regular = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else stem + "ed"
    past, participle = _IRREGULAR.get(base, (regular, regular))
    return Verb(*(form + tail for form in (base, s, stem + "ing", past, participle)))


@dataclass(frozen=True)
class Sequence:
    """
    A way of stating steps in order.

    Args:
        opens: What comes before the first clause.
        links: What comes between two clauses; "{n}" and "{nth}" are the number of the step.
        seconds: What comes between the first two clauses, if not one of `links`.
        lasts: What comes before the last clause of three or four, if not one of `links`.
        moods: Of the first clause and of the others: "finite" ("bounces"), "ing", "base" ("make it bounce"), "to", "has" ("has
            bounced") or "note" ("ball: 2 bounces").
        steps: The least and the greatest number of steps.
        last_first: Whether the last step is told first ("before the last, ...").
        close: What ends the text.
    """

    opens: tuple[str, ...] = ("",)
    links: tuple[str, ...] = ()
    seconds: tuple[str, ...] = ()
    lasts: tuple[str, ...] = ()
    moods: tuple[str, str] = ("finite", "finite")
    steps: tuple[int, int] = (2, 4)
    last_first: bool = False
    close: str = "."


@dataclass(frozen=True)
class Wordings:
    """One set of ways to say things. `plain` leaves out short and playful forms, so that nothing depends on context."""

    plain: bool
    colours: dict[str, tuple[str, ...]]
    kinds: dict[str, tuple[str, ...]]
    people: dict[str, tuple[str, ...]]  # names of a face that imply its voice, by colour
    voices: dict[str, tuple[str, ...]]  # names of a face that is only heard, by colour
    tones: dict[str, tuple[str, ...]]  # how a face speaks, by colour
    places: dict[str, tuple[str, ...]]
    counts: dict[int, tuple[str, ...]]
    numerals: dict[int, tuple[str, ...]]
    verbs: dict[str, tuple[Verb, ...]]
    passives: tuple[str, ...]  # "the ball is ... by the box"
    nouns: dict[str, tuple[str, ...]]  # of a bounce and of a ring, singular
    light_verbs: dict[str, tuple[Verb, ...]]  # what a ball does to a bounce, a bell to a ring
    again: tuple[str, ...]
    sizes: tuple[str, ...]
    speech: tuple[str, ...]  # what comes between "says" and the digits
    stands: tuple[str, ...]
    there: tuple[str, ...]  # before a list of actors
    idle: dict[str, tuple[str, ...]]  # phrases for an actor that does nothing, by kind; "" is any
    still: tuple[str, ...]  # phrases for "nothing happens"
    scenes: tuple[str, ...]  # before the first full clause
    shows: tuple[str, ...]  # before "a red ball bouncing"
    asks: tuple[str, ...]  # before "the red ball bounce"
    wishes: tuple[str, ...]  # before "the red ball to bounce"
    ends: tuple[str, ...]
    sequences: tuple[tuple[float, Sequence], ...]
    notes: bool = (
        False  # whether people write as in notes to themselves: "left: a ball", "the left one", "both silent"
    )


def _verbs(**phrases: str) -> dict[str, tuple[Verb, ...]]:
    return {name: tuple(verb(phrase) for phrase in text.split(", ")) for name, text in phrases.items()}


def _lists(**texts: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(text.split(", ")) for name, text in texts.items()}


_THENS = ("then", "after that", "next", "and then", "afterwards")
_LASTS = ("and finally", "finally", "at last", "then", "and then")


def _sentence(link: str) -> str:
    return f". {link.removeprefix('and ')}{' ' if link.endswith('then') else ', '}"


PLAIN = Wordings(
    plain=True,
    colours={},
    kinds={},
    people={},
    voices={},
    tones={},
    places=_lists(
        left="on the left, at the left, on the left side",
        middle="in the middle, in the centre, at the centre",
        right="on the right, at the right, on the right side",
    ),
    counts={1: ("once", "one time"), 2: ("twice", "two times"), 3: ("three times",)},
    numerals={},
    verbs=_verbs(
        bounce="bounce, jump, hop", ring="ring, chime", hit="hit, slide into, bump into", say="say, speak, call out"
    )
    | {
        "ring": (
            verb("ring"),
            verb("chime"),
            verb("flash + ring"),
        )
    },
    passives=(),
    nouns={},
    light_verbs={},
    again=(),
    sizes=(),
    speech=(" ",),
    stands=("is", "stands", "waits"),
    there=("there {is} ",),
    idle={},
    still=("nothing happens", "nothing moves"),
    scenes=("",),
    shows=(),
    asks=(),
    wishes=(),
    ends=(),
    sequences=(
        (
            3.0,
            Sequence(
                links=tuple(f", {link} " for link in _THENS) * 2 + tuple(_sentence(link) for link in _THENS),
                lasts=tuple(f", {link} " for link in _LASTS) * 2 + tuple(_sentence(link) for link in _LASTS),
                steps=(1, 4),
            ),
        ),
        (
            1.0,
            Sequence(
                opens=("after ",),
                seconds=(", ",),
                links=tuple(f", {link} " for link in _THENS),
                lasts=tuple(f", {link} " for link in _LASTS),
            ),
        ),
    ),
)

TRAIN = Wordings(
    plain=False,
    colours=_lists(
        red="crimson, scarlet, ruby, cherry, cherry red, vermilion, maroon, bright red, dark red, deep red, blood red, brick red, "
        "tomato red, rosy, rose red, fire-engine red, carmine, burgundy",
        green="emerald, lime, olive, jade, forest green, mint, mint green, grass green, lime green, bright green, dark green, light "
        "green, emerald green, pea green, moss green, leafy green, sea green",
        blue="azure, navy, cobalt, sapphire, cyan, sky blue, sky-blue, navy blue, royal blue, ultramarine, bright blue, dark blue, "
        "light blue, deep blue, cerulean, ocean blue, pale blue",
        yellow="golden, gold, lemon, canary, mustard, sunny, lemon yellow, bright yellow, canary yellow, pale yellow, blonde, "
        "golden yellow, sunflower yellow, banana yellow, light yellow",
        orange="tangerine, amber, apricot, bright orange, coral, peach, ginger, light orange, carrot, pumpkin, dark orange, copper",
        purple="violet, lilac, lavender, mauve, plum, magenta, indigo, bright purple, dark purple, light purple, grape, aubergine, "
        "fuchsia, amethyst",
    ),
    kinds=_lists(
        ball="sphere, orb, globe, rubber ball, bouncy ball, football, beach ball, soccer ball, tennis ball, marble, basketball, "
        "little ball, round ball, toy ball, circle",
        box="cube, crate, block, square, case, carton, parcel, package, brick, chest, cardboard box, wooden box, container, square box, "
        "wooden crate, toy block",
        bell="gong, chime, hand bell, church bell, small bell, school bell, doorbell, little bell, alarm bell, handbell, dinner bell, "
        "metal bell, cowbell",
        face="head, person, smiley, character, mask, speaker, cartoon face, talking head, human face, round face, emoji, smiley face, talking face, talker",
    ),
    people=_lists(
        orange="man, guy, man's face, male face, gentleman, man with a deep voice, low-voiced face, deep-voiced face, face with a low "
        "voice, face with the deep voice, deep-voiced man, face with a deep voice, old man, fellow, low-voiced person, male speaker, "
        "man's head, mister, dad, bass singer, person with a low voice",
        purple="woman, lady, girl, woman's face, female face, woman with a high voice, high-voiced face, high-pitched face, face with a "
        "high voice, face with the high voice, high-voiced woman, young woman, high-voiced person, female speaker, girl's face, lady's "
        "face, woman's head, mom, mum, soprano, person with a high voice",
    ),
    voices=_lists(
        orange="low voice, deep voice, male voice, man's voice, low male voice, deep male voice, bass voice, dark voice, lower voice",
        purple="high voice, high-pitched voice, female voice, woman's voice, high female voice, bright voice, girl's voice, higher "
        "voice, light voice",
    ),
    tones=_lists(
        orange="in a low voice, in a deep voice, with a low voice, with a deep voice, in a low tone, deeply, in a male voice, low",
        purple="in a high voice, with a high voice, in a high-pitched voice, in a high tone, in a female voice, with a high-pitched "
        "voice, high-pitched",
    ),
    places=_lists(
        left="on the left, at the left, on the left side, on the left-hand side, to the left, at left, on the left of the screen, "
        "in the left corner, at the left edge, on the far left, on the left of the stage, over on the left, on left, at the left side, "
        "in the left part, on the left half, on stage left",
        middle="in the middle, in the centre, at the centre, in the center, at the center, in the middle of the screen, in the very "
        "middle, at the middle, in the middle of the stage, in middle, in the center of the screen, "
        "center stage, right in the middle, at centre stage, in the central spot",
        right="on the right, at the right, on the right side, on the right-hand side, to the right, at right, on the right of the "
        "screen, in the right corner, at the right edge, on the far right, on the right of the stage, over on the right, on right, at "
        "the right side, in the right part, on the right half, on stage right",
    ),
    counts={
        1: (
            "once",
            "one time",
            "a single time",
            "1 time",
            "1x",
            "just once",
            "only once",
            "x1",
            "one single time",
            "1 x",
        ),
        2: (
            "twice",
            "two times",
            "2 times",
            "2x",
            "x2",
            "a couple of times",
            "2 x",
            "twice in a row",
            "two times in a row",
        )
        + ("exactly twice", "twice over", "(2x)", "(twice)", "for two times"),
        3: (
            "three times",
            "3 times",
            "3x",
            "thrice",
            "x3",
            "3 x",
            "three times in a row",
            "exactly three times",
            "three times over",
        )
        + ("(3x)", "(three times)", "3 times in a row", "for three times"),
    },
    numerals={
        1: ("one", "a single", "1", "just one"),
        2: ("two", "2", "a couple of", "a pair of"),
        3: ("three", "3", "a total of three"),
    },
    verbs=_verbs(
        bounce="bounce, jump, hop, leap, spring up, bounce up and down, jump up and down, go up and down, jump into the air, bob up and "
        "down, bounce on the floor, hop up and down, skip, spring into the air, bound, hit the floor, drop to the floor, leap up, jump up, "
        "bounce on the ground, rebound, bounce off the floor",
        ring="ring, chime, toll, sound, ding, clang, jingle, peal, go off, tinkle, ring out, dong, sound its note, flash, light up + "
        "ring, go ding, resound, make a sound, strike, bong, clank, play its note, make a ringing sound",
        hit="hit, slide into, bump into, push, knock into, collide with, ram, strike, crash into, run into, smash into, bang into, shove, "
        "slam into, bump, knock, nudge, knock against, push into, bump against, move into, touch, hit against, bang against, slide over "
        "+ hit, slide across + bump, glide into, ram into, smack into, tackle, give a push to, move over + hit, poke, bash, thump, "
        "shunt, jolt, barge into, go + hit, come over + hit, kick, knock over, push away, dash into",
        say="say, speak, call out, utter, shout, announce, pronounce, state, read out, recite, mention, yell, exclaim, whisper, declare, "
        "mutter, call, cry, count, count out, speak out, say out loud, name, tell us, voice, sing, murmur, articulate, talk + say, "
        "open its mouth + say, report, chant, say aloud, read, count off",
    ),
    passives=(
        "hit",
        "hit",
        "hit",
        "pushed",
        "bumped",
        "struck",
        "knocked",
        "rammed",
        "shoved",
        "bumped into",
        "knocked into",
    )
    + ("run into", "crashed into", "touched", "nudged", "jolted", "smashed into"),
    nouns=_lists(
        bounce="bounce, hop, jump, leap, bound, thud",
        ring="ring, chime, ding, toll, peal, clang, stroke, flash, note, dong",
    ),
    light_verbs=_verbs(
        bounce="make, do, take, give, perform, go for", ring="give, make, sound, let out, produce, play, emit"
    ),
    again=("again", "once more", "one more time", "another time", "again once", "once again"),
    sizes=(
        "little",
        "small",
        "big",
        "large",
        "shiny",
        "tiny",
        "nice",
        "round",
        "cute",
        "huge",
        "simple",
        "plain",
        "funny",
        "single",
    ),
    speech=(
        " ",
        " ",
        " ",
        ", ",
        ": ",
        " the number ",
        " the word ",
        " the digit ",
        " - ",
        " just ",
        " something: ",
        " the following: ",
    ),
    stands=(
        "is",
        "stands",
        "waits",
        "sits",
        "rests",
        "is standing",
        "is placed",
        "lies",
        "is located",
        "is seen",
        "appears",
        "is sitting",
    ),
    there=(
        "there {is} ",
        "we see ",
        "the scene shows ",
        "you can see ",
        "in the scene {is} ",
        "the stage has ",
        "we have ",
        "i see ",
        "the picture shows ",
        "there {is} ",
        "",
        "a scene with ",
        "shown {is} ",
        "it has ",
        "here {is} ",
        "cast: ",
        "put ",
        "place ",
        "on stage {is} ",
        "visible {is} ",
        "imagine ",
        "add ",
    ),
    idle={
        "": (
            "does nothing",
            "stays still",
            "just watches",
            "is just there",
            "does not move",
            "stays where it is",
            "only watches",
            "just stands there",
            "doesn't do anything",
            "remains still",
            "rests",
            "doesn't move",
            "stands still",
            "is there too",
            "watches on",
            "is idle",
            "just sits there",
        ),
        "ball": ("does not bounce", "lies still", "lies on the floor"),
        "box": ("stays put", "is at rest", "never moves"),
        "bell": ("stays silent", "does not ring", "is silent", "makes no sound"),
        "face": (
            "says nothing",
            "is silent",
            "keeps quiet",
            "stays quiet",
            "doesn't speak",
            "keeps its mouth closed",
            "listens",
        ),
    },
    still=(
        "nothing happens",
        "nothing moves",
        "everything is still",
        "nobody moves",
        "nothing else",
        "no one moves or makes a sound",
        "it is quiet",
        "no movement, no sound",
        "all is still",
        "that is all",
        "silence",
        "nothing happens at all",
    ),
    scenes=(
        "in this clip, ",
        "a video where ",
        "a clip in which ",
        "generate a video where ",
        "i want a video where ",
        "please make a clip in which ",
        "here, ",
        "scene: ",
        "animation: ",
        "make a video in which ",
        "a short film in which ",
        "create a clip where ",
        "we see how ",
        "in the video ",
        "suddenly ",
        "video: ",
        "a scene where ",
        "make it so that ",
        "on a stage, ",
        "a short clip: ",
        "an animation where ",
        "can you make a video where ",
        "once upon a time ",
        "prompt: ",
        "story: ",
        "imagine a scene: ",
        "what if ",
        "it would be nice if ",
        "watch how ",
        "what i want: ",
    ),
    shows=(
        "show ",
        "a video of ",
        "video of ",
        "a clip of ",
        "generate ",
        "please show me ",
        "i want to see ",
        "an animation of ",
        "we see ",
        "footage of ",
        "create a video of ",
        "show me ",
        "a short clip of ",
        "imagine ",
        "i would like to see ",
        "the sound and picture of ",
        "draw ",
        "film ",
        "a scene with ",
        "give me ",
        "make a clip of ",
        "",
        "",
        "",
        "there is ",
        "there's ",
        "animate ",
        "can you show ",
        "let's see ",
        "how about ",
        "/imagine ",
        "visualize ",
        "picture ",
        "i need ",
    ),
    asks=("make ", "let ", "have ", "please make ", "please let ", "just have ", "now make "),
    wishes=("i want ", "i would like ", "i'd like ", "get ", "we want ", "ask ", "tell ", "cause "),
    ends=(
        " the end.",
        " that's all.",
        " nothing else happens.",
        " with sound.",
        " please.",
        " that is it.",
        " plain background.",
        " with matching sound.",
        " short clip.",
        " thanks!",
        " cinematic.",
        " pixel art.",
        " cartoon style.",
        " simple animation.",
        " high quality, 4k.",
        " minimalist style.",
        " with clear audio.",
        " realistic sound.",
        " 3 seconds long.",
        " static camera.",
        " nice colors.",
        " for kids.",
    ),
    sequences=(
        (
            6.0,
            Sequence(
                links=(
                    ", then ",
                    ", and then ",
                    " and then ",
                    ", after that ",
                    ", next ",
                    ", afterwards ",
                    " then ",
                    "; then ",
                )
                + (
                    ", and after that ",
                    ", and next ",
                    ", later ",
                    ", and afterwards ",
                    ", and ",
                    ", followed by this: ",
                ),
                lasts=(
                    ", and finally ",
                    ", finally ",
                    ", then ",
                    ", and then ",
                    " and then ",
                    ", and lastly ",
                    ", and in the end ",
                )
                + (", at last ", " and finally ", ", and at the end ", ", and last of all "),
                steps=(1, 4),
            ),
        ),
        (
            4.0,
            Sequence(
                links=(
                    ". then ",
                    ". after that, ",
                    ". next, ",
                    ". afterwards, ",
                    ". and then ",
                    ". ",
                    ". now ",
                    ". later ",
                    ". then, ",
                )
                + (". a moment later ", ". next up, ", ". after this, "),
                lasts=(
                    ". finally, ",
                    ". at last ",
                    ". in the end ",
                    ". lastly, ",
                    ". at the end, ",
                    ". then ",
                    ". finally ",
                ),
            ),
        ),
        (
            2.5,
            Sequence(
                opens=(
                    "first ",
                    "first, ",
                    "at first ",
                    "to begin with, ",
                    "firstly, ",
                    "at the start ",
                    "initially, ",
                ),
                links=(
                    ", then ",
                    ", and then ",
                    ". then ",
                    " and then ",
                    "; next ",
                    ", {nth} ",
                    ". {nth}, ",
                    ", after that ",
                ),
                lasts=(", and finally ", ". finally, ", ", lastly ", ", and at the end ", ". at the end "),
            ),
        ),
        (0.5, Sequence(opens=("1. ",), links=(". {n}. ", " {n}. "), moods=("finite", "finite"))),
        (0.4, Sequence(opens=("1) ",), links=(", {n}) ", " {n}) "), moods=("note", "note"))),
        (0.3, Sequence(opens=("(1) ",), links=(" ({n}) ", ", ({n}) "), moods=("finite", "finite"))),
        (0.3, Sequence(opens=("- ",), links=(" - ", "\n- "), moods=("finite", "finite"))),
        (0.3, Sequence(opens=("1: ",), links=(", {n}: ", "; {n}: "), moods=("note", "note"))),
        (
            2.5,
            Sequence(
                seconds=(" before ", ", before "),
                links=(", then ", ", and then ", ". then ", ", after which "),
                lasts=(", and finally ", ". finally, ", ", then "),
            ),
        ),
        (
            2.0,
            Sequence(
                opens=("after ", "right after ", "just after "),
                seconds=(", ",),
                links=(", then ", ", and then ", ". then ", ", after that "),
                lasts=(", and finally ", ". finally, ", ", then "),
            ),
        ),
        (
            1.5,
            Sequence(
                opens=("once ", "when ", "as soon as ", "after "),
                seconds=(", ",),
                links=(", then ", ", and then ", ". then "),
                lasts=(", and finally ", ". finally, "),
                moods=("has", "finite"),
            ),
        ),
        (
            1.5,
            Sequence(
                seconds=(" after ", ", after ", " only after ", " right after "),
                links=(" and then ", " and "),
                steps=(2, 3),
                last_first=True,
            ),
        ),
        (
            1.0,
            Sequence(
                opens=("before ",), seconds=(", ",), links=(" and then ", ", then "), steps=(2, 3), last_first=True
            ),
        ),
        (1.0, Sequence(links=("; ", ", ", ";  then "), lasts=("; ", "; finally ", ", and finally "))),
        (1.0, Sequence(links=(" and ", ", and ", ", "), lasts=(" and ", ", and "), steps=(2, 3))),
        (
            1.5,
            Sequence(
                links=(", ", "; ", " -> ", ". ", " > ", " => ", " / ", ", then ", "\n", " | ", " ... "),
                moods=("note", "note"),
                steps=(1, 4),
                close="",
            ),
        ),
        (
            1.5,
            Sequence(
                opens=("shows",),
                links=(", and then ", ", then ", " and then "),
                lasts=(", and finally ", ", then "),
                moods=("that", "that"),
                steps=(1, 3),
            ),
        ),
        (
            2.5,
            Sequence(
                opens=("shows",),
                links=(
                    ", then ",
                    " and then ",
                    ", followed by ",
                    ", and then ",
                    " followed by ",
                    ", next ",
                    ", then by ",
                )[:6],
                lasts=(", and finally ", ", then ", ", and then "),
                moods=("ing", "ing"),
                steps=(1, 4),
            ),
        ),
        (
            1.0,
            Sequence(
                links=(", followed by ", ", then comes ", " followed by ", ", which is followed by "),
                lasts=(", and finally ", ", and then by ", ", followed by "),
                moods=("finite", "ing"),
            ),
        ),
        (
            1.5,
            Sequence(
                opens=("asks",),
                links=(
                    ", then make ",
                    ", then let ",
                    ", then have ",
                    " and then let ",
                    ". then make ",
                    ". next, have ",
                    ", and then have ",
                ),
                lasts=(", and finally let ", ", finally make ", ". finally, have "),
                moods=("base", "base"),
                steps=(1, 4),
            ),
        ),
        (
            1.0,
            Sequence(
                opens=("wishes",),
                links=(", then ", " and then ", ", and ", ", and then "),
                lasts=(", and finally ", " and at the end "),
                moods=("to", "to"),
                steps=(1, 4),
            ),
        ),
        (
            1.2,
            Sequence(
                opens=(
                    "it starts with ",
                    "it begins with ",
                    "start with ",
                    "the clip starts with ",
                    "we start with ",
                    "begin with ",
                ),
                links=(". then comes ", ", then ", ". next is ", ", continues with ", ", followed by "),
                seconds=(". then comes ", ", then ", ", followed by ", " and goes on with ", ". next comes "),
                lasts=(", and ends with ", " and it ends with ", ". at the end: ", ", and finally "),
                moods=("ing", "ing"),
            ),
        ),
        (
            0.8,
            Sequence(
                opens=("scenes",),
                links=(", then ", " and then ", ", and then "),
                lasts=(", and finally ",),
                steps=(1, 4),
            ),
        ),
        (
            0.8,
            Sequence(
                opens=("scenes",),
                links=(". then ", ". after that ", ". next "),
                lasts=(". finally ", ". at last "),
                steps=(1, 4),
            ),
        ),
    ),
)

HELD_OUT = Wordings(
    plain=False,
    colours=_lists(
        red="ruby red, red-coloured, red painted, intensely red, poppy red, reddish",
        green="green-coloured, green painted, apple green, intensely green, bottle green, greenish",
        blue="blue-coloured, blue painted, electric blue, intensely blue, steel blue, bluish",
        yellow="yellow-coloured, yellow painted, intensely yellow, butter yellow, daffodil yellow, yellowish",
        orange="orange-coloured, orange painted, intensely orange, fiery orange",
        purple="purple-coloured, purple painted, intensely purple, royal purple",
    ),
    kinds=_lists(
        ball="playground ball, gym ball, toy balloon-like ball, volleyball, juggling ball",
        box="packing box, gift box, storage box, shoebox, moving box",
        bell="temple bell, sleigh bell, brass bell, tower bell, reception bell",
        face="puppet face, comic face, drawn face, clown's face, chatty face",
    ),
    people=_lists(
        orange="grown man, tall man, man of deep voice, bass-voiced face, low-speaking face",
        purple="old woman, tall woman, woman of high voice, soprano-voiced face, high-speaking face",
    ),
    voices=_lists(orange="rumbling low voice, growling deep voice", purple="piping high voice, clear high voice"),
    tones=_lists(
        orange="with the voice kept low, using a low voice", purple="with the voice kept high, using a high voice"
    ),
    places=_lists(
        left="towards the left, in the left third, over at the left hand, nearest the left",
        middle="in the middle third, around the middle, midway",
        right="towards the right, in the right third, over at the right hand, nearest the right",
    ),
    counts={
        1: ("on one occasion", "one time only", "no more than once", "a first and only time"),
        2: ("on two occasions", "two times over", "no less than twice", "twice altogether"),
        3: ("on three occasions", "no less than three times", "three times altogether", "three times running"),
    },
    numerals={1: ("precisely one", "a lone"), 2: ("precisely two", "two separate"), 3: ("precisely three", "three separate")},
    verbs=_verbs(
        bounce="do its bounce, go bouncing, start to bounce, perform a jump, rise + fall, jump off the ground, vault",
        ring="ring its tone, begin to ring, sound a ring, start ringing, ring loud and clear, reverberate, let its ring be heard",
        hit="make contact with, drive into, travel into, give a hit to, rush into, hurtle into, jostle, clash with, slide up to + hit",
        say="proclaim, intone, remark, voice aloud, let us hear, come out with, speak the text, say for all to hear",
    ),
    passives=("driven into", "jostled", "rushed into"),
    nouns=_lists(bounce="upward jump, leap upwards", ring="clear ring, ringing tone, bell note"),
    light_verbs=_verbs(bounce="complete, manage, carry out", ring="deliver, offer, release"),
    again=("yet again", "for another time", "as before"),
    sizes=("neat", "solitary", "glossy", "lovely"),
    speech=(" - I quote - ", " these digits: ", " exactly this: ", " in words: ", " (quote) "),
    stands=("has its place", "can be found", "is positioned", "is parked"),
    there=("present {is} ", "to be seen {is} ", "the set consists of ", "our players: ", "one notices "),
    idle={
        "": ("takes no part", "has nothing to do", "is only decoration", "stays out of it", "keeps its place"),
        "ball": (),
        "box": (),
        "bell": (),
        "face": (),
    },
    still=("not a thing occurs", "there is no action whatsoever", "it remains a still life"),
    scenes=("picture this: ", "the story goes like this: ", "let us watch how ", "our film tells how "),
    shows=("render ", "a recording of ", "a view of ", "let me watch ", "produce a film of "),
    asks=("see to it that we watch ", "kindly let ", "now you should make "),
    wishes=("allow ", "order ", "instruct ", "the director wants "),
    ends=(" curtain.", " fin.", " no more than this."),
    sequences=(
        (3.0, Sequence(links=(", whereupon ", ", and subsequently ", ", which done, "), lasts=(", and to conclude, ", ", and ultimately "))),
        (2.0, Sequence(links=(". thereafter, ", ". that done, ", ". it is followed up: "), lasts=(". to conclude, ", ". to top it off, "))),
        (1.5, Sequence(opens=("step 1: ",), links=(". step {n}: ", "; step {n}: "))),
        (1.0, Sequence(opens=("to open, ", "act one: "), links=(", act {n}: ", ", thereafter "), lasts=(", to close, ",))),
        (1.5, Sequence(seconds=(", but not until ", ", though not before "), links=(" and thereafter ",), steps=(2, 3), last_first=True, moods=("finite", "has"))),
        (1.5, Sequence(opens=("following the moment when ", "no sooner than ")[:1], seconds=(", ",), links=(", thereafter ", ", whereupon "), lasts=(", to conclude, ",))),
        (1.0, Sequence(opens=("ahead of everything else, ",), seconds=(", whereupon ",), links=(", thereafter ", ", whereupon "))),
        (1.0, Sequence(links=(" >> ", " & thereafter: ", " + thereafter "), moods=("note", "note"))),
        (1.5, Sequence(opens=("shows",), links=(", succeeded by ", " and thereafter "), moods=("ing", "ing"), steps=(1, 4))),
        (0.7, Sequence(opens=("asks",), links=(", thereafter let ", ", subsequently have "), moods=("base", "base"), steps=(1, 4))),
        (0.7, Sequence(opens=("wishes",), links=(", and thereafter ", ", subsequently "), moods=("to", "to"), steps=(1, 4))),
        (1.5, Sequence(opens=("scenes",), links=(", whereupon ", ", thereafter "), lasts=(", and ultimately ",), steps=(1, 4))),
    ),
)  # fmt: skip
WORDINGS = {"train": (PLAIN, TRAIN), "held-out": (HELD_OUT,)}
