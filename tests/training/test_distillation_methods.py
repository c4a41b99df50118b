"""What a student learns: every step that it takes, and every rest of one that a target leaves to it."""

import pytest
import torch

from baton_diffusers.training.distillation_methods import Consistency, FlowMap


def draws(method, count=3000):
    host = torch.Generator().manual_seed(0)
    return [method.draw(host) for _ in range(count)]


METHODS = [Consistency(4, 16, 4, 0.5), Consistency(2, 16, 2, 0.5), FlowMap(16, 4, 0.5), FlowMap(12, 1, 0.5)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_target_ends_where_the_student_does_and_its_rest_is_learned_too(method):
    crossings = draws(method)
    learned = {(c.num_parts, c.start, c.end) for c in crossings}
    for c in crossings:
        assert 0 <= c.start < c.middle <= c.end <= c.num_parts and c.num_parts in method.grids
        assert c.middle - c.start == min(method.target_steps, c.end - c.start)
        assert c.middle == c.end or (c.num_parts, c.middle, c.end) in learned
        if c.own_stride is not None:
            assert c.end - c.start == c.own_stride and c.start % c.own_stride == 0
    own = sum(c.own_stride is not None for c in crossings) / len(crossings)
    assert own == pytest.approx(0.5, abs=0.05)


def test_consistency_is_of_one_number_of_steps():
    own = {(c.start, c.end) for c in draws(METHODS[1]) if c.own_stride is not None}
    assert own == {(0, 8), (8, 16)} and METHODS[1].grids == (16,)
    assert {c.start for c in draws(METHODS[1])} == set(range(0, 16, 2))


@pytest.mark.parametrize("method", METHODS[2:], ids=str)
def test_a_flow_map_learns_every_step_of_every_number_of_steps(method):
    crossings = [c for c in draws(method, 20000) if c.own_stride is not None]
    found = {(c.num_parts // c.own_stride, c.start // c.own_stride) for c in crossings}
    assert found == {(steps, index) for steps in range(1, method.teacher_steps + 1) for index in range(steps)}
    for c in crossings:  # the teacher's steps are about its own
        assert 2 / 3 <= c.num_parts / method.teacher_steps <= 4 / 3
    shares = [sum(c.num_parts // c.own_stride == steps for c in crossings) / len(crossings) for steps in (1, 2, 4)]
    assert shares == sorted(shares, reverse=True) and 0.2 < shares[0] < 0.3
