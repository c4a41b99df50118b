import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from baton_diffusers.schedulers import LeadFlowMatchScheduler, check_schedulers, lead_schedulers, set_timesteps

from .test_flow_schedulers import AUDIO_SHAPE, VIDEO_SHAPE, denoise


LEADS = [0.0, 0.2, 0.25, 0.5, 1.0, -0.3, -1.0]


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def progress(scheduler, num_inference_steps):
    """How far a modality is before each step and at the end, in [0, 1], its shift undone."""
    set_timesteps(scheduler, num_inference_steps)
    sigmas = scheduler.sigmas.double()
    return 1 - sigmas / (scheduler.config.shift - (scheduler.config.shift - 1) * sigmas)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("num_inference_steps", [1, 7, 10, 50])
def test_it_goes_from_noise_to_clean_and_rests_only_at_the_ends(lead, shift, num_inference_steps):
    scheduler = LeadFlowMatchScheduler(shift=shift, lead=lead)
    timesteps = set_timesteps(scheduler, num_inference_steps)
    sigmas = scheduler.sigmas
    assert len(timesteps) == num_inference_steps and sigmas.shape == (num_inference_steps + 1,)
    torch.testing.assert_close(timesteps, 1000 * sigmas[:-1])
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0
    assert all(b < a or a == b == (1.0 if lead < 0 else 0.0) for a, b in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shifts", [(1.0, 1.0), (5.0, 2.0)])
def test_while_both_move_the_one_is_ahead_by_the_lead(lead, shifts):
    pair = lead_schedulers(lead, *shifts)
    p, p_audio = progress(pair["scheduler"], 40), progress(pair["audio_scheduler"], 40)
    both = (p > 0) & (p < 1) & (p_audio > 0) & (p_audio < 1)
    torch.testing.assert_close((p - p_audio)[both], torch.full_like(p[both], lead), rtol=0, atol=1e-5)
    assert both.any() or abs(lead) == 1.0
    assert ((p - p_audio) * (1 if lead >= 0 else -1) >= -1e-6).all()


@pytest.mark.parametrize("lead, moving", [(0.0, 10), (0.25, 8), (-0.25, 8), (1.0, 5), (-1.0, 5), (0.2, 9)])
def test_it_moves_in_its_share_of_the_steps(lead, moving):
    scheduler = LeadFlowMatchScheduler(shift=5.0, lead=lead)
    set_timesteps(scheduler, 10)
    assert (scheduler.sigmas.diff() < 0).sum() == moving


def test_a_lead_of_one_is_a_cascade():
    pair = lead_schedulers(1.0)
    p, p_audio = progress(pair["scheduler"], 10), progress(pair["audio_scheduler"], 10)
    assert torch.equal(p[:6], progress(LeadFlowMatchScheduler(shift=5.0), 5)) and (p[5:] == 1).all()
    assert (p_audio[:6] == 0).all() and torch.equal(p_audio[5:], progress(LeadFlowMatchScheduler(shift=5.0), 5))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_without_a_lead_it_is_diffusers_euler_scheduler(shift):
    ours, theirs = LeadFlowMatchScheduler(shift=shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    torch.testing.assert_close(set_timesteps(ours, 12), set_timesteps(theirs, 12))
    latents = expected = noise(VIDEO_SHAPE, seed=0)
    for i, t in enumerate(ours.timesteps):
        velocity = noise(VIDEO_SHAPE, seed=1 + i)
        latents = ours.step(velocity, t, latents).prev_sample
        expected = theirs.step(velocity, t, expected).prev_sample
    torch.testing.assert_close(latents, expected)


@pytest.mark.parametrize("lead", LEADS)
def test_both_modalities_walk_the_straight_path_to_their_ends(lead):
    generator = torch.Generator().manual_seed(7)
    samples = torch.rand(VIDEO_SHAPE, generator=generator), torch.rand(AUDIO_SHAPE, generator=generator)
    pair, deviations = lead_schedulers(lead, shift=5.0, audio_shift=2.0).values(), []
    check_schedulers(*pair, 8)
    for result, expected in zip(denoise(*pair, *samples, deviations=deviations), samples, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert max(deviations) < 1e-5


def test_at_rest_a_step_changes_nothing():
    leader, follower = lead_schedulers(0.5).values()
    sample = noise(AUDIO_SHAPE, seed=0)
    for scheduler, resting in ((leader, range(8, 12)), (follower, range(4))):
        timesteps = set_timesteps(scheduler, 12)
        for i, t in enumerate(timesteps):
            stepped = scheduler.step(noise(AUDIO_SHAPE, seed=1 + i), t, sample, return_dict=False)[0]
            assert torch.equal(stepped, sample) is (i in resting)


def test_one_with_a_lead_and_one_without_go_together():
    check_schedulers(LeadFlowMatchScheduler(lead=0.3), FlowMatchEulerDiscreteScheduler(), 10)


@pytest.mark.parametrize("lead", [0.3, -0.3])
def test_two_leaders_or_two_followers_are_refused(lead):
    pair = LeadFlowMatchScheduler(lead=lead), LeadFlowMatchScheduler(lead=lead)
    with pytest.raises(ValueError, match=rf"`scheduler` has `lead={lead}`.*`lead_schedulers`"):
        check_schedulers(*pair, 10)


@pytest.mark.parametrize(
    "settings", [{"shift": 0.0}, {"shift": -1.0}, {"shift": float("nan")}, {"lead": 1.5}, {"lead": -2.0}]
)
def test_settings_out_of_range_are_refused(settings):
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        LeadFlowMatchScheduler(**settings)


class ScheduledPipeline(DiffusionPipeline):
    """As much of a pipeline as schedulers need to be saved and loaded with one."""

    def __init__(self, scheduler, audio_scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler, audio_scheduler=audio_scheduler)


def test_a_pipeline_saves_and_loads_it(tmp_path):
    pair = lead_schedulers(0.25, shift=5.0, audio_shift=3.0)
    ScheduledPipeline(**pair).save_pretrained(tmp_path)
    loaded = ScheduledPipeline.from_pretrained(tmp_path)
    for role, scheduler in pair.items():
        assert type(getattr(loaded, role)) is LeadFlowMatchScheduler
        assert torch.equal(set_timesteps(getattr(loaded, role), 30), set_timesteps(scheduler, 30))
