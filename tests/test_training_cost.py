"""`benchmarks/training_cost.py`: what it counts is what the models do."""

import argparse
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.plan import SemanticPlan
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.cache import cache_features, load_feature_models


ROOT = Path(__file__).parents[1]
NANO = ROOT / "model_cards" / "baton-nano"


@pytest.fixture(scope="module")
def cost():
    return runpy.run_path(str(ROOT / "benchmarks" / "training_cost.py"))


@pytest.fixture(scope="module")
def clip(cost):
    return cost["Clip"](NANO, argparse.Namespace(seconds=3.0, height=64, width=64, text_length=80))


def test_nanos_transformer_is_counted_as_it_runs(cost, clip):
    models = cost["count_models"](clip)
    transformer = DualBranchTransformer.from_pretrained(NANO / "transformer", torch_dtype=torch.float32)
    transformer.requires_grad_(False)
    plan = SemanticPlan(
        video_tokens=torch.zeros(1, clip.plan_tokens[0], 64),
        video_times=clip.keyframes.repeat_interleave(len(clip.centres)),
        video_centres=clip.centres.repeat(len(clip.keyframes), 1),
        audio_tokens=torch.zeros(1, clip.plan_tokens[1], 48),
        audio_times=clip.audio_times,
        duration=clip.duration,
    )
    inputs = (
        torch.zeros(1, *clip.latents),
        torch.zeros(1, *clip.audio_latents),
        torch.zeros(1),
        torch.zeros(1, 80, 128),
    )
    # torch does not count its CPU kernel of attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(*inputs, plan=plan)
    assert models["transformer"].forward == counter.get_total_flops()
    assert models["transformer"].parameters == sum(p.numel() for p in transformer.parameters())
    assert all(model.parameters > 0 and model.forward > 0 for model in models.values())


def test_a_clip_takes_the_bytes_that_a_cache_writes(clip, tmp_path):
    models = load_feature_models(NANO, torch.device("cpu"))
    cache_features(tmp_path, StageClips("train"), 1, **models, frame_rate=16.0, audio_latent_rate=31.25)
    written = (tmp_path / "features-00000.tar").stat().st_size
    # names, times and places of the tokens and the tar's own blocks come on top; tokens beyond the clip's end do not
    assert 0.9 * clip.feature_bytes(False) < written < clip.feature_bytes(False) + 25_000


def test_a_layer_is_measured_and_compared_with_what_is_counted(cost, clip, capsys):
    cost["measure_layer"](clip, torch.float32)
    printed = capsys.readouterr().out
    assert "one layer of width 176" in printed and "208 video and 96 audio tokens" in printed
    # a trained step counts three forward passes: nothing needs gradients of the clip itself, so a little less
    assert 2.8 < float(re.search(r"([\d.]+) times as much", printed)[1]) <= 3
    forward, step = (
        float(value) for value in re.search(r"forward (\S+) TFLOP, with backward (\S+),", printed).groups()
    )
    seconds, rate = (float(value) for value in re.search(r"measured: (\S+) s, (\S+) TFLOP/s", printed).groups())
    assert rate == pytest.approx(step / seconds, rel=1e-2) and forward < step
