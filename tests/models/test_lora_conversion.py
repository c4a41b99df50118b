"""LoRA files of other tools find their layers, and add to them what the update by hand adds."""

import copy

import pytest
import torch

from baton_diffusers.models.conversion import published_ovi_key
from baton_diffusers.models.lora_conversion import match_lora

from ..tiny import tiny_transformer


VIDEO = (
    "blocks.0.attn1.to_q",
    "blocks.1.attn2.to_out.0",
    "blocks.2.ffn.net.0.proj",
    "condition_embedder.modulation_proj",
)
VIDEO += ("patch_embedding", "proj_out", "condition_embedder.text_embedder.linear_2")
AUDIO = (
    "blocks.0.audio_attn1.to_v",
    "blocks.1.audio_attn2.to_k_fusion",
    "audio_patch_embedding.conv",
    "audio_proj_out",
)
PLAN = ("blocks.1.plan_attn.to_k", "audio_plan_embedder.linear_2")


def ovi(name):
    return published_ovi_key(f"{name}.weight").removesuffix(".weight")


def wan(name):
    return ovi(name).removeprefix("video_model.")


def flat(name):
    return name.replace(".", "_")


# layers, the name of a layer in the file, and what its matrices are called; with an alpha for each layer or without
FORMS = {
    "diffusers, ours": (VIDEO + AUDIO + PLAN, lambda n: f"transformer.{n}", "lora_A.weight", "lora_B.weight", False),
    "no prefix": (VIDEO + AUDIO + PLAN, lambda n: n, "lora_A.weight", "lora_B.weight", True),
    "PEFT, in training": (
        VIDEO + AUDIO,
        lambda n: f"base_model.model.{n}",
        "lora_A.default.weight",
        "lora_B.default.weight",
        False,
    ),
    "compiled": (VIDEO + AUDIO, lambda n: f"transformer._orig_mod.{n}", "lora_A.weight", "lora_B.weight", False),
    "diffusers, old": (VIDEO + AUDIO, lambda n: f"transformer.{n}", "lora.down.weight", "lora.up.weight", False),
    "ComfyUI, ours": (VIDEO + AUDIO, lambda n: f"diffusion_model.{n}", "lora_A.weight", "lora_B.weight", True),
    "kohya, ours": (
        VIDEO + AUDIO + PLAN,
        lambda n: f"lora_unet_{flat(n)}",
        "lora_down.weight",
        "lora_up.weight",
        True,
    ),
    "diffusers, Wan": (
        VIDEO,
        lambda n: f"transformer.{n.replace('modulation_proj', 'time_proj')}",
        "lora_A.weight",
        "lora_B.weight",
        False,
    ),
    "ComfyUI, Wan": (VIDEO, lambda n: f"diffusion_model.{wan(n)}", "lora_down.weight", "lora_up.weight", True),
    "musubi, Wan": (VIDEO, lambda n: f"lora_unet_{flat(wan(n))}", "lora_down.weight", "lora_up.weight", True),
    "DiffSynth, Wan": (VIDEO, wan, "lora_A.default.weight", "lora_B.default.weight", False),
    "PEFT, Wan": (VIDEO, lambda n: f"base_model.model.{wan(n)}", "lora_A.weight", "lora_B.weight", True),
    "PEFT, Ovi": (VIDEO + AUDIO, lambda n: f"base_model.model.{ovi(n)}", "lora_A.weight", "lora_B.weight", True),
    "ComfyUI, Ovi": (VIDEO + AUDIO, lambda n: f"diffusion_model.{ovi(n)}", "lora_down.weight", "lora_up.weight", True),
    "kohya, Ovi": (VIDEO + AUDIO, lambda n: f"lora_unet_{flat(ovi(n))}", "lora_down.weight", "lora_up.weight", True),
}


def random_lora(transformer, layers, seed=0):
    """Random matrices of another rank and alpha for each layer: `{name: (down, up, alpha)}`."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for index, name in enumerate(layers):
        weight, rank = transformer.get_submodule(name).weight, 2 + index % 3
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
        up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator) * 0.1
        lora[name] = down, up, 1.0 + index
    return lora


def in_form(lora, form):
    _, path, a, b, has_alpha = FORMS[form]
    state = {}
    for name, (down, up, alpha) in lora.items():
        state[f"{path(name)}.{a}"], state[f"{path(name)}.{b}"] = down, up
        if has_alpha:
            state[f"{path(name)}.alpha"] = torch.tensor(alpha)
    return state


def updated_by_hand(transformer, lora, has_alpha, config=None):
    """A copy of the transformer, `alpha / rank * up @ down` added to its weights."""
    transformer = copy.deepcopy(transformer)
    for name, (down, up, alpha) in lora.items():
        weight, rank = transformer.get_submodule(name).weight, len(down)
        update = (up.flatten(1) @ down.flatten(1)).view_as(weight)
        weight.data += update * (alpha / rank if has_alpha else 1.0)
    return transformer


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_finds_its_layers(transformer, form):
    layers, *_, has_alpha = FORMS[form]
    lora = random_lora(transformer, layers)
    match = match_lora(in_form(lora, form), transformer)
    assert match.unmatched == () and set(match.matched) == set(layers)
    for name, (down, up, alpha) in lora.items():
        layer = match.layers[name]
        assert torch.equal(layer.down, down) and torch.equal(layer.up, up)
        assert layer.scale == (alpha / len(down) if has_alpha else 1.0)


def test_alphas_beside_the_file_are_peft_s(transformer):
    state = in_form(random_lora(transformer, VIDEO[:2]), "PEFT, Wan")
    state = {key: tensor for key, tensor in state.items() if "alpha" not in key}
    config = {"lora_alpha": 8, "alpha_pattern": {"cross_attn.o": 3}, "use_rslora": True}
    first, second = match_lora(state, transformer, config=config).layers.values()
    assert first.scale == pytest.approx(8 / 2**0.5) and second.scale == pytest.approx(3 / 3**0.5)


def test_a_prefix_of_ones_own(transformer):
    state = {f"tower.{key}": t for key, t in in_form(random_lora(transformer, VIDEO), "DiffSynth, Wan").items()}
    assert set(match_lora({**state, "other": torch.ones(1)}, transformer, prefix="tower.").matched) == set(VIDEO)
    with pytest.raises(
        ValueError, match="no layer of this LoRA is one.*'tower.blocks.0.self_attn.q'.*and 4 more.*`prefix=`"
    ):
        match_lora(state, transformer)


def test_what_has_no_place_is_listed(transformer):
    state = in_form(random_lora(transformer, VIDEO), "ComfyUI, Wan")
    state["diffusion_model.blocks.0.cross_attn.norm_q.diff"] = torch.ones(24)
    state["diffusion_model.blocks.9.self_attn.q.lora_down.weight"] = torch.ones(2, 24)
    state["diffusion_model.blocks.0.self_attn.k.diff_b"] = torch.ones(24)
    match = match_lora(state, transformer)
    assert len(match.matched) == len(VIDEO) and repr(match) == "LoraMatch(7 layers matched, 3 left out)"
    assert match.unmatched == (
        "diffusion_model.blocks.0.cross_attn.norm_q.diff",
        "diffusion_model.blocks.9.self_attn.q",
        "diffusion_model.blocks.0.self_attn.k (its bias alone)",
    )


Q = "diffusion_model.blocks.0.self_attn.q"
REFUSALS = {
    "nothing": (lambda s: {}, "no layer of this LoRA is one of the transformer's: the file has nothing, and"),
    "nothing that matches": (
        lambda s: {f"te.{k}": v for k, v in s.items()},
        "the file has 'te.diffusion_model.blocks.0",
    ),
    "other methods": (
        lambda s: {f"{Q}.lokr_w1": torch.ones(2)},
        "the file has 'diffusion_model.blocks.0.self_attn.q.lokr_w1'",
    ),
    "half a layer": (lambda s: {k: v for k, v in s.items() if k != f"{Q}.lora_up.weight"}, "to_q', but no up matrix"),
    "another width": (
        lambda s: {**s, f"{Q}.lora_down.weight": torch.ones(2, 40)},
        r"another size: .*\(2, 40\).*\(2, 24\)",
    ),
    "ranks that differ": (
        lambda s: {**s, f"{Q}.lora_up.weight": torch.ones(24, 3)},
        r"up part .*\(24, 3\), but must have \(24, 2\)",
    ),
    "not a number": (
        lambda s: {**s, f"{Q}.lora_up.weight": torch.full((24, 2), float("nan"))},
        "q.lora_up.weight' .* NaN",
    ),
    "an alpha of zero": (
        lambda s: {**s, f"{Q}.alpha": torch.tensor(0.0)},
        "alpha of this LoRA for .* is 0.0, but must be a number",
    ),
    "an alpha beyond all": (
        lambda s: {**s, f"{Q}.alpha": torch.tensor(3e38)},
        "must be a number .* of at most 1e[+]06",
    ),
    "whole numbers": (
        lambda s: {**s, f"{Q}.lora_down.weight": torch.ones(2, 24, dtype=torch.int64)},
        "down part for .* is torch.int64, but must be floating-point",
    ),
    "an alpha of two": (lambda s: {**s, f"{Q}.alpha": torch.ones(2)}, "must be a number other than 0"),
    "two adapters": (
        lambda s: {**s, f"{Q}.lora_A.second.weight": torch.ones(2, 24)},
        "two tensors for the down part of 'blocks.0",
    ),
    "no tensor": (lambda s: {**s, f"{Q}.alpha": 2.0}, "holds tensors by name, but this one has .*alpha': float"),
}


@pytest.mark.parametrize("spoil, message", REFUSALS.values(), ids=REFUSALS)
def test_files_that_do_not_fit_are_refused(transformer, spoil, message):
    state = in_form(random_lora(transformer, VIDEO), "ComfyUI, Wan")
    with pytest.raises(ValueError, match=message):
        match_lora(spoil(state), transformer)


@pytest.mark.parametrize(
    "config", [{"lora_alpha": "8"}, {"lora_alpha": float("nan")}, {"alpha_pattern": {"(a+)+$": 2}}], ids=str
)
def test_alphas_that_are_no_numbers_are_refused(transformer, config):
    with pytest.raises(ValueError, match="alpha"):
        match_lora(in_form(random_lora(transformer, VIDEO), "DiffSynth, Wan"), transformer, config=config)


def test_a_flow_maps_layers_are_found_before_they_are_there(transformer):
    names = "condition_embedder.step_embedder", "audio_condition_embedder.step_embedder"
    size = transformer.condition_embedder.time_embedder.linear_1.weight.shape
    file = {}
    for name in names:
        file |= {f"{name}.lora_A.weight": torch.randn(2, size[1]), f"{name}.lora_B.weight": torch.randn(size[0], 2)}
    match = match_lora(file, transformer)
    assert match.is_flow_map and set(match.matched) == set(names) and not transformer.config.is_flow_map
    copied = copy.deepcopy(transformer)
    match.add_to(copied)
    for name in names:
        layer = match.layers[name]
        torch.testing.assert_close(copied.get_submodule(name).weight, layer.scale * layer.up @ layer.down)
