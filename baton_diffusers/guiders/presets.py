"""The published schemes of guidance as pairs of guiders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from .anchor_guidance import AnchorGuidance
from .context_guidance import ContextGuidance, DualGuidance
from .plan_guidance import PlanGuidance
from .sync_guidance import SyncGuidance


_OVI_LAYERS = (11,)
# By name: how the video's guider and the audio's are made.
_PRESETS: dict[str, tuple[Callable[[], AnchorGuidance], Callable[[], AnchorGuidance]]] = {
    "none": (lambda: PlanGuidance(1.0), lambda: PlanGuidance(1.0)),
    "text": (lambda: PlanGuidance(4.0), lambda: PlanGuidance(3.0)),
    "plan": (
        lambda: PlanGuidance(1.0, plan_guidance_scale=3.0),
        lambda: PlanGuidance(1.0, plan_guidance_scale=3.0),
    ),
    "harmony": (lambda: SyncGuidance(3.0), lambda: SyncGuidance(2.0, modality="audio")),
    "ccl": (
        lambda: ContextGuidance(3.0, guidance_scale=4.0),
        lambda: ContextGuidance(3.0, guidance_scale=3.0),
    ),
    "ltx2": (
        lambda: ContextGuidance(3.0, guidance_scale=3.0, guidance_rescale=0.7),
        lambda: ContextGuidance(3.0, guidance_scale=7.0, guidance_rescale=0.7),
    ),
    "mova": (DualGuidance, DualGuidance),
    "ovi": (
        lambda: PlanGuidance(4.0, skip_layers=_OVI_LAYERS),
        lambda: PlanGuidance(3.0, skip_layers=_OVI_LAYERS),
    ),
}


class _Presets(Mapping):
    """Makes fresh guiders when one asks for them."""

    def __getitem__(self, name: str) -> dict[str, AnchorGuidance]:
        if name not in _PRESETS:
            raise KeyError(f"there is no preset {name!r}: choose one of {', '.join(_PRESETS)}.")
        return {role: make() for role, make in zip(("guider", "audio_guider"), _PRESETS[name], strict=True)}

    def __iter__(self) -> Iterator[str]:
        return iter(_PRESETS)

    def __len__(self) -> int:
        return len(_PRESETS)


def presets() -> Mapping[str, dict[str, AnchorGuidance]]:
    r"""
    The published schemes by name, each as a fresh `guider` and `audio_guider`:

        pipe.register_modules(**presets()["harmony"])
        pipe = BatonPipeline.from_pretrained(folder, **presets()["ltx2"])

    - `"none"`: one pass.
    - `"text"`: plain classifier-free guidance of each modality, with Ovi's scales.
    - `"plan"`: guidance by the plan alone, away from the clip with the prompt but no plan. The scheme and its scale are ours.
    - `"harmony"`: SyncCFG with Harmony's scales.
    - `"ccl"`: Unconditional Context Guidance. CCL does not publish its scales: text has Ovi's, context LTX-2's.
    - `"ltx2"`: guidance by text and by the other modality, with LTX-2's scales and rescale.
    - `"mova"`: the nested form. The text's scale is the one in MOVA's public code, the context's is ours.
    - `"ovi"`: as `"text"`, with block 11 left out of the negative pass, as in Ovi's own code; for a transformer of its depth.

    [`passes_of_steps`] lists the passes of a scheme, [`num_forward_passes`] counts them.
    """
    return _Presets()
