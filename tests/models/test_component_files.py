"""Weights against configurations: names in the manner of quantising libraries, and values that are no numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton_diffusers.models.component_files import check_component, is_finite, load_component
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer

from ..tiny import tiny_transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("position", [0, 37, 999])
def test_a_single_value_that_is_no_number_is_seen(dtype, position):
    values = torch.linspace(-3, 3, 1000)
    assert is_finite(values.to(dtype)) and is_finite(values[:0].to(dtype))
    for value in (float("nan"), -float("nan"), *([float("inf"), -float("inf")] if dtype.itemsize > 1 else [])):
        spoilt = values.clone()
        spoilt[position] = value
        assert not is_finite(spoilt.to(dtype))


LIBRARIES = {
    "torchao": lambda stem, weight: {
        f"{stem}._weight_qdata": weight.to(torch.int8),
        f"{stem}._weight_scale": weight[:, :1],
    },
    "bitsandbytes, 4 bits": lambda stem, weight: {
        f"{stem}.weight": weight.to(torch.uint8).flatten()[::2, None],
        f"{stem}.weight.absmax": weight[0],
        f"{stem}.weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8),
    },
    "bitsandbytes, 8 bits": lambda stem, weight: {
        f"{stem}.weight": weight.to(torch.int8),
        f"{stem}.SCB": weight[:, 0],
        f"{stem}.weight_format": torch.zeros((), dtype=torch.uint8),
    },
}


@pytest.mark.parametrize("quantise", LIBRARIES.values(), ids=LIBRARIES)
def test_quantised_weights_are_known_by_their_layers(tmp_path, quantise):
    tiny_transformer(num_layers=1).save_pretrained(tmp_path)
    config, file = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "some"}}))
    state = load_file(file)
    stem = "blocks.0.attn1.to_q"
    weight = state.pop(f"{stem}.weight")
    quantised = {**state, **quantise(stem, weight)}
    save_file({key: tensor.contiguous() for key, tensor in quantised.items()}, file)
    check_component(tmp_path, DualBranchTransformer)
    save_file(state, file)
    with pytest.raises(ValueError, match=f"lacks '{stem}.weight'"):
        check_component(tmp_path, DualBranchTransformer)
    save_file(
        {
            **state,
            **{
                key.replace("blocks.0", "blocks.7"): value.contiguous()
                for key, value in quantise(stem, weight).items()
            },
        },
        file,
    )
    with pytest.raises(ValueError, match=f"lacks '{stem}.weight'"):
        check_component(tmp_path, DualBranchTransformer)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is not the folder of a DualBranchTransformer"):
        load_component(tmp_path, DualBranchTransformer)
