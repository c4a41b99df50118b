"""Guidance by text and plan, dropped together or apart."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.guiders import BaseGuidance  # noqa: F401  diffusers recognises a guider by this name in its module

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL, Anchor


class PlanGuidance(AnchorGuidance):
    r"""
    Classifier-free guidance for a denoiser that reads a prompt and a semantic plan:

        pred = joint + (s   - 1) (joint - unconditional)      prompt and plan dropped
                     + (s_t - 1) (joint - no_text)            prompt dropped, plan kept
                     + (s_p - 1) (joint - no_plan)            plan dropped, prompt kept

    An anchor whose scale is 1 is not run: the default costs two passes, all scales at 1 cost one. With s_t = s_p = 1 this is
    the two-pass guidance of [Classifier-Free Diffusion Guidance](https://huggingface.co/papers/2207.12598). Baton does not
    publish its guidance by the plan: the two other terms are ours, in the form of LTX-2's terms.

    Without a plan, `no_plan` is the joint pass and its term vanishes; `unconditional` and `no_text` are one pass.

    Args:
        guidance_scale (`float`, defaults to `4.0`):
            s: away from the clip without prompt and plan. The default is Ovi's scale for video; Ovi's for audio is 3.
        text_guidance_scale (`float`, defaults to `1.0`):
            s_t: away from the clip with the plan and the negative prompt.
        plan_guidance_scale (`float`, defaults to `1.0`):
            s_p: away from the clip with the prompt and no plan.
        guidance_rescale (`float`, defaults to `0.0`):
            How far, in [0, 1], the result is rescaled to the standard deviation of the joint prediction. See
            [`AnchorGuidance`].
        start (`float`, defaults to `0.0`):
            Fraction of the steps of the denoising loop after which guidance starts.
        stop (`float`, defaults to `1.0`):
            Fraction of the steps of the denoising loop after which guidance stops.
        enabled (`bool`, defaults to `True`):
            Whether the guider guides at all. If not, only the joint pass is run.
        skip_layers (`Sequence[int]`, defaults to `()`): Blocks that the passes without the prompt skip. See
            [`AnchorGuidance`].

    Raises:
        ValueError: If a scale is negative or not finite, or if another setting is out of its range.
    """

    _input_predictions = [JOINT.name, UNCONDITIONAL.name, NO_TEXT.name, NO_PLAN.name]

    def __init__(
        self,
        guidance_scale: float = 4.0,
        text_guidance_scale: float = 1.0,
        plan_guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        skip_layers: Sequence[int] = (),
    ):
        super().__init__(guidance_rescale, start, stop, enabled, skip_layers)
        self.register_scales(
            guidance_scale=guidance_scale,
            text_guidance_scale=text_guidance_scale,
            plan_guidance_scale=plan_guidance_scale,
        )

    def anchor_weights(self) -> dict[Anchor, float]:
        return {
            UNCONDITIONAL: self.guidance_scale - 1.0,
            NO_TEXT: self.text_guidance_scale - 1.0,
            NO_PLAN: self.plan_guidance_scale - 1.0,
        }
