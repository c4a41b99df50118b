import dataclasses
import re

import pytest

from baton_diffusers.cues import parse_sheet
from baton_diffusers.stage import (
    Action,
    Actor,
    Scene,
    describe_frame,
    sample_scene,
    timeline,
    write_cues,
    write_prompt,
)
from baton_diffusers.stage.prompts import MAX_PROMPT_CHARACTERS, describe
from baton_diffusers.stage.scene import DIGITS
from baton_diffusers.stage.wordings import HELD_OUT, PLAIN, TRAIN, Sequence, verb


SCENE = Scene(
    (Actor("ball", "red", "left"), Actor("bell", "green", "middle"), Actor("face", "purple", "right")),
    (Action("bounce", 0, 2), Action("ring", 1), Action("say", 2, 1, ("nine",))),
)


def prompts(number, wordings="train"):
    """Scenes with what is said of them, without slips: misspelt words are not looked for."""
    for seed in range(number):
        scene = sample_scene(seed)
        yield scene, describe(scene, seed, wordings)


def phrases(of):
    """All that a set of wordings or a part of it can contribute to a text, in lower case."""
    if isinstance(of, str):
        return {of.split("{")[0].strip(" .,;:->&+").lower()}
    if isinstance(of, Sequence):
        of = [part for part in (of.opens, of.links, of.seconds, of.lasts)]
    elif dataclasses.is_dataclass(of):
        of = [getattr(of, field.name) for field in dataclasses.fields(of)]
    elif isinstance(of, dict):
        of = of.values()
    return set().union(*map(phrases, of)) if isinstance(of, (list, tuple, type({}.values()))) else set()


def tells(text, options):
    return any(re.search(rf"\b{re.escape(option)}\b", text, re.I) for option in options)


def test_prompts_are_deterministic_and_paraphrased():
    scene = sample_scene(1, tier="medium")
    for wordings in ("train", "held-out"):
        assert describe(scene, 0, wordings) == describe(scene, 0, wordings)
        assert len({write_prompt(scene, seed, wordings) for seed in range(400)}) > 380
    with pytest.raises(ValueError, match="wordings.*'mine'"):
        describe(scene, 0, "mine")


@pytest.mark.parametrize("wordings", ["train", "held-out"])
def test_a_prompt_tells_the_places_and_colours_that_it_says_it_tells(wordings):
    """Of an actor whose colour or place no other has; half of the places and most of the colours are told."""
    known = (PLAIN, TRAIN) if wordings == "train" else (HELD_OUT,)
    told = {"places": [], "colours": []}
    for scene, prompt in prompts(600, wordings):
        assert len(prompt.text) <= MAX_PROMPT_CHARACTERS
        slips = sum(tells(prompt.text, (w,)) for w in ("left", "middle", "centre", "center", "right"))
        for i, actor in enumerate(scene.actors):
            told["places"].append(prompt.places[i])
            told["colours"].append(prompt.colours[i])
            words = {"middle": ("middle", "cent", "midway", "between them")}.get(actor.spot, (actor.spot,))
            if slips and prompt.places[i]:
                assert any(word in prompt.text.lower() for word in words) or "ef" in prompt.text, prompt
            if sum(other.colour == actor.colour for other in scene.actors) == 1 and not prompt.colours[i]:
                names = {actor.colour}.union(*(w.colours.get(actor.colour, ()) for w in known))
                assert not tells(prompt.text, names - {"bright", "light", "sunny"}), prompt
                if actor.kind == "face":
                    assert not tells(prompt.text, TRAIN.tones[actor.colour]), prompt
    assert 0.4 < sum(told["places"]) / len(told["places"]) < 0.8
    assert 0.85 < sum(told["colours"]) / len(told["colours"]) < 0.98


def test_what_is_said_is_told_in_its_order_and_every_count_is_told_in_plain_prompts():
    digits = {**dict.fromkeys(DIGITS), **{str(i): word for i, word in enumerate(DIGITS)}}
    for scene, prompt in prompts(600):
        for action in scene.script:
            if len(set(action.words)) == action.count > 1:
                text = re.sub(r"\d", lambda match: f" {digits[match.group()]} ", prompt.text.lower())
                words = re.findall(r"[a-z]+", text)
                joined = " ".join(word for word in words if word not in ("and", "then"))
                assert " ".join(action.words) in joined, prompt
    plain = [re.search(r"\b(hops|bounces|jumps) (twice|two times)", write_prompt(SCENE, seed)) for seed in range(100)]
    assert sum(map(bool, plain)) >= 20


def test_plain_prompts_keep_the_order_of_the_script():
    verbs = r"(bounces|jumps|hops) .*(rings|chimes).* (says|speaks|calls out) nine"
    found = [write_prompt(SCENE, seed) for seed in range(200)]
    assert sum(bool(re.search(verbs, prompt)) for prompt in found) >= 40


def test_who_is_there_and_what_it_does_is_told_in_any_words():
    """Of kinds and verbs whose every name is known; forms of a verb are told by their beginning."""
    for wordings, known in (("train", TRAIN), ("held-out", HELD_OUT)):
        for seed in range(200):
            text = write_prompt(SCENE, 20 * seed, wordings).lower()
            if wordings == "train" and any(len(word) > 4 for word in set(re.findall("[a-z]+", text)) - WORDS):
                continue  # a slip
            for kind in ("ball", "bell"):
                assert tells(text, (kind, *known.kinds[kind])), text
            faces = ("face", *known.kinds["face"], *known.people["purple"], *known.voices["purple"])
            assert tells(text, faces), text
            assert tells(text, ("nine", "9")), text


WORDS = set(re.findall("[a-z]+", " ".join(phrases(TRAIN) | phrases(PLAIN)))) | set(DIGITS)


def test_held_out_wordings_never_occur_in_training():
    held_out = {phrase for phrase in phrases(HELD_OUT) if len(phrase) > 2} - {"shows", "asks", "wishes", "scenes"}
    assert len(held_out) > 250
    assert not held_out & (phrases(TRAIN) | phrases(PLAIN))
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(held_out, key=len, reverse=True))) + r")\b")
    for scene, prompt in prompts(2000):
        assert not pattern.search(prompt.text.lower()), prompt
    for scene, prompt in prompts(500, "held-out"):
        assert any(phrase in prompt.text.lower() for phrase in held_out), prompt


@pytest.mark.parametrize(
    "phrase, forms",
    [
        ("hop up and down", "hop up and down, hops up and down, hopping up and down, hopped up and down, hopped up and down"),
        ("move over + hit", "move over and hit, moves over and hit, moving over and hit, moved over and hit, moved over and hit"),
        ("cry", "cry, cries, crying, cried, cried"),
        ("smash into", "smash into, smashes into, smashing into, smashed into, smashed into"),
        ("slide", "slide, slides, sliding, slid, slid"),
    ],
)  # fmt: skip
def test_verbs_are_inflected(phrase, forms):
    forms = forms.replace("moves over and hit", "moves over and hits").replace(
        "moving over and hit", "moving over and hitting"
    )
    assert ", ".join(verb(phrase)) == forms


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
    assert {cue.text for cue in parse_sheet(write_cues(SCENE, 0)).cues} == {
        "red ball bounces",
        "green bell rings",
        "purple face says nine",
    }


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
