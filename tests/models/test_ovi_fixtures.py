"""The published computations, on random tiny checkpoints, must come out of our models when they are loaded from those files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.plan import SemanticPlan
from tests.published import OVI_FIXTURES, ovi_fixture


@pytest.mark.parametrize("name", OVI_FIXTURES)
def test_reproduces_the_published_computation(name, tmp_path):
    untold, inputs, video, audio = ovi_fixture(name, tmp_path / "model.safetensors")
    transformer = DualBranchTransformer.from_single_file(tmp_path / "model.safetensors", **untold)
    with torch.no_grad():
        output = transformer(**inputs)
    assert (output.sample - video).abs().max() <= 1e-4
    assert (output.audio_sample - audio).abs().max() <= 1e-4


def test_fresh_plan_layers_leave_the_output_unchanged_bit_for_bit(tmp_path):
    untold, inputs, _, _ = ovi_fixture("t2av", tmp_path / "model.safetensors")
    converted = DualBranchTransformer.from_single_file(tmp_path / "model.safetensors", **untold)
    transformer = DualBranchTransformer.from_config(converted.config, video_plan_dim=8, audio_plan_dim=6).eval()
    missing, unexpected = transformer.load_state_dict(converted.state_dict(), strict=False)
    assert not unexpected and all("plan" in name for name in missing)
    generator = torch.Generator().manual_seed(0)
    plan = SemanticPlan(
        video_tokens=torch.randn(1, 8, 8, generator=generator),
        video_times=torch.tensor([0.0] * 4 + [1 / 6] * 4),
        video_centres=torch.tensor([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]] * 2),
        audio_tokens=torch.randn(1, 5, 6, generator=generator),
        audio_times=torch.arange(5) / 10,
        duration=0.5,
    )
    with torch.no_grad():
        without = transformer(**inputs)
        under_plan = transformer(**inputs, plan=plan)
    assert torch.equal(without.sample, under_plan.sample)
    assert torch.equal(without.audio_sample, under_plan.audio_sample)


def test_a_single_file_can_be_loaded_in_a_smaller_dtype(tmp_path):
    file = tmp_path / "model.safetensors"
    untold, _, _, _ = ovi_fixture("t2av", file)
    transformer = DualBranchTransformer.from_single_file(file, dtype=torch.bfloat16, **untold)
    transformer.save_pretrained(tmp_path / "saved")
    loaded = DualBranchTransformer.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {name: parameter.dtype for name, parameter in transformer.named_parameters()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}


def test_a_single_file_comes_from_the_hub(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--owner--ovi"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    file = cache / "snapshots" / commit / "ovi" / "model.safetensors"
    file.parent.mkdir(parents=True)
    untold, *_ = ovi_fixture("t2av", file)
    expected = DualBranchTransformer.from_single_file(file, **untold).state_dict()
    for address in (
        "https://huggingface.co/owner/ovi/blob/main/ovi/model.safetensors",
        f"https://hf.co/owner/ovi/resolve/{commit}/ovi/model.safetensors",
        "owner/ovi/ovi/model.safetensors",
    ):
        options = {"cache_dir": tmp_path, "local_files_only": True, "torch_dtype": torch.float32}
        loaded = DualBranchTransformer.from_single_file(address, **options, **untold).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "address, kwargs, message",
    [
        ("model.pth", {}, "model.pth is not named .safetensors: only those"),
        ("missing.safetensors", {}, "missing.safetensors is not a file, nor an address like https"),
        (Path("owner/ovi/model.safetensors"), {}, "is not a file, nor an address"),
        ("https://example.com/owner/ovi/model.safetensors", {}, "is not a file, nor an address"),
        ("https://hf.co/owner/ovi/blob/main/x.safetensors", {"local_files_only": True}, "could not be loaded from"),
        ("missing.safetensors", {"torch_dtype": "float16"}, "`dtype` is 'float16', but must be a torch.dtype"),
    ],
    ids=str,
)
def test_no_single_file_is_named(tmp_path, monkeypatch, address, kwargs, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        DualBranchTransformer.from_single_file(address, **kwargs)


def test_float8_weights_keep_their_values(tmp_path):
    # As in the community's file: everything but norms and biases is float8, without scales.
    untold, inputs, _, _ = ovi_fixture("t2av", tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    rounded = {
        key: tensor if "norm" in key or "bias" in key else tensor.to(torch.float8_e4m3fn)
        for key, tensor in state.items()
    }
    save_file(rounded, tmp_path / "model_fp8_e4m3fn.safetensors")
    save_file({key: tensor.float() for key, tensor in rounded.items()}, tmp_path / "model_rounded.safetensors")
    eight_bits = DualBranchTransformer.from_single_file(tmp_path / "model_fp8_e4m3fn.safetensors", **untold)
    assert eight_bits.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    reference = DualBranchTransformer.from_single_file(tmp_path / "model_rounded.safetensors", **untold)
    weights = reference.state_dict()
    for name, value in eight_bits.float().state_dict().items():
        assert torch.equal(value, weights[name]), name
    with torch.no_grad():  # to rounding: how a product is summed up may depend on where in memory its weights lie
        torch.testing.assert_close(eight_bits(**inputs).sample, reference(**inputs).sample, atol=1e-5, rtol=1e-5)


def test_a_file_that_is_not_ovis_is_refused_by_its_first_key(tmp_path):
    file = tmp_path / "model.safetensors"
    untold, _, _, _ = ovi_fixture("t2av", file)
    state = load_file(file)

    def refusal(changed):
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(ValueError) as error:
            DualBranchTransformer.from_single_file(tmp_path / "changed.safetensors", **untold)
        return str(error.value)

    key = "audio_model.blocks.1.cross_attn.k_fusion.weight"
    assert f"lacks '{key}'" in refusal({k: t for k, t in state.items() if k != key})
    assert f"'{key}' has shape (48, 47), but must have (48, 48)" in refusal({**state, key: state[key][:, :-1].clone()})
    assert "unexpected 'video_model.img_emb.bias'" in refusal({**state, "video_model.img_emb.bias": torch.zeros(1)})
    wan = {k.removeprefix("video_model."): t for k, t in state.items() if k.startswith("video_model.")}
    assert "lacks 'video_model.patch_embedding.weight'" in refusal(wan)
    assert "keys that begin with 'video_model.' and 'audio_model.'" in refusal(wan)
    five_exponent_bits = {k: t if "norm" in k or "bias" in k else t.to(torch.float8_e5m2) for k, t in state.items()}
    assert "tensors of type 'F8_E5M2', which is not supported" in refusal(five_exponent_bits)

    whole = file.read_bytes()
    for part in (whole[:-100], whole[:4], b""):
        file.write_bytes(part)
        with pytest.raises(ValueError, match="model.safetensors is truncated or corrupt"):
            DualBranchTransformer.from_single_file(file, **untold)
    with pytest.raises(ValueError, match="missing.safetensors is not a file"):
        DualBranchTransformer.from_single_file(tmp_path / "missing.safetensors")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    ovi_fixture("t2av", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="width 48, which does not divide into 7 heads"):
        DualBranchTransformer.from_single_file(tmp_path / "model.safetensors", num_attention_heads=7)
