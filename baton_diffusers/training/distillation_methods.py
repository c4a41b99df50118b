r"""
Two methods of distillation: which steps a student learns from its teacher's path. The models are elsewhere.

The path runs in unshifted time from noise, `t = 1`, to a sample, `t = 0`. Let `X(x, t, s)` be the state at `s` on the teacher's
path through the state `x` at `t`: its flow map. A student is a network `v` whose single step should equal this map:

    x + (s - t) v(x, t, s)  =  X(x, t, s)

`v` is the mean velocity from `t` to `s`. At `s = t` it is the velocity itself. The teacher's path from `t` to `s` passes each
point `m` between them, so the target of a step can be made of two parts:

    X(x, t, s)  =  X(X(x, t, m), m, s)

the teacher takes its own guided steps from `t` to `m`, and the student's moving average crosses the rest in one step. The
nearer `m` is to `t`, the cheaper is a target, and the more of it comes from the student itself.

- [`Consistency`] learns the steps of one student with a fixed number of them. The end `s` follows from `t`, and the network is not given it.
  With `m = s` that is progressive distillation (arXiv:2202.00512) in one round, with `m` a step from `t` consistency distillation
  (arXiv:2303.01469, in latent space with guidance arXiv:2310.04378) over segments (arXiv:2403.06807).
- [`FlowMap`] learns steps of any length, and the network is given `s` (flow map matching, arXiv:2406.07507; with targets in two parts,
  consistency trajectory models, arXiv:2310.02279; shortcut models, arXiv:2410.12557, cut at the middle). Ours: each batch is drawn for
  a student of some number of steps, and is cut into steps of the teacher that divide its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Crossing:
    """
    One step of the student, on a grid of equal parts of unshifted time, each of which is one step of the teacher.

    Args:
        num_parts (`int`): of the grid.
        start, end (`int`): points of the grid, counted from 0 at the noise: `t` and `s`.
        middle (`int`): the point up to which the teacher makes the target: `m`.
        own_stride (`int`, *optional*): the student itself goes to the state at `start`, in steps of so many parts. By default
            the state at `start` is a noised clip.
    """

    num_parts: int
    start: int
    middle: int
    end: int
    own_stride: int | None


@dataclass(frozen=True)
class Consistency:
    """
    Steps of a student that always takes `student_steps` of them, one for each segment of the teacher's grid.

    Args:
        student_steps (`int`): of the student.
        teacher_steps (`int`): of the teacher, a multiple.
        target_steps (`int`): steps that the teacher takes to a target.
        own_share (`float`): share of crossings that start at the student's own state, at the beginning of a segment.
    """

    student_steps: int
    teacher_steps: int
    target_steps: int
    own_share: float

    is_flow_map = False

    @property
    def grids(self) -> tuple[int, ...]:
        """Parts of all grids."""
        return (self.teacher_steps,)

    def draw(self, host: torch.Generator) -> Crossing:
        """A crossing to the end of a segment."""
        is_own, place = torch.rand(2, generator=host).tolist()
        segment = self.teacher_steps // self.student_steps
        return _crossing(self.student_steps, segment, self.target_steps, is_own < self.own_share, place)


@dataclass(frozen=True)
class FlowMap:
    """
    Steps of a student that takes any number of them, from 1 to `teacher_steps`.

    The number N of a batch is log-uniform: a step of twice the length is as frequent. The N-th part is then divided by a whole
    number into the teacher's steps, so that they are as near as possible to `1 / teacher_steps`.

    Args:
        teacher_steps (`int`): of the teacher.
        target_steps (`int`): steps that it takes to a target, at most.
        own_share (`float`): share of crossings that start at the state of a student of N steps.
    """

    teacher_steps: int
    target_steps: int
    own_share: float

    is_flow_map = True

    @property
    def grids(self) -> tuple[int, ...]:
        """Parts of all grids."""
        return tuple(sorted({steps * self._segment(steps) for steps in range(1, self.teacher_steps + 1)}))

    def draw(self, host: torch.Generator) -> Crossing:
        """A crossing to the end of one of N segments."""
        is_own, place, number = torch.rand(3, generator=host).tolist()
        student_steps = int((self.teacher_steps + 1) ** number)
        segment = self._segment(student_steps)
        return _crossing(student_steps, segment, self.target_steps, is_own < self.own_share, place)

    def _segment(self, student_steps: int) -> int:
        return max(1, round(self.teacher_steps / student_steps))


def _crossing(num_segments: int, segment: int, target_steps: int, is_own: bool, place: float) -> Crossing:
    """The crossing to the end of a segment from its start, or, unless it is the student's own state, from where a target may end."""
    stride = segment if is_own else min(target_steps, segment)
    starts = math.ceil(segment / stride)  # in a segment
    index, offset = divmod(int(place * num_segments * starts), starts)
    start, end = index * segment + offset * stride, (index + 1) * segment
    return Crossing(num_segments * segment, start, min(start + target_steps, end), end, segment if is_own else None)
