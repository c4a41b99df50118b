"""The one formula of guidance: the joint prediction, moved away from its anchors."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg

from .anchors import JOINT, UNCONDITIONAL, Anchor


if TYPE_CHECKING:
    from diffusers.modular_pipelines.modular_pipeline import BlockState


def check_scales(**scales: float) -> None:
    """Refuse scales of guidance, given by their names, that are negative or not finite.

    Raises:
        ValueError: Naming the scale, its value and what to give.
    """
    for name, scale in scales.items():
        if not (math.isfinite(scale) and scale >= 0.0):
            raise ValueError(
                f"Expected `{name}` to be a finite number of at least 0.0, but got {scale}. 1.0 leaves that guidance out; to "
                "move away from something, name it in the negative prompt."
            )


class AnchorGuidance(BaseGuidance):
    r"""
    Base of guiders that move the joint prediction away from anchors:

        pred = joint + sum_k w_k (joint - anchor_k)

    where `joint` is the pass with every condition and an anchor is the same pass with some conditions dropped or replaced.
    Two-pass classifier-free guidance of scale s is the case of one anchor with w = s - 1; schemes with more passes are
    further choices of anchors and weights.

    A subclass names its anchors in `_input_predictions` (`JOINT.name` first) and gives their weights in
    [`~AnchorGuidance.anchor_weights`]. Anchors of weight 0 are not run. It keeps no state from step to step.

    Args:
        guidance_rescale (`float`, defaults to `0.0`):
            Share, in [0, 1], of the guided prediction whose standard deviation over all but the batch dimension is set
            back to that of the joint one (Section 3.4 of [Common Diffusion Noise Schedules and Sample Steps are
            Flawed](https://huggingface.co/papers/2305.08891)). Steps without guidance are left as they are.
        start (`float`, defaults to `0.0`):
            Fraction of the steps of the denoising loop after which guidance starts.
        stop (`float`, defaults to `1.0`):
            Fraction of the steps of the denoising loop after which guidance stops.
        enabled (`bool`, defaults to `True`):
            Whether the guider guides at all. If not, the joint pass alone is run.
        skip_layers (`Sequence[int]`, defaults to `()`):
            Blocks of the transformer, counted from 0, that the passes without the prompt leave out, whatever else they drop:
            what is moved away from is then the clip of a weaker model. Ovi leaves out block 11. The
            two guiders of a pipeline share their passes if they leave out the same.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        skip_layers: Sequence[int] = (),
    ):
        # diffusers warns whoever builds a guider that its interface may change: those who load a pipeline have not asked for it.
        logger = logging.getLogger(BaseGuidance.__module__)
        disabled, logger.disabled = logger.disabled, True
        try:
            super().__init__(start, stop, enabled)
        finally:
            logger.disabled = disabled
        if not 0.0 <= guidance_rescale <= 1.0:
            raise ValueError(f"Expected `guidance_rescale` to be between 0.0 and 1.0, but got {guidance_rescale}.")
        self.guidance_rescale = guidance_rescale
        if not isinstance(skip_layers, (list, tuple)) or not all(type(i) is int and i >= 0 for i in skip_layers):
            raise ValueError(
                f"Expected `skip_layers` to list blocks of the transformer, counted from 0, but got {skip_layers!r}. Give "
                "`(11,)` to leave out block 11, `()` to leave out none."
            )
        self.skip_layers = tuple(sorted(set(skip_layers)))

    def register_to_config(self, **kwargs) -> None:
        """Record settings, as [`ConfigMixin`] does, so that `new` and `from_config` keep those given by position too."""
        # diffusers takes every argument given by position for a default, and leaves defaults out of what it copies.
        kwargs.pop("_use_default_values", None)
        if isinstance(kwargs.get("skip_layers"), tuple):
            kwargs["skip_layers"] = list(kwargs["skip_layers"])  # as JSON brings it back
        super().register_to_config(**kwargs)

    def anchor_weights(self) -> dict[Anchor, float]:
        """The weight w_k of each anchor, at any step at which guidance acts."""
        raise NotImplementedError(f"{type(self).__name__} must implement `anchor_weights`.")

    def required_anchors(self) -> tuple[Anchor, ...]:
        """The passes that the step given to `set_state` needs: the joint one first, then the anchors of weight not 0."""
        return tuple(
            anchor if anchor.text else dataclasses.replace(anchor, skip_layers=self.skip_layers)
            for anchor in self._active_anchors()
        )

    def prepare_inputs(self, data: dict[str, tuple[torch.Tensor, ...]]) -> list[BlockState]:
        """One batch for each pass of this step; a tuple in `data` holds one value for each of `_input_predictions`."""
        return [
            self._prepare_batch(data, self._input_predictions.index(anchor.name), anchor.name)
            for anchor in self._active_anchors()
        ]

    def forward(self, joint: torch.Tensor, **anchors: torch.Tensor) -> GuiderOutput:
        r"""
        Combine the predictions of one step.

        Args:
            joint (`torch.Tensor`): Prediction with every condition, batch first.
            anchors (`torch.Tensor`): Predictions of the other required anchors, by `Anchor.name`, shaped like `joint`.
        """
        weights = self._active_weights()
        pred = joint
        for anchor, weight in weights.items():
            pred = pred + weight * (joint - anchors[anchor.name])
        if weights and self.guidance_rescale > 0.0:
            pred = rescale_noise_cfg(pred, joint, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=joint, pred_uncond=anchors.get(UNCONDITIONAL.name))

    @property
    def is_conditional(self) -> bool:
        """Whether the batch prepared last is the joint pass."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """Passes that the current step needs."""
        return len(self._active_anchors())

    def _active_anchors(self) -> tuple[Anchor, ...]:
        # What `anchor_weights` names, which blocks its passes leave out aside.
        return (JOINT, *self._active_weights())

    def _active_weights(self) -> dict[Anchor, float]:
        if not (self._enabled and self._is_within_range()):
            return {}
        return {a: w for a, w in self.anchor_weights().items() if not math.isclose(w, 0.0, abs_tol=1e-9)}

    def _is_within_range(self) -> bool:
        if self._num_inference_steps is None:
            return True
        start_step = int(self._start * self._num_inference_steps)
        stop_step = int(self._stop * self._num_inference_steps)
        return start_step <= self._step < stop_step
