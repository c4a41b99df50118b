import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from baton_diffusers.schedulers import LeadFlowMatchScheduler, check_schedulers, set_timesteps, step_kwargs


VIDEO_SHAPE = (2, 3, 4, 5, 6)  # (batch_size, num_channels, num_frames, height, width)
AUDIO_SHAPE = (2, 7, 3)  # (batch_size, audio_length, audio_channels)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

FIRST_ORDER = {
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "flow map": lambda shift: FlowMapEulerDiscreteScheduler(shift=shift),
    "lead": lambda shift: LeadFlowMatchScheduler(shift=shift),
    "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "dpm": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
}
STOCHASTIC = {
    "lcm": lambda shift: FlowMatchLCMScheduler(shift=shift),
    "sde-dpm": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, algorithm_type="sde-dpmsolver++", **FLOW),
}
SECOND_ORDER = {"heun": lambda shift: FlowMatchHeunDiscreteScheduler(shift=shift)}
ALL = FIRST_ORDER | STOCHASTIC | SECOND_ORDER


def denoise(scheduler, audio_scheduler, sample, audio_sample, num_inference_steps=8, seeds=(0, 1), deviations=None):
    """The loop of a pipeline, around a model that knows the samples and so the velocities toward them."""
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(sample.shape[1:], generator=g) for g in generator])
    audio_latents = torch.stack([torch.randn(audio_sample.shape[1:], generator=g) for g in generator])
    noise, audio_noise = latents, audio_latents
    timesteps = set_timesteps(scheduler, num_inference_steps)
    audio_timesteps = set_timesteps(audio_scheduler, num_inference_steps)
    for t, audio_t in zip(timesteps, audio_timesteps, strict=True):
        for x, x0, x1, tt in ((latents, sample, noise, t), (audio_latents, audio_sample, audio_noise, audio_t)):
            if deviations is not None:
                deviations.append((x - x0.lerp(x1, float(tt) / 1000)).abs().max().item())
        latents = scheduler.step(noise - sample, t, latents, **step_kwargs(scheduler, generator))[0]
        audio_latents = audio_scheduler.step(
            audio_noise - audio_sample, audio_t, audio_latents, **step_kwargs(audio_scheduler, generator)
        )[0]
    return latents, audio_latents


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(7)
    return torch.rand(VIDEO_SHAPE, generator=generator), torch.rand(AUDIO_SHAPE, generator=generator)


PAIRS = [*itertools.product(FIRST_ORDER, FIRST_ORDER), ("heun", "heun")]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("shifts", [(1.0, 1.0), (5.0, 5.0), (5.0, 2.0)])
def test_each_modality_walks_the_straight_path_at_its_own_timesteps(samples, names, shifts):
    scheduler, audio_scheduler = (ALL[name](shift) for name, shift in zip(names, shifts, strict=True))
    deviations = []
    results = denoise(scheduler, audio_scheduler, *samples, deviations=deviations)
    assert max(deviations) < 0.02  # integer timesteps are off by up to 1 of 1000, the noise by up to 5
    for result, expected in zip(results, samples, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0.01)  # the solver DPM starts at sigma 0.999


@pytest.mark.parametrize("name", ALL)
def test_equal_configurations_give_equal_timesteps(name):
    assert torch.equal(set_timesteps(ALL[name](5.0), 10), set_timesteps(ALL[name](5.0), 10))


@pytest.mark.parametrize("name", {**FIRST_ORDER, **STOCHASTIC})
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_grid_is_the_shift_of_equal_parts(name, shift):
    sigma = 1 - torch.arange(10) / 10
    expected = 1000 * shift * sigma / (1 + (shift - 1) * sigma)
    torch.testing.assert_close(set_timesteps(ALL[name](shift), 10).float(), expected, rtol=0, atol=3.5)


GRIDDED = ("euler", "unipc", "lcm")


@pytest.mark.parametrize("name", GRIDDED)
def test_a_grid_of_ones_own_is_shifted_as_the_default_is(name):
    default = set_timesteps(ALL[name](5.0), 4)
    sigmas = [1.0, 0.75, 0.5, 0.25]
    torch.testing.assert_close(set_timesteps(ALL[name](5.0), 4, sigmas=sigmas), default, rtol=0, atol=2.5)
    if name != "unipc":  # whose own grid ends a little lower
        assert torch.equal(set_timesteps(ALL[name](5.0), 4, sigmas=sigmas), default)


@pytest.mark.parametrize("name", GRIDDED)
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_timesteps_are_taken_as_they_are(samples, name, shift):
    scheduler, expected = ALL[name](shift), torch.tensor([1000.0, 600.0, 200.0])
    timesteps = set_timesteps(scheduler, 3, timesteps=[1000, 600, 200])
    torch.testing.assert_close(timesteps.float(), expected, rtol=0, atol=1.01)
    assert scheduler.sigmas[-1] == 0
    check_schedulers(ALL[name](shift), ALL[name](2.0), 3, timesteps=[1000, 600, 200])


@pytest.mark.parametrize("name", ["heun", "lead", "dpm"])
def test_schedulers_without_a_grid_say_so(name):
    for arguments in ({"sigmas": [1.0, 0.5]}, {"timesteps": [1000, 500]}):
        with pytest.raises(ValueError, match=f"takes no `{next(iter(arguments))}`"):
            set_timesteps(ALL[name](5.0), 2, **arguments)


def test_unipc_takes_the_steps_of_ovis_own_code():
    """50 equal parts from 0.999 to 0, then shift 5; its timesteps are cut to integers."""
    scheduler = UniPCMultistepScheduler(flow_shift=5.0, **FLOW)
    timesteps = set_timesteps(scheduler, 50)
    sigma = 0.999 * (1 - torch.arange(51, dtype=torch.float64) / 50)
    shifted = 5 * sigma / (1 + 4 * sigma)
    torch.testing.assert_close(scheduler.sigmas, shifted.float(), rtol=0, atol=1e-6)
    assert torch.equal(timesteps, (1000 * shifted[:-1]).long())
    assert timesteps[[0, 1, 25, 49]].tolist() == [999, 995, 833, 92]  # those of the published code


def test_heun_evaluates_the_model_twice_for_a_step():
    timesteps = set_timesteps(FlowMatchHeunDiscreteScheduler(), 10)
    assert len(timesteps) == 19 and torch.equal(timesteps[1::2], timesteps[2::2])


def test_repeated_integer_timesteps_skip_no_step(samples):
    schedulers = [UniPCMultistepScheduler(flow_shift=5.0, **FLOW) for _ in range(2)]
    timesteps = set_timesteps(schedulers[0], 400)
    assert timesteps[0] == timesteps[1]
    latents, _ = denoise(*schedulers, *samples, num_inference_steps=400)
    assert schedulers[0].step_index == 400
    torch.testing.assert_close(latents, samples[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_its_samples_one_by_one(samples, name):
    together = denoise(ALL[name](5.0), ALL[name](5.0), *samples)
    for i in range(2):
        apart = denoise(ALL[name](5.0), ALL[name](5.0), *(s[i : i + 1] for s in samples), seeds=(i,))
        for result, single in zip(together, apart, strict=True):
            torch.testing.assert_close(result[i : i + 1], single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_schedulers_forget_the_clip_before(samples, name):
    pair = ALL[name](5.0), ALL[name](3.0)
    first = denoise(*pair, *samples)
    denoise(*pair, samples[0][:1, :, :2], samples[1][:1, :3], num_inference_steps=5, seeds=(9,))
    for result, expected in zip(denoise(*pair, *samples), first, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_inference_steps", [1, 2, 25])
def test_flow_schedulers_pass_the_check_and_are_left_alone(name, num_inference_steps):
    scheduler = ALL[name](5.0)
    before = {key: value for key, value in vars(scheduler).items() if not key.startswith("model_outputs")}
    check_schedulers(scheduler, ALL[name](3.0), num_inference_steps)
    after = vars(scheduler)
    assert all(after[key] is value for key, value in before.items())


def refuse(scheduler, match, num_inference_steps=10):
    with pytest.raises(ValueError, match=match):
        check_schedulers(FlowMatchEulerDiscreteScheduler(), scheduler, num_inference_steps)


def test_one_object_for_both_is_refused():
    scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="one `FlowMatchEulerDiscreteScheduler` object.*from_config"):
        check_schedulers(scheduler, scheduler, 10)


def test_different_numbers_of_evaluations_are_refused():
    refuse(FlowMatchHeunDiscreteScheduler(), "`num_inference_steps=10`.*10 times.*Heun.*19 times.*same order")


@pytest.mark.parametrize(
    "scheduler, match",
    [
        (UniPCMultistepScheduler(), "`audio_scheduler`.*prediction_type='epsilon'.*Accepted"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "prediction_type='epsilon'"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction"), r"sigma 157\.4"),
        (UniPCMultistepScheduler(final_sigmas_type="sigma_min", **FLOW), r"to sigma 0\.0999"),
        (UniPCMultistepScheduler(solver_type="bh1", **FLOW), "solver_type': 'bh1'.*nan"),
        (DEISMultistepScheduler(**FLOW), r"`DEISMultistepScheduler`.*to sigma 0\.09"),
        (DDIMScheduler(), "`DDIMScheduler`.*prediction_type='epsilon'"),
        (EulerDiscreteScheduler(prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting=True"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from sigma 0 at timestep 0 to sigma 1"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "at timestep 500"),
        (None, "`NoneType`.*not a flow scheduler"),
    ],
)
def test_what_is_no_flow_is_refused(scheduler, match):
    refuse(scheduler, match)
