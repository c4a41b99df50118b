"""Adapters in the pipeline: every form adds what the update by hand adds, and files that do not fit change nothing."""

import json
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from baton_diffusers.models.lora_conversion import match_lora

from ..models.test_lora_conversion import FORMS, VIDEO, in_form, random_lora, updated_by_hand
from ..tiny import tiny_pipeline, tiny_transformer
from .calls import assert_same, differ, make


def latents(pipe, transformer=None):
    """What the pipeline makes, or would make with another transformer."""
    own = pipe.transformer
    pipe.register_modules(transformer=transformer or own)
    output = make(pipe, output_type="latent", num_inference_steps=1)
    pipe.register_modules(transformer=own)
    return output


@pytest.mark.parametrize("form", FORMS)
def test_a_file_adds_what_its_update_adds_by_hand(own_pipe, form, tmp_path, caplog):
    layers, *_, has_alpha = FORMS[form]
    lora = random_lora(own_pipe.transformer, layers)
    by_hand, before = updated_by_hand(own_pipe.transformer, lora, has_alpha), latents(own_pipe)
    save_file(in_form(lora, form), tmp_path / "some.safetensors")
    match = own_pipe.load_lora_weights(tmp_path / "some.safetensors", adapter_name="theirs")
    assert set(match.matched) == set(layers) and not caplog.records
    changed = latents(own_pipe)
    assert differ(changed, before)
    assert_same(changed, latents(own_pipe, by_hand), atol=1e-5)  # float32, under guidance
    own_pipe.fuse_lora()
    own_pipe.unload_lora_weights()
    torch.testing.assert_close(own_pipe.transformer.state_dict(), by_hand.state_dict(), rtol=0, atol=1e-6)


def test_unloading_gives_the_bytes_back_and_weights_scale_the_update(own_pipe):
    before = latents(own_pipe)
    lora = random_lora(own_pipe.transformer, VIDEO)
    own_pipe.load_lora_weights(in_form(lora, "ComfyUI, Wan"), adapter_name="theirs")
    own_pipe.set_adapters("theirs", 0.5)
    half = {name: (down, up, alpha / 2) for name, (down, up, alpha) in lora.items()}
    output = latents(own_pipe)
    own_pipe.unload_lora_weights()
    assert_same(latents(own_pipe), before)
    assert_same(output, latents(own_pipe, updated_by_hand(own_pipe.transformer, half, True)), atol=1e-5)


def test_biases_are_added_as_they_are(own_pipe):
    lora = random_lora(own_pipe.transformer, VIDEO[:3])
    state, bias = in_form(lora, "ComfyUI, Wan"), torch.linspace(-1, 1, 24)
    state["diffusion_model.blocks.0.self_attn.q.diff_b"] = bias
    by_hand = updated_by_hand(own_pipe.transformer, lora, True)
    by_hand.blocks[0].attn1.to_q.bias.data += bias
    own_pipe.load_lora_weights(state)
    output = latents(own_pipe)
    own_pipe.unload_lora_weights()
    assert_same(output, latents(own_pipe, by_hand), atol=1e-5)


def test_peft_s_folder_is_read_with_its_alpha(own_pipe, tmp_path):
    lora = random_lora(own_pipe.transformer, VIDEO)
    state = {key: t for key, t in in_form(lora, "PEFT, Wan").items() if not key.endswith("alpha")}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    lora = {name: (down, up, 6) for name, (down, up, _) in lora.items()}
    by_hand = updated_by_hand(own_pipe.transformer, lora, True)
    own_pipe.load_lora_weights(tmp_path)
    assert_same(latents(own_pipe), latents(own_pipe, by_hand), atol=1e-5)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        own_pipe.load_lora_weights(tmp_path, adapter_name="again")


def test_a_dora_of_peft_s_comes_back(own_pipe):
    transformer = tiny_transformer()
    transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q"], use_dora=True, init_lora_weights=False)
    )
    state = {f"transformer.{key}": value.clone() for key, value in get_peft_model_state_dict(transformer).items()}
    own_pipe.load_lora_weights(state)
    output = latents(own_pipe)
    own_pipe.unload_lora_weights()
    assert_same(output, latents(own_pipe, transformer), atol=1e-5)
    state.pop(next(key for key in state if "magnitude" in key))
    with pytest.raises(ValueError, match="DoRA magnitude for some layers"):
        match_lora(state, tiny_transformer())


@pytest.mark.parametrize("casts_first", [True, False])
def test_an_adapter_of_weights_in_eight_bits(own_pipe, casts_first):
    lora = in_form(random_lora(own_pipe.transformer, VIDEO), "ComfyUI, Wan")
    outputs = []
    for load in (True, False) if casts_first else (False, True):
        if load:
            own_pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
            outputs.append(latents(own_pipe))
        else:
            own_pipe.load_lora_weights(lora)
            outputs.append(latents(own_pipe))
    assert differ(*outputs)
    if casts_first:
        layer = own_pipe.transformer.blocks[0].attn1.to_q
        assert layer.weight.dtype == torch.float8_e4m3fn
        assert torch.equal(
            layer.lora_A["default_0"].weight, lora["diffusion_model.blocks.0.self_attn.q.lora_down.weight"]
        )


def test_what_is_left_out_is_said(own_pipe, caplog):
    state = in_form(random_lora(own_pipe.transformer, VIDEO), "ComfyUI, Wan")
    state["text_encoder.layers.0.q.lora_down.weight"] = torch.ones(2, 4)
    own_pipe.load_lora_weights(state)
    assert "7 layers of this LoRA are the transformer's, and 1 names are not" in caplog.text
    assert "such as 'text_encoder.layers.0.q'" in caplog.text


REFUSALS = {
    "a file that is not there": (
        lambda path: path / "none.safetensors",
        {},
        "no LoRA could be read from '.*none.safetensors'",
    ),
    "an empty folder": (lambda path: path, {}, "no LoRA could be read"),
    "a file of text": (lambda path: path / "text.safetensors", {}, "no LoRA could be read from '.*text.safetensors'"),
    "a pickle": (lambda path: path / "pickle.bin", {}, "no LoRA could be read from '.*pickle.bin'"),
    "a pickle, asked for": (lambda path: path / "pickle.bin", {"use_safetensors": False}, "would read a pickle"),
    "no file at all": (lambda path: None, {}, "None is no LoRA: give a folder"),
    "names of nothing": (lambda path: {"x.lora_A.weight": torch.ones(2, 2)}, {}, "no layer of this LoRA is one"),
}


class Opened:
    def __reduce__(self):
        return os.mkdir, ("opened",)


@pytest.mark.parametrize("source, kwargs, message", REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_lora_changes_nothing(own_pipe, tmp_path, monkeypatch, source, kwargs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("words")
    torch.save({"transformer.blocks.0.attn1.to_q.lora_A.weight": Opened()}, tmp_path / "pickle.bin")
    (tmp_path / "empty").mkdir()
    before = own_pipe.transformer.state_dict()
    source = source(tmp_path / "empty" if message == "no LoRA could be read" else tmp_path)
    with pytest.raises(ValueError, match=message):
        own_pipe.load_lora_weights(source, **kwargs)
    assert own_pipe.get_list_adapters() == {} and own_pipe.transformer.state_dict().keys() == before.keys()
    assert not (tmp_path / "opened").exists()


def test_without_a_transformer_there_is_nothing_to_load_into(own_pipe):
    own_pipe.register_modules(transformer=None)
    with pytest.raises(ValueError, match="has no `transformer` for a LoRA"):
        own_pipe.load_lora_weights({})


def test_without_peft_an_adapter_names_what_it_needs(monkeypatch):
    monkeypatch.setattr("baton_diffusers.pipelines.lora.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs peft: pip install peft, or add a student"):
        tiny_pipeline().load_lora_weights("anywhere")
