"""`DualBranchTransformer`: timesteps, visibility and plans are data; every feature of diffusers that it announces works."""

from dataclasses import replace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig, TextKVCacheConfig
from peft import LoraConfig

from baton_diffusers.memory import LiveTensors
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer

from ..tiny import (
    AUDIO_CHANNELS,
    AUDIO_LATENTS,
    FULL,
    LATENT_CHANNELS,
    LATENTS,
    TEXT_DIM,
    random_plan,
    tiny_transformer,
)


BATCH_SIZE, NUM_TOKENS = 2, 3 * 2 * 2


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


def make_inputs(latents=LATENTS, audio_latents=AUDIO_LATENTS, batch_size=BATCH_SIZE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(batch_size, *shape, generator=generator).to(dtype)

    return {
        "hidden_states": randn(*latents),
        "audio_hidden_states": randn(*audio_latents),
        "timestep": torch.linspace(900.0, 100.0, batch_size),
        "audio_timestep": torch.linspace(300.0, 700.0, batch_size),
        "encoder_hidden_states": randn(5, TEXT_DIM),
    }


@pytest.fixture
def inputs():
    return make_inputs()


@torch.no_grad()
def run(model, inputs, **changes):
    return model(**{**inputs, **changes}, return_dict=False)


def assert_equal(outputs, expected):
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)


def assert_close(outputs, expected, atol=1e-5):
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=atol)


def differ(output, other, by=1e-3):
    return (output - other).abs().max() > by


def sample(inputs, index):
    return {name: value[index : index + 1] for name, value in inputs.items()}


# Shapes and places


@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 2), (1, 1, 2)])
@pytest.mark.parametrize("audio_length", [1, 7, 36])
def test_velocities_are_shaped_like_the_latents(patch_size, audio_length):
    model = tiny_transformer(patch_size=patch_size, num_layers=1)
    inputs = make_inputs((LATENT_CHANNELS, 2, 6, 4), (audio_length, AUDIO_CHANNELS))
    output = model(**inputs, plan=random_plan(BATCH_SIZE))
    assert output.sample.shape == inputs["hidden_states"].shape
    assert output.audio_sample.shape == inputs["audio_hidden_states"].shape
    assert output.sample.isfinite().all() and output.audio_sample.isfinite().all()


def test_patches_return_to_their_places(transformer, inputs):
    """Without blocks, a latent reaches its own patch and nothing else."""
    moved = inputs["hidden_states"].clone()
    moved[:, :, 1, 2, 1] += 1.0  # in the patch of rows 2-3 and columns 0-1 of latent frame 1
    before, _ = run(transformer, inputs, skip_layers=range(3))
    after, _ = run(transformer, inputs, skip_layers=range(3), hidden_states=moved)
    changed = (after != before).all(dim=1)
    assert changed[:, 1, 2:4, 0:2].all() and changed.sum() == BATCH_SIZE * 4


def test_a_batch_is_its_samples_one_by_one(transformer, inputs):
    plan = random_plan(BATCH_SIZE).masked(torch.tensor([True, False]))
    reads = torch.tensor([False, True])
    together = run(transformer, inputs, plan=plan, video_reads_audio=reads)
    apart = [
        run(transformer, sample(inputs, i), plan=plan[i], video_reads_audio=reads[i : i + 1])
        for i in range(BATCH_SIZE)
    ]
    assert_close(together, [torch.cat(modality) for modality in zip(*apart, strict=True)])


def test_gradient_reaches_every_parameter(transformer, inputs):
    transformer.zero_grad()
    output = transformer(**inputs, plan=random_plan(BATCH_SIZE))
    (output.sample.square().sum() + output.audio_sample.square().sum()).backward()
    assert [name for name, value in transformer.named_parameters() if value.grad is None or not value.grad.any()] == []
    transformer.zero_grad()


# Timesteps


def test_a_timestep_for_each_token_that_is_constant_is_one_for_the_sample(transformer, inputs):
    per_token = inputs["timestep"][:, None].expand(-1, NUM_TOKENS)
    audio_per_token = inputs["audio_timestep"][:, None].expand(-1, AUDIO_LATENTS[0])
    assert_close(
        run(transformer, inputs, timestep=per_token, audio_timestep=audio_per_token), run(transformer, inputs)
    )


def test_a_clean_first_frame_is_told_from_the_others(transformer, inputs):
    per_token = inputs["timestep"][:, None].repeat(1, NUM_TOKENS)
    per_token[:, :4] = 0.0
    clean_first, _ = run(transformer, inputs, timestep=per_token)
    assert differ(clean_first[:, :, 0], run(transformer, inputs)[0][:, :, 0])


def test_a_timestep_for_each_latent_frame_is_one_for_each_of_its_tokens(transformer, inputs):
    per_frame = inputs["timestep"][:, None] * torch.tensor([0.0, 1.0, 0.5])
    per_token = per_frame.repeat_interleave(NUM_TOKENS // 3, dim=1)
    assert_equal(run(transformer, inputs, timestep=per_frame), run(transformer, inputs, timestep=per_token))


def test_a_timestep_for_each_latent_frame_takes_the_memory_of_one(transformer):
    model = DualBranchTransformer.from_config({**transformer.config, "num_layers": 1}).to("meta")
    inputs = {name: x.to("meta") for name, x in make_inputs((4, 3, 64, 64), AUDIO_LATENTS, 1).items()}

    def peak(length):
        timestep = torch.empty(1, length, device="meta")
        with torch.no_grad(), LiveTensors() as alive:
            model(**{**inputs, "timestep": timestep if length > 1 else timestep[0]})
        return alive.peak

    assert peak(3) < 1.01 * peak(1) < peak(3 * 32 * 32)


def test_the_audio_timestep_is_the_videos_by_default(transformer, inputs):
    expected = run(transformer, inputs, audio_timestep=inputs["timestep"])
    assert_equal(run(transformer, inputs, audio_timestep=None), expected)
    assert differ(run(transformer, inputs)[1], expected[1])


def test_integer_timesteps_are_numbers_too(transformer, inputs):
    timesteps = {name: inputs[name].round() for name in ("timestep", "audio_timestep")}
    assert_equal(
        run(transformer, inputs, **{name: value.long() for name, value in timesteps.items()}),
        run(transformer, inputs, **timesteps),
    )


def test_the_audio_text_is_the_videos_by_default(transformer, inputs):
    text = inputs["encoder_hidden_states"]
    before = run(transformer, inputs, video_reads_audio=False)
    assert_equal(run(transformer, inputs, video_reads_audio=False, audio_encoder_hidden_states=text), before)
    video, audio = run(transformer, inputs, video_reads_audio=False, audio_encoder_hidden_states=text.flip(0))
    assert torch.equal(video, before[0]) and differ(audio, before[1])


# Visibility of the other modality


@pytest.mark.parametrize("switch, unread, index", [("video_reads_audio", "audio", 0), ("audio_reads_video", "", 1)])
def test_what_is_not_read_has_no_influence(transformer, inputs, switch, unread, index):
    name = f"{unread}_hidden_states".strip("_")
    moved = {name: inputs[name] + 1.0}
    before, after = (run(transformer, inputs, **{switch: False}, **change) for change in ({}, moved))
    assert torch.equal(before[index], after[index])
    assert differ(before[1 - index], after[1 - index])
    seen = run(transformer, inputs)
    assert differ(seen[index], run(transformer, inputs, **moved)[index])
    assert differ(seen[index], before[index])


@pytest.mark.parametrize("switch, index", [("video_reads_audio", 0), ("audio_reads_video", 1)])
def test_visibility_is_set_for_each_sample(transformer, inputs, switch, index):
    both, neither = run(transformer, inputs), run(transformer, inputs, **{switch: False})
    routed = run(transformer, inputs, **{switch: torch.tensor([True, False])})
    assert torch.equal(routed[index][0], both[index][0])
    assert torch.equal(routed[index][1], neither[index][1])
    assert differ(both[index][1], neither[index][1])


def test_blocks_are_left_out(transformer, inputs):
    shorter = tiny_transformer(num_layers=2)
    shorter.load_state_dict(
        {
            name.replace("blocks.2.", "blocks.1."): value
            for name, value in transformer.state_dict().items()
            if not name.startswith("blocks.1.")
        }
    )
    assert_equal(run(transformer, inputs, skip_layers=[1]), run(shorter, inputs))
    assert_equal(run(transformer, inputs, skip_layers=[]), run(transformer, inputs))


# Plan


def test_a_plan_has_an_influence_on_both_modalities(transformer, inputs):
    without, under_plan = run(transformer, inputs), run(transformer, inputs, plan=random_plan(BATCH_SIZE))
    assert differ(without[0], under_plan[0]) and differ(without[1], under_plan[1])


def test_a_sample_whose_plan_is_dropped_is_a_sample_without_one(transformer, inputs):
    plan = random_plan(BATCH_SIZE)
    without, under_plan = run(transformer, inputs), run(transformer, inputs, plan=plan)
    mixed = run(transformer, inputs, plan=plan.masked(torch.tensor([False, True])))
    assert_close([modality[:1] for modality in mixed], [modality[:1] for modality in without], atol=1e-6)
    assert_close([modality[1:] for modality in mixed], [modality[1:] for modality in under_plan], atol=1e-6)


def test_masked_tokens_have_no_influence(transformer, inputs):
    plan = random_plan(BATCH_SIZE)
    tokens = torch.where(plan.audio_mask[..., None], plan.audio_tokens, 1e3)
    assert_equal(
        run(transformer, inputs, plan=replace(plan, audio_tokens=tokens)), run(transformer, inputs, plan=plan)
    )
    assert_close(run(transformer, inputs, plan=plan.trimmed()), run(transformer, inputs, plan=plan), atol=1e-6)


def test_a_plan_too_short_for_any_sound_is_a_plan_of_the_picture(transformer, inputs):
    plan = random_plan(BATCH_SIZE).slice(0.0, 0.05)
    assert plan.audio_tokens.shape[1] == 0
    assert all(modality.isfinite().all() for modality in run(transformer, inputs, plan=plan))


def test_fresh_plan_layers_leave_the_output_unchanged_bit_for_bit(inputs):
    fresh = DualBranchTransformer(**tiny_transformer().config).eval()
    assert_equal(run(fresh, inputs, plan=random_plan(BATCH_SIZE)), run(fresh, inputs))


# Training


# Ends of steps


@pytest.fixture(scope="module")
def flow_map():
    """Its layers for the end of a step are trained."""
    model = tiny_transformer(is_flow_map=True)
    for embedder in (model.condition_embedder, model.audio_condition_embedder):
        torch.nn.init.normal_(embedder.step_embedder.weight, generator=torch.Generator().manual_seed(1))
    return model


def ends(video=50.0, audio=20.0):
    return {"next_timestep": torch.full((2,), video), "audio_next_timestep": torch.full((2,), audio)}


def test_fresh_layers_for_the_end_of_a_step_leave_the_output_unchanged_bit_for_bit(inputs):
    model = tiny_transformer()
    before, names = run(model, inputs), set(model.state_dict())
    model.make_flow_map()
    assert model.config.is_flow_map and set(model.state_dict()) - names
    assert_equal(run(model, inputs, **ends()), before)
    assert_equal(run(model, inputs), before)
    model.make_flow_map(False)
    assert not model.config.is_flow_map and set(model.state_dict()) == names


def test_each_modality_is_given_the_end_of_its_own_step(flow_map, inputs):
    alone = {"video_reads_audio": False, "audio_reads_video": False}
    before = run(flow_map, inputs, **ends(), **alone)
    for change, moved in (({"video": 60.0}, 0), ({"audio": 10.0}, 1)):
        after = run(flow_map, inputs, **ends(**change), **alone)
        assert differ(after[moved], before[moved]) and torch.equal(after[1 - moved], before[1 - moved])


def test_ends_for_each_frame_and_latent_are_those_of_the_sample(flow_map, inputs):
    before = run(flow_map, inputs, **ends())
    lengths = {"timestep": 3, "audio_timestep": AUDIO_LATENTS[0], "next_timestep": 3}
    lengths["audio_next_timestep"] = AUDIO_LATENTS[0]
    given = {**inputs, **ends()}
    spread = {name: given[name][:, None].expand(-1, length) for name, length in lengths.items()}
    assert_close(run(flow_map, {**inputs, **spread}), before)
    reference = torch.zeros(2, 2, AUDIO_CHANNELS)
    whole = run(flow_map, inputs, **ends(), reference_audio_hidden_states=reference)
    assert_close(run(flow_map, {**inputs, **spread}, reference_audio_hidden_states=reference), whole)


def test_a_flow_map_is_saved_and_loaded(flow_map, inputs, tmp_path):
    flow_map.save_pretrained(tmp_path)
    loaded = DualBranchTransformer.from_pretrained(tmp_path)
    assert_equal(run(loaded, inputs, **ends()), run(flow_map, inputs, **ends()))
    half = DualBranchTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.condition_embedder.step_embedder.weight.dtype == torch.float32


def test_ends_of_steps_that_do_not_fit_are_refused(transformer, flow_map, inputs):
    with pytest.raises(ValueError, match="`next_timestep` is for a flow map, but this model is none"):
        run(transformer, inputs, **ends())
    with pytest.raises(ValueError, match="`audio_next_timestep` has shape None, but must have its timestep's"):
        run(flow_map, inputs, next_timestep=torch.zeros(2))
    with pytest.raises(ValueError, match=r"`next_timestep` has shape \(2, 3\), but must have its timestep's, \(2,\)"):
        run(flow_map, inputs, **{**ends(), "next_timestep": torch.zeros(2, 3)})


@pytest.mark.parametrize("config", [{}, FULL])
def test_gradient_checkpointing_gives_the_same_gradients(inputs, config):
    model, plan = tiny_transformer(**config), random_plan(BATCH_SIZE)
    reads, mirror = torch.tensor([True, False]), torch.tensor([False, True])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        output = model(**inputs, plan=plan, video_reads_audio=reads, audio_reads_video=mirror)
        (output.sample.square().mean() + output.audio_sample.square().mean()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(gradient is not None and gradient.any() for gradient in gradients[-1])
    assert_close(*gradients, atol=1e-7)


def test_lora_trains_is_scaled_saved_and_loaded(inputs, tmp_path):
    model, plan = tiny_transformer(), random_plan(BATCH_SIZE)
    before = run(model, inputs, plan=plan)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_k_fusion", "to_out.0"]))
    assert_equal(run(model, inputs, plan=plan), before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < 0.2 * sum(p.numel() for p in model.parameters())

    optimizer, losses = torch.optim.Adam(trained, 0.02), []
    for _ in range(4):
        output = model(**inputs, plan=plan)
        loss = output.sample.square().mean() + output.audio_sample.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]

    after = run(model, inputs, plan=plan)
    assert differ(after[0], before[0]) and differ(after[1], before[1])
    assert_close(run(model, inputs, plan=plan, attention_kwargs={"scale": 0.0}), before, atol=1e-6)
    assert_equal(run(model, inputs, plan=plan), after)

    model.save_lora_adapter(tmp_path)
    loaded = tiny_transformer()
    loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert_equal(run(loaded, inputs, plan=plan), after)
    model.disable_adapters()
    assert_equal(run(model, inputs, plan=plan), before)


# Loading, dtypes, features of diffusers


@pytest.mark.parametrize("config", [{}, FULL])
def test_saved_and_loaded_is_the_model(inputs, tmp_path, config):
    model, plan = tiny_transformer(**config), random_plan(BATCH_SIZE)
    model.save_pretrained(tmp_path)
    loaded = DualBranchTransformer.from_pretrained(tmp_path)
    assert_equal(run(loaded, inputs, plan=plan), run(model, inputs, plan=plan))


def test_loaded_in_half_precision_what_is_delicate_stays_in_float32(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path)
    loaded = DualBranchTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    delicate = {name for name, value in loaded.named_parameters() if value.dtype == torch.float32}
    assert {name.removeprefix("blocks.0.") for name in delicate if not name.startswith(("blocks.1", "blocks.2"))} == {
        f"{branch}{name}"
        for branch in ("", "audio_")
        for name in (
            "scale_shift_table",
            "condition_embedder.time_embedder.linear_1.weight",
            "condition_embedder.time_embedder.linear_1.bias",
            "condition_embedder.time_embedder.linear_2.weight",
            "condition_embedder.time_embedder.linear_2.bias",
            "norm2.weight",
            "norm2.bias",
            "attn2.norm_fusion.weight",
            "attn2.norm_fusion.bias",
            "norm_plan.weight",
            "norm_plan.bias",
        )
    }
    plan = random_plan(BATCH_SIZE)
    found = run(loaded, make_inputs(dtype=torch.bfloat16), plan=plan)
    assert {modality.dtype for modality in found} == {torch.bfloat16}
    assert_close([modality.float() for modality in found], run(transformer, inputs, plan=plan), atol=0.1)


@pytest.mark.parametrize("config", [{}, FULL])
def test_cast_as_a_whole_it_runs_in_half_precision(inputs, config):
    model, given = tiny_transformer(**config), {"plan": random_plan(BATCH_SIZE)}
    given["video_reads_audio"] = torch.tensor([True, False])
    expected = run(model, inputs, **given)
    model.to(torch.bfloat16)
    found = run(model, make_inputs(dtype=torch.bfloat16), **given)
    assert {modality.dtype for modality in found} == {torch.bfloat16}
    assert_close([modality.float() for modality in found], expected, atol=0.1)


def test_layerwise_casting_stores_the_layers_in_eight_bits(inputs):
    model, plan = tiny_transformer(), random_plan(BATCH_SIZE)
    expected = run(model, inputs, plan=plan)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.blocks[0].attn1.to_q.weight.dtype == model.blocks[2].audio_ffn.net[2].weight.dtype
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    for module in (model.patch_embedding, model.audio_patch_embedding.conv, model.blocks[0].audio_norm_plan):
        assert module.weight.dtype == torch.float32
    assert model.dtype == torch.float32
    found = run(model, inputs, plan=plan)
    assert differ(found[0], expected[0], 0.0)
    assert_close(found, expected, atol=0.3)


@pytest.mark.parametrize("tables", ["cpu", "meta"])
def test_the_model_alone_is_spread_over_two_devices(inputs, tables):
    """Blocks and heads on another device than what comes before them; the second one holds shapes alone."""
    model = tiny_transformer()
    heads = (model.norm_out, model.proj_out, model.audio_norm_out, model.audio_proj_out)
    for module in (*model.blocks[1:], *heads):
        add_hook_to_module(module.to("meta"), AlignDevicesHook(execution_device="meta"))
    for name in ("scale_shift_table", "audio_scale_shift_table"):
        setattr(model, name, torch.nn.Parameter(getattr(model, name).to(tables)))
    video, audio = run(model, inputs, plan=random_plan(BATCH_SIZE))
    assert video.is_meta and video.shape == inputs["hidden_states"].shape
    assert audio.is_meta and audio.shape == inputs["audio_hidden_states"].shape


def test_an_attention_backend_is_set_for_every_layer(inputs):
    model, plan = tiny_transformer(), random_plan(BATCH_SIZE)
    expected = run(model, inputs, plan=plan)
    model.set_attention_backend("native")
    assert len(model.attn_processors) == 3 * 6
    assert {processor._attention_backend for processor in model.attn_processors.values()} == {"native"}
    assert_equal(run(model, inputs, plan=plan), expected)


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_first_block_cache_holds_both_streams(inputs):
    model, plan = tiny_transformer(), random_plan(BATCH_SIZE)
    expected, unplanned = run(model, inputs, plan=plan), run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-6))
    first, last = count_calls(model.blocks[0].attn1), count_calls(model.blocks[2].attn1)
    with model.cache_context("joint"):
        assert_equal(run(model, inputs, plan=plan), expected)
    with model.cache_context("no_plan"):
        assert_equal(run(model, inputs), unplanned)
    assert (len(first), len(last)) == (2, 2)
    with model.cache_context("joint"):
        assert_close(run(model, inputs, plan=plan), expected)  # both streams, or the sound would be the first block's
    with model.cache_context("no_plan"):
        assert_close(run(model, inputs), unplanned)
    assert (len(first), len(last)) == (4, 2)
    with model.cache_context("joint"):
        moved = run(model, inputs, plan=plan, hidden_states=inputs["hidden_states"] + 1.0)
    assert (len(first), len(last)) == (5, 3) and differ(moved[0], expected[0])


def test_the_first_block_cache_needs_the_first_and_the_last_block(inputs):
    model = tiny_transformer()
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-6))
    for ends in ([0], [1, 2]):
        with model.cache_context("joint"), pytest.raises(ValueError, match=rf"names \[{ends[-1]}\], .*`disable_cache"):
            run(model, inputs, skip_layers=ends)
    with model.cache_context("joint"):
        expected = run(tiny_transformer(), inputs, skip_layers=[1])
        assert_close(run(model, inputs, skip_layers=[1]), expected)


def test_taylorseer_extrapolates_both_streams_in_each_pass(inputs):
    """A step that is predicted from two steps along a line is what a third step on that line gives, to first order."""
    model, plan = tiny_transformer(), random_plan(BATCH_SIZE)
    model.enable_cache(TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, max_order=1))
    projections = [count_calls(model.blocks[1].attn1.to_q), count_calls(model.blocks[1].audio_plan_attn.to_out[0])]
    names, step = ("hidden_states", "audio_hidden_states"), 1e-3
    with torch.no_grad():
        for moves in (0, 1, 2):
            moved = {name: inputs[name] + moves * step for name in names}
            with model.cache_context("joint"):
                found = run(model, inputs, **moved, plan=plan)
            with model.cache_context("no_plan"):
                unplanned = run(model, inputs, **moved)
    assert [len(calls) for calls in projections] == [4, 2]  # two passes without and one pass with a plan, twice
    exact = tiny_transformer()
    assert_close(found, run(exact, inputs, **moved, plan=plan), atol=0.02)
    assert_close(unplanned, run(exact, inputs, **moved), atol=0.02)
    assert differ(found[0], unplanned[0], 0.05) and differ(found[1], unplanned[1], 0.05)


@pytest.mark.parametrize(
    "config, message",
    [
        (MagCacheConfig(mag_ratios=[1.0], num_inference_steps=1), "MagCacheConfig keeps only the video stream"),
        (SeaCacheConfig(), "SeaCacheConfig extrapolates only the video stream"),
        (PyramidAttentionBroadcastConfig(), "reuses the attention of one guidance pass in the next"),
        (FasterCacheConfig(), "expects all guidance passes in one batch"),
        (TextKVCacheConfig(), "is for another model's blocks"),
        (TaylorSeerCacheConfig(use_lite_mode=True), "in its lite mode loses the sound.*leave out `use_lite_mode`"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_caches_that_would_return_something_wrong_are_refused(inputs, config, message):
    model = tiny_transformer()
    expected = run(model, inputs)
    with pytest.raises(ValueError, match=rf"{message}.*`FirstBlockCacheConfig` and `TaylorSeerCacheConfig`"):
        model.enable_cache(config)
    assert not model.is_cache_enabled
    assert_equal(run(model, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, FULL])
def test_a_block_compiles_without_a_graph_break(inputs, config):
    model, plan = tiny_transformer(num_layers=2, **config), random_plan(BATCH_SIZE)
    reads, mirror = torch.tensor([True, False]), torch.tensor([False, True])
    calls = [
        {"plan": plan.masked(reads), "video_reads_audio": reads, "audio_reads_video": mirror},
        {"audio_reads_video": False},
    ]
    expected = [run(model, inputs, **call) for call in calls]
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    for call, wanted in zip(calls, expected, strict=True):
        assert_close(run(model, inputs, **call), wanted)


# Refusals


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("hidden_states", (2, 5, 3, 4, 4), "`hidden_states` has 5 channels, but this model takes 4"),
        ("hidden_states", (2, 4, 3, 5, 4), r"3 x 5 x 4 cannot be cut into patches of \(1, 2, 2\)"),
        ("audio_hidden_states", (1, 36, 6), r"`audio_hidden_states` has shape \(1, 36, 6\).*\(2, audio_length, 6\)"),
        ("audio_hidden_states", (2, 6, 36), r"`audio_hidden_states` has shape \(2, 6, 36\)"),
        ("timestep", (2, 11), r"`timestep` has shape \(2, 11\), but must be one of \(2,\), \(2, 3\), \(2, 12\)"),
        ("timestep", (1,), r"`timestep` has shape \(1,\)"),
        ("audio_timestep", (2, 12), r"`audio_timestep` has shape \(2, 12\), but must be one of \(2,\), \(2, 36\)"),
        (
            "encoder_hidden_states",
            (1, 5, 16),
            r"`encoder_hidden_states` has shape \(1, 5, 16\).*\(2, text_length, 16\)",
        ),
        ("audio_encoder_hidden_states", (2, 5, 8), r"`audio_encoder_hidden_states` has shape \(2, 5, 8\)"),
    ],
)
def test_wrong_shapes_are_refused(transformer, inputs, name, shape, message):
    with pytest.raises(ValueError, match=message):
        transformer(**{**inputs, name: torch.zeros(shape)})


def test_a_timestep_for_each_video_token_tells_nothing_of_the_audio(transformer):
    inputs = make_inputs(audio_latents=(NUM_TOKENS, AUDIO_CHANNELS))  # as many audio tokens, by chance
    timestep = torch.zeros(BATCH_SIZE, NUM_TOKENS)
    with pytest.raises(ValueError, match="give `audio_timestep` too"):
        transformer(**{**inputs, "timestep": timestep, "audio_timestep": None})


@pytest.mark.parametrize("skip_layers", [[3], [-1], [0, 7]])
def test_blocks_that_do_not_exist_cannot_be_skipped(transformer, inputs, skip_layers):
    with pytest.raises(ValueError, match=rf"`skip_layers` names \[{skip_layers[-1]}\], but the blocks are 0 to 2"):
        transformer(**inputs, skip_layers=skip_layers)


def test_plans_that_do_not_fit_are_refused(transformer, inputs):
    with pytest.raises(ValueError, match="`plan` is for 3 clips, but the latents are 2"):
        transformer(**inputs, plan=random_plan(3))
    narrow = replace(random_plan(BATCH_SIZE), audio_tokens=torch.zeros(BATCH_SIZE, 16, 3))
    with pytest.raises(ValueError, match=r"width 6 \(video\) and 3 \(audio\), but this model takes 6 and 4"):
        transformer(**inputs, plan=narrow)
    without = tiny_transformer(video_plan_dim=None, audio_plan_dim=None)
    with pytest.raises(ValueError, match="no plan layers.*without `plan`"):
        without(**inputs, plan=random_plan(BATCH_SIZE))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"video_plan_dim": None}, "`video_plan_dim` is None and `audio_plan_dim` is 4: give both or neither"),
        ({"audio_latent_min_coverage": 1.0}, "`audio_latent_min_coverage` is 1.0, but must be a share"),
        ({"patch_size": (2, 2, 2)}, r"`patch_size` is \(2, 2, 2\).*use \(1, 2, 2\)"),
        ({"num_context_tokens": -1}, "`num_context_tokens` is -1: use 0"),
        ({"cross_modal_window": 3}, r"`audio_cross_modal_window` is None: give both \(TARP: 3 and 1\) or neither"),
        ({"audio_cross_modal_window": 1}, "`cross_modal_window` is None and `audio_cross_modal_window` is 1"),
        ({"cross_modal_window": 0, "audio_cross_modal_window": 1}, "`cross_modal_window` is 0: use at least 1"),
        ({"cross_modal_window": 3, "audio_cross_modal_window": 2}, "`audio_cross_modal_window` is 2.*use 1, 3, 5"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**config)
