"""Python that repeats what was done on the page, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """
    How a version of a clip came about.

    Args:
        model (`str`, *optional*): the checkpoint; by default the one that comes with the package.
        prompt (`str`): the first prompt.
        plan (`tuple[str, ...]`): statements that make `plan`, and `prompt` anew where an edit changes it.
        clip (`tuple[str, ...]`): statements that make `clip` from them, if it was rendered.
    """

    model: str | None
    prompt: str
    plan: tuple[str, ...]
    clip: tuple[str, ...] = ()

    def planned(self, *lines: str) -> Recipe:
        """The recipe with another plan, and no clip of it yet."""
        return replace(self, plan=(*self.plan, *lines), clip=())

    def rendered(self, line: str) -> Recipe:
        """The recipe with a clip of its plan."""
        return replace(self, clip=(line,))

    def retaken(self, *lines: str) -> Recipe:
        """The recipe with a part of its clip made anew."""
        return replace(self, clip=(*self.clip, *lines))

    def script(self, scale: int) -> str:
        """The recipe as a program. It writes `clip.mp4`, enlarged `scale` times, or `plan.safetensors` if nothing was rendered."""
        lines = [*self.plan, *self.clip]
        names = ["BatonPipeline", *(["SemanticPlan"] if any("SemanticPlan" in line for line in lines) else [])]
        names += ["default_checkpoint"] if self.model is None else []
        model = "default_checkpoint()" if self.model is None else repr(self.model)
        head = ["import torch", "", f"from baton_diffusers import {', '.join(names)}", "", ""]
        lines = [f"pipe = BatonPipeline.from_pretrained({model})", f"prompt = {self.prompt!r}", *lines]
        lines.append(f'clip.save("clip.mp4", scale={scale})' if self.clip else 'plan.save("plan.safetensors")')
        return "\n".join([*head, *lines]) + "\n"


def written_generator(seed: int) -> str:
    """A generator, as an argument in a recipe."""
    return f"generator=torch.Generator().manual_seed({seed})"
