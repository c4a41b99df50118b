"""Cached features: whole shards, exact order, and the same latents and plans as the pipeline would make."""

import pytest
import torch

from baton_diffusers.training.data import StageClips, to_video
from baton_diffusers.training.features import CachedFeatures, cache_features, collate_features, encode_audio_latents
from tests import stage_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    cache(folder, num_clips=4)
    return folder


def cache(folder, num_clips):
    cache_features(
        folder, StageClips("train"), num_clips, *stage_parts.codecs(), *stage_parts.semantic_encoders(), 16.0, 31.25, 2
    )


def test_a_sample_holds_normalised_latents_and_the_plan_of_its_clip(folder):
    clips = StageClips("train")
    features = CachedFeatures(folder, clips)
    assert features.num_clips == 4
    vae, audio_vae = stage_parts.codecs()
    cached = {tuple(sample["audio_latents"].flatten()[:4].tolist()) for sample in map(features.__getitem__, range(4))}
    for index in range(4):
        sample = clips[index]
        audio = encode_audio_latents(audio_vae, sample["waveform"][None], 49 / 16, 31.25)
        assert audio.shape == (1, 96, audio_vae.config.latent_channels)
        assert tuple(audio.half().float().flatten()[:4].tolist()) in cached
    with torch.no_grad():
        latents = vae.encode(to_video(clips[0]["frames"][None])).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    row = (features._features["index"] == 0).nonzero().item()
    assert torch.allclose(features._features["latents"][row].float(), ((latents - mean) / std)[0], atol=2e-3)
    plan = features.plan(
        sample_batch := collate_features([features[0], features[1]])["video_tokens"], torch.zeros(2, 24, 4)
    )
    assert plan.duration == 49 / 16 and plan.video_tokens is sample_batch


def test_an_epoch_sees_each_clip_once_and_the_next_in_another_order(folder):
    features = CachedFeatures(folder, StageClips("train"))
    epochs = [
        [features[index]["latents"].sum().item() for index in range(start, start + 4)] for start in (0, 4, 8, 12)
    ]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert features[5]["prompt"] == features[5]["prompt"]


def test_an_interrupted_cache_goes_on_with_the_missing_shard(folder):
    first, second = sorted(folder.glob("*.safetensors"))
    before, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    cache(folder, num_clips=4)
    assert second.read_bytes() == before and first.stat().st_mtime_ns == stamp
    assert not list(folder.glob("*.part"))


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="3.*multiple of.*2"):
        cache(tmp_path, num_clips=3)
    with pytest.raises(ValueError, match="no features"):
        CachedFeatures(tmp_path, StageClips("train"))
