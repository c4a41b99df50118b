"""Guidance toward synchronisation: Harmony's SyncCFG."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.guiders import BaseGuidance  # noqa: F401  diffusers recognises a guider by this name in its module

from .anchors import JOINT, MUTE, NO_PLAN, NO_TEXT, STATIC, UNCONDITIONAL, Anchor
from .plan_guidance import PlanGuidance


class SyncGuidance(PlanGuidance):
    r"""
    SyncCFG of [Harmony](https://huggingface.co/papers/2511.21579), equations 9 and 10, added to guidance by text and plan:

        pred = joint + (s - 1) (joint - mute)          for the video: the audio is clean silence, audio timestep 0
        pred = joint + (s - 1) (joint - static)        for the audio: the video is a clean still clip, timestep 0
                     + the terms of PlanGuidance

    Harmony writes it `v(z_v, mute) + s (v(z_v, z_a) - v(z_v, mute))`: it makes the influence of the sound on the picture
    stronger, and the mirror. The anchors keep prompt and plan (ours: the paper does not say). By default there is no guidance by
    text, as in the equations. `guidance_scale` above 1 adds it, at the cost of its own pass.

    By default the clean stream of an anchor reads only its context tokens, or, on a transformer without them, nothing of the other
    modality. It is then the same at every step. With `use_cache=True` an anchor costs one branch, and SyncCFG of both modalities
    costs two joint forwards a step. With `clean_reads` the clean stream reads the noisy one, as in Harmony's and Ovi's networks,
    and SyncCFG costs three. Choose what the transformer was trained with: converted Ovi weights need `clean_reads=True`.

    In a clip of one modality there is nothing to replace, and the term vanishes.

    Args:
        sync_guidance_scale (`float`, defaults to `3.0`):
            s: away from the clip whose other modality is silent or still. The default is Harmony's for video; Harmony's for
            audio is 2.
        modality (`str`, defaults to `"video"`):
            The guided modality: `"video"` for a pipeline's `guider`, `"audio"` for its `audio_guider`.
        guidance_scale (`float`, defaults to `1.0`): As in [`PlanGuidance`].
        text_guidance_scale (`float`, defaults to `1.0`): As in [`PlanGuidance`].
        plan_guidance_scale (`float`, defaults to `1.0`): As in [`PlanGuidance`].
        clean_reads (`bool`, defaults to `False`):
            Whether the silent or still stream reads the noisy one.
        guidance_rescale (`float`, defaults to `0.0`): As in [`AnchorGuidance`].
        start (`float`, defaults to `0.0`): As in [`AnchorGuidance`].
        stop (`float`, defaults to `1.0`): As in [`AnchorGuidance`].
        enabled (`bool`, defaults to `True`): As in [`AnchorGuidance`].
        skip_layers (`Sequence[int]`, defaults to `()`): As in [`AnchorGuidance`].

    Raises:
        ValueError: If a scale is negative or not finite, if there is no such modality, or if another setting is out of its range.
    """

    _input_predictions = [
        JOINT.name,
        UNCONDITIONAL.name,
        NO_TEXT.name,
        NO_PLAN.name,
        MUTE.name,
        STATIC.name,
        Anchor(mute=True, clean_reads=True).name,
        Anchor(static=True, clean_reads=True).name,
    ]

    def __init__(
        self,
        sync_guidance_scale: float = 3.0,
        modality: str = "video",
        guidance_scale: float = 1.0,
        text_guidance_scale: float = 1.0,
        plan_guidance_scale: float = 1.0,
        clean_reads: bool = False,
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
        self.register_scales(sync_guidance_scale=sync_guidance_scale)
        if modality not in ("video", "audio"):
            raise ValueError(f"Expected `modality` to be 'video' or 'audio', but got {modality!r}.")
        self.register_to_config(modality=modality, clean_reads=clean_reads)
        self.modality = modality
        self.clean_reads = clean_reads

    def anchor_weights(self) -> dict[Anchor, float]:
        replaced = "mute" if self.modality == "video" else "static"
        anchor = Anchor(clean_reads=self.clean_reads, **{replaced: True})
        return super().anchor_weights() | {anchor: self.sync_guidance_scale - 1.0}
