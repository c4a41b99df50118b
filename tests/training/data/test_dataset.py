"""The dataset of cached features: every clip in turn, in batches of one shape, and what is damaged is named."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load, save

from baton_diffusers.models.latents import encode_audio_latents, to_video
from baton_diffusers.stage import write_cues
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.dataset import CachedFeatures, collate_features
from tests import stage_parts

from .conftest import cache, contents


def test_a_sample_holds_normalised_latents_and_the_plan_of_its_clip(folder):
    clips, features = StageClips("train"), CachedFeatures(folder)
    assert features.num_clips == 4
    samples = {sample["prompt"]: sample for sample in map(features.__getitem__, range(4))}
    vae, audio_vae = stage_parts.codecs()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    for index in range(4):
        clip, sample = clips[index], samples[clips.prompt(index)]
        with torch.no_grad():
            latents = vae.encode(to_video(clip["frames"][None])).latent_dist.mode()
            audio = encode_audio_latents(audio_vae, clip["waveform"][None], 49 / 16, 31.25)
        assert torch.allclose(sample["latents"], ((latents - mean) / std)[0], atol=2e-3)
        assert audio.shape == (1, 96, audio_vae.config.latent_channels)
        assert torch.allclose(sample["audio_latents"], audio[0], atol=2e-3)
        assert not sample["silent"] and not sample["static"]
    batch = collate_features([features[0], features[1]])
    plan = features.plan(batch["video_tokens"], batch["audio_tokens"])
    assert plan.duration == 49 / 16 and plan.video_tokens is batch["video_tokens"]
    assert features.plan_layout["duration"] == 49 / 16


def test_an_epoch_sees_each_clip_once_and_the_next_in_another_order(folder):
    features = CachedFeatures(folder)
    epochs = [[features[index]["prompt"] for index in range(start, start + 4)] for start in (0, 4, 8, 12)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_stage_prompts_are_paraphrased_anew(folder):
    clips = StageClips("train")
    features, plain = CachedFeatures(folder, clips), CachedFeatures(folder)
    assert features[5]["prompt"] == features[5]["prompt"]
    assert torch.equal(features[5]["latents"], plain[5]["latents"])
    assert len({features[index]["prompt"] for index in range(16)}) > 4


def test_cues_are_those_of_the_clip_however_it_is_told(folder):
    clips = StageClips("train")
    features, without = CachedFeatures(folder, clips), CachedFeatures(folder)
    expected = {write_cues(*clips.scene(number)) for number in range(4)}
    assert {features[index]["cues"] for index in range(4)} == expected
    assert [features[index]["cues"] for index in range(4)] == [without[index]["cues"] for index in range(4)]


def put(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def spoil(path, name, change):
    """Changes a tensor of the first clip of a shard, where it lies."""
    index = json.loads(path.with_suffix(".index.json").read_text())
    start, length = index["clips"][0]["members"]["safetensors"]
    data = path.read_bytes()
    tensors = load(data[start : start + length])
    spoilt = save({**tensors, name: change(tensors[name])})
    assert len(spoilt) == length
    path.write_bytes(data[:start] + spoilt + data[start + length :])


@pytest.mark.parametrize(
    "name, damage",
    [
        ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
        ("manifest.json", lambda path: path.write_text("null")),
        ("manifest.json", lambda path: put(path, b"features-00000.tar", b"../secret.tar")),
        ("manifest.json", lambda path: put(path, b'"bytes"', b'"size"')),
        ("features-00000.index.json", lambda path: path.write_bytes(b"{")),
        ("features-00000.index.json", lambda path: put(path, b'"members"', b'"parts"')),
        ("features-00000.index.json", lambda path: put(path, b"1024", b"999999999")),
        ("features-00000.tar", lambda path: put(path, b"audio_tokens", b"other_tokens")),
        ("features-00000.tar", lambda path: put(path, b'{"clip"', b'["clip"')),
        ("features-00000.tar", lambda path: spoil(path, "latents", lambda value: value * float("nan"))),
        ("features-00000.tar", lambda path: spoil(path, "video_tokens", lambda value: value.view(torch.int16))),
        ("features-00000.tar", lambda path: spoil(path, "duration", lambda value: -value)),
        ("features-00000.index.json", lambda path: put(path, b'"flagged": false', b'"flagged": "no" ')),
        ("features-00000.index.json", lambda path: os.truncate(path, 2**33)),
        ("features-00000.index.json", lambda path: (path.unlink(), os.mkfifo(path))),
        ("recipe.json", lambda path: path.write_text("[")),
        ("recipe.json", lambda path: path.write_text("[]")),
    ],
)
def test_what_is_damaged_is_named(folder, tmp_path, name, damage):
    shutil.copytree(folder, tmp_path / "damaged")
    damage(tmp_path / "damaged" / name)
    with pytest.raises(ValueError, match=f"{name}.* damaged"):
        if name == "recipe.json":
            cache(tmp_path / "damaged")
        features = CachedFeatures(tmp_path / "damaged")
        for number in range(4):
            features[number]
    if name != "recipe.json":
        assert cache(tmp_path / "damaged", verify=True) and contents(tmp_path / "damaged") == contents(folder)


def test_a_clip_of_another_shape_than_its_bucket_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    spoil(tmp_path / "damaged" / "features-00000.tar", "audio_tokens", lambda value: value.reshape(value.shape[::-1]))
    with pytest.raises(ValueError, match=r"`audio_tokens` of clip \d+ has shape .* but that of others"):
        features = CachedFeatures(tmp_path / "damaged")
        _ = [features[number] for number in range(4)]


def test_wrong_input_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="were made from .*'seed': 0.*not from .*'seed': 7"):
        CachedFeatures(folder, StageClips("train", seed=7))
    with pytest.raises(ValueError, match="not from .*'verb_shares': {'hit': 0.4}"):
        CachedFeatures(folder, StageClips("train", verb_shares={"hit": 0.4}))
    with pytest.raises(ValueError, match="no embeddings of prompts.*--text"):
        _ = CachedFeatures(folder).empty_prompt_embeds
    with pytest.raises(ValueError, match="no features.*baton cache"):
        CachedFeatures(tmp_path, StageClips("train"))
