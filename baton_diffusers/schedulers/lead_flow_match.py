"""A flow schedule in which one modality runs ahead of the other."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers import SchedulerMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput


NUM_TRAIN_TIMESTEPS = 1000


class LeadFlowMatchScheduler(SchedulerMixin, ConfigMixin):
    r"""
    Euler steps of flow matching with a shift and a lead over the other modality. Ours: a transformer that was trained with
    independent timesteps for its modalities has seen all these states.

    Let u go from 0 to 1 over the N steps. The progress of this modality is

        p = min((1 + lead) u, 1)             lead >= 0: it goes faster, arrives early and rests clean at timestep 0
        p = max((1 + |lead|) u - |lead|, 0)  lead < 0: it waits as noise at timestep 1000, then goes as fast

    Its noise level is `sigma = shift (1 - p) / (1 + (shift - 1) (1 - p))`. With leads l and -l both modalities start as noise and
    end clean within the same N evaluations of the transformer. While both move, one is ahead by l of its schedule: 0 is the joint
    schedule, 1 finishes one modality before the other begins. A modality moves in N / (1 + |lead|) of the steps, rounded up. A
    step at rest changes nothing.

    A shift alone bends a schedule too, but it cannot finish one modality before the other.

    Args:
        shift (`float`, defaults to `1.0`):
            Shift of the noise levels toward noise, above 0. 1 spaces them evenly.
        lead (`float`, defaults to `0.0`):
            Fraction of the schedule, in [-1, 1], by which this modality runs ahead of one with the opposite lead.

    Raises:
        ValueError: If `shift` or `lead` is out of its range.
    """

    order = 1

    @register_to_config
    def __init__(self, shift: float = 1.0, lead: float = 0.0):
        if not (math.isfinite(shift) and shift > 0.0):
            raise ValueError(f"Expected `shift` to be a finite number above 0.0, but got {shift}.")
        if not -1.0 <= lead <= 1.0:
            raise ValueError(f"Expected `lead` to be between -1.0 and 1.0, but got {lead}.")
        self.set_timesteps(NUM_TRAIN_TIMESTEPS)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        r"""
        Put the scheduler at the start of a clip: `timesteps` gets N values in [0, 1000], `sigmas` their noise levels and a 0.

        Args:
            num_inference_steps (`int`): Number of steps N.
            device (`str` or `torch.device`, *optional*): Where both go.
        """
        shift, lead = self.config.shift, self.config.lead
        progress = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        progress = (1.0 + abs(lead)) * progress - max(-lead, 0.0)
        progress = progress.round(decimals=9).clamp(0.0, 1.0)  # at rest it must be exactly 0 or 1
        sigmas = shift * (1.0 - progress) / (1.0 + (shift - 1.0) * (1.0 - progress))

        self.num_inference_steps = num_inference_steps
        self.timesteps = (NUM_TRAIN_TIMESTEPS * sigmas).float().to(device)
        self.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float().to(device)
        self.set_begin_index(0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index of the next step, counted from 0."""
        self.step_index = begin_index

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor]:
        r"""
        Take a sample from one noise level to the next.

        Args:
            model_output (`torch.Tensor`): Velocity, from the sample to the noise.
            timestep (`torch.Tensor`):
                Ignored, here for the interface of diffusers: timesteps repeat while a modality rests, so steps are counted.
            sample (`torch.Tensor`): Latents, shaped like the velocity.
            return_dict (`bool`, defaults to `True`): Whether to return an object with `prev_sample` instead of a tuple.
        """
        sigma, next_sigma = self.sigmas[self.step_index : self.step_index + 2]
        self.step_index += 1
        prev_sample = sample + (next_sigma - sigma) * model_output
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)


def lead_schedulers(lead: float, shift: float = 5.0, audio_shift: float = 5.0) -> dict[str, LeadFlowMatchScheduler]:
    r"""
    The schedulers of both modalities, one ahead of the other: `pipe.register_modules(**lead_schedulers(0.25))`.

    Args:
        lead (`float`):
            Fraction of the schedule, in [-1, 1], by which the video runs ahead of the audio. Below 0 the audio is ahead.
        shift (`float`, defaults to `5.0`): Shift of the video's noise levels. The default is Ovi's and Harmony's.
        audio_shift (`float`, defaults to `5.0`): Shift of the audio's.

    Returns:
        `dict`: A `scheduler` and an `audio_scheduler`.

    Raises:
        ValueError: As [`LeadFlowMatchScheduler`].
    """
    return {
        "scheduler": LeadFlowMatchScheduler(shift=shift, lead=lead),
        "audio_scheduler": LeadFlowMatchScheduler(shift=audio_shift, lead=-lead),
    }
