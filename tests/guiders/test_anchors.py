import itertools

import pytest

from baton_diffusers.guiders import JOINT, NO_PLAN, NO_TEXT, UNCONDITIONAL, Anchor


@pytest.mark.parametrize(
    "anchor, name",
    [(JOINT, "joint"), (NO_TEXT, "no_text"), (NO_PLAN, "no_plan"), (UNCONDITIONAL, "no_text_no_plan")],
)
def test_names_are_stable(anchor, name):
    assert anchor.name == name


def test_names_tell_all_anchors_apart():
    anchors = [Anchor(text, plan) for text, plan in itertools.product((True, False), repeat=2)]
    assert len({anchor.name for anchor in anchors}) == len(set(anchors)) == 4


def test_without_a_plan_there_is_none_to_drop():
    assert NO_PLAN.resolve(has_plan=False) == JOINT
    assert UNCONDITIONAL.resolve(has_plan=False) == NO_TEXT
    for anchor in (JOINT, NO_TEXT, NO_PLAN, UNCONDITIONAL):
        assert anchor.resolve(has_plan=True) is anchor
