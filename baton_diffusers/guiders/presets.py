"""The published schemes of guidance as pairs of guiders."""

from __future__ import annotations

from .anchor_guidance import AnchorGuidance
from .context_guidance import ContextGuidance, DualGuidance
from .plan_guidance import PlanGuidance
from .sync_guidance import SyncGuidance


def presets() -> dict[str, dict[str, AnchorGuidance]]:
    r"""
    The published schemes by name, each as a fresh `guider` and `audio_guider`:

        pipe.register_modules(**presets()["harmony"])
        pipe = BatonPipeline.from_pretrained(folder, **presets()["ltx2"])

    - `"none"`: one pass.
    - `"text"`: plain classifier-free guidance of each modality, with Ovi's scales.
    - `"plan"`: guidance by the plan alone, away from the clip that has the prompt but no plan, and its scale, are ours.
    - `"harmony"`: SyncCFG with Harmony's scales.
    - `"ccl"`: Unconditional Context Guidance. CCL's scales are not public: of the text they are Ovi's, of the context LTX-2's.
    - `"ltx2"`: text and modality guidance with LTX-2's scales and rescale.
    - `"mova"`: the nested form with the scale of MOVA's public code for the text; that of the context is ours.
    - `"ovi"`: as `"text"`, with block 11 left out of the negative pass, as in Ovi's own code; for a transformer of its depth.

    The passes of a scheme are told by [`passes_of_steps`].
    """
    return {
        "none": _pair(PlanGuidance(1.0), PlanGuidance(1.0)),
        "text": _pair(PlanGuidance(4.0), PlanGuidance(3.0)),
        "plan": _pair(PlanGuidance(1.0, plan_guidance_scale=3.0), PlanGuidance(1.0, plan_guidance_scale=3.0)),
        "harmony": _pair(SyncGuidance(3.0), SyncGuidance(2.0, modality="audio")),
        "ccl": _pair(ContextGuidance(3.0, guidance_scale=4.0), ContextGuidance(3.0, guidance_scale=3.0)),
        "ltx2": _pair(
            ContextGuidance(3.0, guidance_scale=3.0, guidance_rescale=0.7),
            ContextGuidance(3.0, guidance_scale=7.0, guidance_rescale=0.7),
        ),
        "mova": _pair(DualGuidance(), DualGuidance()),
        "ovi": _pair(PlanGuidance(4.0, skip_layers=(11,)), PlanGuidance(3.0, skip_layers=(11,))),
    }


def _pair(guider: AnchorGuidance, audio_guider: AnchorGuidance) -> dict[str, AnchorGuidance]:
    return {"guider": guider, "audio_guider": audio_guider}
