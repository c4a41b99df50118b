"""Files that are no Ovi transformer, given to the script as one: each is refused with a reason, and nothing is written."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from .. import published
from .test_convert_ovi_to_diffusers import refused, script  # noqa: F401


@pytest.fixture
def ovi(tmp_path):
    """A whole file, and what the script is to be told."""
    untold, *_ = published.ovi_fixture("t2av", tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", [f"--{key.replace('_', '-')}={value}" for key, value in untold.items()]


def of_wan(state):
    """Wan2.2's own transformer: one tower, whose keys have no prefix."""
    return {key.removeprefix("video_model."): value for key, value in state.items() if key.startswith("video_model.")}


def of_five_exponent_bits(state):
    return {
        key: value if "norm" in key or "bias" in key else value.to(torch.float8_e5m2) for key, value in state.items()
    }


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1000]), "model.safetensors is truncated or corrupt"),
        (lambda file: file.write_bytes(file.read_bytes()[:4]), "model.safetensors is truncated or corrupt"),
        (lambda file: file.write_bytes(b""), "model.safetensors is truncated or corrupt"),
        (
            lambda file: save_file(of_wan(load_file(file)), file),
            "lacks 'video_model.patch_embedding.weight'.*begin with 'video_model.' and 'audio_model.'",
        ),
        (
            lambda file: save_file(of_five_exponent_bits(load_file(file)), file),
            "tensors of type 'F8_E5M2', which is not supported",
        ),
    ],
    ids=["the end is missing", "the header is missing", "empty", "Wan2.2's transformer", "float8 of another kind"],
)
def test_a_file_that_is_no_ovi_transformer_leaves_no_folder(script, ovi, tmp_path, spoil, reason):  # noqa: F811
    file, options = ovi
    spoil(file)
    message = refused(script, "--transformer", file, "--output", tmp_path / "deep" / "out", *options)
    assert re.search(reason, message), message
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
