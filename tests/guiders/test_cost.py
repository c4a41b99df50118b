"""What `num_forward_passes` promises, counted on a transformer that keeps its clean streams."""

from collections import defaultdict
from contextlib import contextmanager

import pytest

from baton_diffusers.guiders import (
    ContextGuidance,
    ForwardPasses,
    PlanGuidance,
    SyncGuidance,
    num_forward_passes,
    passes_of_steps,
    presets,
)
from baton_diffusers.models.cache_dual_branch import CleanStream

from .conftest import preset


NUM_STEPS = 3


@contextmanager
def counted(transformer):
    """How often the transformer and each branch of its first block run."""
    block = transformer.blocks[0]
    counts = dict.fromkeys(("calls", "video", "audio"), 0)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    modules = {"calls": transformer, "video": block.attn1, "audio": block.audio_attn1}
    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    yield counts
    for handle in handles:
        handle.remove()


def clip_cost(step, guider, audio_guider, has_other=True):
    """Runs the passes of a clip as a pipeline does. A modality without a guider is given, or absent."""
    streams = defaultdict(CleanStream)
    with counted(step.transformer) as counts:
        for i, passes in enumerate(passes_of_steps(guider, audio_guider, NUM_STEPS, has_other=has_other)):
            for p in passes:
                keeps_video, keeps_audio = p.keeps_video or not p.runs_video, p.keeps_audio or not p.runs_audio
                velocity, audio_velocity = step.run(
                    p,
                    clean_video=streams["video", p.anchor.name] if keeps_video else None,
                    clean_audio=streams["audio", p.anchor.name] if keeps_audio else None,
                    hidden_states=step.latents + (0.0 if keeps_video else i),
                    audio_hidden_states=step.audio_latents + (0.0 if keeps_audio else i),
                    timestep=step.timestep - i,
                    audio_timestep=step.audio_timestep - i,
                )
                assert velocity is not None or not p.predicts_video
                assert audio_velocity is not None or not p.predicts_audio
    return ForwardPasses(**counts)


@pytest.mark.parametrize("name", presets())
def test_a_preset_costs_what_is_promised(step, name):
    pair = preset(name)
    assert clip_cost(step, **pair) == num_forward_passes(**pair, num_inference_steps=NUM_STEPS)


GUIDERS = {
    "none": lambda modality: PlanGuidance(1.0),
    "text": lambda modality: PlanGuidance(4.0),
    "text and context": lambda modality: ContextGuidance(3.0, guidance_scale=4.0),
    "sync": lambda modality: SyncGuidance(3.0, modality=modality),
    "sync and text": lambda modality: SyncGuidance(3.0, modality=modality, guidance_scale=4.0),
}


@pytest.mark.parametrize("make", GUIDERS.values(), ids=GUIDERS)
@pytest.mark.parametrize("has_other", [True, False], ids=["other given", "other absent"])
def test_one_modality_costs_what_is_promised(step, make, has_other):
    for pair in ((make("video"), None), (None, make("audio"))):
        promised = num_forward_passes(*pair, NUM_STEPS, has_other=has_other)
        assert clip_cost(step, *pair, has_other=has_other) == promised


def test_a_pass_for_one_modality_that_reads_no_other_runs_one_branch(step):
    pair = PlanGuidance(1.0), ContextGuidance(3.0, guidance_scale=1.0)
    assert num_forward_passes(*pair, NUM_STEPS) == ForwardPasses(2 * NUM_STEPS, NUM_STEPS, 2 * NUM_STEPS)
    assert clip_cost(step, *pair) == num_forward_passes(*pair, NUM_STEPS)


def test_sync_guidance_is_twice_a_joint_forward_and_thrice_in_ovis_form(step):
    for clean_reads, expected in ((False, 2 * NUM_STEPS + 1), (True, 3 * NUM_STEPS)):
        pair = (
            SyncGuidance(3.0, clean_reads=clean_reads),
            SyncGuidance(2.0, modality="audio", clean_reads=clean_reads),
        )
        assert clip_cost(step, *pair) == ForwardPasses(3 * NUM_STEPS, expected, expected)
