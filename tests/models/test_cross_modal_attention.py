"""Windows, context tokens and routing between the modalities: what each reads, exactly, and what it costs."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from baton_diffusers import coordinates
from baton_diffusers.models import attention_dual_branch
from baton_diffusers.models.attention_dual_branch import FusionAttention, group_windows

from ..tiny import FULL, random_plan, seeded, tiny_transformer
from .test_transformer_dual_branch import BATCH_SIZE, assert_close, assert_equal, differ, make_inputs, run


DIM, HEADS = 24, 2
SWITCHES = [("video_reads_audio", 0, "audio_hidden_states"), ("audio_reads_video", 1, "hidden_states")]


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer(**FULL)


@pytest.fixture(scope="module")
def model_with_context():
    return tiny_transformer(num_context_tokens=4)


@pytest.fixture
def inputs():
    return make_inputs()


@pytest.fixture
def recorded(monkeypatch):
    """What torch's attention is called with from here on: shapes `(batch, heads, tokens, dim)` and masks."""
    calls, attention = [], F.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, **kwargs):
        calls.append((tuple(query.shape), tuple(key.shape), attn_mask))
        return attention(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return calls


# Windows, on one attention layer


CLIPS = {  # latent frames, audio latents, frame rate: nano's clip, Ovi's, sound too short, a single frame
    "nano": (13, 96, 16.0),
    "ovi": (31, 157, 24.0),
    "short sound": (5, 3, 16.0),
    "still": (1, 8, 24.0),
}


def windows_of(clip, window, reads="audio"):
    num_frames, num_latents, frame_rate = CLIPS[clip]
    if reads == "audio":
        return coordinates.audio_windows(num_frames, num_latents, window, frame_rate, 4, 31.25)
    return coordinates.video_windows(num_latents, num_frames, window, frame_rate, 4, 31.25)


@torch.no_grad()
def attend(layer, states, other, windows, reads=True):
    """The layer on a text of zeros, every token at a place of its own."""
    places = [coordinates.video_latent_coordinates(1, 1, x.shape[1]) for x in (states, other)]
    rotary_emb, other_rotary_emb = (coordinates.rotary_embedding(place, (4, 4, 4)) for place in places)
    return layer(states, torch.zeros(len(states), 2, DIM), other, rotary_emb, other_rotary_emb, reads, windows)


@pytest.mark.parametrize("num_context_tokens", [0, 2])
@pytest.mark.parametrize("clip, window", [("nano", 3), ("nano", 1), ("ovi", 3), ("ovi", 5), ("short sound", 1)])
@pytest.mark.parametrize("reads", ["audio", "video"])
def test_windows_are_what_a_mask_over_global_attention_would_give(
    clip, window, reads, num_context_tokens, monkeypatch
):
    layer = seeded(FusionAttention, DIM, HEADS, 1e-6, num_context_tokens)
    queries_per_place, keys_per_place = (2, 1) if reads == "audio" else (1, 2)
    windows = windows_of(clip, window, reads)
    num_keys = CLIPS[clip][1] if reads == "audio" else 2 * CLIPS[clip][0]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, queries_per_place * len(windows), DIM, generator=generator)
    other = torch.randn(2, num_keys, DIM, generator=generator)
    groups = group_windows(windows, queries_per_place, keys_per_place, num_context_tokens, states.device)
    found = attend(layer, states, other, groups)

    mask = torch.zeros(len(windows), num_context_tokens + num_keys, dtype=torch.bool)
    mask[:, :num_context_tokens] = True
    for place, (first, end) in enumerate(windows):
        mask[place, num_context_tokens + keys_per_place * first : num_context_tokens + keys_per_place * end] = True
    mask = mask.repeat_interleave(queries_per_place, dim=0)
    attention = F.scaled_dot_product_attention

    def masked(query, key, value, attn_mask=None, **kwargs):
        is_fusion = key.shape[2] == mask.shape[1]
        return attention(query, key, value, attn_mask=mask if is_fusion else None, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", masked)
    expected = attend(layer, states, other, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    monkeypatch.undo()
    assert differ(attend(layer, states, other, None), expected)


def test_what_lies_outside_a_window_has_no_influence_in_any_bit():
    layer = seeded(FusionAttention, DIM, HEADS, 1e-6, 2)
    windows = windows_of("ovi", 3)
    generator = torch.Generator().manual_seed(0)
    states, other = torch.randn(1, 31, DIM, generator=generator), torch.randn(1, 157, DIM, generator=generator)
    groups = group_windows(windows, 1, 1, 2, states.device)
    before = attend(layer, states, other, groups)[0]
    for latent in (0, 12, 80, 156):
        moved = other.clone()
        moved[0, latent] += 1.0
        changed = (attend(layer, states, moved, groups)[0] != before).any(dim=-1)
        assert changed.tolist() == [first <= latent < end for first, end in windows]


def test_groups_hold_every_token_once_and_few_calls_do():
    windows = windows_of("ovi", 3)
    groups = group_windows(windows, 4, 1, 0, torch.device("cpu"))
    tokens = torch.cat([queries.flatten() for queries, _ in groups])
    assert torch.equal(tokens.sort().values, torch.arange(31 * 4))
    assert len(groups) <= 6  # two sizes inside, and the clip's ends
    assert sum(queries.shape[0] for queries, _ in groups) == 31


# Windows, in the model


@pytest.mark.parametrize("num_context_tokens", [0, 4])
def test_a_window_as_long_as_the_clip_is_global_attention(inputs, num_context_tokens):
    plan = random_plan(BATCH_SIZE)
    expected = run(tiny_transformer(num_context_tokens=num_context_tokens), inputs, plan=plan)
    whole = {"cross_modal_window": 3, "audio_cross_modal_window": 3}
    assert_equal(run(tiny_transformer(num_context_tokens=num_context_tokens, **whole), inputs, plan=plan), expected)
    # the form of windows that reach beyond both ends of the clip, without the shortcut
    model = tiny_transformer(num_context_tokens=num_context_tokens)
    everything = [(0, 36)] * 3, [(0, 3)] * 36
    model._windows = lambda grid, reference_length, audio_length, device: (
        group_windows(everything[0], 4, 1, num_context_tokens, device),
        group_windows(everything[1], 1, 4, num_context_tokens, device),
    )
    assert_close(run(model, inputs, plan=plan), expected, atol=1e-6)


@pytest.mark.parametrize("window, audio_window", [(1, 1), (2, 1), (1, 3)])
def test_windows_narrow_what_each_modality_reads(inputs, window, audio_window):
    video, audio = run(tiny_transformer(num_layers=1), inputs)
    model = tiny_transformer(num_layers=1, cross_modal_window=window, audio_cross_modal_window=audio_window)
    narrow_video, narrow_audio = run(model, inputs)
    assert differ(narrow_video, video, 1e-4)
    assert differ(narrow_audio, audio, 1e-4) == (audio_window < 3)


@pytest.mark.parametrize("audio_length", [1, 2, 35, 50])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_windows_fit_clips_of_every_length(transformer, audio_length, num_frames):
    inputs = make_inputs((4, num_frames, 4, 4), (audio_length, 6))
    video, audio = run(transformer, inputs)
    assert video.isfinite().all() and audio.isfinite().all()
    assert video.shape == inputs["hidden_states"].shape and audio.shape == inputs["audio_hidden_states"].shape


def test_windows_are_made_once_for_a_clip(inputs, monkeypatch):
    """By whatever model, in whatever mode; and anew for another length, form or reference."""
    made = []
    monkeypatch.setattr(
        attention_dual_branch, "group_windows", lambda *args: made.append(args) or group_windows(*args)
    )
    attention_dual_branch.make_windows.cache_clear()
    models = [tiny_transformer(**FULL), tiny_transformer(**FULL, num_layers=2)]
    with torch.inference_mode():
        models[0](**inputs)
    for model in models:
        for _ in range(2):
            run(model, inputs)
    assert len(made) == 2  # one for each direction

    longer = make_inputs((4, 5, 4, 4), (50, 6))
    wider = make_inputs((4, 3, 4, 8))
    reference = {**inputs, "reference_audio_hidden_states": torch.ones(BATCH_SIZE, 4, 6)}
    others = [(FULL, longer), (FULL, wider), (FULL, reference), ({**FULL, "num_context_tokens": 2}, inputs)]
    before = [run(tiny_transformer(**config), given) for config, given in others]
    assert len(made) == 2 + 2 * len(others)
    after = [run(tiny_transformer(**config), given) for config, given in others]
    assert len(made) == 2 + 2 * len(others)
    attention_dual_branch.make_windows.cache_clear()
    for (config, given), found, again in zip(others, before, after, strict=True):
        expected = run(tiny_transformer(**config), given)
        assert_equal(found, expected)
        assert_equal(again, expected)


def test_windows_first_made_without_gradients_serve_training(inputs):
    attention_dual_branch.make_windows.cache_clear()
    model = tiny_transformer(num_layers=1, **FULL)
    with torch.inference_mode():
        model(**inputs)
    output = model(**inputs)
    (output.sample.square().mean() + output.audio_sample.square().mean()).backward()
    assert model.blocks[0].attn2.to_k_fusion.weight.grad.any()


def test_windows_are_made_for_each_device(inputs):
    model = tiny_transformer(num_layers=1, **FULL)
    expected = run(model, inputs)
    away = {name: value.to("meta") for name, value in inputs.items()}
    assert run(tiny_transformer(num_layers=1, **FULL).to("meta"), away)[0].device.type == "meta"
    assert_equal(run(model, inputs), expected)


@pytest.mark.gpu
def test_windows_follow_the_model_to_its_device(inputs):
    model = tiny_transformer(**FULL)
    expected = run(model, inputs)
    for device in ("cuda", "cpu", "cuda"):
        moved = {name: value.to(device) for name, value in inputs.items()}
        assert_close([velocity.cpu() for velocity in run(model.to(device), moved)], expected, atol=1e-3)


def test_the_cost_of_windows_grows_with_the_clip_and_not_with_its_square(recorded):
    def pairs(num_frames, audio_length, **config):
        """Pairs of a query and a key between the modalities in one block."""
        model = tiny_transformer(num_layers=1, video_plan_dim=None, audio_plan_dim=None, **config)
        inputs = make_inputs((4, num_frames, 4, 4), (audio_length, 6), batch_size=1)
        recorded.clear()
        run(model, inputs)
        own = [(4 * num_frames, 4 * num_frames), (audio_length, audio_length)]
        lengths = [(q[0] * q[2], k[2]) for q, k, _ in recorded if k[2] != inputs["encoder_hidden_states"].shape[1]]
        return sum(queries * keys for queries, keys in lengths if (queries, keys) not in own)

    windows = {"cross_modal_window": 3, "audio_cross_modal_window": 1}
    assert 3.9 < pairs(52, 813, **windows) / pairs(13, 204, **windows) < 4.3
    assert 15.5 < pairs(52, 813) / pairs(13, 204) < 16.5


def test_no_mask_is_passed_whatever_is_read(recorded, inputs):
    for config in ({}, {"num_context_tokens": 4}, FULL):
        for reads in (True, False, torch.tensor([True, False])):
            run(tiny_transformer(num_layers=1, **config), inputs, video_reads_audio=reads, audio_reads_video=reads)
    assert len(recorded) > 40 and all(mask is None for _, _, mask in recorded)


# Context tokens and routing


@pytest.mark.parametrize("switch, index, unread", SWITCHES)
@pytest.mark.parametrize("reads", [False, torch.tensor([False, False])])
def test_context_tokens_alone_are_independent_of_the_other_modality(transformer, inputs, switch, index, unread, reads):
    before = run(transformer, inputs, **{switch: reads})
    moved = {unread: torch.full_like(inputs[unread], float("inf"))}
    assert torch.equal(run(transformer, inputs, **{switch: reads}, **moved)[index], before[index])
    assert differ(run(transformer, inputs)[index], before[index])


@pytest.mark.parametrize("switch, index, _", SWITCHES)
def test_context_tokens_are_read_with_and_without_the_other_modality(switch, index, _, inputs):
    name = ("attn2", "audio_attn2")[index]
    model = tiny_transformer(num_context_tokens=4)
    for reads in (True, False):
        before = run(model, inputs, **{switch: reads})
        with torch.no_grad():
            getattr(model.blocks[1], name).context_tokens.add_(1.0)
        assert differ(run(model, inputs, **{switch: reads})[index], before[index])


def test_context_tokens_have_no_place():
    """Wherever the other modality lies, the keys of the context tokens are the same, and they come first."""
    layer = seeded(FusionAttention, DIM, HEADS, 1e-6, 2)
    states, keys = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(0)), []
    for shift in (0.0, 3.0):
        rotary_emb = coordinates.rotary_embedding(shift + coordinates.video_latent_coordinates(1, 1, 5), (4, 4, 4))
        key, _ = layer.processor.project_other(layer, states, rotary_emb)
        keys.append(key[0])
    assert keys[0].shape == (2 + 5, HEADS, DIM // HEADS)
    assert torch.equal(keys[0][:2], keys[1][:2])
    assert (keys[0][2:] != keys[1][2:]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("config", [{"num_context_tokens": 4}, FULL, {**FULL, "num_context_tokens": 0}])
@pytest.mark.parametrize("switch, index, _", SWITCHES)
def test_routing_one_sample_leaves_the_others_unchanged(config, switch, index, _, inputs):
    model, plan = tiny_transformer(**config), random_plan(BATCH_SIZE)
    both, neither = run(model, inputs, plan=plan), run(model, inputs, plan=plan, **{switch: False})
    routed = run(model, inputs, plan=plan, **{switch: torch.tensor([True, False])})
    for modality in (0, 1):
        torch.testing.assert_close(routed[modality][0], both[modality][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(routed[modality][1], neither[modality][1], rtol=0, atol=1e-6)
    assert differ(routed[index][1], both[index][1])
    assert_close(run(model, inputs, plan=plan, **{switch: torch.tensor([True, True])}), both, atol=1e-6)


def test_both_directions_are_routed_apart(transformer):
    """T2V, T2A, A2V and V2A in one batch are what each is in a batch of its own."""
    inputs = make_inputs(batch_size=4)
    video_reads, audio_reads = torch.tensor([False, False, True, True]), torch.tensor([False, True, False, True])
    routed = run(transformer, inputs, video_reads_audio=video_reads, audio_reads_video=audio_reads)
    for i in range(4):
        apart = run(
            transformer, inputs, video_reads_audio=bool(video_reads[i]), audio_reads_video=bool(audio_reads[i])
        )
        assert_close([modality[i] for modality in routed], [modality[i] for modality in apart], atol=1e-6)


def test_fresh_context_tokens_disturb_a_trained_checkpoint_little(inputs):
    trained, model = tiny_transformer(), tiny_transformer(num_context_tokens=4)
    missing, unexpected = model.load_state_dict(trained.state_dict(), strict=False)
    assert not unexpected and len(missing) == 2 * 3
    assert all(name.endswith("attn2.context_tokens") for name in missing)
    before, after = run(trained, inputs), run(model, inputs)
    apart = run(trained, inputs, video_reads_audio=False, audio_reads_video=False)
    for found, expected, without in zip(after, before, apart, strict=True):
        assert (found - expected).norm() < 0.5 * (without - expected).norm()


# Features of diffusers


def test_lora_adapts_what_the_context_tokens_pass(inputs):
    model = tiny_transformer(**FULL)
    before = run(model, inputs, video_reads_audio=False, audio_reads_video=False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k_fusion", "to_v_fusion"], init_lora_weights=False))
    after = run(model, inputs, video_reads_audio=False, audio_reads_video=False)
    assert differ(after[0], before[0]) and differ(after[1], before[1])


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, FULL])
def test_the_whole_model_compiles_without_a_graph_break_and_once(inputs, config):
    """With a plan as well as without one; what is traced leaves nothing behind for the forwards that are not."""
    model, plan = tiny_transformer(num_layers=2, **config), random_plan(BATCH_SIZE)
    attention_dual_branch.make_windows.cache_clear()
    for given in ({}, {"plan": plan}):
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = run(compiled, inputs, **given)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_equal(run(compiled, inputs, **given), found)
        assert_close(run(model, inputs, **given), found)


# Refusals


@pytest.mark.parametrize(
    "value, found",
    [
        (torch.tensor([True] * 3), r"torch.bool of shape \(3,\)"),
        (torch.tensor([[True], [True]]), r"torch.bool of shape \(2, 1\)"),
        (torch.tensor([1, 0]), r"torch.int64 of shape \(2,\)"),
        (0, "0"),
        ([True, False], r"\[True, False\]"),
    ],
)
@pytest.mark.parametrize("switch", ["video_reads_audio", "audio_reads_video"])
def test_visibilities_that_mean_nothing_are_refused(transformer, inputs, switch, value, found):
    with pytest.raises(
        ValueError, match=rf"`{switch}` is {found}, but must be a bool or a bool tensor of shape \(2,\)"
    ):
        transformer(**inputs, **{switch: value})
