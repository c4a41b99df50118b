import dataclasses
import itertools

import pytest

from baton_diffusers.guiders import (
    JOINT,
    MUTE,
    NO_CROSS_MODAL,
    NO_PLAN,
    NO_TEXT,
    NOTHING,
    STATIC,
    UNCONDITIONAL,
    Anchor,
)


ANCHORS = (JOINT, NO_TEXT, NO_PLAN, UNCONDITIONAL, NO_CROSS_MODAL, NOTHING, MUTE, STATIC)
MUTE_READING = Anchor(mute=True, clean_reads=True)
STATIC_READING = Anchor(static=True, clean_reads=True)


def all_anchors():
    conditions = itertools.product((True, False), repeat=len(dataclasses.fields(Anchor)) - 1)
    for values, skip_layers in itertools.product(conditions, ((), (1,), (11,), (1, 11))):
        try:
            yield Anchor(*values, skip_layers=skip_layers)
        except ValueError:
            pass


@pytest.mark.parametrize(
    "anchor, name",
    [
        (JOINT, "joint"),
        (NO_TEXT, "no_text"),
        (NO_PLAN, "no_plan"),
        (UNCONDITIONAL, "no_text_no_plan"),
        (NO_CROSS_MODAL, "no_cross_modal"),
        (NOTHING, "no_text_no_plan_no_cross_modal"),
        (MUTE, "mute"),
        (Anchor(text=False, mute=True), "no_text_mute"),
        (STATIC_READING, "static_clean_reads"),
        (Anchor(text=False, plan=False, skip_layers=(11,)), "no_text_no_plan_skip_11"),
        (Anchor(skip_layers=(7, 11)), "skip_7_11"),
    ],
)
def test_names_are_stable(anchor, name):
    assert anchor.name == name


def test_names_tell_all_anchors_apart():
    anchors = list(all_anchors())
    # Each of text and plan, with: both modalities, neither read, and either replaced in both forms; four sets of blocks.
    assert len({anchor.name for anchor in anchors}) == len(set(anchors)) == 4 * 6 * 4


@pytest.mark.parametrize(
    "conditions, why",
    [
        ({"mute": True, "static": True}, "nothing to predict"),
        ({"mute": True, "cross_modal": False}, "leave `cross_modal` True"),
        ({"static": True, "cross_modal": False}, "leave `cross_modal` True"),
        ({"clean_reads": True}, "no clean stream"),
    ],
)
def test_contradictions_are_refused(conditions, why):
    with pytest.raises(ValueError, match=rf"Anchor\(.*{next(iter(conditions))}=.*{why}"):
        Anchor(**conditions)


@pytest.mark.parametrize(
    "anchor, video_reads_audio, audio_reads_video, gives_video, gives_audio",
    [
        (JOINT, True, True, True, True),
        (UNCONDITIONAL, True, True, True, True),
        (NO_CROSS_MODAL, False, False, True, True),
        (MUTE, True, False, True, False),
        (STATIC, False, True, False, True),
        (MUTE_READING, True, True, True, False),
        (STATIC_READING, True, True, False, True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_who_reads_whom_and_what_is_predicted(anchor, video_reads_audio, audio_reads_video, gives_video, gives_audio):
    assert (anchor.video_reads_audio, anchor.audio_reads_video) == (video_reads_audio, audio_reads_video)
    assert (anchor.gives_video, anchor.gives_audio) == (gives_video, gives_audio)


def test_without_a_plan_there_is_none_to_drop():
    assert NO_PLAN.resolve(has_plan=False) == JOINT
    assert UNCONDITIONAL.resolve(has_plan=False) == NO_TEXT
    assert Anchor(plan=False, mute=True).resolve(has_plan=False) == MUTE


def test_a_clip_of_one_modality_has_no_other_to_drop_or_replace():
    for anchor in (NO_CROSS_MODAL, MUTE, STATIC, MUTE_READING):
        assert anchor.resolve(has_other=False) == JOINT
    assert NOTHING.resolve(has_other=False) == UNCONDITIONAL
    assert NOTHING.resolve(has_plan=False, has_other=False) == NO_TEXT


def test_blocks_that_are_left_out_stay_out():
    anchor = Anchor(text=False, plan=False, cross_modal=False, skip_layers=(1,))
    assert anchor.resolve(has_plan=False, has_other=False) == Anchor(text=False, skip_layers=(1,))


def test_a_whole_clip_changes_no_anchor():
    for anchor in all_anchors():
        assert anchor.resolve(has_plan=True, has_other=True) == anchor
