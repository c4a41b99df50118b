"""Blocks that guidance leaves out: in the passes without the prompt, and in no others."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from baton_diffusers.guiders import (
    JOINT,
    NO_CROSS_MODAL,
    NO_PLAN,
    ContextGuidance,
    DualGuidance,
    ForwardPasses,
    PlanGuidance,
    SyncGuidance,
    check_guiders,
    guidance_passes,
    num_forward_passes,
    required_anchors,
)

from .test_cost import NUM_STEPS, clip_cost


EVERY_TERM = [
    lambda: PlanGuidance(4.0, 2.0, 3.0, skip_layers=(1,)),
    lambda: SyncGuidance(3.0, "video", 4.0, 2.0, 3.0, skip_layers=(1,)),
    lambda: ContextGuidance(3.0, 4.0, 2.0, 3.0, skip_layers=(1,)),
    lambda: DualGuidance(5.0, 3.0, skip_layers=(1,)),
]


def first_step(guider):
    guider.set_state(step=0, num_inference_steps=1, timestep=None)
    return guider


def test_guidance_with_a_block_left_out_is_written_by_hand(step):
    """Ovi's formula, `n + s (c - n)`, where the transformer's own loop over its blocks lacks one in `n` alone."""
    guided = step.guide(PlanGuidance(4.0, skip_layers=(1,)), PlanGuidance(3.0, skip_layers=(1,)))
    joint = step()
    block = step.transformer.blocks[1]
    handle = block.register_forward_hook(lambda module, args, output: args[:2])  # what goes in comes out
    negative = step(encoder_hidden_states=step.negative_prompt, plan=None)
    handle.remove()
    for scale, velocity, c, n in zip((4.0, 3.0), guided, joint, negative, strict=True):
        torch.testing.assert_close(velocity, n + scale * (c - n))
    whole = step.guide(PlanGuidance(4.0), PlanGuidance(3.0))
    assert not any(torch.allclose(velocity, other) for velocity, other in zip(guided, whole, strict=True))


@pytest.mark.parametrize("make", EVERY_TERM, ids=lambda make: type(make()).__name__)
def test_only_passes_without_the_prompt_leave_it_out(step, make):
    guider, audio_guider = make(), PlanGuidance(3.0, skip_layers=(1,))
    anchors = required_anchors(first_step(guider))
    assert {anchor.text for anchor in anchors} == {True, False}
    assert all(anchor.skip_layers == (() if anchor.text else (1,)) for anchor in anchors)

    calls = []
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
        for index, block in enumerate(step.transformer.blocks)
    ]
    first_step(audio_guider)
    for guidance_pass in guidance_passes(guider, audio_guider):
        calls.clear()
        step.run(guidance_pass)
        assert calls == ([0, 1, 2] if guidance_pass.anchor.text else [0, 2])
    for handle in handles:
        handle.remove()


def test_a_clip_without_plan_or_without_the_other_modality_leaves_it_out_too():
    guider = first_step(DualGuidance(5.0, 3.0, skip_layers=(1,)))
    for has_plan, has_other in ((False, True), (True, False), (False, False)):
        passes = [p.anchor for p in guidance_passes(guider, guider, has_plan, has_other)]
        assert passes[0] == JOINT and all(anchor.skip_layers == (1,) for anchor in passes[1:])


def test_passes_are_shared_where_both_leave_out_the_same(step):
    for layers, audio_layers, calls in (((1,), [1], 2), ((1,), (), 3), ((1,), (1, 2), 3), ((2, 1, 2), (1, 2), 2)):
        pair = PlanGuidance(4.0, skip_layers=layers), PlanGuidance(3.0, skip_layers=audio_layers)
        promised = num_forward_passes(*pair, NUM_STEPS)
        assert promised.calls == calls * NUM_STEPS and clip_cost(step, *pair) == promised
    # Only what drops the prompt differs: the plan's anchor is one pass.
    pair = PlanGuidance(1.0, 1.0, 2.0, skip_layers=(1,)), PlanGuidance(1.0, 1.0, 2.0)
    assert num_forward_passes(*pair, NUM_STEPS).calls == 2 * NUM_STEPS
    first_step(pair[0]), first_step(pair[1])
    assert [p.anchor for p in guidance_passes(*pair)] == [JOINT, NO_PLAN]


def test_a_kept_stream_is_kept_for_its_own_blocks(step):
    """A given audio in two passes of one text, of which one leaves out a block: two runs of it, as counted."""
    guider = ContextGuidance(3.0, guidance_scale=4.0, skip_layers=(1,))
    promised = num_forward_passes(guider, None, NUM_STEPS)
    assert NO_CROSS_MODAL in required_anchors(first_step(guider))
    assert promised == ForwardPasses(3 * NUM_STEPS, 3 * NUM_STEPS, 2)
    assert clip_cost(step, guider, None) == promised


def test_saved_and_loaded_it_leaves_out_the_same(tmp_path):
    PlanGuidance(4.0, skip_layers=(11,)).save_pretrained(tmp_path)
    loaded = PlanGuidance.from_pretrained(tmp_path)
    assert loaded.skip_layers == (11,) and loaded.new(guidance_scale=2.0).skip_layers == (11,)
    assert loaded.new(skip_layers=()).skip_layers == PlanGuidance().skip_layers == ()


@pytest.mark.parametrize("layers", [11, "11", (-1,), (1.0,), (True,), None])
def test_what_lists_no_blocks_is_refused(layers):
    with pytest.raises(ValueError, match=r"`skip_layers` to list blocks .*counted from 0, but got .*\(11,\)"):
        PlanGuidance(skip_layers=layers)


def test_blocks_that_the_transformer_lacks_are_refused():
    guider, ovis = ClassifierFreeGuidance(), PlanGuidance(3.0, skip_layers=(1, 11))
    check_guiders(guider, ovis, num_layers=12)
    message = r"`audio_guider` leaves out the blocks \[11\] .*are 0 to 10: set `pipe.audio_guider = .*skip_layers=\(\)"
    with pytest.raises(ValueError, match=message):
        check_guiders(guider, ovis, num_layers=11)
