"""Guidance by the other modality: CCL's and LTX-2's term, and MOVA's nested form."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.guiders import BaseGuidance  # noqa: F401  diffusers recognises a guider by this name in its module

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, NO_CROSS_MODAL, NO_PLAN, NO_TEXT, NOTHING, UNCONDITIONAL, Anchor
from .plan_guidance import PlanGuidance


class ContextGuidance(PlanGuidance):
    r"""
    Guidance away from the clip whose picture and sound do not read each other, added to guidance by text and plan:

        pred = joint + (s_c - 1) (joint - no_cross_modal)     prompt and plan kept, neither modality reads the other
                     + the terms of PlanGuidance, s_t - 1 being the weight of (joint - unconditional)

    On a transformer with learnable context tokens, a branch that does not read the other one reads only those tokens, as it did in
    training. This is Unconditional Context Guidance after CCL (arXiv:2603.18600; only the idea is public, the formula is ours). On
    a transformer without context tokens that pass skips the cross-modal term. This is LTX-2's guidance:
    `c + (s_t - 1) (c - no_text) + (s_m - 1) (c - no_cross)`, where no_text drops both forms of the prompt, text and plan.

    In a clip of one modality there is nothing to drop, and the term vanishes.

    Args:
        context_guidance_scale (`float`, defaults to `3.0`):
            s_c: away from the clip whose modalities do not read each other. The default is LTX-2's for both modalities.
        guidance_scale (`float`, defaults to `3.0`):
            s_t: away from the clip without prompt and plan. The default is LTX-2's for video; LTX-2's for audio is 7.
        text_guidance_scale (`float`, defaults to `1.0`): As in [`PlanGuidance`].
        plan_guidance_scale (`float`, defaults to `1.0`): As in [`PlanGuidance`].
        guidance_rescale (`float`, defaults to `0.0`):
            As in [`AnchorGuidance`]. LTX-2 uses 0.7. It rescales estimates of the clean sample, ours rescales velocities.
        start (`float`, defaults to `0.0`): As in [`AnchorGuidance`].
        stop (`float`, defaults to `1.0`): As in [`AnchorGuidance`].
        enabled (`bool`, defaults to `True`): As in [`AnchorGuidance`].
        skip_layers (`Sequence[int]`, defaults to `()`): As in [`AnchorGuidance`].

    Raises:
        ValueError: If a scale is negative or not finite, or if another setting is out of its range.
    """

    _input_predictions = [JOINT.name, UNCONDITIONAL.name, NO_TEXT.name, NO_PLAN.name, NO_CROSS_MODAL.name]

    def __init__(
        self,
        context_guidance_scale: float = 3.0,
        guidance_scale: float = 3.0,
        text_guidance_scale: float = 1.0,
        plan_guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        skip_layers: Sequence[int] = (),
    ):
        super().__init__(
            guidance_scale,
            text_guidance_scale,
            plan_guidance_scale,
            guidance_rescale,
            start,
            stop,
            enabled,
            skip_layers,
        )
        self.register_scales(context_guidance_scale=context_guidance_scale)

    def anchor_weights(self) -> dict[Anchor, float]:
        return super().anchor_weights() | {NO_CROSS_MODAL: self.context_guidance_scale - 1.0}


class DualGuidance(AnchorGuidance):
    r"""
    Guidance first by the other modality, then by the prompt, as in MOVA:

        pred = nothing + s_b (unconditional - nothing) + s_t (joint - unconditional)

    `nothing` has neither the prompt nor the other modality. `unconditional` has the other modality, but no prompt. In the form of
    [`AnchorGuidance`] the weights are s_b - 1 for `nothing` and s_t - s_b for `unconditional`. Both forms of the prompt are
    dropped, text and plan.

    With s_b = s_t = s this is `nothing + s (joint - nothing)`, the guidance of UniAVGen (which uses `stop=0.5`), at the cost of
    two passes. With s_b = 1 it is two-pass classifier-free guidance. [`ContextGuidance`] says what `nothing` reads on transformers
    with and without context tokens.

    Args:
        guidance_scale (`float`, defaults to `5.0`):
            s_t. The default is the scale of classifier-free guidance in MOVA's public code.
        context_guidance_scale (`float`, defaults to `3.0`):
            s_b. The default is ours: the public code has none.
        guidance_rescale (`float`, defaults to `0.0`): As in [`AnchorGuidance`].
        start (`float`, defaults to `0.0`): As in [`AnchorGuidance`].
        stop (`float`, defaults to `1.0`): As in [`AnchorGuidance`].
        enabled (`bool`, defaults to `True`): As in [`AnchorGuidance`].
        skip_layers (`Sequence[int]`, defaults to `()`): As in [`AnchorGuidance`].

    Raises:
        ValueError: If a scale is negative or not finite, or if another setting is out of its range.
    """

    _input_predictions = [JOINT.name, UNCONDITIONAL.name, NOTHING.name]

    def __init__(
        self,
        guidance_scale: float = 5.0,
        context_guidance_scale: float = 3.0,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        skip_layers: Sequence[int] = (),
    ):
        super().__init__(guidance_rescale, start, stop, enabled, skip_layers)
        self.register_scales(guidance_scale=guidance_scale, context_guidance_scale=context_guidance_scale)

    def anchor_weights(self) -> dict[Anchor, float]:
        return {
            UNCONDITIONAL: self.guidance_scale - self.context_guidance_scale,
            NOTHING: self.context_guidance_scale - 1.0,
        }
