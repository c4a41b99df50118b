import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from baton_diffusers.guiders import (
    JOINT,
    MUTE,
    NO_CROSS_MODAL,
    NO_PLAN,
    NOTHING,
    STATIC,
    UNCONDITIONAL,
    Anchor,
    ForwardPasses,
    PlanGuidance,
    SyncGuidance,
    check_guiders,
    num_forward_passes,
    passes_of_steps,
    presets,
)

from .conftest import GuidedPipeline, preset


ANCHORS = {
    "none": {JOINT},
    "text": {JOINT, UNCONDITIONAL},
    "ovi": {JOINT, Anchor(text=False, plan=False, skip_layers=(11,))},
    "plan": {JOINT, NO_PLAN},
    "harmony": {JOINT, MUTE, STATIC},
    "ccl": {JOINT, UNCONDITIONAL, NO_CROSS_MODAL},
    "ltx2": {JOINT, UNCONDITIONAL, NO_CROSS_MODAL},
    "mova": {JOINT, UNCONDITIONAL, NOTHING},
}
COSTS = {
    "none": ForwardPasses(40, 40, 40),
    "text": ForwardPasses(80, 80, 80),
    "ovi": ForwardPasses(80, 80, 80),
    "plan": ForwardPasses(80, 80, 80),
    "harmony": ForwardPasses(120, 81, 81),
    "ccl": ForwardPasses(120, 120, 120),
    "ltx2": ForwardPasses(120, 120, 120),
    "mova": ForwardPasses(120, 120, 120),
}


def test_these_are_the_presets():
    assert set(presets()) == set(ANCHORS)


@pytest.mark.parametrize("name", ANCHORS)
def test_its_passes_and_their_cost(name):
    pair = presets()[name]
    check_guiders(**pair)
    passes = [p for step in passes_of_steps(**pair, num_inference_steps=40) for p in step]
    assert {p.anchor for p in passes} == ANCHORS[name]
    assert num_forward_passes(**pair, num_inference_steps=40) == COSTS[name]


def test_every_call_gives_fresh_guiders():
    presets()["text"]["guider"].guidance_scale = 9.0
    assert presets()["text"]["guider"].guidance_scale == 4.0


def settings(guider):
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


@pytest.mark.parametrize("name", ANCHORS)
def test_a_new_one_has_the_same_settings_however_they_were_given(name):
    for guider in presets()[name].values():
        assert settings(guider.new()) == settings(guider)
        assert guider.new().anchor_weights() == guider.anchor_weights()
        assert settings(guider.new(guidance_rescale=0.25)) == settings(guider) | {"guidance_rescale": 0.25}


OTHERS = {"guidance_scale": 2.0, "guidance_rescale": 0.3, "start": 0.1, "stop": 0.9, "skip_layers": (1,)}
PAIRS = {
    **{name: preset(name) for name in ANCHORS},
    "other settings": {"guider": PlanGuidance(**OTHERS, enabled=False), "audio_guider": PlanGuidance(**OTHERS)},
    "clean streams that read": {
        "guider": SyncGuidance(2.5, clean_reads=True, **OTHERS),
        "audio_guider": SyncGuidance(1.5, modality="audio", clean_reads=True, **OTHERS),
    },
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_pipeline_saves_and_loads_it(pair, tmp_path, step):
    GuidedPipeline(**pair, scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    loaded = GuidedPipeline.from_pretrained(tmp_path)
    for role, guider in pair.items():
        assert type(getattr(loaded, role)) is type(guider)
        assert settings(getattr(loaded, role)) == settings(guider)
    guided = step.guide(loaded.guider, loaded.audio_guider)
    for velocity, expected in zip(guided, step.guide(**pair), strict=True):
        assert velocity.isfinite().all() and torch.equal(velocity, expected)


def test_each_preset_is_made_anew():
    assert presets()["text"]["guider"] is not presets()["text"]["guider"]
    assert "sync" not in presets()
    with pytest.raises(KeyError, match="there is no preset 'sync': choose one of none, text, plan, harmony"):
        presets()["sync"]
