"""Python that repeats what was done on the page, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """
    How a version of a clip came about.

    Args:
        model (`str`, *optional*): the checkpoint; by default the one that comes with the package.
        prompt (`str`): the prompt.
        lines (`tuple[str, ...]`): statements that make `plan` or `clip` from what is there before them.
        reads_plan (`bool`): whether they read `plan.safetensors`.
        makes_clip (`bool`): whether they make `clip`.
    """

    model: str | None
    prompt: str
    lines: tuple[str, ...] = ()
    reads_plan: bool = False
    makes_clip: bool = False

    def then(self, *lines: str, makes_clip: bool = False) -> Recipe:
        """The recipe with more statements."""
        return replace(self, lines=(*self.lines, *lines), makes_clip=makes_clip)

    def script(self, scale: int) -> str:
        """The recipe as a program that writes `clip.mp4`, or `plan.safetensors` where nothing was rendered."""
        names = ["BatonPipeline"] + (["SemanticPlan"] if self.reads_plan else [])
        names += ["default_checkpoint"] if self.model is None else []
        model = "default_checkpoint()" if self.model is None else repr(self.model)
        last = f'clip.save("clip.mp4", scale={scale})' if self.makes_clip else 'plan.save("plan.safetensors")'
        head = ["import torch", f"from baton_diffusers import {', '.join(names)}", ""]
        body = [f"pipe = BatonPipeline.from_pretrained({model})", f"prompt = {self.prompt!r}", *self.lines, last]
        return "\n".join([*head, *body]) + "\n"
