"""The published Ovi computation, on a random tiny checkpoint, must come out of `DualBranchTransformer`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from baton_diffusers.models.conversion import convert_ovi_key, convert_ovi_state_dict
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.plan import SemanticPlan


FIXTURES = Path(__file__).parents[1] / "fixtures"


def load_fixture(name, **config):
    with safe_open(FIXTURES / f"ovi_tiny_{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    video, audio = json.loads(metadata["video_config"]), json.loads(metadata["audio_config"])
    transformer = DualBranchTransformer(
        patch_size=tuple(video["patch_size"]),
        in_channels=video["in_dim"],
        out_channels=video["out_dim"],
        audio_in_channels=audio["in_dim"],
        audio_out_channels=audio["out_dim"],
        num_layers=video["num_layers"],
        num_attention_heads=video["num_heads"],
        attention_head_dim=video["dim"] // video["num_heads"],
        ffn_dim=video["ffn_dim"],
        audio_ffn_dim=audio["ffn_dim"],
        text_dim=video["text_dim"],
        freq_dim=video["freq_dim"],
        eps=video["eps"],
        audio_rope_scale=audio["temporal_rope_scaling_factor"],
        **config,
    ).eval()
    state = convert_ovi_state_dict({k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")})
    missing, unexpected = transformer.load_state_dict(state, strict=not config)
    assert not unexpected and all("plan" in key for key in missing)

    def padded(text):
        return torch.nn.functional.pad(text, (0, 0, 0, int(metadata["text_len"]) - text.shape[0]))[None]

    timestep = tensors["timestep"]
    if metadata["first_frame_is_clean"] == "True":
        _, frames, height, width = tensors["input_video"].shape
        tokens = height * width // 4
        per_token = timestep.repeat(frames * tokens)
        per_token[:tokens] = 0
        video_timestep = per_token[None]
    else:
        video_timestep = timestep
    inputs = {
        "hidden_states": tensors["input_video"][None],
        "audio_hidden_states": tensors["input_audio"][None],
        "timestep": video_timestep,
        "audio_timestep": timestep,
        "encoder_hidden_states": padded(tensors["video_text"]),
        "audio_encoder_hidden_states": padded(tensors["audio_text"]),
        "skip_layers": [int(metadata["skip_layer"])] if metadata["skip_layer"] != "0" else None,
    }
    return transformer, inputs, tensors["output_video"][None], tensors["output_audio"][None]


@pytest.mark.parametrize("name", ["t2av", "first_frame_clean", "skip_block"])
def test_reproduces_the_published_computation(name):
    transformer, inputs, video, audio = load_fixture(name)
    with torch.no_grad():
        output = transformer(**inputs)
    assert (output.sample - video).abs().max() <= 1e-4
    assert (output.audio_sample - audio).abs().max() <= 1e-4


def test_fresh_plan_layers_leave_the_output_unchanged_bit_for_bit():
    transformer, inputs, _, _ = load_fixture("t2av", video_plan_dim=8, audio_plan_dim=6)
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


@pytest.mark.parametrize(
    "key", ["blocks.0.self_attn.q.weight", "video_model.blocks.0.attn.q.weight", "video_model.x.bias"]
)
def test_a_foreign_key_is_named(key):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        convert_ovi_key(key)
