"""The training of nano's plan decoders: what a sample shows, whose tokens are read, and that it learns."""

from dataclasses import replace

import numpy as np
import plan_decoders
import pytest
import torch
from plan_decoders import DecoderCollator, DecoderLoss, PlanDecoding, RenderedFeatures, build_decoders

from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.stage import render_clip, timeline
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.data.cache import cache_features
from baton_diffusers.training.data.dataset import CachedFeatures
from baton_diffusers.training.planner import PlanCollator
from baton_diffusers.training.trainer import Trainer
from tests import stage_parts
from tests.tiny import seeded, tiny_planner, tiny_tokenizer


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    models = (*stage_parts.codecs(), *stage_parts.semantic_encoders())
    cache_features(folder, StageClips("train"), 4, *models, 16.0, 31.25)
    return CachedFeatures(folder, StageClips("train"), include_flagged=True)


@pytest.fixture
def config(tmp_path):
    trainer = TrainerConfig(
        str(tmp_path),
        steps=40,
        batch_size=4,
        learning_rate=5e-3,
        warmup_steps=3,
        optimizer="muon",
        ema_decay=None,
        trackers=(),
    )
    small = {"hidden_dim": 16}
    return PlanDecoding(
        trainer, "", "", "", "", "", video=small | {"channels": (8, 8, 8)}, audio={"hidden_dim": 32}, frames_per_clip=6
    )


def make_planner(features):
    """A planner of the features' layout; what it knows does not matter here."""
    sample = features[0]
    return seeded(
        VAPlannerModel,
        **{
            **{
                name: tiny_planner().config[name] for name in ("language_model_config", "tower_depth", "system_prompt")
            },
            "video_dim": sample["video_tokens"].shape[-1],
            "audio_dim": sample["audio_tokens"].shape[-1],
            "video_grid": tuple(stage_parts.semantic_encoders()[0].config.video_grid),
            "audio_tokens_per_chunk": stage_parts.semantic_encoders()[1].config.tokens_per_chunk,
            "tower_num_attention_heads": 2,
        },
    )


def test_a_sample_has_frames_of_its_clip_every_other_one_around_an_event(features, config):
    dataset = RenderedFeatures(features, config)
    for index in range(4):
        sample, (scene, seed) = dataset[index], features.scene(index)
        chosen = (sample["times"] * 16).round().long()
        assert np.array_equal(sample["frames"], render_clip(scene, seed).frames[chosen])
        events = np.array([event.frame for event in timeline(scene, seed)])
        before, after = plan_decoders.AROUND
        if len(events):
            assert all(((number - events >= before) & (number - events < after)).any() for number in chosen[::2])
        weight = sample["weight"]
        assert weight.min() == 1 and weight.max() in (5, 9, 13)  # an actor, what moves, or both, above the wall


def test_the_first_of_a_batch_have_the_tokens_of_the_planner(features, config):
    planner = make_planner(features)
    dataset = RenderedFeatures(features, config)
    collate = DecoderCollator(PlanCollator(tiny_tokenizer(), planner.config), features, 1)
    batch = collate([dataset[0], dataset[1]])
    loss = DecoderLoss(config, planner, stage_parts.codecs()[1])
    video, audio = loss._tokens(batch["plan"], batch["planned"])
    assert torch.equal(video[1], batch["plan"].video_tokens[1]) and torch.equal(
        audio[1], batch["plan"].audio_tokens[1]
    )
    assert not torch.equal(video[0], batch["plan"].video_tokens[0])


def test_it_learns(features, config):
    planner, vae = make_planner(features), stage_parts.codecs()[1]
    dataset = RenderedFeatures(features, config)
    collate = DecoderCollator(PlanCollator(tiny_tokenizer(), planner.config), features, 0)
    torch.manual_seed(0)
    decoders = build_decoders(config, planner, 3 * torch.randn(2, vae.config.mel_bins, 10) - 9, vae)
    loss = DecoderLoss(replace(config, token_noise=0.0), planner, vae)
    batch = collate([dataset[index] for index in range(4)])
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(loss(decoders, batch, torch.Generator().manual_seed(0), 0))
        Trainer(config.trainer, decoders, loss, dataset, collate_fn=collate, settings=config).fit()
    before, after = losses
    assert after["video"] < 0.7 * before["video"] and after["audio"] < 0.96 * before["audio"]


@pytest.mark.parametrize(
    "change, message",
    [({"frames_per_clip": 0}, "`frames_per_clip` must be at least 1"), ({"planned_share": 2.0}, "`planned_share`")],
)
def test_settings_that_cannot_work_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
