"""Harmony's global path: reference audio reads the whole video, the audio reads it, and it is not part of the clip."""

import pytest
import torch

from ..tiny import AUDIO_CHANNELS, FULL, random_plan, tiny_transformer
from .test_transformer_dual_branch import BATCH_SIZE, differ, make_inputs, run


LENGTH = 5


@pytest.fixture
def inputs():
    reference = torch.randn(BATCH_SIZE, LENGTH, AUDIO_CHANNELS, generator=torch.Generator().manual_seed(1))
    return {**make_inputs(), "reference_audio_hidden_states": reference}


def first_block(config, inputs, length=LENGTH):
    """The states of both streams after the first block, in which tokens of one modality do not read one another."""
    model, states = tiny_transformer(**config), []
    with torch.no_grad():
        for attention in (model.blocks[0].attn1, model.blocks[0].audio_attn1):
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
    model.blocks[0].register_forward_hook(lambda _, __, output: states.extend(output))
    run(model, inputs)
    video, audio = states
    return video.unflatten(1, (3, 4)), audio[:, :length], audio[:, length:]


def changed(after, before):
    """Which tokens differ in any bit, over the batch."""
    return (after != before).flatten(2).any(dim=-1).any(dim=0)


@pytest.mark.parametrize("config", [{}, FULL])
def test_reference_audio_has_an_influence_and_no_place_in_the_clip(config, inputs):
    model, plan = tiny_transformer(**config), random_plan(BATCH_SIZE)
    without = run(model, {**inputs, "reference_audio_hidden_states": None}, plan=plan)
    found = run(model, inputs, plan=plan)
    other = run(
        model, {**inputs, "reference_audio_hidden_states": inputs["reference_audio_hidden_states"] + 1}, plan=plan
    )
    for index in (0, 1):
        assert found[index].shape == without[index].shape
        assert differ(found[index], without[index]) and differ(found[index], other[index])


@pytest.mark.parametrize("config", [{}, FULL])
def test_reference_audio_reads_the_whole_video_whatever_the_windows(config, inputs):
    _, reference, audio = first_block(config, inputs)
    for frame in range(3):
        moved = inputs["hidden_states"].clone()
        moved[:, :, frame] += 1.0
        _, moved_reference, moved_audio = first_block(config, {**inputs, "hidden_states": moved})
        assert changed(moved_reference, reference).all()
        reading = changed(moved_audio, audio)
        assert reading.any() and reading.all() == (not config)  # within windows, the audio reads its own frame


@pytest.mark.parametrize("config", [{}, FULL])
def test_neither_the_video_nor_the_audios_reading_of_it_sees_the_reference(config, inputs):
    before = first_block(config, inputs)
    reference = inputs["reference_audio_hidden_states"] + 1.0
    after = first_block(config, {**inputs, "reference_audio_hidden_states": reference})
    assert [changed(*pair).any().item() for pair in zip(after, before, strict=True)] == [False, True, False]


def test_the_audio_reads_what_it_reads_without_a_reference(inputs):
    video, _, audio = first_block(FULL, inputs)
    alone, audio_alone, _ = first_block(FULL, {**inputs, "reference_audio_hidden_states": None}, length=None)
    torch.testing.assert_close(video, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(audio, audio_alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_reference_is_clean_at_every_noise_level(inputs, per_token):
    inputs["audio_reads_video"] = False
    _, reference, audio = first_block(FULL, inputs)
    timestep = inputs["audio_timestep"] + 100.0
    timestep = timestep[:, None].expand(-1, 36) if per_token else timestep
    _, same, moved = first_block(FULL, {**inputs, "audio_timestep": timestep})
    assert torch.equal(same, reference) and changed(moved, audio).all()


def test_routing_holds_for_the_reference_too(inputs):
    inputs["audio_reads_video"] = torch.tensor([True, False])
    before = first_block(FULL, inputs)
    after = first_block(FULL, {**inputs, "hidden_states": inputs["hidden_states"] + 1.0})
    for index in (1, 2):
        assert differ(after[index][0], before[index][0]) and torch.equal(after[index][1], before[index][1])


@pytest.mark.parametrize("shape", [(1, 5, 6), (2, 5, 7), (2, 0, 6), (2, 5)])
def test_wrong_shapes_are_refused(inputs, shape):
    message = r"`reference_audio_hidden_states` has shape .*, but this model takes \(2, reference_length, 6\)"
    with pytest.raises(ValueError, match=message):
        run(tiny_transformer(), {**inputs, "reference_audio_hidden_states": torch.zeros(shape)})
