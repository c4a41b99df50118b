"""Guidance for two modalities: anchors, guiders that are built on them, and what the denoising loop calls."""

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, MUTE, NO_CROSS_MODAL, NO_PLAN, NO_TEXT, NOTHING, STATIC, UNCONDITIONAL, Anchor
from .context_guidance import ContextGuidance, DualGuidance
from .passes import (
    ForwardPasses,
    GuidancePass,
    check_guider,
    check_guiders,
    combine,
    guidance_passes,
    num_forward_passes,
    passes_of_steps,
    required_anchors,
)
from .plan_guidance import PlanGuidance
from .presets import presets
from .sync_guidance import SyncGuidance


__all__ = [
    "JOINT",
    "MUTE",
    "NOTHING",
    "NO_CROSS_MODAL",
    "NO_PLAN",
    "NO_TEXT",
    "STATIC",
    "UNCONDITIONAL",
    "Anchor",
    "AnchorGuidance",
    "ContextGuidance",
    "DualGuidance",
    "ForwardPasses",
    "GuidancePass",
    "PlanGuidance",
    "SyncGuidance",
    "check_guider",
    "check_guiders",
    "combine",
    "guidance_passes",
    "num_forward_passes",
    "passes_of_steps",
    "presets",
    "required_anchors",
]
