"""A clean stream is run once for a call, and the outputs are the same bit for bit."""

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from torch._dynamo.testing import CompileCounter

from baton_diffusers.models.cache_dual_branch import CleanStream

from ..tiny import AUDIO_LATENTS, FULL, random_plan, tiny_transformer
from .test_transformer_dual_branch import BATCH_SIZE, NUM_TOKENS, count_calls, make_inputs, run


STEPS = [0.0, 0.5, 1.0]  # what is added to the noisy latents at each step
# What says that a stream is clean, and which one it is.
CLEAN = [
    pytest.param({"timestep": torch.zeros(BATCH_SIZE), "video_reads_audio": False}, 0, id="video"),
    pytest.param({"audio_timestep": torch.zeros(BATCH_SIZE), "audio_reads_video": False}, 1, id="audio"),
]
NAMES = ("hidden_states", "audio_hidden_states")
KEEPS = ("clean_video", "clean_audio")


@pytest.fixture
def model():
    return tiny_transformer(**FULL)


@pytest.fixture
def inputs():
    return {**make_inputs(), "plan": random_plan(BATCH_SIZE)}


def noisy(inputs, clean, index, step):
    """What a step gives the model: the other modality moves on."""
    moving = NAMES[1 - index]
    return {**inputs, **clean, moving: inputs[moving] + step}


@pytest.mark.parametrize("changes", [{}, {"plan": None}, {"skip_layers": [1]}, {"reference": 4}], ids=str)
@pytest.mark.parametrize("clean, index", CLEAN)
@pytest.mark.parametrize("config", [{}, FULL], ids=["ovis form", "full"])
def test_a_clean_stream_is_run_once(config, clean, index, inputs, changes):
    model, inputs = tiny_transformer(**config), {**inputs, **changes}
    if (length := inputs.pop("reference", None)) is not None:
        inputs["reference_audio_hidden_states"] = torch.ones(BATCH_SIZE, length, AUDIO_LATENTS[1])
    expected = [run(model, noisy(inputs, clean, index, step))[1 - index] for step in STEPS]
    kept, last = {KEEPS[index]: CleanStream()}, model.blocks[2]
    branches = [count_calls(last.attn1), count_calls(last.audio_attn1)]
    embeddings = [count_calls(model.patch_embedding), count_calls(model.audio_patch_embedding.conv)]
    heads = [count_calls(model.proj_out), count_calls(model.audio_proj_out)]
    for step, wanted in zip(STEPS, expected, strict=True):
        found = run(model, noisy(inputs, clean, index, step), **kept)
        assert found[index] is None and torch.equal(found[1 - index], wanted)
    counts = [len(calls[index]) for calls in (branches, embeddings, heads)]
    assert counts == [1, 2 if index == 1 and length else 1, 0]
    assert len(branches[1 - index]) == len(heads[1 - index]) == 3


@pytest.mark.parametrize("clean, index", CLEAN)
def test_a_clean_stream_is_clean_at_any_timestep(model, inputs, clean, index):
    expected = run(model, {**inputs, **clean})[1 - index]
    reads = {name: value for name, value in clean.items() if "reads" in name}
    assert torch.equal(run(model, inputs, **reads, **{KEEPS[index]: CleanStream()})[1 - index], expected)


@pytest.mark.parametrize("clean, index", CLEAN)
def test_a_clean_stream_that_nobody_reads_is_not_run(model, inputs, clean, index):
    reads = {("audio_reads_video", "video_reads_audio")[index]: False}
    calls = count_calls((model.blocks[0].attn1, model.blocks[0].audio_attn1)[index])
    stream = CleanStream()
    with torch.no_grad():
        output = model(**{**inputs, **clean, **reads, KEEPS[index]: stream})
    found = (output.sample, output.audio_sample)
    assert found[index] is None and not calls and stream.num_bytes == 0
    assert torch.equal(found[1 - index], run(model, {**inputs, **clean}, **reads)[1 - index])


@pytest.mark.parametrize("clean, index", CLEAN)
def test_samples_that_do_not_read_a_clean_stream_do_not_notice_it(model, inputs, clean, index):
    reads = {("audio_reads_video", "video_reads_audio")[index]: torch.tensor([True, False])}
    stream = CleanStream()
    for step in STEPS:
        expected = run(model, noisy(inputs, clean, index, step), **reads)[1 - index]
        found = run(model, noisy(inputs, clean, index, step), **reads, **{KEEPS[index]: stream})
        assert torch.equal(found[1 - index], expected)


def test_a_forward_that_fails_leaves_nothing_wrong(model, inputs):
    clean, stream = CLEAN[0].values[0], CleanStream()

    def fail(*_):
        raise KeyboardInterrupt

    handle = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run(model, {**inputs, **clean}, clean_video=stream)
    handle.remove()
    expected = run(model, {**inputs, **clean})[1]
    for _ in range(2):
        assert torch.equal(run(model, {**inputs, **clean}, clean_video=stream)[1], expected)


def offload_each_layer(model):
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)


def offload_groups(model):
    cpu = torch.device("cpu")
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def cast_layerwise(model):
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def compile_whole(model):
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="eager")


def compile_blocks(model):
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")


WAYS = [
    *(pytest.param(way, id=way.__name__) for way in (offload_each_layer, offload_groups, cast_layerwise)),
    *(pytest.param(way, id=way.__name__, marks=pytest.mark.slow) for way in (compile_whole, compile_blocks)),
]


@pytest.mark.parametrize("prepare", WAYS)
@pytest.mark.parametrize("clean, index", CLEAN)
def test_a_clean_stream_is_run_once_under_hooks_and_compiled_too(model, inputs, prepare, clean, index):
    prepare(model)
    stream, keys = CleanStream(), []
    expected = [run(model, noisy(inputs, clean, index, step))[1 - index] for step in STEPS]
    for step, wanted in zip(STEPS, expected, strict=True):
        found = run(model, noisy(inputs, clean, index, step), **{KEEPS[index]: stream})
        torch.testing.assert_close(found[1 - index], wanted, atol=1e-6, rtol=1e-5)
        assert found[index] is None
        keys.append(stream.block(1).key)
    assert keys[0] is keys[1] is keys[2]


@pytest.mark.slow
@pytest.mark.parametrize("unread", KEEPS)
def test_one_modality_alone_compiles_as_one_graph(model, inputs, unread):
    expected = run(model, inputs, video_reads_audio=False, audio_reads_video=False)
    torch.compiler.reset()
    counter, stream = CompileCounter(), CleanStream()
    model.compile(fullgraph=True, backend=counter)
    index = 1 - KEEPS.index(unread)
    for _ in range(2):
        found = run(model, inputs, video_reads_audio=False, audio_reads_video=False, **{unread: stream})
        assert found[1 - index] is None
        torch.testing.assert_close(found[index], expected[index], atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 1


def test_the_cost_of_a_stream_is_told_beforehand(model, inputs):
    stream = CleanStream()
    run(model, {**inputs, **CLEAN[0].values[0]}, clean_video=stream)
    assert stream.num_bytes == model.cache_bytes(NUM_TOKENS + model.config.num_context_tokens, BATCH_SIZE)
    full = model.cache_bytes(100)
    assert model.to(torch.bfloat16).cache_bytes(100) == full // 2


def record_gradients(model):
    torch.set_grad_enabled(True)


def enable_another_cache(model):
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-6))


@pytest.mark.parametrize(
    "prepare, reads, message",
    [
        (record_gradients, False, r"`clean_video` keeps no gradients: .*`torch.no_grad\(\)`"),
        (enable_another_cache, False, r"`clean_video` skips a branch, .*`disable_cache\(\)`"),
        (lambda model: None, True, "`clean_video` was given with `video_reads_audio=True`: set it to False"),
        (lambda model: None, torch.tensor([False, False]), "`clean_video` was given with `video_reads_audio=tensor"),
    ],
)
def test_what_keeps_no_clean_stream_is_refused(model, inputs, prepare, reads, message):
    with torch.no_grad(), model.cache_context("joint"):
        prepare(model)
        with pytest.raises(ValueError, match=message):
            model(**inputs, video_reads_audio=reads, clean_video=CleanStream())
