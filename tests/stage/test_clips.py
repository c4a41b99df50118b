"""Stage as training data."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from baton_diffusers.models.latents import to_video
from baton_diffusers.stage import render_clip, training_prompt, write_prompt
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.stage.scene import SPLITS


def test_an_index_names_a_clip():
    clips = StageClips(seed=1)
    sample, again, other = clips[5], StageClips(seed=1)[5], StageClips(seed=2)[5]
    assert sample["prompt"] == again["prompt"] == clips.prompt(5)
    assert torch.equal(sample["frames"], again["frames"]) and torch.equal(sample["waveform"], again["waveform"])
    assert not torch.equal(sample["frames"], other["frames"])
    scene, seed = clips.scene(5)
    np.testing.assert_array_equal(render_clip(scene, seed).frames, sample["frames"].numpy())
    assert training_prompt(scene, seed) == sample["prompt"]
    held = StageClips("validation", seed=1)
    assert held.prompt(5) == write_prompt(*held.scene(5))


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_keeps_to_its_split(split):
    clips = StageClips(split)
    assert {clips.scene(index)[0].split for index in range(50)} == {split}


def test_tiers_come_as_often_as_asked():
    clips = StageClips(tier_weights={"simple": 3, "complex": 1})
    tiers = [clips.scene(index)[0].tier for index in range(200)]
    assert "medium" not in tiers and 0.65 < tiers.count("simple") / 200 < 0.85


@pytest.mark.parametrize("weights", [{"hard": 1}, {"simple": -1, "medium": 2}, {"simple": 0}, {}])
def test_wrong_tier_weights_are_refused(weights):
    with pytest.raises(ValueError, match="tier_weights"):
        StageClips(tier_weights=weights)


def test_a_rare_action_comes_as_often_as_asked():
    clips = StageClips(verb_shares={"hit": 0.5, "ring": 0.5})
    scenes = [clips.scene(index)[0] for index in range(100)]
    verbs = [{action.verb for action in scene.script} for scene in scenes]
    assert all(done & {"hit", "ring"} for done in verbs)
    assert sum("hit" in done for done in verbs) >= 40 and sum("ring" in done for done in verbs) >= 40
    assert {scene.split for scene in scenes} == {"train"}
    assert StageClips(verb_shares={}).scene(7) == StageClips().scene(7)


def test_a_box_between_two_others_hits_as_often_as_asked():
    clips = StageClips(verb_shares={"hit of two": 1.0})
    for index in range(12):
        scene, _ = clips.scene(index)
        assert any(action.verb == "hit" and 0 < action.actor < len(scene.actors) - 1 for action in scene.script)


@pytest.mark.parametrize("shares", [{"jump": 0.1}, {"hit": -0.1}, {"hit": 0.6, "ring": 0.6}])
def test_wrong_verb_shares_are_refused(shares):
    with pytest.raises(ValueError, match="verb_shares"):
        StageClips(verb_shares=shares)


def test_batches_and_foreground():
    clips = StageClips(foreground=True)
    batch = default_collate([clips[0], clips[1]])
    assert batch["frames"].shape == (2, 49, 64, 64, 3) and batch["waveform"].shape == (2, 49000)
    assert batch["foreground"].shape == (2, 49, 64, 64) and isinstance(batch["prompt"][0], str)
    share = batch["foreground"].float().mean(dim=(1, 2, 3))
    assert ((share > 0.02) & (share < 0.4)).all()
    assert not batch["foreground"][:, :, :2].any(), "no actor reaches the top rows"


def test_sound_can_be_had_without_the_picture():
    whole, sound = StageClips(seed=3)[5], StageClips(seed=3, frames=False)[5]
    assert set(whole) - set(sound) == {"frames"}
    assert torch.equal(sound["waveform"], whole["waveform"]) and sound["prompt"] == whole["prompt"]
    with pytest.raises(ValueError, match="`foreground` is the mask of `frames`"):
        StageClips(foreground=True, frames=False)


def test_frames_become_video():
    frames = StageClips()[0]["frames"][None]
    video = to_video(frames)
    assert video.shape == (1, 3, 49, 64, 64) and video.min() >= -1 and video.max() <= 1
    assert torch.equal(((video + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1), frames)
