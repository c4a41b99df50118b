import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from baton_diffusers.guiders import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL, PlanGuidance, combine, required_anchors

from .conftest import GuidedPipeline


VIDEO_SHAPE = (2, 3, 4, 5, 6)  # (batch_size, num_channels, num_frames, height, width)
AUDIO_SHAPE = (2, 7, 3)  # (batch_size, audio_length, audio_channels)


def at_step(guider, step, num_inference_steps=10):
    guider.set_state(step=step, num_inference_steps=num_inference_steps, timestep=None)
    return guider


@pytest.mark.parametrize("shape", [VIDEO_SHAPE, AUDIO_SHAPE])
@pytest.mark.parametrize("scales", [(4.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 2.5), (0.5, 3.0, 2.0)])
def test_prediction_is_the_formula(predict, shape, scales):
    s, s_t, s_p = scales
    pred = predict(shape)
    joint, uncond, no_text, no_plan = pred[JOINT], pred[UNCONDITIONAL], pred[NO_TEXT], pred[NO_PLAN]
    expected = joint + (s - 1) * (joint - uncond) + (s_t - 1) * (joint - no_text) + (s_p - 1) * (joint - no_plan)
    torch.testing.assert_close(combine(at_step(PlanGuidance(s, s_t, s_p), 0), pred), expected)


def test_text_then_plan_is_a_choice_of_scales(predict):
    """Nested guidance n + a (t - n) + b (c - t), with n without both, t without plan, has weights a - 1 and b - a."""
    a, b = 3.0, 2.0
    pred = predict(VIDEO_SHAPE)
    c, t, n = pred[JOINT], pred[NO_PLAN], pred[UNCONDITIONAL]
    guider = at_step(PlanGuidance(guidance_scale=a, plan_guidance_scale=1 + b - a), 0)
    torch.testing.assert_close(combine(guider, pred), n + a * (t - n) + b * (c - t))


@pytest.mark.parametrize(
    "scales, anchors",
    [
        ((1.0, 1.0, 1.0), (JOINT,)),
        ((4.0, 1.0, 1.0), (JOINT, UNCONDITIONAL)),
        ((1.0, 4.0, 1.0), (JOINT, NO_TEXT)),
        ((1.0, 1.0, 4.0), (JOINT, NO_PLAN)),
        ((0.0, 2.0, 3.0), (JOINT, UNCONDITIONAL, NO_TEXT, NO_PLAN)),
    ],
)
def test_an_anchor_of_scale_one_is_not_run(predict, scales, anchors):
    guider = at_step(PlanGuidance(*scales), 0)
    assert required_anchors(guider) == anchors
    assert guider.num_conditions == len(anchors)
    pred = predict(AUDIO_SHAPE)
    only_those = {anchor: pred[anchor] for anchor in anchors}
    assert torch.equal(combine(guider, only_those), combine(guider, pred))


def test_without_guidance_the_joint_prediction_comes_back_untouched(predict):
    pred = predict(VIDEO_SHAPE)
    for guider in (PlanGuidance(1.0, guidance_rescale=0.7), PlanGuidance(5.0, guidance_rescale=0.7, enabled=False)):
        assert torch.equal(combine(at_step(guider, 0), pred), pred[JOINT])


def test_default_is_two_passes():
    assert required_anchors(at_step(PlanGuidance(), 0)) == (JOINT, UNCONDITIONAL)


def test_start_and_stop_are_fractions_of_the_loop():
    guider = PlanGuidance(start=0.2, stop=0.7)
    guided = [step for step in range(10) if len(required_anchors(at_step(guider, step))) > 1]
    assert guided == [2, 3, 4, 5, 6]


def test_disable_and_enable():
    guider = at_step(PlanGuidance(), 0)
    guider.disable()
    assert required_anchors(guider) == (JOINT,)
    guider.enable()
    assert required_anchors(guider) == (JOINT, UNCONDITIONAL)


@pytest.mark.parametrize("shape", [VIDEO_SHAPE, AUDIO_SHAPE])
def test_rescale_sets_back_the_deviation_of_each_sample(predict, shape):
    pred = predict(shape)
    guided = combine(at_step(PlanGuidance(6.0), 0), pred)
    rescaled = combine(at_step(PlanGuidance(6.0, guidance_rescale=1.0), 0), pred)
    for i in range(shape[0]):
        expected = guided[i] * pred[JOINT][i].std() / guided[i].std()
        torch.testing.assert_close(rescaled[i], expected)
    half = combine(at_step(PlanGuidance(6.0, guidance_rescale=0.5), 0), pred)
    torch.testing.assert_close(half, (guided + rescaled) / 2)


def test_a_changed_scale_holds_from_the_next_step(predict):
    guider = at_step(PlanGuidance(4.0), 0)
    guider.guidance_scale = 1.0
    assert required_anchors(guider) == (JOINT,)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"guidance_scale": -1.0},
        {"text_guidance_scale": float("nan")},
        {"plan_guidance_scale": float("inf")},
        {"guidance_rescale": 1.5},
        {"guidance_rescale": -0.1},
        {"start": 1.0},
        {"stop": 2.0},
    ],
)
def test_settings_out_of_range_are_refused(kwargs):
    (name, value) = next(iter(kwargs.items()))
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        PlanGuidance(**kwargs)


def test_prepare_inputs_takes_one_value_for_each_pass():
    guider = at_step(PlanGuidance(1.0, plan_guidance_scale=2.0), 0)
    passes = guider.prepare_inputs({"encoder_hidden_states": tuple(torch.arange(4.0).unbind())})
    assert [p.encoder_hidden_states.item() for p in passes] == [0.0, 3.0]


SETTINGS = {
    "guidance_scale": 3.0,
    "text_guidance_scale": 1.5,
    "plan_guidance_scale": 2.5,
    "guidance_rescale": 0.3,
    "start": 0.1,
    "stop": 0.9,
    "enabled": True,
}


def test_saved_and_loaded_it_guides_the_same(predict, tmp_path):
    guider = PlanGuidance(**SETTINGS)
    guider.save_pretrained(tmp_path)
    loaded = PlanGuidance.from_pretrained(tmp_path)
    pred = predict(VIDEO_SHAPE)
    assert torch.equal(combine(at_step(guider, 4), pred), combine(at_step(loaded, 4), pred))
    assert {name: loaded.config[name] for name in SETTINGS} == SETTINGS
    assert {name: guider.new(guidance_scale=7.0).config[name] for name in SETTINGS} == SETTINGS | {
        "guidance_scale": 7.0
    }


def test_a_pipeline_saves_and_loads_it_as_a_component(tmp_path):
    settings = SETTINGS | {"guidance_scale": 2.0, "enabled": False}
    pipe = GuidedPipeline(PlanGuidance(**SETTINGS), PlanGuidance(**settings), FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path)
    loaded = GuidedPipeline.from_pretrained(tmp_path)
    for guider, expected in ((loaded.guider, SETTINGS), (loaded.audio_guider, settings)):
        assert type(guider) is PlanGuidance
        assert {name: guider.config[name] for name in SETTINGS} == expected
