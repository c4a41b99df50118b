import pytest
import torch

from baton_diffusers.guiders import (
    JOINT,
    MUTE,
    STATIC,
    ForwardPasses,
    PlanGuidance,
    SyncGuidance,
    check_guiders,
    combine,
    guidance_passes,
    num_forward_passes,
    required_anchors,
)


def at_first_step(guider):
    guider.set_state(step=0, num_inference_steps=10, timestep=None)
    return guider


@pytest.mark.parametrize("clean_reads", [False, True], ids=["clean stream routed", "clean stream reads"])
def test_it_is_equations_9_and_10_term_by_term(step, clean_reads):
    s_v, s_a = 3.0, 2.0
    guided = step.guide(
        SyncGuidance(s_v, clean_reads=clean_reads), SyncGuidance(s_a, modality="audio", clean_reads=clean_reads)
    )

    # v_video = v(z_v, mute, t_a=0) + s_v * (v(z_v, z_a) - v(z_v, mute, t_a=0))
    v, v_a = step()
    v_mute, _ = step(audio_hidden_states=step.silence, audio_timestep=step.clean, audio_reads_video=clean_reads)
    torch.testing.assert_close(guided[0], v_mute + s_v * (v - v_mute))

    # v_audio = v(static, z_a, t_v=0) + s_a * (v(z_v, z_a) - v(static, z_a, t_v=0))
    _, v_static = step(hidden_states=step.still, timestep=step.clean, video_reads_audio=clean_reads)
    torch.testing.assert_close(guided[1], v_static + s_a * (v_a - v_static))

    assert not torch.allclose(v, v_mute) and not torch.allclose(v_a, v_static)


def test_scale_one_is_one_forward(step):
    before = step.num_calls
    guided = step.guide(SyncGuidance(1.0), SyncGuidance(1.0, modality="audio"))
    assert step.num_calls - before == 1
    for velocity, expected in zip(guided, step(), strict=True):
        assert torch.equal(velocity, expected)


def test_guidance_by_text_comes_on_top(step):
    guided, _ = step.guide(SyncGuidance(3.0, guidance_scale=4.0), PlanGuidance(1.0))
    v, _ = step()
    v_mute, _ = step(audio_hidden_states=step.silence, audio_timestep=step.clean, audio_reads_video=False)
    v_uncond, _ = step(encoder_hidden_states=step.negative_prompt, plan=None)
    torch.testing.assert_close(guided, v + 2.0 * (v - v_mute) + 3.0 * (v - v_uncond))


def test_the_clean_stream_is_the_same_at_every_step_unless_it_reads(step):
    """What `keeps_audio` and `keeps_video` promise to a cache, on the transformer itself."""
    other_latents = {"hidden_states": step.latents + 1.0, "timestep": step.timestep - 100.0}
    other_audio = {"audio_hidden_states": step.audio_latents + 1.0, "audio_timestep": step.audio_timestep - 100.0}
    for clean_reads in (False, True):
        mute, static = (
            next(p for p in guidance_passes(*pair) if p.anchor != JOINT)
            for pair in (
                (at_first_step(SyncGuidance(clean_reads=clean_reads)), at_first_step(PlanGuidance(1.0))),
                (
                    at_first_step(PlanGuidance(1.0)),
                    at_first_step(SyncGuidance(modality="audio", clean_reads=clean_reads)),
                ),
            )
        )
        assert mute.keeps_audio is static.keeps_video is not clean_reads
        assert not mute.keeps_video and not static.keeps_audio

        silence = {"audio_hidden_states": step.silence, "audio_timestep": step.clean}
        still = {"hidden_states": step.still, "timestep": step.clean}
        reads = {"audio_reads_video": mute.audio_reads_video, "video_reads_audio": mute.video_reads_audio}
        assert (
            torch.equal(step(**silence, **reads)[1], step(**silence, **other_latents, **reads)[1]) is not clean_reads
        )
        reads = {"audio_reads_video": static.audio_reads_video, "video_reads_audio": static.video_reads_audio}
        assert torch.equal(step(**still, **reads)[0], step(**still, **other_audio, **reads)[0]) is not clean_reads


def test_an_anchor_predicts_its_own_modality_only():
    guider, audio_guider = at_first_step(SyncGuidance(3.0)), at_first_step(SyncGuidance(2.0, modality="audio"))
    passes = {p.anchor: (p.predicts_video, p.predicts_audio) for p in guidance_passes(guider, audio_guider)}
    assert passes == {JOINT: (True, True), MUTE: (True, False), STATIC: (False, True)}


def test_its_cost():
    pair = SyncGuidance(3.0), SyncGuidance(2.0, modality="audio")
    assert num_forward_passes(*pair, 40) == ForwardPasses(calls=120, video=81, audio=81)
    reading = SyncGuidance(3.0, clean_reads=True), SyncGuidance(2.0, modality="audio", clean_reads=True)
    assert num_forward_passes(*reading, 40) == ForwardPasses(calls=120, video=120, audio=120)
    one_sided = SyncGuidance(3.0), PlanGuidance(1.0)
    assert num_forward_passes(*one_sided, 40) == ForwardPasses(calls=80, video=80, audio=41)


def test_a_given_modality_is_replaced_and_one_that_is_absent_is_not():
    guider, audio_guider = at_first_step(SyncGuidance(3.0)), at_first_step(SyncGuidance(2.0, modality="audio"))
    assert [p.anchor for p in guidance_passes(guider, None)] == [JOINT, MUTE]
    assert [p.anchor for p in guidance_passes(None, audio_guider)] == [JOINT, STATIC]
    assert num_forward_passes(guider, None, 40) == ForwardPasses(calls=80, video=80, audio=2)
    assert num_forward_passes(None, audio_guider, 40) == ForwardPasses(calls=80, video=2, audio=80)
    for alone in ((guider, None), (None, audio_guider)):
        assert [p.anchor for p in guidance_passes(*alone, has_other=False)] == [JOINT]
    joint = {JOINT: torch.arange(6.0).view(2, 3)}
    assert torch.equal(combine(guider, joint, has_other=False), joint[JOINT])


def test_start_and_stop():
    guider = SyncGuidance(3.0, start=0.2, stop=0.5)
    guided = []
    for step in range(10):
        guider.set_state(step=step, num_inference_steps=10, timestep=None)
        guided.append(MUTE in required_anchors(guider))
    assert guided == [2 <= step < 5 for step in range(10)]


def test_the_modality_must_be_that_of_the_guider():
    check_guiders(SyncGuidance(), SyncGuidance(modality="audio"))
    with pytest.raises(ValueError, match="`audio_guider`.*`mute`.*predicts no audio.*modality='audio'"):
        check_guiders(PlanGuidance(), SyncGuidance())
    with pytest.raises(ValueError, match="`guider`.*`static`.*predicts no video.*modality='video'"):
        check_guiders(SyncGuidance(modality="audio"), SyncGuidance(modality="audio"))
    with pytest.raises(ValueError, match="'video' or 'audio', but got 'sound'"):
        SyncGuidance(modality="sound")


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_out_of_range_are_refused(scale):
    with pytest.raises(ValueError, match=f"sync_guidance_scale.*{scale}.*negative prompt"):
        SyncGuidance(scale)
