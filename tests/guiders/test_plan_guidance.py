from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import ComponentSpec
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.wan.denoise import WanLoopDenoiser

from baton_diffusers.guiders import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL, PlanGuidance, combine, required_anchors


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
        {"guidance_scale": "4"},
        {"guidance_scale": None},
        {"guidance_scale": True},
        {"guidance_rescale": "half"},
        {"start": None},
    ],
)
def test_settings_out_of_range_are_refused(kwargs):
    (name, value) = next(iter(kwargs.items()))
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        PlanGuidance(**kwargs)


EVERY_TERM = PlanGuidance(4.0, 2.0, 3.0)
FIELDS = {"encoder_hidden_states": ("text", "negative_text"), "timestep": "t"}


def test_each_pass_gets_the_text_or_the_negative_one():
    values = {"text": torch.tensor(0.0), "negative_text": torch.tensor(1.0), "t": torch.tensor(5.0)}
    named = {"encoder_hidden_states": (values["text"], values["negative_text"]), "timestep": values["t"]}
    guider = at_step(EVERY_TERM, 0)
    for passes in (
        guider.prepare_inputs(named),
        guider.prepare_inputs_from_block_state(BlockState(**values, other=None), FIELDS),
    ):
        assert [p.anchor for p in passes] == [JOINT, UNCONDITIONAL, NO_TEXT, NO_PLAN]
        assert [p.encoder_hidden_states.item() for p in passes] == [0.0, 1.0, 1.0, 0.0]
        assert [p.timestep.item() for p in passes] == [5.0] * 4


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0, 3.0, 4.0)])
def test_what_is_no_pair_is_refused(values):
    with pytest.raises(ValueError, match=f"`text` has {len(values)} values for the passes of guidance: give a pair"):
        at_step(EVERY_TERM, 0).prepare_inputs({"text": values})


def test_it_guides_a_modular_pipeline_of_diffusers():
    """Wan's own denoising block, with ours as its guider and with diffusers'."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    state = {
        "latent_model_input": torch.randn(1, 4, 2, 4, 4),
        "prompt_embeds": torch.randn(1, 5, 16),
        "negative_prompt_embeds": torch.randn(1, 5, 16),
        "num_inference_steps": 4,
        "dtype": torch.float32,
        "attention_kwargs": None,
    }

    def velocity(guider):
        components = SimpleNamespace(guider=guider, transformer=transformer)
        return WanLoopDenoiser()(components, BlockState(**state), i=1, t=torch.tensor(500.0))[1].noise_pred

    spec = ComponentSpec("guider", PlanGuidance, config={"guidance_scale": 3.0}, default_creation_method="from_config")
    torch.testing.assert_close(velocity(spec.create()), velocity(ClassifierFreeGuidance(guidance_scale=3.0)))


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
