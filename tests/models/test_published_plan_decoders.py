"""Published decoders as plan decoders: what they make is what the published computation makes."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderRAE
from safetensors.torch import load_file
from transformers import SiglipVisionModel

from baton_diffusers.models.published_plan_decoders import RAEPlanDecoder, WavTokenizerPlanDecoder
from baton_diffusers.models.semantic_encoders import VideoSemanticEncoder
from tests.scripts import load_script
from tests.tiny import seeded


# Random weights of WavTokenizer's decoder under its keys, features, and the waveform that its published code makes of them.
FIXTURE = Path(__file__).parents[1] / "fixtures/wavtokenizer_decoder_tiny.safetensors"
RAE = {
    "encoder_type": "siglip2",
    "encoder_hidden_size": 64,
    "encoder_patch_size": 64,
    "encoder_num_hidden_layers": 2,
    "encoder_input_size": 256,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "patch_size": 4,
    "encoder_norm_mean": [0.5, 0.4, 0.5],
    "encoder_norm_std": [0.5, 0.5, 0.3],
}


@pytest.fixture(scope="module")
def script():
    return load_script("conversion_scripts/convert_plan_decoders_to_diffusers.py")


@pytest.fixture(scope="module")
def autoencoder():
    with pytest.MonkeyPatch.context() as patch:
        # diffusers 0.42 looks for the tower under the name that it had before transformers 5.
        patch.setattr(SiglipVisionModel, "vision_model", property(lambda model: model), raising=False)
        return seeded(AutoencoderRAE, **RAE)


@pytest.fixture(scope="module")
def semantic_encoder(autoencoder):
    """The autoencoder's own tower as a semantic encoder: one layer more, which is left out."""
    config = autoencoder.encoder.config
    vision_config = {
        name: getattr(config, name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
    }
    encoder = VideoSemanticEncoder(vision_config | {"num_hidden_layers": 3}, (4, 4), 6.0).eval()
    weights = {name: value for name, value in autoencoder.encoder.state_dict().items() if "head." not in name}
    tower = encoder.vision_model
    names = {name.removeprefix("vision_model."): name for name in weights}
    ours = tower.state_dict()
    tower.load_state_dict({name: weights[names[name.removeprefix("vision_model.")]] for name in ours})
    encoder.feature_mean.normal_(generator=torch.Generator().manual_seed(1))
    encoder.feature_std.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return encoder


def wavtokenizer(tmp_path, change=lambda state: state):
    tensors = load_file(FIXTURE)
    state = {
        name.removeprefix("state."): value.float() for name, value in tensors.items() if name.startswith("state.")
    }
    torch.save({"state_dict": change({**state, "feature_extractor.x": torch.zeros(1)})}, tmp_path / "published.ckpt")
    return tensors


@torch.no_grad()
def test_pictures_are_those_of_the_published_autoencoder(script, autoencoder, semantic_encoder, tmp_path):
    autoencoder.save_pretrained(tmp_path / "rae")
    semantic_encoder.save_pretrained(tmp_path / "encoder")
    command = ["--rae", tmp_path / "rae", "--video-semantic-encoder", tmp_path / "encoder", "--output", tmp_path]
    script.main([str(argument) for argument in command])
    decoder = RAEPlanDecoder.from_pretrained(tmp_path / "video_plan_decoder")
    video = torch.rand(1, 3, 6, 256, 256, generator=torch.Generator().manual_seed(0))
    # the autoencoder normalises pictures in [0, 1] by a mean and a deviation of its own, SigLIP takes [-1, 1]
    mean, std = (torch.tensor(RAE[name])[:, None, None] for name in ("encoder_norm_mean", "encoder_norm_std"))
    tokens = semantic_encoder.encode((video - mean[:, None]) / std[:, None], 6.0)
    times = (torch.arange(6) / 6).repeat_interleave(16)
    pictures = decoder(tokens, times, torch.tensor([0.0, 0.5, 0.6, 0.9]))
    expected = autoencoder(video[0].transpose(0, 1)).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(pictures[0].transpose(0, 1) / 2 + 0.5, expected[[0, 3, 3, 5]], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_coarser_grid_is_interpolated():
    decoder = seeded(RAEPlanDecoder, 12, (2, 2), 16, 1, 2, decoder_intermediate_size=16, patch_size=4, num_patches=16)
    tokens = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    pictures = decoder(tokens, torch.tensor([0.0, 1.0]).repeat_interleave(4), torch.tensor([0.2, 1.4]))
    assert pictures.shape == (2, 3, 2, 16, 16) and pictures.isfinite().all()
    with pytest.raises(ValueError, match="`num_patches` is 15, but must be a square"):
        RAEPlanDecoder(12, (2, 2), num_patches=15)


@torch.no_grad()
def test_sound_is_that_of_the_published_decoder(script, tmp_path):
    tensors = wavtokenizer(tmp_path)
    script.main(["--wavtokenizer", str(tmp_path / "published.ckpt"), "--output", str(tmp_path / "out")])
    decoder = WavTokenizerPlanDecoder.from_pretrained(tmp_path / "out/audio_plan_decoder")
    features, expected = tensors["features"], tensors["waveform"]
    times = (torch.arange(features.shape[1]) + 0.5) * decoder.config.hop_length / decoder.config.sampling_rate
    waveform = decoder(features, times, expected.shape[1])
    torch.testing.assert_close(waveform[:, 0], expected, rtol=0, atol=1e-5 * expected.abs().max())
    # A third of the features, each the mean of three, and features standardised
    decoder.feature_mean += 1
    torch.testing.assert_close(decoder(features - 1, times, expected.shape[1]), waveform, rtol=0, atol=1e-3)
    coarse = features[:, :39].unflatten(1, (13, 3)).mean(dim=2) - 1
    assert decoder(coarse, times[1:39:3], 311).shape == (2, 1, 311)
    assert decoder(coarse[:, :1], times[:1], 100).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--wavtokenizer", "missing.ckpt"], "missing.ckpt is not a file"),
        (["--rae", "nowhere"], "nowhere holds no AutoencoderRAE: give a folder with config.json"),
    ],
)
def test_files_that_are_not_there_are_refused(script, arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        script.main([*arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_other_weights_are_refused(script, autoencoder, semantic_encoder, tmp_path):
    wavtokenizer(tmp_path, lambda state: {k: v for k, v in state.items() if k != "backbone.pos_net.2.q.bias"})
    with pytest.raises(SystemExit, match="published.ckpt lacks 'backbone.pos_net.2.q.bias'"):
        script.main(["--wavtokenizer", str(tmp_path / "published.ckpt"), "--output", str(tmp_path / "out")])
    seeded(AutoencoderRAE, **RAE | {"encoder_type": "dinov2"}).save_pretrained(tmp_path / "dino")
    with pytest.raises(SystemExit, match="decodes features of 'dinov2', but plans are of SigLIP2's"):
        script.main(["--rae", str(tmp_path / "dino"), "--output", str(tmp_path / "out")])
    wider = VideoSemanticEncoder(
        {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        }
    )
    wider.save_pretrained(tmp_path / "encoder")
    autoencoder.save_pretrained(tmp_path / "rae")
    command = [
        "--rae",
        tmp_path / "rae",
        "--video-semantic-encoder",
        tmp_path / "encoder",
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(SystemExit, match="reads features of width 64, but the semantic encoder has 8"):
        script.main([str(argument) for argument in command])
    assert not (tmp_path / "out").exists()
