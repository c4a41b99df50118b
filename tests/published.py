"""Tiny checkpoints in the published formats, in files of the published names."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, UMT5EncoderModel

from baton_diffusers.models.conversion import (
    WAN22_LATENTS_MEAN,
    WAN22_LATENTS_STD,
    ovi_keys,
    published_umt5_key,
    published_wan_vae_key,
)
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from tests.tiny import seeded, tiny_text_encoder, tiny_tokenizer


FIXTURES = Path(__file__).parent / "fixtures"
OVI_FIXTURES = ("t2av", "first_frame_clean", "skip_block")


def read_fixture(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of `fixtures/NAME.safetensors`."""
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def ovi_fixture(name: str, file: Path) -> tuple[dict, dict, torch.Tensor, torch.Tensor]:
    """Writes a fixture's checkpoint to a file as Ovi publishes it; returns what shapes do not tell of it, the arguments of
    `DualBranchTransformer.forward`, and the published outputs for video and audio."""
    tensors, metadata = read_fixture(f"ovi_tiny_{name}")
    save_file({k.removeprefix("state."): t for k, t in tensors.items() if k.startswith("state.")}, file)
    video, audio = json.loads(metadata["video_config"]), json.loads(metadata["audio_config"])

    def padded(text):
        return torch.nn.functional.pad(text, (0, 0, 0, int(metadata["text_len"]) - text.shape[0]))[None]

    timestep = tensors["timestep"]
    video_timestep = timestep
    if metadata["first_frame_is_clean"] == "True":
        video_timestep = timestep.repeat(tensors["input_video"].shape[1])[None]
        video_timestep[:, 0] = 0
    inputs = {
        "hidden_states": tensors["input_video"][None],
        "audio_hidden_states": tensors["input_audio"][None],
        "timestep": video_timestep,
        "audio_timestep": timestep,
        "encoder_hidden_states": padded(tensors["video_text"]),
        "audio_encoder_hidden_states": padded(tensors["audio_text"]),
        "skip_layers": [int(metadata["skip_layer"])] if metadata["skip_layer"] != "0" else None,
    }
    untold = {"num_attention_heads": video["num_heads"], "audio_rope_scale": audio["temporal_rope_scaling_factor"]}
    return untold, inputs, tensors["output_video"][None], tensors["output_audio"][None]


def ovi_checkpoint(file: Path, **config) -> DualBranchTransformer:
    """Writes a random checkpoint as Ovi publishes it, and returns the model that it came from."""
    defaults = {
        "in_channels": 48,
        "out_channels": 48,
        "audio_in_channels": 20,
        "audio_out_channels": 20,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "audio_ffn_dim": 40,
        "audio_patch_hidden_dim": 24,
        "text_dim": 16,
        "freq_dim": 32,
        "audio_rope_scale": 0.2,
    }
    model = seeded(DualBranchTransformer, **{**defaults, **config})
    state = model.state_dict()
    save_file({key: state[name] for name, key in ovi_keys(state).items()}, file)
    return model


def wan_vae(file: Path) -> AutoencoderKLWan:
    """The same for Wan2.2's video autoencoder."""
    vae = seeded(
        AutoencoderKLWan,
        base_dim=8,
        decoder_base_dim=12,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=list(WAN22_LATENTS_MEAN),
        latents_std=list(WAN22_LATENTS_STD),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    torch.save({published_wan_vae_key(name, 1): tensor for name, tensor in vae.state_dict().items()}, file)
    return vae


def text_encoder(file: Path) -> UMT5EncoderModel:
    """The same for UMT5's encoder in Wan's form."""
    model = tiny_text_encoder()
    torch.save({published_umt5_key(name): tensor for name, tensor in model.state_dict().items()}, file)
    return model


def audio_path(vae_file: Path, vocoder_file: Path, old_names: bool = False) -> dict[str, torch.Tensor]:
    """Writes the fixture of the 16 kHz audio path as MMAudio publishes it; returns its inputs and published outputs."""
    tensors, _ = read_fixture("mmaudio16k_tiny")
    vocoder = {k.removeprefix("state.vocoder."): t for k, t in tensors.items() if k.startswith("state.vocoder.")}
    if old_names:
        halves = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for new, old in halves.items():
            vocoder = {key.replace(new, old): tensor for key, tensor in vocoder.items()}
    torch.save({k.removeprefix("state.vae."): t for k, t in tensors.items() if k.startswith("state.vae.")}, vae_file)
    torch.save({"generator": vocoder}, vocoder_file)
    return tensors


def qwen3(folder: Path) -> None:
    """A language model in the format of transformers, with its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
    )
    seeded(Qwen3ForCausalLM, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
