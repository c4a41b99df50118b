"""A published WavTokenizer in, an `AudioSemanticEncoder` out: `conversion_scripts/convert_wavtokenizer_to_transformers.py`."""

import pytest
import torch

from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder
from tests.scripts import load_script
from tests.tiny import seeded


CONFIG = {
    "sampling_rate": 24_000,
    "hidden_size": 12,
    "codebook_dim": 12,
    "num_filters": 4,
    "upsampling_ratios": [8, 5, 4, 2],
    "use_causal_conv": False,
}


@pytest.fixture(scope="module")
def script():
    return load_script("conversion_scripts/convert_wavtokenizer_to_transformers.py")


@pytest.fixture
def checkpoint(tmp_path):
    """Tensors under the keys that WavTokenizer's code gives them, and the encoder that they came from."""
    encoder = seeded(AudioSemanticEncoder, CONFIG)
    state = {"feature_extractor.encodec.quantizer.vq.layers.0._codebook.inited": torch.ones(1)}
    for name, tensor in encoder.encoder.state_dict().items():
        # layers.1.block.1.conv.parametrizations.weight.original0 -> model.1.block.1.conv.conv.weight_g
        name = name.replace("layers", "model", 1)
        for ours, theirs in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            name = name.replace(f"conv.{ours}", f"conv.conv.{theirs}")
        name = name if "lstm" in name else name.replace("conv.bias", "conv.conv.bias")
        state[f"feature_extractor.encodec.encoder.{name}"] = tensor
    return state, encoder


def test_the_encoder_is_the_published_one(script, checkpoint, tmp_path):
    state, encoder = checkpoint
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wavtokenizer.ckpt")
    script.main(["--wavtokenizer", str(tmp_path / "wavtokenizer.ckpt"), "--output", str(tmp_path / "out")])
    converted = AudioSemanticEncoder.from_pretrained(tmp_path / "out")
    assert converted.sampling_rate == 24_000 and converted.config.tokens_per_chunk == 25
    waveform = torch.rand(1, 1, 36_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = converted.encoder(waveform)
    assert features.shape == (1, 12, 113)  # 75 per second
    assert torch.equal(converted.encode(waveform, 24_000), encoder.encode(waveform, 24_000))


def test_another_file_is_refused(script, checkpoint, tmp_path):
    state, _ = checkpoint
    file = tmp_path / "wavtokenizer.ckpt"

    def message(content):
        torch.save(content, file)
        with pytest.raises(SystemExit) as exit:
            script.main(["--wavtokenizer", str(file), "--output", str(tmp_path / "out")])
        return str(exit.value.code)

    assert "has no entry 'state_dict'" in message(state)
    assert "lacks 'model.0.conv.conv.weight_v'" in message({"state_dict": {}})
    key = "feature_extractor.encodec.encoder.model.13.lstm.bias_hh_l1"
    assert "lacks 'model.13.lstm.bias_hh_l1'" in message({"state_dict": {k: v for k, v in state.items() if k != key}})
    assert not (tmp_path / "out").exists()
