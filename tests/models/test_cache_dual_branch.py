"""What is constant is computed once, the outputs are the same, and nothing stale is ever returned."""

from dataclasses import replace

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig

from ..tiny import AUDIO_LATENTS, LATENTS, random_plan, tiny_transformer
from .test_cross_modal_attention import FULL
from .test_transformer_dual_branch import BATCH_SIZE, NUM_TOKENS, assert_equal, count_calls, differ, make_inputs, run


STEPS = [0.0, 0.5, 1.0]  # what is added to the noisy latents at each step
CLEAN = [
    pytest.param({"timestep": torch.zeros(BATCH_SIZE), "video_reads_audio": False}, 0, id="video"),
    pytest.param({"audio_timestep": torch.zeros(BATCH_SIZE), "audio_reads_video": False}, 1, id="audio"),
]
NAMES = ("hidden_states", "audio_hidden_states")


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


def assert_fresh(model, cache, inputs):
    """With this cache, as it is now, the model says what it says without one."""
    found, expected = run(model, inputs, cache=cache), run(model, inputs)
    for velocity, wanted in zip(found, expected, strict=True):
        assert velocity is None or torch.equal(velocity, wanted)
    return found


# What is the same, and what is done once


@pytest.mark.parametrize("config", [{}, FULL])
def test_the_passes_of_a_clip_are_the_same_bit_for_bit(config, inputs):
    model = tiny_transformer(**config)
    cache = model.make_cache()
    other_text = inputs["encoder_hidden_states"].flip(1)
    passes = [
        {},
        {"plan": None},
        {"encoder_hidden_states": other_text},
        {"skip_layers": [1]},
        *(c.values[0] for c in CLEAN),
    ]
    for step in STEPS:
        for changes in passes:
            moved = {name: inputs[name] + step for name in NAMES}
            found = run(model, {**inputs, **moved, **changes}, cache=cache)
            expected = run(model, {**inputs, **moved, **changes})
            for velocity, wanted in zip(found, expected, strict=True):
                assert velocity is None or torch.equal(velocity, wanted)


def test_text_and_plan_are_projected_once_for_a_clip_and_not_for_a_pass(model, inputs):
    cache, block = model.make_cache(), model.blocks[1]
    once = [
        count_calls(module)
        for module in (
            model.condition_embedder.text_embedder,
            model.audio_condition_embedder.text_embedder,
            model.plan_embedder,
            model.audio_plan_embedder,
            block.attn2.to_k,
            block.audio_attn2.to_v,
            block.plan_attn.to_v,
            block.audio_plan_attn.to_k,
        )
    ]
    each = count_calls(block.attn2.to_k_fusion)
    for step in STEPS:
        for changes in ({}, {"plan": None}, {"video_reads_audio": False, "audio_reads_video": False}):
            run(model, inputs, cache=cache, audio_hidden_states=inputs["audio_hidden_states"] + step, **changes)
    assert [len(calls) for calls in once] == [1] * len(once)
    assert len(each) == 3 * (2 + 2 + 1)  # where it is read, the audio and the context tokens; else the latter alone


@pytest.mark.parametrize("clean, index", CLEAN)
@pytest.mark.parametrize("config", [{}, FULL])
def test_a_clean_stream_is_run_once(config, clean, index, inputs):
    model = tiny_transformer(**config)
    expected = [run(model, noisy(inputs, clean, index, step))[1 - index] for step in STEPS]
    cache, last = model.make_cache(), model.blocks[2]
    branches = [count_calls(last.attn1), count_calls(last.audio_attn1)]
    embeddings = [count_calls(model.patch_embedding), count_calls(model.audio_patch_embedding)]
    heads = [count_calls(model.proj_out), count_calls(model.audio_proj_out)]
    for step, wanted in zip(STEPS, expected, strict=True):
        found = run(model, noisy(inputs, clean, index, step), cache=cache)
        assert found[index] is None and torch.equal(found[1 - index], wanted)
        counts = [len(calls) for calls in (branches[index], embeddings[index], heads[index])]
        assert counts == [1, 1, 0]
    assert len(branches[1 - index]) == len(heads[1 - index]) == 3


@pytest.mark.parametrize("clean, index", CLEAN)
def test_the_output_object_has_no_velocity_of_a_clean_stream(model, inputs, clean, index):
    with torch.no_grad():
        output = model(**{**inputs, **clean}, cache=model.make_cache())
    velocities = (output.sample, output.audio_sample)
    assert velocities[index] is None and velocities[1 - index].shape == inputs[NAMES[1 - index]].shape


@pytest.mark.parametrize("clean, index", CLEAN)
def test_a_clean_stream_that_nobody_reads_is_not_run(model, inputs, clean, index):
    other = ("audio_reads_video", "video_reads_audio")[index]
    calls = count_calls((model.blocks[0].attn1, model.blocks[0].audio_attn1)[index])
    found = run(model, {**inputs, **clean}, cache=model.make_cache(), **{other: False})
    assert found[index] is None and not calls
    assert torch.equal(found[1 - index], run(model, {**inputs, **clean}, **{other: False})[1 - index])


def test_a_stream_is_clean_if_all_of_it_is_and_no_sample_reads(model, inputs):
    def is_clean(**changes):
        return run(model, inputs, cache=model.make_cache(), **changes)[1] is None

    zero = torch.zeros(BATCH_SIZE)
    one_noisy_token = torch.zeros(BATCH_SIZE, AUDIO_LATENTS[0])
    one_noisy_token[1, 5] = 1.0
    assert is_clean(audio_timestep=zero, audio_reads_video=False)
    assert is_clean(audio_timestep=zero, audio_reads_video=torch.tensor([False, False]))
    assert is_clean(audio_timestep=one_noisy_token * 0, audio_reads_video=False)
    assert not is_clean(audio_timestep=zero)
    assert not is_clean(audio_timestep=zero, audio_reads_video=torch.tensor([False, True]))
    assert not is_clean(audio_timestep=one_noisy_token, audio_reads_video=False)


def test_each_pass_has_its_own_clean_stream(model, inputs):
    """V2A under guidance: the video is run once for each pass, in whatever order they come."""
    cache, calls = model.make_cache(num_passes=3), count_calls(model.blocks[0].attn1)
    clean = CLEAN[0].values[0]
    passes = [{}, {"plan": None}, {"encoder_hidden_states": inputs["encoder_hidden_states"].flip(1)}]
    for step in STEPS:
        for changes in passes:
            run(model, {**noisy(inputs, clean, 0, step), **changes}, cache=cache)
    assert len(calls) == len(passes)


# Nothing stale: inputs


@pytest.mark.parametrize("clean, index", [*CLEAN, pytest.param({}, None, id="none")])
@pytest.mark.parametrize("name", ["encoder_hidden_states", "hidden_states", "audio_hidden_states"])
def test_inputs_that_are_written_into_are_new_inputs(model, inputs, clean, index, name):
    cache, inputs = model.make_cache(), {**inputs, **clean}
    before = assert_fresh(model, cache, inputs)
    inputs[name][1, 0] += 1.0
    after = assert_fresh(model, cache, inputs)
    assert all(velocity is None or differ(velocity, old, 1e-6) for velocity, old in zip(after, before, strict=True))


@pytest.mark.parametrize("clean, index", [*CLEAN, pytest.param({}, None, id="none")])
def test_other_conditions_are_other_entries(model, inputs, clean, index):
    cache, inputs = model.make_cache(num_passes=1), {**inputs, **clean}
    plan = inputs["plan"]
    other_plans = [
        None,
        plan.masked(torch.tensor([True, False])),
        replace(plan, video_times=plan.video_times + 0.1, audio_times=plan.audio_times + 0.1),
        replace(plan, video_centres=plan.video_centres.flip(0)),
    ]
    assert_fresh(model, cache, inputs)
    for changes in [
        *({"plan": other} for other in other_plans),
        {"skip_layers": [0]},
        {"skip_layers": [2]},
        {"audio_encoder_hidden_states": inputs["encoder_hidden_states"] + 1.0},
        {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :3]},
        {"reference_audio_hidden_states": torch.ones(BATCH_SIZE, 4, AUDIO_LATENTS[1])},
        {"reference_audio_hidden_states": torch.zeros(BATCH_SIZE, 4, AUDIO_LATENTS[1])},
        {},
    ]:
        assert_fresh(model, cache, {**inputs, **changes})


def test_clips_of_other_sizes_are_other_entries(model):
    cache = model.make_cache()
    for latents, audio_latents, batch_size in [
        (LATENTS, AUDIO_LATENTS, 2),
        ((4, 3, 2, 8), AUDIO_LATENTS, 2),  # as many tokens, in other places
        (LATENTS, (30, 6), 2),
        (LATENTS, AUDIO_LATENTS, 1),
    ]:
        inputs = {**make_inputs(latents, audio_latents, batch_size), "plan": random_plan(batch_size)}
        assert_fresh(model, cache, inputs)
        assert_fresh(model, cache, {**inputs, "timestep": torch.zeros(batch_size), "video_reads_audio": False})


def test_a_forward_that_fails_leaves_nothing_wrong(model, inputs):
    cache, inputs = model.make_cache(), {**inputs, **CLEAN[0].values[0]}

    def fail(*_):
        raise KeyboardInterrupt

    handle = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run(model, inputs, cache=cache)
    handle.remove()
    assert_fresh(model, cache, inputs)
    assert_fresh(model, cache, inputs)


# Nothing stale: weights, adapters, dtype


def write_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def optimise(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.01).step()


def load_state_dict(model):
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def assign_state_dict(model):
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()}, assign=True)


def round_to_half_precision(model):
    model.to(torch.bfloat16).to(torch.float32)


def cast_layerwise(model):
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def add_adapter(model, name="default"):
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_k_fusion"], init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)


CHANGES = [
    write_in_place,
    optimise,
    load_state_dict,
    assign_state_dict,
    round_to_half_precision,
    cast_layerwise,
    add_adapter,
]


@pytest.mark.parametrize("clean, index", [*CLEAN, pytest.param({}, None, id="none")])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_kept_goes_when_the_weights_change(model, inputs, change, clean, index):
    cache, inputs = model.make_cache(), {**inputs, **clean}
    before = assert_fresh(model, cache, inputs)
    change(model)
    after = assert_fresh(model, cache, inputs)
    assert all(velocity is None or differ(velocity, old, 0.0) for velocity, old in zip(after, before, strict=True))


@pytest.mark.parametrize("clean, index", [*CLEAN, pytest.param({}, None, id="none")])
def test_what_was_kept_goes_when_adapters_change(model, inputs, clean, index, tmp_path):
    donor = tiny_transformer(**FULL)
    add_adapter(donor, "donor")
    donor.save_lora_adapter(tmp_path, adapter_name="donor")
    cache, inputs = model.make_cache(), {**inputs, **clean}
    moving = 0 if index is None else 1 - index

    before = assert_fresh(model, cache, inputs)[moving]
    for change, is_heard in [
        (lambda: model.load_lora_adapter(tmp_path, prefix=None, adapter_name="loaded", use_safetensors=True), True),
        (lambda: add_adapter(model, "other"), False),  # it waits to be set
        (lambda: model.set_adapters(["loaded"], [0.5]), True),
        (lambda: model.set_adapters(["loaded", "other"], [0.5, 1.0]), True),
        (lambda: model.disable_adapters(), True),
        (lambda: model.enable_adapters(), True),
        (lambda: model.delete_adapters("other"), True),
        (lambda: model.fuse_lora(lora_scale=0.7), True),
        (lambda: model.unfuse_lora(), False),  # it keeps the scale at which it was fused
        (lambda: model.set_adapters(["loaded"], [2.0]), True),
        (lambda: (model.fuse_lora(lora_scale=0.3), model.unload_lora()), True),
    ]:
        change()
        after = assert_fresh(model, cache, inputs)[moving]
        assert differ(after, before, 1e-4) == is_heard
        before = after


@pytest.mark.parametrize("clean, index", [*CLEAN, pytest.param({}, None, id="none")])
def test_what_was_kept_goes_when_adapters_are_scaled_for_a_call(model, inputs, clean, index):
    add_adapter(model)
    cache, inputs = model.make_cache(), {**inputs, **clean}
    moving = 0 if index is None else 1 - index
    outputs = [
        assert_fresh(model, cache, {**inputs, "attention_kwargs": {"scale": scale}})[moving]
        for scale in (1.0, 0.5, 0.0)
    ]
    assert differ(outputs[0], outputs[1], 1e-6) and differ(outputs[1], outputs[2], 1e-6)


def test_what_was_kept_goes_when_another_dtype_is_asked_for(model, inputs):
    cache = model.make_cache()
    assert_fresh(model, cache, inputs)
    model.to(torch.bfloat16)
    halves = {**make_inputs(dtype=torch.bfloat16), "plan": inputs["plan"]}
    assert {velocity.dtype for velocity in assert_fresh(model, cache, halves)} == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.parametrize("clean, index", CLEAN)
def test_what_was_kept_goes_when_the_device_changes(model, inputs, clean, index):
    cache, inputs = model.make_cache(), {**inputs, **clean}
    for device in ("cpu", "cuda", "cpu"):
        model.to(device)
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}
        for _ in range(2):
            assert_fresh(model, cache, moved)


def test_a_cache_serves_another_model_with_its_own_work(model, inputs):
    cache, other = model.make_cache(), tiny_transformer(**FULL)
    write_in_place(other)
    assert_fresh(model, cache, inputs)
    assert_fresh(other, cache, inputs)
    assert_fresh(model, cache, inputs)


# Under hooks


def offload_each_layer(model):
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)


def offload_groups(model):
    cpu = torch.device("cpu")
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("hook", [offload_each_layer, offload_groups, cast_layerwise], ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("clean, index", CLEAN)
def test_constant_work_is_done_once_under_hooks_too(model, inputs, hook, clean, index):
    hook(model)
    cache, block = model.make_cache(), model.blocks[1]
    texts = count_calls((block.audio_attn2, block.attn2)[index].to_k)
    streams = count_calls((block.attn1, block.audio_attn1)[index])
    found = [run(model, noisy(inputs, clean, index, step), cache=cache)[1 - index] for step in STEPS]
    assert (len(texts), len(streams)) == (1, 1)
    expected = [run(model, noisy(inputs, clean, index, step))[1 - index] for step in STEPS]
    assert_equal(found, expected)


def test_the_first_block_cache_goes_with_text_and_plan(model, inputs):
    expected = run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-6))
    cache, calls = model.make_cache(), count_calls(model.blocks[0].attn2.to_k)
    for _ in range(2):
        with model.cache_context("joint"):
            for velocity, wanted in zip(run(model, inputs, cache=cache), expected, strict=True):
                torch.testing.assert_close(velocity, wanted, rtol=0, atol=1e-5)
    assert len(calls) == 1
    with model.cache_context("v2a"), pytest.raises(ValueError, match=r"a clean stream.*`disable_cache\(\)`"):
        run(model, {**inputs, **CLEAN[0].values[0]}, cache=cache)


@pytest.mark.slow
def test_a_block_compiles_without_a_graph_break(inputs):
    model = tiny_transformer(num_layers=2, **FULL)
    routes = [{}, CLEAN[0].values[0]]
    expected = [run(model, {**inputs, **route}) for route in routes]
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    cache = model.make_cache()
    for _ in range(2):
        for route, wanted in zip(routes, expected, strict=True):
            for velocity, value in zip(run(model, {**inputs, **route}, cache=cache), wanted, strict=True):
                assert velocity is None or not differ(velocity, value, 1e-5)


# What it costs


def test_the_cost_is_stated_and_bounded(model, inputs):
    cache = model.make_cache(num_passes=2)
    text, plan, latents = inputs["encoder_hidden_states"], inputs["plan"], inputs["hidden_states"]
    run(model, inputs, cache=cache)
    tokens = 2 * text.shape[1] + plan.video_tokens.shape[1] + plan.audio_tokens.shape[1]
    projected = model.cache_bytes(tokens, BATCH_SIZE)
    assert projected == 2 * 3 * BATCH_SIZE * tokens * 24 * 4  # keys and values, blocks, samples, tokens, width, bytes
    plan_tensors = (plan.video_tokens, plan.video_times, plan.video_centres, plan.audio_tokens, plan.audio_times)
    copies = [text, text, plan.audio_mask, *plan_tensors]
    assert cache.num_bytes == projected + sum(value.numel() * value.element_size() for value in copies)

    clean = CLEAN[0].values[0]
    before = cache.num_bytes
    run(model, {**inputs, **clean}, cache=cache)
    added = cache.num_bytes - before
    assert model.cache_bytes(NUM_TOKENS, BATCH_SIZE) < added < model.cache_bytes(NUM_TOKENS, BATCH_SIZE) + 2**14

    def visit(step):
        run(model, {**inputs, **clean, "plan": None, "hidden_states": latents + step}, cache=cache)
        return cache.num_bytes

    assert visit(1.0) > visit(2.0) == visit(3.0) == visit(4.0)  # two are kept: the first one with its plan goes
    cache.clear()
    assert cache.num_bytes == 0
    assert_fresh(model, cache, inputs)


def test_half_precision_costs_half(model):
    full = model.cache_bytes(100)
    assert model.to(torch.bfloat16).cache_bytes(100) == full // 2


def test_an_entry_that_is_used_stays(model, inputs):
    """Of two entries, the one used longest ago goes, and not the first one made."""
    cache, calls = model.make_cache(num_passes=2), count_calls(model.condition_embedder.text_embedder)
    text = inputs["encoder_hidden_states"]
    for shift in (0.0, 1.0, 0.0, 2.0, 0.0):
        run(model, inputs, cache=cache, encoder_hidden_states=text + shift)
    assert len(calls) == 3


# Refusals


def test_a_cache_keeps_no_gradients(model, inputs):
    with pytest.raises(ValueError, match=r"`cache` keeps no gradients.*`torch.no_grad\(\)`"):
        model(**inputs, cache=model.make_cache())


def test_a_cache_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="`num_passes` is 0, but at least 1"):
        model.make_cache(0)
