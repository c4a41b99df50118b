"""Python that repeats what was done on the page, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..shipped import default_checkpoint


@dataclass(frozen=True)
class Recipe:
    """
    How a version of a clip came about.

    Args:
        model (`str`, *optional*): the checkpoint; by default the one that comes with the package.
        prompt (`str`): the first prompt.
        plan (`tuple[str, ...]`): statements that make `plan`, and `prompt` anew where an edit changes it.
        clip (`tuple[str, ...]`): what has to be done to have `clip`, if there is one: statements that make plans among it.
        student (`str`, *optional*): the student that renders what is quick.
    """

    model: str | None
    prompt: str
    plan: tuple[str, ...]
    clip: tuple[str, ...] = ()
    student: str | None = None

    def planned(self, *lines: str) -> Recipe:
        """The recipe with another plan. The clip stays, so that a part of it can follow the plan."""
        return replace(self, plan=(*self.plan, *lines), clip=(*self.clip, *lines) if self.clip else ())

    def rendered(self, line: str, quick: bool = False) -> Recipe:
        """The recipe with a clip of its plan, by the student if it is `quick`."""
        return replace(self, clip=(*self.plan, *self._drawn(line, quick)))

    def retaken(self, line: str, quick: bool = False) -> Recipe:
        """The recipe with a retake of a part of its clip."""
        return replace(self, clip=(*self.clip, *self._drawn(line, quick)))

    def _drawn(self, line: str, quick: bool) -> tuple[str, ...]:
        if not quick:
            return (line,)
        ships = self.model is None and self.student == str(default_checkpoint() / "turbo")
        name = 'default_checkpoint() / "turbo"' if ships else repr(self.student)
        return f"pipe.load_student({name})", line, "pipe.unload_lora_weights()"

    def script(self, scale: int | None = None) -> str:
        """The recipe as a program. It writes `plan.safetensors`, or where a `scale` is given `clip.mp4`, so much enlarged."""
        lines = self.plan if scale is None else self.clip
        names = ["BatonPipeline", "default_checkpoint"] if self.model is None else ["BatonPipeline"]
        names += [name for name in ("SemanticPlan", "read_clip") if any(name in line for line in lines)]
        model = "default_checkpoint()" if self.model is None else repr(self.model)
        head = ["from dataclasses import replace", ""] if any("replace(" in line for line in lines) else []
        head += ["import torch", "", f"from baton_diffusers import {', '.join(sorted(names))}", "", ""]
        first = [f"pipe = BatonPipeline.from_pretrained({model})"]
        first.append(f"prompt = {self.prompt!r}")
        last = 'plan.save("plan.safetensors")' if scale is None else f'clip.save("clip.mp4", scale={scale})'
        return "\n".join([*head, *first, *lines, last]) + "\n"


def written_generator(seed: int) -> str:
    """A generator, as an argument in a recipe."""
    return f"generator=torch.Generator().manual_seed({seed})"
