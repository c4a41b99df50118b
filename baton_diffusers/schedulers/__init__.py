r"""
Noise schedules for two modalities.

`BatonPipeline` has two flow schedulers of diffusers, `scheduler` for video and `audio_scheduler` for audio. Each has its own shift
and its own state. Both take their steps in one loop, which evaluates the transformer once for a pair of timesteps:

    timesteps = set_timesteps(scheduler, num_inference_steps, device)
    audio_timesteps = set_timesteps(audio_scheduler, num_inference_steps, device)
    for t, audio_t in zip(timesteps, audio_timesteps, strict=True):
        ...
        latents = scheduler.step(velocity, t, latents, **step_kwargs(scheduler, generator))[0]
        audio_latents = audio_scheduler.step(audio_velocity, audio_t, audio_latents, **step_kwargs(audio_scheduler, generator))[0]

`LeadFlowMatchScheduler` lets one modality run ahead of the other. `lead_schedulers` makes such a pair.

The velocity points from the sample to the noise: `latents = (1 - sigma) sample + sigma noise`, and `t` is 1000 sigma. Latents and
velocities are float32, since the flow-matching schedulers return the dtype of the velocity.
"""

from .flow_schedulers import EULER, check_grid, check_schedulers, set_timesteps, step_kwargs
from .lead_flow_match import LeadFlowMatchScheduler, lead_schedulers


__all__ = [
    "EULER",
    "LeadFlowMatchScheduler",
    "check_grid",
    "check_schedulers",
    "lead_schedulers",
    "set_timesteps",
    "step_kwargs",
]
