"""Guidance for two modalities: anchors, the guiders built on them, and the functions that the pipeline's loop calls."""

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, MUTE, NO_CROSS_MODAL, NO_PLAN, NO_TEXT, NOTHING, STATIC, UNCONDITIONAL, Anchor
from .passes import (
    anchors_of_steps,
    check_guider,
    check_guiders,
    combine,
    joint_anchors,
    num_forward_passes,
    required_anchors,
)
from .plan_guidance import PlanGuidance


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
    "PlanGuidance",
    "anchors_of_steps",
    "check_guider",
    "check_guiders",
    "combine",
    "joint_anchors",
    "num_forward_passes",
    "required_anchors",
]
