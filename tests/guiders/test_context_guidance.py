import pytest
import torch

from baton_diffusers.guiders import (
    JOINT,
    NO_CROSS_MODAL,
    NO_PLAN,
    NO_TEXT,
    NOTHING,
    UNCONDITIONAL,
    ContextGuidance,
    DualGuidance,
    ForwardPasses,
    PlanGuidance,
    combine,
    guidance_passes,
    num_forward_passes,
    required_anchors,
)


SHAPE = (2, 7, 3)
NO_OTHER = {"video_reads_audio": False, "audio_reads_video": False}


def at_first_step(guider):
    guider.set_state(step=0, num_inference_steps=10, timestep=None)
    return guider


def test_context_guidance_is_ltx2s_formula(step):
    """`c + (s_t - 1) (c - no_text) + (s_m - 1) (c - no_cross)`, on context tokens where there are any."""
    scales = (3.0, 3.0), (7.0, 3.0)
    guided = step.guide(*(ContextGuidance(s_m, guidance_scale=s_t) for s_t, s_m in scales))
    c = step()
    no_text = step(encoder_hidden_states=step.negative_prompt, plan=None)
    no_cross = step(**NO_OTHER)
    for i, (s_t, s_m) in enumerate(scales):
        expected = c[i] + (s_t - 1) * (c[i] - no_text[i]) + (s_m - 1) * (c[i] - no_cross[i])
        torch.testing.assert_close(guided[i], expected)
        assert not torch.allclose(c[i], no_cross[i])


def test_the_anchor_knows_nothing_of_the_other_modality(step):
    video = step(**NO_OTHER)[0]
    audio = step(**NO_OTHER)[1]
    assert torch.equal(video, step(audio_hidden_states=step.silence, audio_timestep=step.clean, **NO_OTHER)[0])
    assert torch.equal(audio, step(hidden_states=step.still, timestep=step.clean, **NO_OTHER)[1])


def test_dual_guidance_is_movas_formula(step):
    """`n + s_B (b - n) + s_T (c - b)`."""
    s_t, s_b = 5.0, 3.5
    guided = step.guide(DualGuidance(s_t, s_b), DualGuidance(s_t, s_b))
    no_text = {"encoder_hidden_states": step.negative_prompt, "plan": None}
    for velocity, c, b, n in zip(guided, step(), step(**no_text), step(**no_text, **NO_OTHER), strict=True):
        torch.testing.assert_close(velocity, n + s_b * (b - n) + s_t * (c - b), rtol=1e-4, atol=1e-4)


def test_equal_scales_of_dual_guidance_are_uniavgens_two_passes(predict):
    """`u + s (c - u)`, u with the negative text and no cross-modal reading, in the first half of the steps."""
    pred, guider = predict(SHAPE), DualGuidance(2.0, 2.0, stop=0.5)
    at_first_step(guider)
    assert required_anchors(guider) == (JOINT, NOTHING)
    c, u = pred[JOINT], pred[NOTHING]
    torch.testing.assert_close(combine(guider, pred), u + 2.0 * (c - u))
    guider.set_state(step=5, num_inference_steps=10, timestep=None)
    assert required_anchors(guider) == (JOINT,)


def test_without_a_context_term_both_are_classifier_free_guidance(predict):
    pred = predict(SHAPE)
    expected = combine(at_first_step(PlanGuidance(4.0)), pred)
    for guider in (DualGuidance(4.0, 1.0), ContextGuidance(1.0, guidance_scale=4.0)):
        assert required_anchors(at_first_step(guider)) == (JOINT, UNCONDITIONAL)
        torch.testing.assert_close(combine(guider, pred), expected)


def test_all_terms_of_plan_guidance_can_be_added(predict):
    pred = predict(SHAPE)
    guider = at_first_step(ContextGuidance(2.0, 3.0, 1.5, 2.5))
    c = pred[JOINT]
    expected = c
    for anchor, weight in ((NO_CROSS_MODAL, 1.0), (UNCONDITIONAL, 2.0), (NO_TEXT, 0.5), (NO_PLAN, 1.5)):
        expected = expected + weight * (c - pred[anchor])
    torch.testing.assert_close(combine(guider, pred), expected)


@pytest.mark.parametrize("guider", [ContextGuidance(1.0, guidance_scale=1.0), DualGuidance(1.0, 1.0)])
def test_scale_one_is_one_forward(step, guider):
    before = step.num_calls
    guided = step.guide(guider, guider)
    assert step.num_calls - before == 1
    for velocity, expected in zip(guided, step(), strict=True):
        assert torch.equal(velocity, expected)


def test_one_pass_serves_both_modalities():
    pair = ContextGuidance(), ContextGuidance()
    assert num_forward_passes(*pair, 10) == ForwardPasses(calls=30, video=30, audio=30)
    only_audio = PlanGuidance(1.0), ContextGuidance(3.0, guidance_scale=1.0)
    assert num_forward_passes(*only_audio, 10) == ForwardPasses(calls=20, video=10, audio=20)


def test_where_the_other_modality_is_given_its_branch_is_not_run():
    audio_guider = at_first_step(ContextGuidance(3.0, guidance_scale=1.0))
    joint, alone = guidance_passes(None, audio_guider)
    assert (joint.anchor, joint.audio_reads_video, joint.video_reads_audio) == (JOINT, True, False)
    assert joint.keeps_video and not alone.runs_video
    assert num_forward_passes(None, audio_guider, 10) == ForwardPasses(calls=20, video=1, audio=20)
    with_text = ContextGuidance(3.0, guidance_scale=4.0)  # the video stream of the negative prompt is another one
    assert num_forward_passes(None, with_text, 10) == ForwardPasses(calls=30, video=2, audio=30)


def test_a_clip_of_one_modality_has_no_other_to_drop(predict):
    pred = predict(SHAPE)
    guider = at_first_step(ContextGuidance(3.0, guidance_scale=4.0))
    assert [p.anchor for p in guidance_passes(guider, None, has_other=False)] == [JOINT, UNCONDITIONAL]
    expected = combine(at_first_step(PlanGuidance(4.0)), pred)
    torch.testing.assert_close(combine(guider, pred, has_other=False), expected)
    dual = at_first_step(DualGuidance(4.0, 2.0))
    torch.testing.assert_close(combine(dual, pred, has_other=False), expected)


@pytest.mark.parametrize("cls", [ContextGuidance, DualGuidance])
@pytest.mark.parametrize("scale", [-0.5, float("nan")])
def test_scales_out_of_range_are_refused(cls, scale):
    with pytest.raises(ValueError, match=f"`context_guidance_scale`.*{scale}"):
        cls(context_guidance_scale=scale)
