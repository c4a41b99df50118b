import dataclasses
import inspect
import os
import random
import re
import subprocess
import sys

import pytest

from baton_diffusers.cues import parse_sheet
from baton_diffusers.stage import Action, Actor, Scene, describe_frame, prompts, sample_scene, timeline, write_cues
from baton_diffusers.stage.prompts import MAX_PROMPT_CHARACTERS, describe, training_prompt, write_prompt
from baton_diffusers.stage.scene import DIGITS
from baton_diffusers.stage.wordings import HELD_OUT, PLAIN, TRAIN, Sequence, verb


SCENE = Scene(
    (Actor("ball", "red", "left"), Actor("bell", "green", "middle"), Actor("face", "purple", "right")),
    (Action("bounce", 0, 2), Action("ring", 1), Action("say", 2, 1, ("nine",))),
)


def phrases(part):
    """All that a set of wordings, or a part of one, can bring into a text, in lower case."""
    if isinstance(part, str):
        return {part.split("{")[0].strip(" .,;:->&+").lower()}
    if isinstance(part, Sequence):
        part = (part.opens, part.links, part.seconds, part.lasts)
    elif dataclasses.is_dataclass(part):
        part = [getattr(part, field.name) for field in dataclasses.fields(part)]
    elif isinstance(part, dict):
        part = list(part.values())
    return set().union(*map(phrases, part)) if isinstance(part, (list, tuple)) else set()


# The words of the tables, and those in the source text of the grammar.
VOCABULARY = set(
    re.findall("[a-z]+", " ".join((*phrases(PLAIN), *phrases(TRAIN), *phrases(HELD_OUT), inspect.getsource(prompts))))
)


def described(number, wordings, scene=None):
    """Scenes with what is said of them; misspelt prompts are left out, since no word can be looked for in them."""
    for seed in range(number):
        shown = scene or sample_scene(seed)
        prompt = describe(shown, seed, wordings)
        if set(re.findall("[a-z]{4,}", prompt.text.lower())) <= VOCABULARY:
            yield shown, prompt


def tells(text, options):
    return re.search(rf"\b({'|'.join(map(re.escape, options))})\b", text, re.I)


def test_prompts_are_deterministic_and_paraphrased():
    for wordings in ("train", "held-out"):
        assert describe(SCENE, 0, wordings) == describe(SCENE, 0, wordings)
        assert len({write_prompt(SCENE, seed, wordings) for seed in range(400)}) > 380
    with pytest.raises(ValueError, match="wordings.*'mine'"):
        describe(SCENE, 0, "mine")


def test_prompts_do_not_depend_on_the_process():
    """Python orders sets of strings anew in each process."""
    code = "from baton_diffusers.stage import *; print([write_prompt(sample_scene(i), i) for i in range(30)])"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


@pytest.mark.parametrize("wordings, known", [("train", TRAIN), ("held-out", HELD_OUT)])
def test_a_prompt_tells_the_places_and_colours_that_it_says_it_tells(wordings, known):
    places, colours = [], []
    for scene, prompt in described(600, wordings):
        assert len(prompt.text) <= MAX_PROMPT_CHARACTERS
        places += prompt.places
        colours += prompt.colours
        for i, actor in enumerate(scene.actors):
            words = {"middle": ("middle", "cent", "midway", "between them")}.get(actor.spot, (actor.spot,))
            if prompt.places[i]:
                assert any(word in prompt.text.lower() for word in (*words, "left to right")), prompt
            if not prompt.colours[i] and sum(other.colour == actor.colour for other in scene.actors) == 1:
                names = {actor.colour, *known.colours[actor.colour], *known.tones.get(actor.colour, ())}
                assert not tells(prompt.text, names), prompt
    assert 0.4 < sum(places) / len(places) < 0.8
    assert 0.85 < sum(colours) / len(colours) < 0.98


@pytest.mark.parametrize("wordings, known", [("train", TRAIN), ("held-out", HELD_OUT)])
def test_a_prompt_tells_who_is_there_and_what_is_said(wordings, known):
    names = [(kind, *known.kinds[kind]) for kind in ("ball", "bell", "face")]
    names[2] += ("purple", *known.colours["purple"], *known.people["purple"], *known.voices["purple"])
    for _, prompt in described(400, wordings, SCENE):
        assert all(tells(prompt.text, options) for options in (*names, ("nine", "9"))), prompt


def test_words_are_told_in_their_order():
    for scene, prompt in described(600, "train"):
        text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit.group())]} ", prompt.text.lower())
        spoken = " ".join(word for word in re.findall("[a-z]+", text) if word not in ("and", "then"))
        for action in scene.script:
            if len(set(action.words)) > 1:
                counted = rf"from {action.words[0]} (up |down )?to {action.words[-1]}"
                assert " ".join(action.words) in spoken or re.search(counted, spoken), prompt


def test_a_share_of_the_prompts_is_plain():
    """Every actor is introduced once, with its place; every word is said in its order; every count is named."""
    plain = re.compile(
        r".*\ba red ball .*(bounces|jumps|hops) (twice|two times)\b.*(rings|chimes) (once|one time)\b.*(says|speaks|calls out) nine"
    )
    share = sum(bool(plain.match(write_prompt(SCENE, seed).lower())) for seed in range(400)) / 400
    assert 0.2 < share < 0.4


def test_held_out_wordings_never_occur_in_training():
    names = {"shows", "asks", "wishes", "scenes", "act", ""}  # of lists, and what is cut short by a number
    held_out = phrases(HELD_OUT) - names
    assert len(held_out) > 250
    assert not held_out & (phrases(TRAIN) | phrases(PLAIN))
    for _, prompt in described(1500, "train"):
        assert not (found := tells(prompt.text, held_out)), (found, prompt)
    for _, prompt in described(500, "held-out"):
        assert tells(prompt.text, held_out), prompt


def test_half_of_the_prompts_to_learn_from_have_made_up_words():
    texts = [write_prompt(SCENE, seed, "strange") for seed in range(200)]
    made_up = [set(re.findall("[a-z]{4,}", text.lower())) - VOCABULARY for text in texts]
    assert sum(map(bool, made_up)) > 180
    assert len(set().union(*made_up)) > 400
    for seed in range(20):
        wordings = ("train", "strange", "notes", "strange")[seed % 4]
        assert training_prompt(SCENE, seed) == write_prompt(SCENE, seed, wordings)


def test_made_up_words_leave_who_is_there_and_what_is_said(monkeypatch):
    monkeypatch.setattr(prompts._Writer, "_with_slip", lambda self, text, pattern: text)  # no word is misspelt
    names = [(kind, *TRAIN.kinds[kind]) for kind in ("ball", "bell", "face")]
    names[2] += (
        "purple",
        *TRAIN.colours["purple"],
        *TRAIN.people["purple"],
        *TRAIN.voices["purple"],
        "woman",
        "voice",
    )
    for seed in range(200):
        text = write_prompt(SCENE, seed, "strange")
        assert all(tells(text, options) for options in (*names, ("nine", "9"))), text


def test_notes_say_what_they_say_they_say():
    unread = ("places", "colours")
    found = dict.fromkeys(unread, 0)
    for scene, prompt in described(600, "notes"):
        text = prompt.text.lower()
        for i, actor in enumerate(scene.actors):
            words = {"middle": ("middle", "cent", "between")}.get(actor.spot, (actor.spot,))
            told = any(word in text for word in (*words, "left to right"))
            found["places"] += prompt.places[i] and not told  # a slip in the word itself
            if not prompt.colours[i] and sum(other.colour == actor.colour for other in scene.actors) == 1:
                found["colours"] += bool(tells(prompt.text, {actor.colour, *TRAIN.colours[actor.colour]}))
    assert found["places"] < 20 and not found["colours"]


TWO = Scene(
    (Actor("ball", "red", "left"), Actor("ball", "blue", "right")), (Action("bounce", 0, 1), Action("bounce", 1, 2))
)


@pytest.mark.parametrize(
    "scene, pattern",
    [
        (TWO, r"the other (one|ball)"),
        (TWO, r"the (first|second|last)( one| ball)?\b"),
        (TWO, r"\b(two|2)( little)? \w+s[,:]? .*\bred\b.* and .*\bblue\b"),
        (SCENE, r"\b(no wait|sorry|i mean|make that|no,|rather)"),
        (SCENE, r"[{]\W*(actors|cast|objects|scene)"),
        (SCENE, r"red[_ ]ball\.\w+"),
        (SCENE, r"^(•|-|\*|>) .*\n(•|-|\*|>) "),
        (SCENE, r"purple( \w+)?: ?\n?\"?(nine|9)"),
        (SCENE, r"(sfx|sound|action): "),
        (SCENE, r"nothing else on stage|nobody else|hold the shot"),
    ],
)
def test_notes_have_what_people_jot_down(scene, pattern):
    assert any(re.search(pattern, write_prompt(scene, seed, "notes").lower()) for seed in range(4000)), pattern


@pytest.mark.parametrize(
    "phrase, forms",
    [
        ("hop up and down", "hop up and down, hops up and down, hopping up and down, hopped up and down"),
        ("move over + hit", "move over and hit, moves over and hits, moving over and hitting, moved over and hit"),
        ("cry", "cry, cries, crying, cried"),
        ("smash into", "smash into, smashes into, smashing into, smashed into"),
        ("go off", "go off, goes off, going off, went off"),
    ],
)
def test_verbs_are_inflected(phrase, forms):
    assert ", ".join(verb(phrase)[:4]) == forms


def test_a_slip_leaves_the_digits_and_short_words_alone():
    writer = prompts._Writer(SCENE, TRAIN, random.Random(0))
    for _ in range(50):
        slipped = writer._with_slip("the red bell tolls three times", prompts._LONG_WORDS)
        assert re.fullmatch(r"the red bell \w+ three \w+", slipped)
        assert slipped != "the red bell tolls three times" or "ll" in slipped


def test_a_cue_sheet_tells_the_cast_with_places_and_who_does_what_to_whom():
    scene = Scene(
        (Actor("box", "red", "middle"), Actor("face", "orange", "right")),
        (Action("hit", 0, target=1), Action("say", 1, 2, ("two", "nine"))),
    )
    sheet = parse_sheet(write_cues(scene, 3))
    assert sheet.cast == (("red box", "middle"), ("orange face", "right"))
    assert [cue.text for cue in sheet.cues] == [
        "red box hits orange face",
        "orange face says two",
        "orange face says nine",
    ]
    assert [cue.time for cue in sheet.cues] == [round(event.time, 2) for event in timeline(scene, 3)]
    deeds = [cue.text for cue in parse_sheet(write_cues(SCENE, 0)).cues]
    assert deeds == ["red ball bounces", "red ball bounces", "green bell rings", "purple face says nine"]


def test_frames_are_described_as_they_are():
    scene = Scene(
        (Actor("box", "blue", "left"), Actor("ball", "red", "middle"), Actor("face", "orange", "right")),
        (Action("bounce", 1), Action("hit", 0, target=1), Action("say", 2, 1, ("six",))),
    )
    landing, contact, word = (event.frame for event in timeline(scene, 0))
    assert describe_frame(scene, 0, 0) == (
        "a blue box on the left, a red ball in the middle, an orange face on the right with its mouth closed"
    )
    assert "ball in the middle in the air" in describe_frame(scene, 0, landing - 3)
    assert "ball in the middle landing" in describe_frame(scene, 0, landing)
    assert "box on the left sliding" in describe_frame(scene, 0, contact - 2)
    assert "ball in the middle being hit" in describe_frame(scene, 0, contact)
    assert "with its mouth open" in describe_frame(scene, 0, word)
    with pytest.raises(ValueError, match="frame_index"):
        describe_frame(scene, 0, 49)
