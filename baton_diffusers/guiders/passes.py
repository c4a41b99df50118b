"""
Which passes of the denoiser guidance needs, and how their predictions become one.

These functions serve every supported guider alike, ours and those of diffusers, so that the denoising loop reads

    guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=t)
    audio_guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=audio_t)
    for anchor in joint_anchors(guider, audio_guider, has_plan):
        predictions[anchor], audio_predictions[anchor] = denoise(anchor)
    noise_pred = combine(guider, predictions, has_plan)
    audio_noise_pred = combine(audio_guider, audio_predictions, has_plan)

for every step of the loop from the first, which is where a guider forgets the clip before. Guiders are used in place, as in
diffusers: what a callback sets on `pipe.guider` holds from the next step on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
    LTX2Guidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, UNCONDITIONAL, Anchor


# diffusers' guiders that take two predictions, `pred_cond` and `pred_uncond`, and return one.
TWO_PASS_GUIDERS = (
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    TangentialClassifierFreeGuidance,
    MagnitudeAwareGuidance,
)

_HOOKS = "hooks layers of the denoiser, which would disturb the other modality too"
_REFUSALS = {
    AutoGuidance: _HOOKS,
    PerturbedAttentionGuidance: _HOOKS,
    SkipLayerGuidance: _HOOKS,
    SmoothedEnergyGuidance: _HOOKS,
    FrequencyDecoupledGuidance: "works on the frequency bands of images, not on the latents of video and audio",
    LTX2Guidance: "combines estimates of the clean sample and switches blocks of LTX-2's own transformer",
}
_ACCEPTED = "`PlanGuidance` (or another `AnchorGuidance`), " + ", ".join(f"`{c.__name__}`" for c in TWO_PASS_GUIDERS)


def check_guider(guider: BaseGuidance, name: str) -> None:
    r"""
    Refuse a guider that does not purely combine the predictions of one modality.

    Args:
        guider (`BaseGuidance`): The guider of one modality.
        name (`str`): What the caller calls it, for the message: `"guider"` or `"audio_guider"`.

    Raises:
        ValueError: If the guider is missing or of an unsupported kind, or if its settings would mix the samples of a batch
            or give NaN.
    """
    if guider is None:
        raise ValueError(
            f"`{name}` is missing. Give one of {_ACCEPTED}; `PlanGuidance(guidance_scale=1.0)` is no guidance, at the "
            "cost of one pass."
        )
    if not isinstance(guider, (AnchorGuidance, *TWO_PASS_GUIDERS)):
        why = next(
            (reason for kind, reason in _REFUSALS.items() if isinstance(guider, kind)),
            "is not known to purely combine predictions",
        )
        raise ValueError(f"`{name}` is of the class `{type(guider).__name__}`, which {why}. Accepted: {_ACCEPTED}.")

    if isinstance(guider, ClassifierFreeZeroStarGuidance) and guider.zero_init_steps and guider.guidance_rescale:
        raise ValueError(
            f"`{name}` has `zero_init_steps={guider.zero_init_steps}` and `guidance_rescale={guider.guidance_rescale}`: "
            "rescaling a prediction of zeros gives NaN. Set one of them to 0."
        )
    if isinstance(guider, AdaptiveProjectedGuidance):
        norm_dim = guider.adaptive_projected_guidance_norm_dim
        if norm_dim is not None and 0 in ((norm_dim,) if isinstance(norm_dim, int) else norm_dim):
            raise ValueError(
                f"`{name}` has `adaptive_projected_guidance_norm_dim={norm_dim}`: dimension 0 is the batch, and the clips "
                "of a batch must not change one another. Leave it out, or keep to None."
            )


def check_guiders(guider: BaseGuidance, audio_guider: BaseGuidance) -> None:
    r"""
    Check the guiders of both modalities, each and together.

    One object may serve both modalities unless it remembers earlier steps: adaptive projected guidance with a momentum
    would add the shapes of one modality to those of the other.

    Raises:
        ValueError: As [`check_guider`]; or if both are one object that keeps a state.
    """
    check_guider(guider, "guider")
    check_guider(audio_guider, "audio_guider")
    if guider is audio_guider and getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        raise ValueError(
            f"`guider` and `audio_guider` are one `{type(guider).__name__}` object with "
            f"`adaptive_projected_guidance_momentum={guider.adaptive_projected_guidance_momentum}`, whose running average "
            "belongs to one modality. Give each its own: `audio_guider=guider.new()`."
        )


def required_anchors(guider: BaseGuidance) -> tuple[Anchor, ...]:
    """The passes that `guider` needs at the step given to its `set_state`: the joint one first, and no pass in vain."""
    if isinstance(guider, AnchorGuidance):
        return guider.required_anchors()
    return (JOINT, UNCONDITIONAL)[: guider.num_conditions]


def joint_anchors(guider: BaseGuidance, audio_guider: BaseGuidance, has_plan: bool = True) -> tuple[Anchor, ...]:
    r"""
    The passes that both modalities need at this step, each once, the joint one first.

    Args:
        guider (`BaseGuidance`): The video guider, its `set_state` called for this step.
        audio_guider (`BaseGuidance`): The audio guider, its `set_state` called for this step.
        has_plan (`bool`, defaults to `True`):
            Whether the clip has a plan. Without one, passes that differ only in the plan are one pass.
    """
    anchors = (*required_anchors(guider), *required_anchors(audio_guider))
    return tuple(dict.fromkeys(anchor.resolve(has_plan) for anchor in anchors))


def combine(guider: BaseGuidance, predictions: Mapping[Anchor, torch.Tensor], has_plan: bool = True) -> torch.Tensor:
    r"""
    Combine the predictions of one modality into the guided one.

    Args:
        guider (`BaseGuidance`): The guider of this modality, its `set_state` called for this step.
        predictions (`Mapping[Anchor, torch.Tensor]`):
            The predictions of the passes of [`joint_anchors`], batch first: `(batch_size, num_channels, num_frames, height,
            width)` for video, `(batch_size, audio_length, audio_channels)` for audio. Passes that only the other modality
            asked for are ignored.
        has_plan (`bool`, defaults to `True`): As given to [`joint_anchors`].

    Returns:
        `torch.Tensor`: The guided prediction, shaped like the others. Each sample depends on its own predictions alone.
    """
    shape = predictions[JOINT].shape
    passes = guider.prepare_inputs({})  # one for each required anchor; at step 0 this also resets a momentum
    for guidance_pass, anchor in zip(passes, required_anchors(guider), strict=True):
        prediction = predictions[anchor.resolve(has_plan)]
        # Its norms are over all dimensions but the first, and torch.norm takes at most two.
        guidance_pass.noise_pred = prediction.flatten(1) if isinstance(guider, MagnitudeAwareGuidance) else prediction
    return guider(passes).pred.reshape(shape)


def anchors_of_steps(
    guider: BaseGuidance, audio_guider: BaseGuidance, num_inference_steps: int, has_plan: bool = True
) -> Iterator[tuple[Anchor, ...]]:
    r"""
    The passes of each step of a clip, without touching the guiders' state.

    It tells beforehand what must be prepared: a negative prompt is needed if any of these anchors drops the text.

    Args:
        guider (`BaseGuidance`): The video guider.
        audio_guider (`BaseGuidance`): The audio guider.
        num_inference_steps (`int`): Steps of the denoising loop, `len(timesteps)`.
        has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
    """
    guider, audio_guider = copy.copy(guider), copy.copy(audio_guider)
    for step in range(num_inference_steps):
        guider.set_state(step=step, num_inference_steps=num_inference_steps, timestep=None)
        audio_guider.set_state(step=step, num_inference_steps=num_inference_steps, timestep=None)
        yield joint_anchors(guider, audio_guider, has_plan)


def num_forward_passes(
    guider: BaseGuidance, audio_guider: BaseGuidance, num_inference_steps: int, has_plan: bool = True
) -> int:
    r"""
    How many forwards of the denoiser a clip costs: each serves both modalities.

    Args:
        guider (`BaseGuidance`): The video guider.
        audio_guider (`BaseGuidance`): The audio guider.
        num_inference_steps (`int`):
            Steps of the denoising loop, `len(timesteps)`: with a second-order scheduler such as Heun's 2N - 1, not N.
        has_plan (`bool`, defaults to `True`): Whether the clip has a plan.
    """
    return sum(map(len, anchors_of_steps(guider, audio_guider, num_inference_steps, has_plan)))
