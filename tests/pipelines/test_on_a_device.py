"""Whole calls on a device that is not the CPU: no operation mixes the two, and nothing is read by the host within the loop."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from peft import LoraConfig
from transformers import AutoTokenizer

from baton_diffusers import BatonPipeline, Shot, default_checkpoint
from baton_diffusers.guiders import presets
from baton_diffusers.memory import COMPONENTS, load_components

from ..pretended import device, on_device
from ..tiny import (
    AUDIO_LATENTS,
    DURATION,
    LATENTS,
    NUM_FRAMES,
    TEXT_DIM,
    random_clip,
    random_plan,
    tiny_cue_parts,
    tiny_pipeline,
    tiny_transformer,
)
from .calls import PROMPT, quiet, seeds


pytestmark = pytest.mark.apart

FRAMES, WAVEFORM = random_clip()
LATE = [(0.5, DURATION)]
WITHOUT_A_PLANNER = {"planner": None, "planner_tokenizer": None}


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def euler():
    return FlowMatchEulerDiscreteScheduler(shift=5.0)


def call(pipe, prompt=PROMPT, output_type="pt", **arguments):
    """What the call returns, and what the host read within the loop."""
    with on_device() as trace:
        pipe.to(device())
        trace.counts = lambda: getattr(pipe, "_current_timestep", None) is not None
        frames, audio = pipe(prompt, generator=seeds(0), output_type=output_type, return_dict=False, **arguments)
    return frames, audio, trace


def check(pipe, given=(), num_clips=1, **arguments):
    frames, audio, trace = call(pipe, **arguments)
    assert not trace.reads
    for name, made in (("video", frames), ("audio", audio)):
        if made is not None:
            assert made.shape[0] == num_clips and made.device == (torch.device("cpu") if name in given else device())


slow = pytest.mark.slow  # a call takes two seconds: some stand for all in the fast suite
CONTEXT = {"num_context_tokens": 2}


@pytest.mark.parametrize(
    "arguments, transformer, parts",
    [
        ({"image": FRAMES[0], "reference_audio": WAVEFORM, "use_cache": True}, {}, dict),
        ({"video": FRAMES, "use_cache": True, "num_cue_candidates": 1}, CONTEXT, tiny_cue_parts),
        ({"only": "video"}, CONTEXT, dict),
        pytest.param({"plan": random_plan()}, {}, dict, marks=slow),
        pytest.param({"video": FRAMES}, {}, dict, marks=slow),
        pytest.param({"audio": WAVEFORM}, {}, dict, marks=slow),
        pytest.param({"audio": WAVEFORM, "use_cache": True}, CONTEXT, dict, marks=slow),
        pytest.param({"continue_from": (FRAMES, WAVEFORM), "continue_seconds": 0.5}, {}, dict, marks=slow),
        pytest.param(
            {"video": FRAMES, "video_mask": LATE, "audio": WAVEFORM, "audio_mask": LATE}, {}, dict, marks=slow
        ),
        pytest.param({"only": "audio"}, CONTEXT, dict, marks=slow),
        pytest.param({"cue_temperature": 0.0}, {}, tiny_cue_parts, marks=slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value.__name__,
)
def test_no_direction_mixes_devices_or_waits(arguments, transformer, parts):
    given = [name for name in ("video", "audio") if name in arguments and f"{name}_mask" not in arguments]
    check(tiny_pipeline(transformer=tiny_transformer(**transformer), **parts()), given, **arguments)


LOOP = {"output_type": "latent"}  # the loop alone is judged


def guided(name, **parts):
    """A pipeline under a preset's guiders, with all that the transformer may have between the modalities."""
    guiders = presets()[name]
    num_layers = 2 + max((layer for guider in guiders.values() for layer in guider.skip_layers), default=0)
    windows = {"cross_modal_window": 3, "audio_cross_modal_window": 1}
    transformer = tiny_transformer(num_context_tokens=2, num_layers=num_layers, **windows)
    return tiny_pipeline(transformer=transformer, **guiders, **parts)


@pytest.mark.parametrize("audio_scheduler", [unipc, pytest.param(euler, marks=slow)])
def test_no_scheduler_guidance_or_lora_does_in_a_batch(audio_scheduler):
    pipe = guided("harmony", scheduler=unipc(), audio_scheduler=audio_scheduler(), **WITHOUT_A_PLANNER)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    batch = {"prompt": [PROMPT, "a blue star"], "num_videos_per_prompt": 2, "num_clips": 4}
    check(pipe, **batch, num_inference_steps=3, use_cache=True, attention_kwargs={"scale": 0.5}, **LOOP)


@pytest.mark.slow
@pytest.mark.parametrize("name", presets())
def test_no_preset_does(name):
    check(guided(name), use_cache=True, **LOOP)


def test_a_mix_of_devices_and_a_read_are_found():
    pipe = tiny_pipeline(**WITHOUT_A_PLANNER)
    reading = pipe.transformer.proj_out.register_forward_pre_hook(lambda _, args: print(args[0].isnan().any().item()))
    reads = call(pipe, **LOOP)[2].reads
    assert sum(reads.values()) == 2 * pipe.config.num_inference_steps  # with two passes a step
    reading.remove()
    pipe.transformer.proj_out.register_forward_pre_hook(lambda _, args: args[0] + torch.zeros(1, 1, 24))
    with pytest.raises(Exception, match="two devices, pretended:0 and cpu"):
        call(pipe, **LOOP)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["nothing", "image", "video"])
def test_the_transformer_is_one_graph_there(given):
    """As `torch.compile(fullgraph=True)` traces it, which cannot run under the modes of the device."""
    transformer = tiny_transformer(num_context_tokens=2)
    with torch.no_grad(), on_device():
        transformer.to(device())
        latents, audio_latents = (torch.randn(1, *shape, device=device()) for shape in (LATENTS, AUDIO_LATENTS))
        noisy, text = torch.ones(1, device=device()), torch.randn(1, 16, TEXT_DIM, device=device())
        timestep = {"nothing": noisy, "image": noisy.expand(1, LATENTS[1]), "video": noisy * 0}[given]
        inputs = {"audio_timestep": noisy, "video_reads_audio": given != "video", "return_dict": False}
    with torch.no_grad():
        program = torch.export.export(transformer, (latents, audio_latents, timestep, text), inputs, strict=True)
    *_, output = program.graph.nodes
    assert [node.meta["val"].device for node in output.args[0]] == [device()] * 2


def check_film(pipe, shots, num_windows, **settings):
    with on_device() as trace:
        pipe.to(device())
        trace.counts = lambda: getattr(pipe, "_current_timestep", None) is not None
        film = pipe.film(shots, stream=True, **settings)
        pieces = list(film)
    assert not trace.reads
    assert [len(windows) for windows in film.windows] == num_windows
    assert sum(len(piece.frames) for piece in pieces) == film.num_frames
    return film


def test_a_film_reads_nothing_within_the_loop():
    check_film(tiny_pipeline(), [Shot(PROMPT, 1.5)], [2], num_inference_steps=1)


def full_size(*settings):
    """The pipeline of the configuration of full size, with weights that hold no numbers."""
    models, config = load_components("baton-11b")
    tokenizer = AutoTokenizer.from_pretrained(default_checkpoint() / "tokenizer")
    return quiet(
        BatonPipeline(
            **{name: models[name] for name in COMPONENTS},
            tokenizer=tokenizer,
            planner_tokenizer=tokenizer,
            scheduler=unipc(),
            audio_scheduler=unipc(),
            **{name: config[name] for name in ("max_sequence_length", "negative_prompt", "prompt_form", *settings)},
        )
    )


@pytest.mark.slow  # a minute
def test_films_are_made_in_windows_of_full_size():
    pipe = full_size("num_frames")
    shots = [Shot(PROMPT, 19), Shot("a star", 19, cut=True)]
    film = check_film(pipe, shots, [2, 2], height=96, width=160, num_inference_steps=2)
    assert film.windows[0][0].num_frames == pipe.config.num_frames == 241


@pytest.mark.slow  # 15 s each
@pytest.mark.parametrize("given", [{}, {"image": FRAMES[0]}, {"video": FRAMES}, {"audio": WAVEFORM}], ids=" ".join)
def test_the_configuration_of_full_size_runs_whole(given):
    pipe = full_size()
    size = {"height": 96, "width": 160, "num_inference_steps": 2}
    rates = {"video_frame_rate": NUM_FRAMES / DURATION} if "video" in given else {}
    check(
        pipe,
        given,
        use_cache=True,
        **size,
        **given,
        **rates,
        **({} if "video" in given or "audio" in given else {"num_frames": 25}),
    )
