"""What a student saves: the time of a clip and of its denoising, teacher and student in turn, in one run.

    python benchmarks/few_steps.py                                            # baton-nano and its own turbo
    python benchmarks/few_steps.py --model FOLDER --student FOLDER --steps 4 2 1

The least of several clips counts. On a CPU that others share, the process's own time tells more than the clock: both are printed.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from baton_diffusers import BatonPipeline, default_checkpoint
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


def main(arguments: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = arguments.student or Path(arguments.model) / "turbo"

    def load(prepare: Callable[[BatonPipeline], None]) -> BatonPipeline:
        pipe = BatonPipeline.from_pretrained(arguments.model).to(device)
        pipe.set_progress_bar_config(disable=True)
        prepare(pipe)
        return pipe

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
    parser.add_argument("--student", help="folder of its student; by default its folder turbo")
    parser.add_argument("--steps", type=int, nargs="+", default=(4, 2, 1), help="of the student")
    parser.add_argument("--clips", type=int, default=3, help="of each, of which the fastest counts")
    main(parser.parse_args())
