"""The one formula of guidance: the joint prediction, moved away from its anchors."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg

from .anchors import JOINT, UNCONDITIONAL, Anchor


if TYPE_CHECKING:
    from diffusers.modular_pipelines.modular_pipeline import BlockState


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


class AnchorGuidance(BaseGuidance):
    r"""
    Base of guiders that move the joint prediction away from anchors:

        pred = joint + sum_k w_k (joint - anchor_k)

    `joint` is the pass with every condition. An anchor is the same pass with some conditions dropped or replaced. Two-pass
    classifier-free guidance of scale s has one anchor, with w = s - 1. Schemes with more passes are other choices of anchors
    and weights.

    A subclass names its anchors in `_input_predictions` (`JOINT.name` first) and gives their weights in
    [`~AnchorGuidance.anchor_weights`]. Anchors of weight 0 are not run. A guider keeps no state from step to step.

    Args:
        guidance_rescale (`float`, defaults to `0.0`):
            How far, in [0, 1], the guided prediction is rescaled to the standard deviation of the joint one, over all
            dimensions but the batch (Section 3.4 of [Common Diffusion Noise Schedules and Sample Steps are
            Flawed](https://huggingface.co/papers/2305.08891)). Steps without guidance are not rescaled.
        start (`float`, defaults to `0.0`):
            Fraction of the steps of the denoising loop after which guidance starts.
        stop (`float`, defaults to `1.0`):
            Fraction of the steps of the denoising loop after which guidance stops.
        enabled (`bool`, defaults to `True`):
            Whether the guider guides at all. If not, only the joint pass is run.
        skip_layers (`Sequence[int]`, defaults to `()`):
            Blocks of the transformer that the passes without the prompt skip, counted from 0, whatever else they drop: the
            anchor is then the clip of a weaker model. Ovi skips block 11. The two guiders of a pipeline share their passes if
            they skip the same blocks.

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
        for name, share in (("guidance_rescale", guidance_rescale), ("start", start), ("stop", stop)):
            if not (_is_number(share) and 0.0 <= share <= 1.0):
                raise ValueError(f"Expected `{name}` to be between 0.0 and 1.0, but got {share!r}.")
        super().__init__(start, stop, enabled)
        self.guidance_rescale = guidance_rescale
        if not isinstance(skip_layers, (list, tuple)) or not all(type(i) is int and i >= 0 for i in skip_layers):
            raise ValueError(
                f"Expected `skip_layers` to list blocks of the transformer, counted from 0, but got {skip_layers!r}. Give "
                "`(11,)` to skip block 11, `()` to skip none."
            )
        self.skip_layers = tuple(sorted(set(skip_layers)))
        # Each constructor registers its own settings. diffusers' decorator would treat what is given by position as a
        # default, and `new` would lose it.
        self.register_to_config(
            guidance_rescale=guidance_rescale, start=start, stop=stop, enabled=enabled, skip_layers=list(skip_layers)
        )

    def register_scales(self, **scales: float) -> None:
        """Checks a subclass's scales, and keeps each as an attribute and in the configuration.

        Raises:
            ValueError: If a scale is not a finite number of at least 0.
        """
        for name, scale in scales.items():
            if not (_is_number(scale) and scale >= 0.0):
                raise ValueError(
                    f"Expected `{name}` to be a finite number of at least 0.0, but got {scale!r}. 1.0 turns this guidance off. To "
                    "move away from something, name it in the negative prompt."
                )
            setattr(self, name, scale)
        self.register_to_config(**scales)

    def anchor_weights(self) -> dict[Anchor, float]:
        """The weight w_k of each anchor, at any step at which guidance acts."""
        raise NotImplementedError(f"{type(self).__name__} must implement `anchor_weights`.")

    def required_anchors(self) -> tuple[Anchor, ...]:
        """The passes that the current step needs, see `set_state`: the joint one first, then each anchor whose weight is not 0."""
        return tuple(
            anchor if anchor.text else dataclasses.replace(anchor, skip_layers=self.skip_layers)
            for anchor in self._active_anchors()
        )

    def prepare_inputs(self, data: dict[str, tuple[torch.Tensor, ...]]) -> list[BlockState]:
        r"""
        One batch for each pass of this step, the joint one first.

        Args:
            data (`dict`): What the denoiser is called with: by argument one value for all passes, or a pair, for the passes
                with the prompt and for those without it.

        Returns:
            `list[BlockState]`: The values of each pass. `anchor` says what else it drops or replaces.

        Raises:
            ValueError: If a tuple in `data` is no pair.
        """
        return self._batches(data, lambda index, name: self._prepare_batch(data, index, name))

    def prepare_inputs_from_block_state(
        self, data: BlockState, input_fields: dict[str, str | tuple[str, str]]
    ) -> list[BlockState]:
        r"""
        As [`~AnchorGuidance.prepare_inputs`], for the blocks of a modular pipeline.

        Args:
            data (`BlockState`): The state of the blocks.
            input_fields (`dict`): By argument of the denoiser the name of a value in `data`, or the names of a pair, such as
                `{"encoder_hidden_states": ("prompt_embeds", "negative_prompt_embeds")}`.
        """
        return self._batches(
            input_fields, lambda index, name: self._prepare_batch_from_block_state(input_fields, data, index, name)
        )

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

    def _batches(self, fields: dict[str, Any], prepare: Callable[[int, str], BlockState]) -> list[BlockState]:
        for name, value in fields.items():
            if isinstance(value, tuple) and len(value) != 2:
                raise ValueError(
                    f"`{name}` has {len(value)} values for the passes of guidance: give a pair, one with the prompt and one without "
                    "it, or a single value."
                )
        batches = []
        for anchor in self._active_anchors():
            batch = prepare(0 if anchor.text else 1, anchor.name)
            batch.anchor = anchor
            batches.append(batch)
        return batches

    def _active_anchors(self) -> tuple[Anchor, ...]:
        # As `anchor_weights` names them, without the blocks that they skip.
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
