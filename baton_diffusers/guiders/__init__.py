"""Guidance for two modalities: anchors, the guiders built on them, and the functions that the pipeline's loop calls."""

from .anchor_guidance import AnchorGuidance
from .anchors import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL, Anchor
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
    "NO_PLAN",
    "NO_TEXT",
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
