import copy

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    LTX2Guidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)

from baton_diffusers.guiders import (
    JOINT,
    NO_PLAN,
    NO_TEXT,
    UNCONDITIONAL,
    ContextGuidance,
    DualGuidance,
    ForwardPasses,
    PlanGuidance,
    check_guider,
    check_guiders,
    combine,
    guidance_passes,
    num_forward_passes,
    passes_of_steps,
    required_anchors,
)


VIDEO_SHAPE = (2, 3, 4, 5, 6)  # (batch_size, num_channels, num_frames, height, width)
AUDIO_SHAPE = (2, 7, 3)  # (batch_size, audio_length, audio_channels)


NUM_STEPS = 10
STEPS = (0, 1, 7)

SUPPORTED = [
    lambda: PlanGuidance(4.0, 2.0, 3.0, guidance_rescale=0.4),
    lambda: ContextGuidance(3.0, 4.0, guidance_rescale=0.7),
    lambda: DualGuidance(5.0, 3.0),
    lambda: ClassifierFreeGuidance(4.0, guidance_rescale=0.7),
    lambda: ClassifierFreeGuidance(4.0, use_original_formulation=True),
    lambda: ClassifierFreeZeroStarGuidance(4.0),
    lambda: AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5, eta=0.2),
    lambda: AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_norm_dim=(1, 2), eta=0.0),
    lambda: AdaptiveProjectedMixGuidance(4.0, adaptive_projected_guidance_start_step=5),
    lambda: TangentialClassifierFreeGuidance(4.0),
    lambda: MagnitudeAwareGuidance(4.0, guidance_rescale=0.3),
]
TWO_PASS = SUPPORTED[3:]


def kind(make):
    return type(make()).__name__


def anchors(*args, **kwargs):
    return tuple(p.anchor for p in guidance_passes(*args, **kwargs))


def set_step(guider, step):
    guider.set_state(step=step, num_inference_steps=NUM_STEPS, timestep=None)


def run(guider, predict, shape, batch=slice(None), seed=0):
    """The guided predictions of a few steps."""
    results = []
    for step in STEPS:
        set_step(guider, step)
        results.append(combine(guider, {a: p[batch] for a, p in predict(shape, seed + step).items()}))
    return torch.stack(results, dim=1)


@pytest.mark.parametrize("make", TWO_PASS, ids=kind)
@pytest.mark.parametrize("shape", [VIDEO_SHAPE, AUDIO_SHAPE])
def test_a_guider_of_diffusers_gives_what_it_gives_there(predict, make, shape):
    """Its own protocol, as in `HunyuanVideo15Pipeline`; magnitude-aware guidance takes images there, of one row here."""
    guider, expected = make(), []
    for step in STEPS:
        pred = predict(shape, step)
        set_step(guider, step)
        passes = guider.prepare_inputs({})
        for batch, anchor in zip(passes, (JOINT, UNCONDITIONAL), strict=False):
            rows = (shape[0], 1, -1)
            batch.noise_pred = pred[anchor].view(rows) if kind(make) == "MagnitudeAwareGuidance" else pred[anchor]
        expected.append(guider(passes)[0].reshape(shape))
    torch.testing.assert_close(run(make(), predict, shape), torch.stack(expected, dim=1), rtol=0, atol=0)


def test_classifier_free_guidance_drops_text_and_plan_together(predict):
    pred, guider = predict(VIDEO_SHAPE), ClassifierFreeGuidance(4.0)
    set_step(guider, 0)
    torch.testing.assert_close(
        combine(guider, pred), pred[UNCONDITIONAL] + 4.0 * (pred[JOINT] - pred[UNCONDITIONAL]), rtol=0, atol=0
    )
    set_step(guider := PlanGuidance(4.0), 0)
    torch.testing.assert_close(combine(guider, pred), pred[UNCONDITIONAL] + 4.0 * (pred[JOINT] - pred[UNCONDITIONAL]))


def test_magnitude_aware_guidance_on_video_is_its_paper(predict):
    pred, guider = predict(VIDEO_SHAPE), MagnitudeAwareGuidance(4.0, alpha=8.0)
    set_step(guider, 0)
    for i, result in enumerate(combine(guider, pred)):
        cond, uncond = pred[JOINT][i], pred[UNCONDITIONAL][i]
        w = 1 + (4.0 - 1) * torch.exp(-8.0 * (cond - uncond).square().sum().sqrt() / uncond.square().sum().sqrt())
        torch.testing.assert_close(result, uncond + w * (cond - uncond))


@pytest.mark.parametrize("make", SUPPORTED, ids=kind)
@pytest.mark.parametrize("shape", [VIDEO_SHAPE, AUDIO_SHAPE])
def test_a_batch_gives_what_its_samples_give_one_by_one(predict, make, shape):
    together = run(make(), predict, shape)
    apart = torch.cat([run(make(), predict, shape, slice(i, i + 1)) for i in range(shape[0])])
    assert together.isfinite().all()
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", SUPPORTED, ids=kind)
def test_a_guider_forgets_the_clip_before(predict, make):
    guider = make()
    first = run(guider, predict, VIDEO_SHAPE)
    run(guider, predict, VIDEO_SHAPE, seed=50)
    run(guider, predict, (1, 3, 2, 8, 8))
    assert torch.equal(run(guider, predict, VIDEO_SHAPE), first)


def test_momentum_stays_within_its_modality(predict):
    def make():
        return AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5)

    guider, audio_guider = make(), make()
    video, audio = [], []
    for step in STEPS:
        set_step(guider, step)
        set_step(audio_guider, step)
        video.append(combine(guider, predict(AUDIO_SHAPE, step)))
        audio.append(combine(audio_guider, predict(AUDIO_SHAPE, 100 + step)))
    assert torch.equal(torch.stack(video, dim=1), run(make(), predict, AUDIO_SHAPE))
    assert torch.equal(torch.stack(audio, dim=1), run(make(), predict, AUDIO_SHAPE, seed=100))


@pytest.mark.parametrize("make", SUPPORTED, ids=kind)
def test_one_object_serves_both_modalities_unless_it_has_a_momentum(predict, make):
    guider = make()
    if getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        with pytest.raises(ValueError, match=r"one `Adaptive.*copy.deepcopy\(guider\)"):
            check_guiders(guider, guider)
        check_guiders(guider, copy.deepcopy(guider))
        return
    check_guiders(guider, guider)
    for step in STEPS:
        set_step(guider, step)
        set_step(guider, step)
        video = combine(guider, predict(VIDEO_SHAPE, step))
        audio = combine(guider, predict(AUDIO_SHAPE, step))
        assert torch.equal(video, run(make(), predict, VIDEO_SHAPE)[:, STEPS.index(step)])
        assert torch.equal(audio, run(make(), predict, AUDIO_SHAPE)[:, STEPS.index(step)])


@pytest.mark.parametrize("make", SUPPORTED, ids=kind)
def test_saved_and_loaded_a_guider_gives_the_same(predict, make, tmp_path):
    guider = make()
    guider.save_pretrained(tmp_path)
    loaded = type(guider).from_pretrained(tmp_path)
    assert torch.equal(run(loaded, predict, VIDEO_SHAPE), run(guider, predict, VIDEO_SHAPE))


@pytest.mark.parametrize(
    "cls", [PlanGuidance, ClassifierFreeGuidance, AdaptiveProjectedGuidance, MagnitudeAwareGuidance]
)
def test_scale_one_is_one_pass(predict, cls):
    guider, pred = cls(guidance_scale=1.0), predict(VIDEO_SHAPE)
    set_step(guider, 0)
    assert required_anchors(guider) == (JOINT,)
    assert torch.equal(combine(guider, {JOINT: pred[JOINT]}), pred[JOINT])
    assert num_forward_passes(guider, PlanGuidance(1.0), NUM_STEPS) == ForwardPasses(NUM_STEPS, NUM_STEPS, NUM_STEPS)


def test_start_and_stop_of_each_modality_count():
    guider = ClassifierFreeGuidance(4.0, start=0.0, stop=0.5)
    audio_guider = PlanGuidance(1.0, plan_guidance_scale=2.0, start=0.3, stop=0.8)
    steps = [tuple(p.anchor for p in step) for step in passes_of_steps(guider, audio_guider, NUM_STEPS)]
    assert steps == (
        3 * [(JOINT, UNCONDITIONAL)] + 2 * [(JOINT, UNCONDITIONAL, NO_PLAN)] + 3 * [(JOINT, NO_PLAN)] + 2 * [(JOINT,)]
    )
    assert num_forward_passes(guider, audio_guider, NUM_STEPS).calls == 5 + 5 + NUM_STEPS


def test_passes_of_both_modalities_run_once():
    guider, audio_guider = ClassifierFreeGuidance(4.0), PlanGuidance(3.0, text_guidance_scale=2.0)
    set_step(guider, 0)
    set_step(audio_guider, 0)
    assert anchors(guider, audio_guider) == (JOINT, UNCONDITIONAL, NO_TEXT)
    assert num_forward_passes(guider, audio_guider, NUM_STEPS).calls == 3 * NUM_STEPS
    assert num_forward_passes(guider, audio_guider, NUM_STEPS, has_plan=False).calls == 2 * NUM_STEPS


def test_a_pass_is_wanted_for_the_modalities_that_asked_for_it():
    guider, audio_guider = PlanGuidance(4.0), PlanGuidance(1.0, plan_guidance_scale=2.0)
    set_step(guider, 0)
    set_step(audio_guider, 0)
    wanted = {p.anchor: (p.predicts_video, p.predicts_audio) for p in guidance_passes(guider, audio_guider)}
    assert wanted == {JOINT: (True, True), UNCONDITIONAL: (True, False), NO_PLAN: (False, True)}


@pytest.mark.parametrize("has_video", [True, False])
def test_a_given_modality_reads_nothing_and_is_computed_once_for_a_pass(has_video):
    guider = ClassifierFreeGuidance(4.0)
    set_step(guider, 0)
    pair = (None, guider) if has_video else (guider, None)
    for p in guidance_passes(*pair):
        assert (p.video_reads_audio, p.audio_reads_video) == (not has_video, has_video)
        assert (p.predicts_video, p.predicts_audio) == (not has_video, has_video)
        assert p.runs_video and p.runs_audio
        assert (p.keeps_video, p.keeps_audio) == (has_video, not has_video)
    cost = num_forward_passes(*pair, NUM_STEPS)
    made, given = (cost.audio, cost.video) if has_video else (cost.video, cost.audio)
    assert (cost.calls, made, given) == (2 * NUM_STEPS, 2 * NUM_STEPS, 2)


def test_a_clip_of_one_modality_runs_one_branch():
    guider = ClassifierFreeGuidance(4.0)
    assert num_forward_passes(guider, None, NUM_STEPS, has_other=False) == ForwardPasses(20, 20, 0)
    assert num_forward_passes(None, guider, NUM_STEPS, has_other=False) == ForwardPasses(20, 0, 20)


def test_without_a_plan_its_guidance_vanishes(predict):
    pred, guider = predict(VIDEO_SHAPE), PlanGuidance(4.0, 1.0, 3.0)
    set_step(guider, 0)
    assert anchors(guider, guider, has_plan=False) == (JOINT, NO_TEXT)
    without_plan = combine(guider, {JOINT: pred[JOINT], NO_TEXT: pred[NO_TEXT]}, has_plan=False)
    torch.testing.assert_close(without_plan, pred[NO_TEXT] + 4.0 * (pred[JOINT] - pred[NO_TEXT]))


def test_counting_leaves_the_guiders_as_they_are(predict):
    guider = AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5)
    run(guider, predict, VIDEO_SHAPE)
    before = guider.get_state(), guider.momentum_buffer.running_average
    num_forward_passes(guider, guider, 30)
    assert guider.get_state() == before[0] and guider.momentum_buffer.running_average is before[1]


@pytest.mark.parametrize(
    "guider, why",
    [
        (SkipLayerGuidance(skip_layer_guidance_layers=[0]), "hooks layers of the denoiser"),
        (AutoGuidance(auto_guidance_layers=[0], dropout=0.5), "hooks layers of the denoiser"),
        (PerturbedAttentionGuidance(perturbed_guidance_layers=[0]), "hooks layers of the denoiser"),
        (SmoothedEnergyGuidance(seg_guidance_layers=[0]), "hooks layers of the denoiser"),
        (LTX2Guidance(), "estimates of the clean sample"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_guiders_of_another_kind_are_refused(guider, why):
    with pytest.raises(ValueError, match=rf"`audio_guider`.*`{type(guider).__name__}`.*{why}.*`PlanGuidance`"):
        check_guiders(ClassifierFreeGuidance(), guider)


def test_frequency_decoupled_guidance_is_refused():
    """Its constructor needs kornia, which this package does not."""
    from diffusers.guiders import FrequencyDecoupledGuidance

    guider = FrequencyDecoupledGuidance.__new__(FrequencyDecoupledGuidance)
    with pytest.raises(ValueError, match="`guider`.*`FrequencyDecoupledGuidance`.*frequency bands"):
        check_guider(guider, "guider")


def test_a_guider_of_unknown_nature_is_refused():
    class Mystery(BaseGuidance):
        _input_predictions = ["pred_cond"]

    with pytest.raises(ValueError, match="`guider`.*`Mystery`.*not known to only combine"):
        check_guider(Mystery(), "guider")


@pytest.mark.parametrize("value", [4.0, "harmony", PlanGuidance])
def test_what_is_no_guider_is_refused_with_the_remedy(value):
    with pytest.raises(ValueError, match=r"`guider` is .*, but must be a guider: `PlanGuidance`.*`presets\(\)` has"):
        check_guider(value, "guider")


def test_a_missing_guider_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"`guider` is missing.*PlanGuidance\(guidance_scale=1.0\)"):
        check_guider(None, "guider")


@pytest.mark.parametrize("make", SUPPORTED, ids=kind)
def test_supported_guiders_pass_the_check(make):
    check_guiders(make(), make())


def test_settings_that_break_are_refused():
    with pytest.raises(ValueError, match="zero_init_steps=1.*guidance_rescale=0.5.*NaN"):
        check_guider(ClassifierFreeZeroStarGuidance(guidance_rescale=0.5), "guider")
    check_guider(ClassifierFreeZeroStarGuidance(guidance_rescale=0.5, zero_init_steps=0), "guider")
    for norm_dim in (0, (0, 1)):
        with pytest.raises(ValueError, match="norm_dim=.*batch"):
            check_guider(AdaptiveProjectedGuidance(adaptive_projected_guidance_norm_dim=norm_dim), "guider")
