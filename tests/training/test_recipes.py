"""Recipes as a whole: stage 1 learns eight clips by heart, and a hundred clips with odd ones among them stop no stage.

Stages 2 and 3 learn eight clips by heart in test_transformer.py, on the parts of the shipped checkpoint.
Takes minutes: run with `pytest -m slow tests/training/test_recipes.py`.
"""

import csv
import json
import os

import pytest
import torch
from transformers import AutoTokenizer

from baton_diffusers import default_checkpoint
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.stage import sample_scene
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.config import TrainerConfig, TransformerTraining
from baton_diffusers.training.data.cache import cache_features
from baton_diffusers.training.data.clips import Bucket, ClipFormat, open_clips
from baton_diffusers.training.data.dataset import CachedFeatures
from baton_diffusers.training.flow_matching import FeatureCollator, FlowMatchingLoss
from baton_diffusers.training.planner import CachedPlans, PlanCollator, PlannerLoss
from baton_diffusers.training.trainer import Trainer
from baton_diffusers.training.transformer import build_transformer
from tests import stage_parts
from tests.odd_clips import ODD_CLIPS, write_odd_clips, write_stage_clips
from tests.tiny import tiny_language_model


STEPS = 120
BOUND = 0.1  # of the loss of the first ten steps, the share that is left in the last ten; it came to 0.03


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    models = (*stage_parts.codecs(), *stage_parts.semantic_encoders())
    cache_features(folder, StageClips("train"), 8, *models, 16.0, 31.25)
    return CachedFeatures(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_checkpoint() / "tokenizer")


def make_planner(tokenizer):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    language_model = tiny_language_model(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)
    return VAPlannerModel(
        language_model,
        video_dim=8,
        audio_dim=4,
        video_grid=(2, 2),
        audio_tokens_per_chunk=8,
        tower_depth=1,
        tower_num_attention_heads=2,
        system_prompt=None,
    )


def make_trainer(stage, run_dir, features, tokenizer, steps=STEPS):
    config = TrainerConfig(
        run_dir=str(run_dir),
        steps=steps,
        batch_size=8,
        learning_rate=5e-3,
        warmup_steps=10,
        log_every=10,
        ema_decay=None,
    )
    planner = make_planner(tokenizer)
    if stage == 1:
        collate = PlanCollator(tokenizer, planner.config)
        return Trainer(config, planner, PlannerLoss(), CachedPlans(features), collate_fn=collate)
    training = TransformerTraining(
        trainer=config,
        features="unused",
        tokenizer="unused",
        max_sequence_length=40,
        transformer={
            "in_channels": 4,
            "out_channels": 4,
            "audio_in_channels": 6,
            "audio_out_channels": 6,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "ffn_dim": 96,
            "audio_ffn_dim": 96,
            "audio_patch_hidden_dim": 48,
            "text_dim": 32,
            "freq_dim": 32,
            "frame_rate": 16.0,
            "audio_latent_rate": 31.25,
            "video_plan_dim": 8,
            "audio_plan_dim": 4,
        },
        text_encoder={
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 1,
            "num_heads": 2,
            "dropout_rate": 0.0,
        },
        data_seed=None,
        **({"plan": "planner", "planner": "unused", "planner_tokenizer": "unused"} if stage == 3 else {}),
    )
    loss = FlowMatchingLoss(training, features, planner.eval().requires_grad_(False))
    collate = FeatureCollator(40, tokenizer, tokenizer, planner.config)
    return Trainer(config, build_transformer(training), loss, features, collate_fn=collate)


@pytest.mark.slow
def test_stage_one_learns_eight_clips_by_heart(tmp_path, features, tokenizer):
    torch.manual_seed(0)
    trainer = make_trainer(1, tmp_path, features, tokenizer)
    module = trainer.fit().eval()
    with open(tmp_path / "log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < BOUND * losses[0], losses

    # What it knows by heart hangs on the prompt: the plans of other clips are not what it says.
    own = [trainer.dataset[index] for index in range(8)]
    others = [{**sample, "plan": other["plan"]} for sample, other in zip(own, own[1:] + own[:1], strict=True)]
    with torch.no_grad():
        own, others = (
            trainer.loss_fn(module, trainer.collate_fn(batch), torch.Generator(), 0)["loss"].item()
            for batch in (own, others)
        )
    print(f"{own:.4f}, for the plans of other clips {others:.4f}: {losses}")
    assert others > 1.4 * own


@pytest.mark.slow
def test_a_hundred_clips_with_odd_ones_among_them_are_trained_on(tmp_path, tokenizer):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_odd_clips(folder)
    write_stage_clips(folder, 4)
    for number in range(4, 100 - len(ODD_CLIPS)):  # the same four again, under other names
        for suffix in (".mp4", ".txt"):
            os.link(folder / f"clip-{number % 4:03d}{suffix}", folder / f"clip-{number:03d}{suffix}")
    clips = open_clips(folder, ClipFormat((Bucket(49, 64, 64),), 16.0, 16000))
    assert len(clips) == 100
    models = (*stage_parts.codecs(), *stage_parts.semantic_encoders())
    assert cache_features(tmp_path / "features", clips, 100, *models, 16.0, 31.25)

    rejects = [json.loads(line) for line in (tmp_path / "features" / "rejects.jsonl").read_text().splitlines()]
    assert {row["clip"] for row in rejects} == {name for name, reason in ODD_CLIPS.items() if reason is not None}
    features = CachedFeatures(tmp_path / "features", batch_size=8)
    still = sum(not sample_scene(number % 4, "simple").script for number in range(100 - len(ODD_CLIPS)))
    assert features.num_clips == 100 - len(rejects) - still - 2  # a silent one and a static one
    for stage in (1, 2, 3):
        trainer = make_trainer(stage, tmp_path / f"stage{stage}", features, tokenizer, steps=3)
        trainer.fit()
        assert trainer.step == 3
