import json
from dataclasses import replace
from itertools import pairwise

import pytest

from baton_diffusers.stage import Action, Actor, Scene, render_clip, sample_scene, timeline
from baton_diffusers.stage.scene import FRAME_RATE, GAP, HELD_OUT_ORDERS, HELD_OUT_PAIRS, LAST_FRAME, SPLITS, TIERS


SEEDS = range(100)
BALL, BOX, FACE = Actor("ball", "red", "left"), Actor("box", "blue", "middle"), Actor("face", "orange", "right")


def test_the_same_seed_draws_the_same_scene_and_times():
    for seed in range(20):
        assert sample_scene(seed) == sample_scene(seed)
        assert timeline(sample_scene(seed), 1) == timeline(sample_scene(seed), 1)
    assert len({sample_scene(seed) for seed in SEEDS}) > 0.9 * len(SEEDS)


def test_known_scenes_stay_as_they_are():
    """Published scores refer to scenes by their seeds."""
    scene = sample_scene(0, tier="complex", split="test")
    assert scene.digest == 0x1A6ADBAE4D76EAB0, "scenes changed: published benchmark figures no longer apply"


def test_no_split_yields_a_scene_of_another():
    for split in SPLITS:
        assert {sample_scene(seed, split=split).split for seed in range(30)} == {split}


def test_a_tenth_of_the_scenes_is_test_a_tenth_validation_and_a_tenth_held_out():
    splits = [sample_scene(seed).split for seed in range(1000)]
    for split in ("validation", "test", "test-combinations"):
        assert 0.06 < splits.count(split) / 1000 < 0.13


def test_held_out_combinations_are_in_no_other_split():
    pairs, orders = set(), set()
    for split in SPLITS:
        for seed in range(60):
            scene = sample_scene(seed, split=split)
            names = [actor.name for actor in scene.actors]
            shown = {
                (names[a.actor], a.verb, name)
                for a in scene.script
                for name in (names if a.target is None else [names[a.target]])
            }
            kinds = tuple(scene.actors[action.actor].kind for action in scene.script)
            followed = {kinds[i : i + 3] for i in range(len(kinds) - 2)}
            if split == "test-combinations":
                assert shown & HELD_OUT_PAIRS or followed & HELD_OUT_ORDERS
                pairs, orders = pairs | shown & HELD_OUT_PAIRS, orders | followed & HELD_OUT_ORDERS
            else:
                assert not shown & HELD_OUT_PAIRS and not followed & HELD_OUT_ORDERS
    assert len(pairs) == len(HELD_OUT_PAIRS) and len(orders) > 1


def test_who_and_what_is_held_out_together_is_trained_apart():
    scenes = [sample_scene(seed, split="train") for seed in range(200)]
    acting = {(scene.actors[a.actor].name, a.verb) for scene in scenes for a in scene.script}
    assert {pair[:2] for pair in HELD_OUT_PAIRS} <= acting
    assert {pair[2] for pair in HELD_OUT_PAIRS} <= {actor.name for scene in scenes for actor in scene.actors}


def test_the_split_depends_on_what_happens_only():
    scene = sample_scene(3)
    copy = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert copy == scene and copy.split == scene.split and copy.digest == scene.digest


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_keep_their_promise(tier):
    for seed in SEEDS:
        scene = sample_scene(seed, tier=tier)
        assert scene.tier == tier
        assert len(scene.script) in {"simple": (0, 1), "medium": (2,), "complex": (3, 4)}[tier]
        if tier == "complex":
            assert len({action.actor for action in scene.script}) >= 2


def test_complex_scenes_are_often_hits_and_dialogues():
    scenes = [sample_scene(seed, tier="complex") for seed in SEEDS]
    hits = [any(action.verb == "hit" for action in scene.script) for scene in scenes]
    dialogues = [len({action.actor for action in scene.script if action.verb == "say"}) == 2 for scene in scenes]
    assert sum(hits) > len(scenes) / 4 and sum(dialogues) > len(scenes) / 4


def test_every_instant_lies_on_the_frame_grid_in_order_and_apart():
    for seed in SEEDS:
        scene = sample_scene(seed)
        for render_seed in range(3):
            events = timeline(scene, render_seed)
            assert len(events) == sum(action.count for action in scene.script)
            assert [event.action for event in events] == sorted(event.action for event in events)
            assert all(event.time * FRAME_RATE == event.frame <= LAST_FRAME for event in events)
            assert all(after.frame - before.frame >= GAP for before, after in pairwise(events))


def test_in_a_few_simple_scenes_nothing_happens():
    for split in ("train", "test-combinations"):
        scenes = [sample_scene(seed, "simple", split) for seed in range(100)]
        idle = [scene for scene in scenes if not scene.script]
        assert 0 < len(idle) < 10 if split == "train" else not idle
        for scene in idle:
            clip = render_clip(scene, 0)
            assert timeline(scene, 0) == () and not clip.waveform.any() and (clip.frames == clip.frames[0]).all()


def test_times_are_drawn_per_render_seed():
    scene = sample_scene(5, tier="simple")
    assert len({timeline(scene, seed) for seed in range(20)}) > 5


@pytest.mark.parametrize(
    ("actors", "script", "message"),
    [
        ((replace(BALL, spot="right"), replace(BOX, spot="left")), (Action("bounce", 0),), "from left to right"),
        ((BALL, Actor("ball", "red", "middle")), (Action("bounce", 0),), "differ in kind or colour"),
        ((BALL, FACE), (Action("bounce", 0), Action("say", 1, 1, ("one",))) * 3, "6 actions"),
        ((BALL, BOX), (Action("ring", 0),), "cannot ring"),
        ((BALL, BOX), (Action("bounce", 2),), "cast has 2"),
        ((BALL, BOX), (Action("bounce", 0), Action("bounce", 0)), "twice in succession"),
        ((BALL, BOX), (Action("hit", 1, target=5),), "another of the 2"),
        ((BALL, BOX, FACE), (Action("hit", 1, target=0), Action("bounce", 0), Action("hit", 1, target=0)), "no room"),
        ((BALL, FACE), (Action("bounce", 0, 3), Action("say", 1, 3, ("one",) * 3)) * 2, "too long"),
    ],
)
def test_impossible_scenes_are_refused(actors, script, message):
    with pytest.raises(ValueError, match=message):
        Scene(actors, script)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Actor("cube", "red", "left"), "kind"),
        (lambda: Actor("ball", "orange", "left"), "colour"),
        (lambda: Actor("ball", "red", "top"), "spot"),
        (lambda: Action("sing", 0), "verb"),
        (lambda: Action("bounce", 0, 4), "count"),
        (lambda: Action("say", 0, 2, ("one",)), "words"),
        (lambda: Action("say", 0, 1, ("ten",)), "words"),
        (lambda: Action("bounce", 0, target=1), "target"),
        (lambda: sample_scene(0, tier="hard"), "tier"),
        (lambda: sample_scene(0, split="dev"), "split"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        make()
