"""The configuration of full size in `model_cards/baton-11b`: the published sizes, and what the conversion makes of them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from transformers import UMT5Config, UMT5EncoderModel

from baton_diffusers import DualBranchTransformer
from baton_diffusers.coordinates import num_audio_latents
from baton_diffusers.guiders import PlanGuidance, check_guiders, presets
from baton_diffusers.models import conversion
from baton_diffusers.models.audio_16khz import MMAudioVAE16kHz, MMAudioVocoder16kHz
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.va_planner import VAPlannerModel
from baton_diffusers.schedulers import check_schedulers


CARD = Path(__file__).parents[1] / "model_cards" / "baton-11b"


@pytest.fixture(scope="module")
def models():
    """All models of the configuration, on the meta device."""
    classes = {
        "transformer": DualBranchTransformer,
        "vae": AutoencoderKLWan,
        "audio_vae": MMAudioVAE16kHz,
        "vocoder": MMAudioVocoder16kHz,
        "planner": VAPlannerModel,
        "video_semantic_encoder": VideoSemanticEncoder,
        "audio_semantic_encoder": AudioSemanticEncoder,
    }
    with torch.device("meta"):
        loaded = {name: cls.from_config(cls.load_config(CARD / name)) for name, cls in classes.items()}
        loaded["text_encoder"] = UMT5EncoderModel(UMT5Config.from_pretrained(CARD / "text_encoder"))
    return loaded


def count(model, keep=lambda name: True):
    return sum(parameter.numel() for name, parameter in model.named_parameters() if keep(name))


def test_without_plan_layers_it_has_ovis_parameters(models):
    transformer = models["transformer"]
    assert count(transformer, lambda name: "plan" not in name) == 11_660_753_108
    is_audio = lambda name: "plan" not in name and "audio_" in name  # noqa: E731
    assert count(transformer, is_audio) == 6_094_273_556
    assert count(transformer, lambda name: "fusion" in name) == 1_133_383_680
    # The other way to say "without plan layers": the configuration without plan widths.
    with torch.device("meta"):
        plain = DualBranchTransformer.from_config(transformer.config, video_plan_dim=None, audio_plan_dim=None)
    assert count(plain) == 11_660_753_108


def test_the_conversion_makes_this_configuration(models):
    transformer, vae = models["transformer"], models["vae"]
    state = transformer.state_dict()
    keys = conversion.ovi_keys(state)
    config = conversion.ovi_config({key: tuple(state[name].shape) for name, key in keys.items()})
    assert {key: transformer.config[key] for key in config} == config | {"patch_size": [1, 2, 2]}

    config = conversion.wan_vae_config(
        {conversion.published_wan_vae_key(name, 2): tuple(t.shape) for name, t in vae.state_dict().items()}
    )
    assert {key: vae.config[key] for key in config} == config

    text_encoder = models["text_encoder"]
    config = conversion.umt5_config(
        {conversion.published_umt5_key(name): tuple(t.shape) for name, t in text_encoder.state_dict().items()}
    )
    assert {key: getattr(text_encoder.config, key) for key in config} == config
    audio = models["audio_semantic_encoder"]
    config = conversion.wavtokenizer_config(
        {conversion.published_wavtokenizer_key(name): tuple(t.shape) for name, t in audio.encoder.state_dict().items()}
    )
    assert audio.config.audio_config == config


def test_the_published_keys_are_one_for_each_parameter(models):
    state = models["transformer"].state_dict()
    keys = conversion.ovi_keys(state)
    assert len(set(keys.values())) == len(keys) == sum("plan" not in name for name in state)
    assert (
        keys["blocks.29.audio_attn2.norm_fusion.bias"] == "audio_model.blocks.29.cross_attn.pre_attn_norm_fusion.bias"
    )
    assert keys["audio_scale_shift_table"] == "audio_model.head.modulation"


def test_plans_fit_their_encoders(models):
    planner, transformer = models["planner"].config, models["transformer"].config
    video, audio = models["video_semantic_encoder"], models["audio_semantic_encoder"]
    assert planner.video_dim == transformer.video_plan_dim == len(video.feature_mean) == 1152
    assert planner.audio_dim == transformer.audio_plan_dim == len(audio.feature_mean) == 512
    assert (planner.keyframe_rate, tuple(planner.video_grid)) == (
        video.config.keyframe_rate,
        tuple(video.config.video_grid),
    )
    assert planner.audio_tokens_per_chunk == audio.config.tokens_per_chunk == 25
    assert (count(models["vae"]), count(models["planner"].language_model)) == (704_688_668, 7_568_405_504)


def test_ovis_recipe_is_the_default():
    index = json.loads((CARD / "model_index.json").read_text())
    assert (index["height"], index["width"], index["num_frames"]) == (704, 1280, 241)
    assert index["num_inference_steps"] == 50 and index["max_sequence_length"] == 512
    schedulers = [UniPCMultistepScheduler.from_pretrained(CARD / name) for name in ("scheduler", "audio_scheduler")]
    check_schedulers(*schedulers, 50)
    assert all(scheduler.config.flow_shift == 5.0 for scheduler in schedulers)
    guiders = [PlanGuidance.from_pretrained(CARD / name) for name in ("guider", "audio_guider")]
    for guider, ovis in zip(guiders, presets()["ovi"].values(), strict=True):
        assert {name: guider.config[name] for name in ovis.config if name[0] != "_"} == {
            name: value for name, value in ovis.config.items() if name[0] != "_"
        }
    check_guiders(*guiders, num_layers=30)
    assert index["negative_prompt"] == conversion.OVI_NEGATIVE_PROMPT
    assert index["audio_negative_prompt"] == conversion.OVI_AUDIO_NEGATIVE_PROMPT
    assert index["prompt_form"] == "audio"  # of the file for 10 s


def test_clips_have_ovis_audio_latents(models):
    config = models["transformer"].config
    rate, coverage = config.audio_latent_rate, config.audio_latent_min_coverage
    assert [num_audio_latents(frames / config.frame_rate, rate, coverage) for frames in (121, 241)] == [157, 314]
