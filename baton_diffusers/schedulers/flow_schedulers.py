"""Two flow schedulers of diffusers that take their steps side by side: checks, the grid of steps, arguments of `step`."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from .lead_flow_match import NUM_TRAIN_TIMESTEPS, LeadFlowMatchScheduler


# Their step follows the velocity of one forward to the next noise level.
EULER = (FlowMatchEulerDiscreteScheduler, FlowMapEulerDiscreteScheduler, LeadFlowMatchScheduler)
_GRID_FROM_ONE = (FlowMatchEulerDiscreteScheduler, FlowMapEulerDiscreteScheduler, FlowMatchLCMScheduler)
_ACCEPTED = (
    "`FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`, `UniPCMultistepScheduler` and "
    '`DPMSolverMultistepScheduler` with `use_flow_sigmas=True, prediction_type="flow_prediction"`, or '
    "`LeadFlowMatchScheduler`"
)


def set_timesteps(
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    device: str | torch.device | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> torch.Tensor:
    r"""
    Put a flow scheduler at the start of a clip, and return the timesteps of the denoising loop.

    Schedulers that accept a grid get sigma_i = shift(1 - i / N) for i = 0 .. N - 1: N equal parts before the scheduler's own
    shift. By itself, diffusers' flow-matching Euler scheduler would end at the smallest sigma of training and waste a step. The
    Flux and HunyuanVideo 1.5 pipelines give it the grid too. The Heun scheduler accepts none. UniPC cannot start at sigma 1: it
    starts at 1 - 1/1000 and takes N equal parts from there, as in Ovi's and Wan's own code. By itself, diffusers' UniPC would
    spread its grid down to 1/1000, not to 0.

    Args:
        scheduler (`SchedulerMixin`): The scheduler of one modality.
        num_inference_steps (`int`): Number of steps N.
        device (`str` or `torch.device`, *optional*): Where the timesteps go.
        sigmas (`Sequence[float]`, *optional*): In place of the N equal parts, from 1 down; the scheduler's shift is applied to
            them, and 0 follows. One list serves both modalities, each with its own shift.
        timesteps (`Sequence[float]`, *optional*): Likewise, as 1000 times the noise levels after the shift.

    Raises:
        ValueError: If the scheduler takes no `sigmas` or `timesteps`, or they are not falling numbers in (0, 1] or (0, 1000].

    Returns:
        `torch.Tensor`: Falling timesteps in [0, 1000], with some schedulers integers. There are N, or 2N - 1 with Heun's, which
        evaluates the model twice in a step. With a lead they stay at 1000 or at 0 for some steps.
    """
    first = _first_sigma(scheduler)
    if sigmas is not None or timesteps is not None:
        check_grid(sigmas, timesteps)
        if first is None:
            name = "timesteps" if sigmas is None else "sigmas"
            raise ValueError(
                f"`{type(scheduler).__name__}` takes no `{name}`: leave them out, or take a `FlowMatchEulerDiscreteScheduler`."
            )
        grid = _unshifted(scheduler, timesteps) if sigmas is None else np.array(sigmas, dtype=np.float64)
        scheduler.set_timesteps(sigmas=grid.clip(max=first), device=device)
    elif first is not None:
        scheduler.set_timesteps(sigmas=np.linspace(first, 0.0, num_inference_steps + 1)[:-1], device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    # Integer timesteps can repeat. Without an index to begin at, `step` would look them up and find the second of two.
    scheduler.set_begin_index(0)
    return scheduler.timesteps


def _first_sigma(scheduler: SchedulerMixin) -> float | None:
    """The noise level, before the shift, at which a scheduler that takes a grid can start; None for one that takes none."""
    if isinstance(scheduler, _GRID_FROM_ONE):
        return 1.0
    if isinstance(scheduler, UniPCMultistepScheduler) and scheduler.config.use_flow_sigmas:
        return 1.0 - 1.0 / NUM_TRAIN_TIMESTEPS
    return None


def _unshifted(scheduler: SchedulerMixin, timesteps: Sequence[float]) -> np.ndarray:
    """The noise levels that a scheduler's shift takes to `timesteps`."""
    shift = scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0))
    shifted = np.array(timesteps, dtype=np.float64) / NUM_TRAIN_TIMESTEPS
    return shifted / (shift - (shift - 1.0) * shifted)


def check_grid(sigmas: Any, timesteps: Any) -> int | None:
    """
    Refuse noise levels or timesteps of a call that do not fall from noise toward the sample.

    Returns:
        `int`: The number of steps, or None if neither is given.

    Raises:
        ValueError: If both are given, or one is no list of falling numbers in (0, 1] or (0, 1000].
    """
    if sigmas is not None and timesteps is not None:
        raise ValueError("`sigmas` and `timesteps` both set the noise levels of the steps: give one of them.")
    name, grid, most = ("timesteps", timesteps, NUM_TRAIN_TIMESTEPS) if sigmas is None else ("sigmas", sigmas, 1)
    if grid is None:
        return None
    numbers = isinstance(grid, (list, tuple)) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most for value in grid
    )
    if not numbers or not grid or any(later >= earlier for earlier, later in itertools.pairwise(grid)):
        raise ValueError(
            f"`{name}` is {grid!r}, but must be a list of falling numbers above 0 and at most {most}, the first of them {most}."
        )
    if grid[0] < 0.99 * most:
        raise ValueError(f"`{name}` begins at {grid[0]}, but clips begin as noise: let the first be {most}.")
    return len(grid)


def step_kwargs(
    scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None
) -> dict[str, Any]:
    """Keyword arguments for `scheduler.step`. A scheduler that adds noise draws it from `generator`."""
    kwargs = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        kwargs["generator"] = generator
    return kwargs


def check_schedulers(
    scheduler: SchedulerMixin,
    audio_scheduler: SchedulerMixin,
    num_inference_steps: int,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> None:
    r"""
    Refuse a pair of schedulers that cannot take both modalities from noise to a sample in one loop.

    A copy of each scheduler is tried on a single number whose velocity is known. The schedulers themselves do not change. They may
    differ in class and in shift.

    Args:
        scheduler (`SchedulerMixin`): The video scheduler.
        audio_scheduler (`SchedulerMixin`): The audio scheduler.
        num_inference_steps (`int`): Steps of the clip.
        sigmas, timesteps (`Sequence[float]`, *optional*): As in [`set_timesteps`].

    Raises:
        ValueError: If both are one object, if one does not go from sigma 1 to 0 with timesteps 1000 sigma on predictions of
            the velocity, if they evaluate the model at different numbers of timesteps, or if both have a lead of one sign.
    """
    if scheduler is audio_scheduler:
        raise ValueError(
            f"`scheduler` and `audio_scheduler` are one `{type(scheduler).__name__}` object, but each modality steps its own. "
            "Give a copy: `audio_scheduler=type(scheduler).from_config(scheduler.config)`."
        )
    lengths = [
        _check_scheduler(scheduler, "scheduler", num_inference_steps, sigmas, timesteps),
        _check_scheduler(audio_scheduler, "audio_scheduler", num_inference_steps, sigmas, timesteps),
    ]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"With `num_inference_steps={num_inference_steps}`, `scheduler` (`{type(scheduler).__name__}`) evaluates the model "
            f"{lengths[0]} times and `audio_scheduler` (`{type(audio_scheduler).__name__}`) {lengths[1]} times. Both modalities "
            "are denoised in one loop: give both a scheduler of the same order."
        )
    leads = [s.config.get("lead", 0.0) for s in (scheduler, audio_scheduler)]
    if leads[0] * leads[1] > 0.0:
        raise ValueError(
            f"`scheduler` has `lead={leads[0]}` and `audio_scheduler` has `lead={leads[1]}`: if both lead or both follow, both rest at "
            "once. Give one the other's lead with the opposite sign, as `lead_schedulers` does."
        )


def _check_scheduler(
    scheduler: SchedulerMixin,
    name: str,
    num_inference_steps: int,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> int:
    """Check one scheduler on a copy, and return how many times it evaluates the model."""
    label = f"`{name}` (`{type(scheduler).__name__}`)"
    config = getattr(scheduler, "config", {})
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            f"{label} has `use_dynamic_shifting=True`, whose shift depends on the size of an image. Set it to False and give `shift` "
            "(or `flow_shift`)."
        )
    if config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise ValueError(
            f"{label} has `prediction_type={config['prediction_type']!r}`, but the transformer predicts velocities. Accepted: "
            f"{_ACCEPTED}."
        )
    if not hasattr(scheduler, "sigmas") or not hasattr(scheduler, "set_begin_index"):
        raise ValueError(f"{label} is not a flow scheduler. Accepted: {_ACCEPTED}.")

    scheduler = copy.copy(scheduler)
    timesteps = set_timesteps(scheduler, num_inference_steps, None, sigmas, timesteps).double().cpu()
    sigmas = scheduler.sigmas.double().cpu()
    grid = NUM_TRAIN_TIMESTEPS * sigmas[: len(timesteps)]
    if not (0.99 <= sigmas[0] <= 1.0 and sigmas[-1] == 0.0 and torch.allclose(timesteps, grid, rtol=0.0, atol=1.01)):
        raise ValueError(
            f"{label} goes from sigma {sigmas[0]:.4g} at timestep {timesteps[0]:.4g} to sigma {sigmas[-1]:.4g} with "
            f"`num_inference_steps={num_inference_steps}`, but a flow goes from sigma 1 at timestep {NUM_TRAIN_TIMESTEPS} to "
            f"sigma 0. Accepted: {_ACCEPTED}."
        )

    clean, latent = torch.tensor([[[0.5]]]), torch.tensor([[[-1.0]]])
    kwargs = step_kwargs(scheduler, torch.Generator().manual_seed(0))
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        velocity = (latent - clean) / sigma.float() if sigma > 0.0 else torch.zeros_like(latent)
        latent = scheduler.step(velocity, timestep, latent, **kwargs)[0]
    if not torch.allclose(latent, clean, atol=1e-3):
        raise ValueError(
            f"{label} with its settings {dict(config)} does not follow a velocity to its sample: the sample is {clean.item():.4g}, and "
            f"the last step is at {latent.item():.4g}. Accepted: {_ACCEPTED}."
        )
    return len(timesteps)
