"""Anchors: the passes of the denoiser that guidance moves a prediction away from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    r"""
    A pass of the denoiser, named by the conditions that it keeps.

    Args:
        text (`bool`, defaults to `True`):
            Whether the pass reads the prompt. Where it does not, it reads the negative prompt.
        plan (`bool`, defaults to `True`):
            Whether the pass reads the semantic plan. Where it does not, the transformer is called with `plan=None`.
    """

    text: bool = True
    plan: bool = True

    @property
    def name(self) -> str:
        """A stable name such as `"no_text_no_plan"`, made for `transformer.cache_context(name)`; `"joint"` drops nothing."""
        dropped = [field.name for field in dataclasses.fields(self) if not getattr(self, field.name)]
        return "_".join(f"no_{condition}" for condition in dropped) or "joint"

    def resolve(self, has_plan: bool) -> Anchor:
        """The pass to run for this anchor: where a clip has no plan, dropping the plan changes nothing."""
        return self if has_plan else dataclasses.replace(self, plan=True)


JOINT = Anchor()
NO_TEXT = Anchor(text=False)
NO_PLAN = Anchor(plan=False)
UNCONDITIONAL = Anchor(text=False, plan=False)
