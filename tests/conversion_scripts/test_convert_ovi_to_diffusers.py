"""Published files in, a folder out that `from_pretrained` loads: `conversion_scripts/convert_ovi_to_diffusers.py`."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import Qwen3Model

from baton_diffusers import BatonPipeline, DualBranchTransformer
from baton_diffusers.models.audio_16khz import MMAudioVocoder16kHz
from tests import published
from tests.pipelines.calls import record
from tests.tiny import tiny_tokenizer


SCRIPT = Path(__file__).parents[2] / "conversion_scripts" / "convert_ovi_to_diffusers.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    return module


def refused(script, *arguments):
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as exit:
        script.main([str(argument) for argument in arguments])
    return str(exit.value.code)


def run(script, *arguments):
    script.main([str(argument) for argument in arguments])


def largest_difference(output, expected):
    return (output - expected).abs().max().item()


# The transformer alone


@pytest.mark.parametrize("name", published.OVI_FIXTURES)
def test_the_transformer_alone_reproduces_the_published_computation(name, script, tmp_path):
    untold, inputs, video, audio = published.ovi_fixture(name, tmp_path / "model.safetensors")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in untold.items()]
    run(script, "--transformer", tmp_path / "model.safetensors", "--output", tmp_path / "out", *options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["transformer"]
    transformer = DualBranchTransformer.from_pretrained(tmp_path / "out" / "transformer")
    with torch.no_grad():
        output = transformer(**inputs)
    assert largest_difference(output.sample, video) <= 1e-4
    assert largest_difference(output.audio_sample, audio) <= 1e-4


def test_no_size_is_assumed(script, tmp_path, monkeypatch):
    sizes = {
        "patch_size": (1, 1, 3),
        "in_channels": 7,
        "out_channels": 5,
        "audio_in_channels": 9,
        "audio_out_channels": 8,
        "num_layers": 3,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "ffn_dim": 40,
        "audio_ffn_dim": 56,
        "audio_patch_hidden_dim": 24,
        "text_dim": 10,
        "freq_dim": 64,
        "audio_rope_scale": 0.3,
    }
    model = published.ovi_checkpoint(tmp_path / "other.safetensors", **sizes)
    save = script.save_weights
    monkeypatch.setattr(script, "save_weights", lambda *args: save(*args, max_shard_size=60_000))
    options = ["--num-attention-heads", 3, "--audio-rope-scale", 0.3]
    run(script, "--transformer", tmp_path / "other.safetensors", "--output", tmp_path / "out", *options)

    folder = tmp_path / "out" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert len(set(index["weight_map"].values())) > 5
    assert max(path.stat().st_size for path in folder.glob("*.safetensors")) < 70_000

    converted = DualBranchTransformer.from_pretrained(folder)
    assert {key: model.config[key] for key in sizes} == {
        **{key: converted.config[key] for key in sizes},
        "patch_size": (1, 1, 3),
    }
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(2, 7, 4, 3, 6, generator=generator),
        "audio_hidden_states": torch.randn(2, 29, 9, generator=generator),
        "timestep": torch.tensor([500.0, 100.0]),
        "encoder_hidden_states": torch.randn(2, 6, 10, generator=generator),
    }
    with torch.no_grad():
        ours, theirs = converted(**inputs), model(**inputs)
    assert torch.equal(ours.sample, theirs.sample) and torch.equal(ours.audio_sample, theirs.audio_sample)


def test_float8_is_written_as_bfloat16(script, tmp_path):
    published.ovi_fixture("t2av", tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    eight_bits = {
        key: tensor.bfloat16() if "norm" in key or "bias" in key else tensor.to(torch.float8_e4m3fn)
        for key, tensor in state.items()
    }
    file = tmp_path / "model_fp8_e4m3fn.safetensors"
    save_file(eight_bits, file)
    run(script, "--transformer", file, "--output", tmp_path / "out", "--num-attention-heads", 2)
    written = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    name, key = "blocks.1.audio_attn1.to_q.weight", "audio_model.blocks.1.self_attn.q.weight"
    assert torch.equal(written[name], eight_bits[key].bfloat16())

    # Scaled float8, as of other tools, is not what this file holds.
    save_file(eight_bits | {key.replace("weight", "scale_weight"): torch.ones(1)}, file)
    message = refused(script, "--transformer", file, "--output", tmp_path / "scaled", "--num-attention-heads", 2)
    assert "unexpected 'audio_model.blocks.1.self_attn.q.scale_weight'" in message


# The pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All the published files, tiny, and the models that they came from."""
    folder = tmp_path_factory.mktemp("ckpts")
    models = {
        "transformer": published.ovi_checkpoint(folder / "model_960x960.safetensors"),
        "vae": published.wan_vae(folder / "Wan2.2_VAE.pth"),
        "text_encoder": published.text_encoder(folder / "models_t5_umt5-xxl-enc-bf16.pth"),
    }
    tensors = published.audio_path(folder / "v1-16.pth", folder / "best_netG.pt")
    tiny_tokenizer().save_pretrained(folder / "umt5-xxl")
    published.qwen3(folder / "qwen3")
    return folder, models, tensors


def arguments(folder, output, **changes):
    values = {
        "transformer": folder / "model_960x960.safetensors",
        "vae": folder / "Wan2.2_VAE.pth",
        "text-encoder": folder / "models_t5_umt5-xxl-enc-bf16.pth",
        "tokenizer": folder / "umt5-xxl",
        "audio-vae": folder / "v1-16.pth",
        "vocoder": folder / "best_netG.pt",
        "num-attention-heads": 2,
        "audio-rope-scale": 0.2,
        "skip-layers": 1,
        "output": output,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


@pytest.fixture(scope="module")
def converted(script, files, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "pipeline"
    run(script, *arguments(files[0], output))
    return output


@pytest.fixture(scope="module")
def planned(script, files, tmp_path_factory):
    """The same with a fresh planner, video autoencoder and text encoder taken over from the first."""
    output = tmp_path_factory.mktemp("out") / "planned"
    run(script, *arguments(files[0], output, planner=files[0] / "qwen3"))
    return output


def test_every_part_computes_what_it_came_from(files, converted):
    _, models, tensors = files
    pipe = BatonPipeline.from_pretrained(converted)
    assert pipe.planner is None and pipe.transformer.config.video_plan_dim is None
    for name, model in models.items():
        loaded = getattr(pipe, name)
        assert type(loaded) is type(model)
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert (pipe.vae.config.scale_factor_spatial, pipe.vae.config.scale_factor_temporal) == (16, 4)

    with torch.no_grad():
        latents = pipe.audio_vae.encode(tensors["input_waveform"]).latent_dist.mean
        assert largest_difference(pipe.audio_vae.mel_converter(tensors["input_waveform"]), tensors["mel"]) <= 1e-4
        assert largest_difference(latents, tensors["latent_mean"]) <= 1e-4
        for latents, mel, waveform in (
            (tensors["latent_mean"], "reconstructed_mel", "waveform_of_reconstruction"),
            (tensors["random_latent"], "mel_of_random_latent", "waveform_of_random_latent"),
        ):
            assert largest_difference(pipe.audio_vae.decode(latents).sample, tensors[mel]) <= 1e-4
            assert largest_difference(pipe.vocoder(tensors[mel]).sample, tensors[waveform]) <= 1e-4


def test_the_folder_is_a_saved_pipeline(converted, tmp_path):
    BatonPipeline.from_pretrained(converted).save_pretrained(tmp_path)
    assert sorted(path.name for path in converted.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    ours, theirs = (json.loads((folder / "model_index.json").read_text()) for folder in (converted, tmp_path))
    assert ours == {key: value for key, value in theirs.items() if key != "_name_or_path"}


def test_ovis_recipe_is_the_default(converted):
    pipe = BatonPipeline.from_pretrained(converted)
    assert (pipe.config.height, pipe.config.width, pipe.config.num_frames) == (704, 1280, 121)
    assert pipe.config.num_inference_steps == 50 and pipe.config.max_sequence_length == 512
    assert (pipe.guider.guidance_scale, pipe.audio_guider.guidance_scale) == (4.0, 3.0)
    assert pipe.guider.skip_layers == pipe.audio_guider.skip_layers == (1,)
    assert {type(scheduler) for scheduler in (pipe.scheduler, pipe.audio_scheduler)} == {UniPCMultistepScheduler}
    assert pipe.scheduler.config.flow_shift == pipe.audio_scheduler.config.flow_shift == 5.0
    assert pipe.config.negative_prompt == "jitter, bad hands, blur, distortion"
    assert pipe.config.audio_negative_prompt == "robotic, muffled, echo, distorted"
    assert pipe.config.prompt_form == "audio"
    video, audio = pipe.prepare_latents(1, 32, 64, pipe.config.num_frames)
    assert (video.shape[2], audio.shape[1]) == (31, 157)
    assert pipe.prepare_latents(1, 32, 64, 241)[1].shape[1] == 314


def test_a_call_follows_ovis_recipe(converted):
    """What reaches the transformer in a plain call: texts, the block that is left out, and the timesteps of Ovi's code."""
    pipe = BatonPipeline.from_pretrained(converted)
    pipe.set_progress_bar_config(disable=True)
    calls = record(pipe.transformer)
    clip = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "output_type": "latent"}
    pipe("a circle says <S>one two<E>", audio_prompt="a star", **clip)
    assert [call["skip_layers"] for call in calls] == [(), (1,)] * 2
    assert [call["timestep"].item() for call in calls] == [999, 999, 833, 833]
    texts = (
        "a circle says <S>one two<E> Audio: a star",
        "jitter, bad hands, blur, distortion",
        "robotic, muffled, echo, distorted",
    )
    prompt, negative, audio_negative = (pipe.encode_prompt(text)[0] for text in texts)
    assert not torch.equal(negative, audio_negative)
    for joint, weaker in (calls[:2], calls[2:]):
        assert torch.equal(joint["encoder_hidden_states"], prompt) and joint["audio_encoder_hidden_states"] is None
        assert torch.equal(weaker["encoder_hidden_states"], negative)
        assert torch.equal(weaker["audio_encoder_hidden_states"], audio_negative)


@pytest.fixture(scope="module")
def deep(files, tmp_path_factory):
    """A file with a block 11 to leave out."""
    file = tmp_path_factory.mktemp("deep") / "model_960x960_10s.safetensors"
    published.ovi_checkpoint(file, num_layers=12)
    return file


@pytest.mark.slow
def test_the_card_of_full_size_has_the_recipe_that_is_written(script, files, deep, tmp_path):
    changes = {"transformer": deep, "skip_layers": None, "planner": files[0] / "qwen3"}
    run(script, *arguments(files[0], tmp_path / "out", **changes))
    card = SCRIPT.parents[1] / "model_cards" / "baton-11b"
    for name in ("guider", "audio_guider", "scheduler", "audio_scheduler"):
        (file,) = (tmp_path / "out" / name).glob("*.json")
        assert json.loads(file.read_text()) == json.loads((card / name / file.name).read_text())
    ours, theirs = (json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path / "out", card))
    ours.pop("latent_format")  # is written with the weights, from their configurations
    assert {key: value for key, value in ours.items() if not isinstance(value, list)} == {
        key: value for key, value in theirs.items() if not isinstance(value, list)
    }


@pytest.mark.parametrize(
    "stem, form, size, lengths",
    [
        # A folder of MMAudio's full-size vocoder for each: one in the fast suite.
        pytest.param("model", "audcap", (704, 704, 121), (31, 157), marks=pytest.mark.slow),
        pytest.param("model_fp8_e4m3fn", "audcap", (704, 704, 121), (31, 157), marks=pytest.mark.slow),
        pytest.param("model_960x960", "audio", (704, 1280, 121), (31, 157), marks=pytest.mark.slow),
        ("model_960x960_10s", "audio", (704, 1280, 241), (61, 314)),
    ],
)
def test_what_a_files_name_tells(stem, form, size, lengths, script, files, converted, tmp_path):
    """Sizes fit strides of 16 and patches of 2 in space; latents are as many as Ovi's own code has, for each of its files."""
    folder, _, _ = files
    shutil.copy(folder / "model_960x960.safetensors", tmp_path / f"{stem}.safetensors")
    run(script, *arguments(folder, tmp_path / "out", transformer=tmp_path / f"{stem}.safetensors"))
    pipe = BatonPipeline.from_pretrained(tmp_path / "out")
    assert (pipe.config.height, pipe.config.width, pipe.config.num_frames) == size
    assert pipe.config.prompt_form == form
    video, audio = pipe.prepare_latents(1, *size)
    assert video.shape[2:] == (lengths[0], size[0] // 16, size[1] // 16) and audio.shape[1] == lengths[1]
    assert size[0] % 32 == size[1] % 32 == 0


def test_another_of_ovis_files_in_a_folder_that_is_there(files, converted):
    """`from_single_file` brings what belongs to the weights; what belongs to calls is given beside it."""
    transformer = DualBranchTransformer.from_single_file(
        files[0] / "model_960x960.safetensors", num_attention_heads=2, audio_rope_scale=0.2
    )
    pipe = BatonPipeline.from_pretrained(
        converted, transformer=transformer, width=704, num_frames=241, prompt_form="audcap"
    )
    assert (pipe.config.height, pipe.config.width) == (704, 704)
    assert pipe.prepare_latents(1, 32, 32, pipe.config.num_frames)[1].shape[1] == 314
    assert pipe.format_prompt("a star", "a bell") == "a star <AUDCAP>a bell<ENDAUDCAP>"
    assert pipe.guider.skip_layers == (1,) and pipe.config.audio_negative_prompt


@pytest.mark.slow
def test_the_block_that_is_left_out_must_be_there(script, files, tmp_path):
    message = refused(script, *arguments(files[0], tmp_path / "out", skip_layers=None))
    assert "model_960x960.safetensors has the blocks 0 to 1, but the negative pass is to leave out [11]" in message
    assert "give --skip-layers" in message and not (tmp_path / "out").exists()
    run(script, *arguments(files[0], tmp_path / "out", skip_layers=None), "--skip-layers")
    assert BatonPipeline.from_pretrained(tmp_path / "out").guider.skip_layers == ()


def test_the_pipeline_makes_a_clip(converted):
    pipe = BatonPipeline.from_pretrained(converted, dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16
    assert pipe.audio_vae.dtype == pipe.vocoder.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    clip = pipe("a red circle jumps", height=32, width=64, num_frames=5, num_inference_steps=2, output_type="np")
    assert clip.frames.shape == (1, 5, 32, 64, 3) and clip.audio.shape == (1, 1, 3333)


def test_published_components_are_taken_over_unchanged(script, files, converted, tmp_path):
    changes = {"vae": converted, "text_encoder": converted / "text_encoder", "tokenizer": converted}
    run(script, *arguments(files[0], tmp_path / "again", **changes))
    for file in ("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (converted / file).read_bytes()
    BatonPipeline.from_pretrained(tmp_path / "again")


def test_a_fresh_planner_leaves_the_output_unchanged(files, converted, planned):
    pipe, plain = BatonPipeline.from_pretrained(planned), BatonPipeline.from_pretrained(converted)
    reference = Qwen3Model.from_pretrained(files[0] / "qwen3").state_dict()
    language_model = pipe.planner.language_model.state_dict()
    assert all(torch.equal(language_model[key], tensor) for key, tensor in reference.items())
    assert 0.015 < pipe.planner.video_queries.std() < 0.025

    plan = pipe.prepare_plan("a red circle jumps", num_frames=25)
    assert plan.video_tokens.shape[2] == 1152 and plan.audio_tokens.shape[2] == 512
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 48, 7, 4, 4, generator=generator),
        "audio_hidden_states": torch.randn(1, 33, 20, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, 16, generator=generator),
    }
    with torch.no_grad():
        expected = plain.transformer(**inputs)
        for under_plan in (None, plan):
            output = pipe.transformer(**inputs, plan=under_plan)
            assert torch.equal(output.sample, expected.sample)
            assert torch.equal(output.audio_sample, expected.audio_sample)
    # They can learn: only the output projections are zero.
    fresh = {name: tensor for name, tensor in pipe.transformer.named_parameters() if "plan" in name}
    assert all(tensor.any() for name, tensor in fresh.items() if "to_out" not in name and "norm" not in name)
    assert not any(tensor.any() for name, tensor in fresh.items() if "to_out" in name)


def test_old_names_of_weight_norm_are_known(script, tmp_path):
    tensors = published.audio_path(tmp_path / "vae.pth", tmp_path / "vocoder.pt", old_names=True)
    script.vocoder(tmp_path / "vocoder.pt").save(tmp_path / "vocoder")
    vocoder = MMAudioVocoder16kHz.from_pretrained(tmp_path / "vocoder")
    with torch.no_grad():
        waveform = vocoder(tensors["reconstructed_mel"]).sample
    assert largest_difference(waveform, tensors["waveform_of_reconstruction"]) <= 1e-4


def test_no_more_is_fetched_from_the_hub_than_is_needed(script, monkeypatch):
    files = {
        "wan/pipeline": ["model_index.json", "vae/config.json", "vae/x.safetensors", "transformer/x.safetensors"],
        "google/umt5": ["config.json", "tokenizer.json", "spiece.model", "pytorch_model.bin", "onnx/model.json"],
    }
    fetched = []

    def fetch(repo, allow_patterns, ignore_patterns):
        fetched.extend(
            filter_repo_objects(files[repo], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return "fetched"

    monkeypatch.setattr(script, "list_repo_files", files.get)
    monkeypatch.setattr(script, "snapshot_download", fetch)
    script.local("wan/pipeline", ".json", ".safetensors", part="vae")
    script.local("google/umt5", ".json", ".model", part="tokenizer")
    assert fetched == ["vae/config.json", "vae/x.safetensors", "config.json", "tokenizer.json", "spiece.model"]


# What cannot be converted


def test_wrong_files_are_refused_by_their_first_key(script, files, tmp_path):
    folder, _, _ = files

    def message(**changes):
        return refused(script, *arguments(folder, tmp_path / "deep" / "out", **changes))

    assert "lacks 'video_model.patch_embedding.weight'" in message(
        transformer=folder / "Wan2.2_VAE.pth", variant="960x960_5s"
    )
    assert "lacks 'encoder.conv1.weight'" in message(vae=folder / "v1-16.pth")
    assert "lacks 'token_embedding.weight'" in message(text_encoder=folder / "Wan2.2_VAE.pth")
    assert "lacks 'encoder.conv_in.weight'" in message(audio_vae=folder / "Wan2.2_VAE.pth")
    assert "no entry 'generator'" in message(vocoder=folder / "v1-16.pth")
    assert "neither a file nor a folder nor a Hub id" in message(vae="nowhere")
    assert "holds neither a config.json" in message(vae=folder)
    assert "is not a Qwen3 checkpoint" in message(planner=folder / "umt5-xxl")
    assert "holds no tokenizer" in message(tokenizer=tmp_path)
    assert "needs --vocoder" in message(vocoder=None)
    shutil.copy(folder / "model_960x960.safetensors", tmp_path / "ovi.safetensors")
    assert "ovi.safetensors is not a name of Ovi's: give --variant" in message(
        transformer=tmp_path / "ovi.safetensors"
    )

    truncated = tmp_path / "Wan2.2_VAE.pth"
    truncated.write_bytes((folder / "Wan2.2_VAE.pth").read_bytes()[:-1000])
    assert "Wan2.2_VAE.pth is truncated, corrupt" in message(vae=truncated)
    vae = torch.load(folder / "Wan2.2_VAE.pth")
    vae["decoder.head.2.bias"] = vae["decoder.head.2.bias"][:-1]
    torch.save(vae, truncated)
    assert "'decoder.head.2.bias' has shape (11,), but must have (12,)" in message(vae=truncated)
    assert not (tmp_path / "deep").exists()


def test_a_folder_in_use_is_left_alone(script, files, converted):
    before = sorted(converted.rglob("*"))
    assert "is there already" in refused(script, *arguments(files[0], converted))
    assert sorted(converted.rglob("*")) == before


def test_a_disk_that_is_too_small_is_refused_beforehand(script, files, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "GiB left: free some" in refused(script, *arguments(files[0], tmp_path / "deep" / "out"))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing(files, tmp_path):
    def limited():
        # Writes beyond 100 KiB fail, as they do on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, 100 * 1024))

    command = [sys.executable, SCRIPT, *arguments(files[0], tmp_path / "deep" / "out")]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, env=environment)
    assert result.returncode == 1 and "could not be written" in result.stderr and "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())
