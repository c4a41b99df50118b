import re

import pytest

from baton_diffusers.stage import Action, Actor, Scene, describe_frame, sample_scene, timeline, write_prompt


def test_prompts_are_deterministic_and_paraphrased():
    scene = sample_scene(1, tier="medium")
    assert write_prompt(scene, 0) == write_prompt(scene, 0)
    assert len({write_prompt(scene, seed) for seed in range(40)}) > 20


def test_prompts_say_everything_and_nothing_twice():
    """Every actor is introduced once, with its place; every word is said in its order; every count is named."""
    for seed in range(150):
        scene = sample_scene(seed)
        prompt = write_prompt(scene, seed)
        for actor in scene.actors:
            place = {"left": "left", "middle": "(?:middle|centre)", "right": "right"}[actor.spot]
            introduced = re.findall(
                rf"\ban? {actor.name}(?: is| stands| waits)? (?:on|at|in) the {place}", prompt, re.I
            )
            assert len(introduced) == 1, prompt
        plain = prompt.lower().replace(",", "").replace(".", "")
        for action in scene.script:
            assert " ".join(action.words) in plain, prompt
        counted = [action.count for action in scene.script if action.verb in ("bounce", "ring")]
        said = re.findall(r"once|one time|twice|two times|three times", plain)
        assert [{"o": 1, "t": 2}[word[0]] if word != "three times" else 3 for word in said] == counted, prompt


def test_prompts_keep_the_order_of_the_script():
    scene = Scene(
        (Actor("ball", "red", "left"), Actor("bell", "green", "middle"), Actor("face", "purple", "right")),
        (Action("bounce", 0, 2), Action("ring", 1), Action("say", 2, 1, ("nine",))),
    )
    verbs = r"(bounces|jumps|hops) .*(rings|chimes).* (says|speaks|calls out) nine"
    for seed in range(40):
        prompt = write_prompt(scene, seed)
        assert re.search(verbs, prompt) and prompt[0].isupper() and prompt.endswith("."), prompt


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
