"""`BatonPipeline` as blocks: two front doors, one clip; and every block alone."""

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from baton_diffusers import BatonAutoBlocks, BatonModularPipeline
from baton_diffusers.guiders import presets
from baton_diffusers.pipelines.modular_blocks import (
    BatonAudioDecoderStep,
    BatonAudioEncoderStep,
    BatonCoreDenoiseStep,
    BatonPlannerStep,
    BatonTextEncoderStep,
    BatonVideoDecoderStep,
    BatonVideoEncoderStep,
)

from ..tiny import NUM_FRAMES, random_clip, random_plan, tiny_cue_parts, tiny_pipeline
from .calls import OTHER, PROMPT, forbid, make, quiet, seeds


FRAMES, WAVEFORM = random_clip()


def modular(pipe, blocks=None):
    """The blocks over the components and settings of a pipeline."""
    other = BatonModularPipeline(blocks or BatonAutoBlocks())
    names = other._config_specs
    other.update_components(**pipe.components, **{name: pipe.config[name] for name in names})
    return quiet(other)


@pytest.fixture(scope="module")
def doors():
    pipe = tiny_pipeline(**tiny_cue_parts())
    return pipe, modular(pipe)


DIRECTIONS = {
    "a prompt": {},
    "an image": {"image": FRAMES[0]},
    "a picture": {"video": FRAMES, "num_cue_candidates": 2},
    "a sound": {"audio": WAVEFORM, "num_cue_candidates": 2, "use_cache": True},
    "a clip that goes on": {"continue_from": (FRAMES, WAVEFORM), "continue_seconds": 0.5, "num_cue_candidates": 2},
    "parts made anew": {"video": FRAMES, "audio": WAVEFORM, "video_mask": [(0.5, 1.0)], "audio_mask": [(0.0, 0.5)]},
    "pictures alone": {"only": "video"},
    "sound alone": {"only": "audio"},
    "a reference": {"reference_audio": WAVEFORM},
    "a batch": {"prompt": [PROMPT, OTHER], "num_videos_per_prompt": 2, "generator": seeds(0, 1, 2, 3)},
    "a plan": {"plan": random_plan()},
    "no plan": {"use_plan": False, "negative_prompt": "left", "audio_negative_prompt": "right"},
    "cues": {"cues": "<|0.50|> red circle"},
    "timesteps": {"timesteps": [1000, 757, 522]},
    "latents": {"output_type": "latent", "height": 16, "num_frames": 5, "num_inference_steps": 3},
}


def fresh(generator):
    listed = generator if isinstance(generator, list) else [generator]
    return seeds(*(one.initial_seed() for one in listed))


def test_inputs_are_described_as_the_arguments_of_the_call():
    inputs = {param.name: param for param in BatonAutoBlocks().inputs}
    assert not [name for name, param in inputs.items() if not param.description]
    assert inputs["num_cue_candidates"].default == 64 and "spans `(start, end)`" in inputs["video_mask"].description


@pytest.mark.parametrize("call", DIRECTIONS.values(), ids=DIRECTIONS)
def test_both_front_doors_make_the_same_bytes(doors, call):
    pipe, blocks = doors
    call = {"prompt": PROMPT, "output_type": "pt", "generator": seeds(0), **call}
    expected = pipe(**{**call, "generator": fresh(call["generator"])})
    found = blocks(**{**call, "generator": fresh(call["generator"])})
    for name, wanted in (("videos", expected.frames), ("audio", expected.audio)):
        assert found.get(name) is wanted is None or torch.equal(found.get(name), wanted)
    assert found.cues == expected.cues and found.frame_rate == expected.frame_rate
    assert (found.plan is None) == (expected.plan is None)


@pytest.mark.parametrize("preset", ["harmony", "ltx2"])
def test_guiders_are_components(preset):
    guiders = {
        name: guider.new(skip_layers=()) if hasattr(guider, "skip_layers") else guider
        for name, guider in presets()[preset].items()
    }
    pipe = tiny_pipeline(**guiders)
    blocks = modular(pipe)
    expected = make(pipe)
    assert torch.equal(blocks(prompt=PROMPT, generator=seeds(0), output_type="pt", output="videos"), expected.frames)
    blocks.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
    assert not torch.equal(
        blocks(prompt=PROMPT, generator=seeds(0), output_type="pt", output="videos"), expected.frames
    )


def test_blocks_run_one_by_one(tmp_path):
    """On one machine texts and plans, on another clips: each block loads what it needs, and the clip is the same."""
    pipe = tiny_pipeline(**tiny_cue_parts())
    pipe.save_pretrained(tmp_path)
    whole = BatonModularPipeline.from_pretrained(tmp_path)
    whole.load_components()
    expected = quiet(whole)(prompt=PROMPT, generator=seeds(0), output_type="pt")

    def alone(block, components, **inputs):
        part = block().init_pipeline(str(tmp_path))
        part.load_components()
        assert {name for name, component in part.components.items() if component is not None} == components
        return quiet(part)(**inputs)

    text = alone(BatonTextEncoderStep, {"text_encoder", "tokenizer"}, prompt=PROMPT)
    planner = {"planner", "planner_tokenizer", "text_encoder", "tokenizer"}
    planner |= {"video_semantic_encoder", "audio_semantic_encoder"}
    planned = alone(BatonPlannerStep, planner, prompt=PROMPT, generator=seeds(0))
    assert planned.cues == expected.cues
    core = {"transformer", "scheduler", "audio_scheduler", "guider", "audio_guider", "vae", "audio_vae"}
    embeds = {name: text.get(name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    latents = alone(BatonCoreDenoiseStep, core, **embeds, plan=planned.plan, generator=seeds(0))
    videos = alone(BatonVideoDecoderStep, {"vae"}, latents=latents.latents, output_type="pt").videos
    decoder = {"audio_vae", "vocoder"}
    audio = alone(BatonAudioDecoderStep, decoder, audio_latents=latents.audio_latents, output_type="pt").audio
    assert torch.equal(videos, expected.videos) and torch.equal(audio, expected.audio)

    known = alone(BatonVideoEncoderStep, {"vae"}, image=FRAMES[0]).known_video
    assert known.any and not known.all and known.latents[:, :, 0].any() and not known.latents[:, :, 1:].any()
    assert alone(BatonAudioEncoderStep, {"audio_vae"}, audio=WAVEFORM).known_audio.all


def test_a_workflow_has_the_blocks_that_it_needs():
    blocks = BatonAutoBlocks()
    encoders = {"video_encoder", "audio_encoder", "reference_encoder"}
    expected = {
        "text2av": set(),
        "text2video": set(),
        "text2audio": set(),
        "image2av": {"video_encoder"},
        "video2audio": {"video_encoder"},
        "audio2video": {"audio_encoder"},
        "continue": {"video_encoder", "audio_encoder"},
        "inpaint": {"video_encoder", "audio_encoder"},
        "reference2av": {"reference_encoder"},
    }
    assert list(expected) == blocks.available_workflows
    for name, needed in expected.items():
        found = set(blocks.get_workflow(name).sub_blocks)
        assert found & encoders == needed
        assert ("video_decoder" in found, "audio_decoder" in found) == (name != "text2audio", name != "text2video")


@pytest.mark.parametrize(
    "call, message",
    [
        ({"height": 40}, "`height` is 40, but must be a multiple of 16"),
        ({"prompt": None}, "either `prompt` or `prompt_embeds`; neither"),
        ({"generator": 42}, "`generator` is 42"),
        ({"video": FRAMES, "audio": WAVEFORM}, "both given whole"),
        ({"cues": "<|9.00|> red"}, "the clip ends at 1.1250"),
        ({"output_type": "mp4"}, "`output_type` is 'mp4'"),
        ({"latents": np.zeros(3)}, "`latents` is ndarray"),
    ],
    ids=str,
)
def test_blocks_refuse_before_any_model_runs(call, message):
    blocks = modular(forbid(tiny_pipeline(**tiny_cue_parts())))
    with pytest.raises(ValueError, match=message):
        blocks(**{"prompt": PROMPT, "num_frames": NUM_FRAMES, **call})
