"""What a student saves: the time of a clip and of its denoising, teacher and student in turn, in one run.

    python benchmarks/few_steps.py                                            # baton-nano and its own turbo
    python benchmarks/few_steps.py --model FOLDER --student FOLDER --steps 4 2 1

The fastest of several clips counts. On a shared CPU, the process's own time is more reliable than the clock: both are printed.

    python benchmarks/few_steps.py --distance 12 --student FOLDER FOLDER      # how far each is from its teacher

Instead of times: the clips of validation scenes, from the same noise, with and without a plan. The distance of latents is the
root of their mean squared difference from the teacher's, divided by the standard deviation of the teacher's. The rows of the
teacher without guidance show the distance that a student has to reduce.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.evaluation.scores import draw_examples
from baton_diffusers.guiders import presets
from baton_diffusers.pipelines.denoise import Denoiser


PROMPT = "A red ball on the left bounces twice, then a purple face on the right says three."


class Stopwatch:
    """Seconds of the clock and of the process, and calls of the transformer."""

    def __init__(self) -> None:
        self.clock = self.process = 0.0

    @contextmanager
    def running(self):
        """Adds the time within it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock, process = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.clock += time.perf_counter() - clock
            self.process += time.process_time() - process


def measure(pipe: BatonPipeline, **call) -> tuple[Stopwatch, Stopwatch, int]:
    """The whole clip, its denoising, and forwards of the transformer."""
    whole, denoising, forwards = Stopwatch(), Stopwatch(), []
    step = Denoiser.step

    def timed_step(self: Denoiser, index: int) -> None:
        with denoising.running():
            step(self, index)

    hook = pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    Denoiser.step = timed_step
    try:
        with whole.running():
            pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np", **call)
    finally:
        Denoiser.step = step
        hook.remove()
    return whole, denoising, len(forwards)


def print_distances(pipe: BatonPipeline, students: list[Path], steps: list[int], num_clips: int) -> None:
    """A row for each student and number of steps, and for the teacher without guidance."""
    examples = draw_examples(-(-num_clips // 3), "validation")[:num_clips]
    guided = {"guider": pipe.guider, "audio_guider": pipe.audio_guider}
    plans = [pipe.plan(example.prompt, generator=torch.Generator().manual_seed(example.seed)) for example in examples]

    def make(has_plan: bool, num_steps: int | None = None) -> list[torch.Tensor]:
        clips = []
        for example, plan in zip(examples, plans, strict=True):
            given = {"plan": plan} if has_plan else {"use_plan": False}
            noise = torch.Generator().manual_seed(example.seed)
            clips.append(
                pipe(example.prompt, generator=noise, output_type="latent", num_inference_steps=num_steps, **given)
            )
        return [torch.cat([clip.frames for clip in clips]), torch.cat([clip.audio for clip in clips])]

    goals = {has_plan: make(has_plan) for has_plan in (True, False)}

    def print_row(name: str, num_steps: int) -> None:
        found = [
            ((x - goal).square().mean().sqrt() / goal.std()).item()
            for has_plan in goals
            for x, goal in zip(make(has_plan, num_steps), goals[has_plan], strict=True)
        ]
        print(f"{name:40}{num_steps:6}" + "".join(f"{value:12.3f}" for value in found), flush=True)

    print(f"{'':40}{'steps':>6}{'plan: video':>12}{'audio':>12}{'none: video':>12}{'audio':>12}")
    pipe.register_modules(**presets()["none"])
    for num_steps in steps:
        print_row("teacher without guidance", num_steps)
    pipe.register_modules(**guided)
    for student in students:
        pipe.load_student(student)
        for num_steps in steps:
            print_row(str(student)[-38:], num_steps)
        pipe.unload_lora_weights()


def main(arguments: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    students = arguments.student or [Path(arguments.model) / "turbo"]
    student = students[0]

    def load(prepare: Callable[[BatonPipeline], None]) -> BatonPipeline:
        pipe = BatonPipeline.from_pretrained(arguments.model).to(device)
        pipe.set_progress_bar_config(disable=True)
        prepare(pipe)
        return pipe

    if arguments.distance:
        print_distances(load(lambda pipe: None), students, arguments.steps, arguments.distance)
        return
    teacher = load(lambda pipe: None)
    rows = {f"teacher, {teacher.config.num_inference_steps} steps": (teacher, {})}
    for kind, fuse in (("adapter", False), ("fused", True)):
        pipe = load(lambda pipe, fuse=fuse: pipe.load_student(student, fuse=fuse))
        for steps in arguments.steps if fuse else arguments.steps[:1]:
            rows[f"student ({kind}), {steps} step{'s'[: steps != 1]}"] = (pipe, {"num_inference_steps": steps})
    found = {}
    for _ in range(1 + arguments.clips):  # the first warms up
        for name, (pipe, call) in rows.items():
            found.setdefault(name, []).append(measure(pipe, **call))
    names = ("clip", "own time", "denoising", "own time", "forwards")
    print(f"{'seconds on ' + device:32}" + "".join(f"{name:>12}" for name in names))
    first = None
    for name, times in found.items():
        best = [min(values) for values in zip(*(_numbers(*one) for one in times[1:]), strict=True)]
        first = first or best
        print(f"{name:32}" + "".join(f"{value:12.3f}" for value in best[:4]) + f"{best[4]:12}")
        if best is not first:
            ratios = "".join(f"{a / b:11.1f}x" for a, b in zip(first, best, strict=True))
            print(f"{'':32}{ratios}")


def _numbers(whole: Stopwatch, denoising: Stopwatch, forwards: int) -> tuple[float, ...]:
    return whole.clock, whole.process, denoising.clock, denoising.process, forwards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(default_checkpoint()), help="folder of a pipeline")
    parser.add_argument("--student", nargs="+", help="folder of its student; by default its folder turbo")
    parser.add_argument("--steps", type=int, nargs="+", default=(4, 2, 1), help="of the student")
    parser.add_argument("--clips", type=int, default=3, help="of each, of which the fastest counts")
    parser.add_argument("--distance", type=int, metavar="CLIPS", help="measure distances from the teacher instead")
    main(parser.parse_args())
