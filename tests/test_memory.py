import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from baton_diffusers import BatonPipeline, cli, memory
from tests.tiny import tiny_pipeline


SIZE = {"height": 32, "width": 32, "num_frames": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(folder):
    return memory.load_components(folder)[0]


def test_live_tensors_are_followed_until_they_are_gone():
    x = torch.empty(250, device="meta")  # from before: not counted
    with memory.LiveTensors() as live:
        assert x.view(10, 25).t().shape == (25, 10) and live.peak == 0
        y = x + 1
        assert (live.bytes, live.peak) == (1000, 1000)
        z = y.view(10, 25).relu_()  # neither a view nor work in place takes anything
        assert (live.bytes, live.peak) == (1000, 1000)
        y = z.double()
        assert (live.bytes, live.peak) == (3000, 3000)
        del z
        assert live.bytes == 2000
        y = None
        assert (live.bytes, live.peak) == (0, 3000)


def test_attention_holds_no_scores():
    query = torch.empty(1, 2, 1000, 8, device="meta")
    with memory.LiveTensors() as live:
        output = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert output.shape == query.shape and live.peak == query.nbytes


def test_weights_are_those_of_the_loaded_pipeline(folder, models):
    pipe = BatonPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    for name, model in models.items():
        assert memory.num_bytes(model) == memory.num_bytes(getattr(pipe, name)), name
    assert set(models) == set(memory.COMPONENTS)


@pytest.mark.slow  # a process of its own
def test_a_pipeline_that_was_loaded_before_changes_nothing(folder):
    """In a process of its own: what transformers does while it loads counts only where torch has made no device context before."""
    code = (
        "import sys; from baton_diffusers import BatonPipeline, memory;"
        "BatonPipeline.from_pretrained(sys.argv[1]); memory.load_components(sys.argv[1])"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_activations_grow_with_the_clip(folder, models):
    config = json.loads((folder / "model_index.json").read_text())
    small = memory.activations(models, config, **SIZE)
    assert list(small) == ["text", "plan", "denoise", "decode"]
    large = memory.activations(models, config, height=32, width=64, num_frames=17)
    assert all(large[stage] > small[stage] for stage in ("plan", "denoise", "decode"))
    assert large["text"] == small["text"]
    # At the least the widest layer's output for all video tokens is alive.
    assert small["denoise"] > 3 * 2 * 2 * models["transformer"].config.ffn_dim * 2


def test_what_is_given_is_encoded_and_takes_its_own_memory(folder, models):
    config = json.loads((folder / "model_index.json").read_text())
    nothing = memory.activations(models, config, **SIZE)
    for given, encoded in (("image", 1), ("video", 9), ("audio", 0), ("reference_audio", 0)):
        some = memory.activations(models, config, **SIZE, given=given)
        assert list(some) == list(memory.STAGES) and some["plan"] == nothing["plan"]
        assert some["encode"] > encoded * 3 * 32 * 32 * 4, given  # the frames themselves, in float32
        assert (some["denoise"] > nothing["denoise"]) == (given in ("image", "reference_audio")), given
        assert (some["decode"] < nothing["decode"]) == (given in ("video", "audio")), given  # which are not decoded


def test_two_blocks_show_what_all_of_them_take(folder, models):
    config, latents = json.loads((folder / "model_index.json").read_text()), torch.empty(1, 4, 3, 4, 4, device="meta")
    inputs = latents.bfloat16(), torch.empty(1, 36, 6, device="meta").bfloat16(), torch.empty(1, device="meta")
    text = torch.empty(1, config["max_sequence_length"], 16, device="meta").bfloat16()
    with torch.no_grad(), memory.LiveTensors() as live:
        models["transformer"](*inputs, text)
    some = {name: model for name, model in models.items() if name != "planner"}
    # The inputs in bfloat16 are made within what is measured, as the pipeline makes them.
    made = sum(tensor.nbytes for tensor in inputs[:2])
    assert memory.activations(some, config, **SIZE, stages=["denoise"]) == {"denoise": live.peak + made}


@pytest.mark.parametrize("tiled", [False, True])
def test_an_autoencoder_is_followed_through_each_shape_once_and_to_the_same_peak(models, tiled):
    """Of the latents' frames the first and the second one are unlike the others."""
    vae, calls, peaks = models["vae"], [], []
    latents = torch.empty(1, 4, 5, *((48, 4) if tiled else (4, 4)), device="meta", dtype=torch.bfloat16)
    hook = vae.decoder.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    vae.use_tiling = tiled
    for each in (lambda *_: nullcontext(), memory._each_shape_once):
        with torch.no_grad(), memory.LiveTensors() as live, each(vae.decoder, live):
            vae.decode(latents)
        peaks.append(live.peak)
    vae.use_tiling = False
    hook.remove()
    assert peaks[0] == peaks[1] and len(calls) == (10 + 6 if tiled else 5 + 3)  # two tiles of different heights


def test_recipes_keep_on_the_gpu_what_they_say(models):
    peaks = {"text": 10, "plan": 20, "denoise": 30, "decode": 5}
    sizes = {name: memory.num_bytes(model) for name, model in models.items()}
    everything = memory.estimate(models, "gpu", peaks)
    assert (everything.peak, everything.stage) == (sum(sizes.values()) + 30, "denoise")
    offloaded = memory.estimate(models, "model-offload", peaks)
    assert offloaded.peak == max(
        sizes["text_encoder"] + 10,
        sizes["planner"] + 20,
        sizes["transformer"] + 30,
        max(sizes[name] for name in ("vae", "audio_vae", "vocoder")) + 5,
    )
    one, two = (memory.estimate(models, f"{how}-offload", dict.fromkeys(peaks, 0)) for how in ("sequential", "group"))
    assert two.weights == 2 * one.weights < offloaded.weights
    assert everything.ram == 0 and one.ram == two.ram == sum(sizes.values())


def test_float8_halves_what_it_may(folder):
    loaded, _ = memory.load_components(folder)
    transformer, peaks = loaded["transformer"], {"denoise": 30}
    before = memory.num_bytes(transformer)
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    eight_bits = memory.estimate(loaded, "model-offload-fp8", peaks)
    assert eight_bits.weights == memory.num_bytes(transformer) and eight_bits.activations > 30
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert transformer.condition_embedder.modulation_proj.weight.dtype == torch.bfloat16
    assert before / 2 < memory.num_bytes(transformer) < before


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    return exit.value.code


def test_the_command_prints_both_tables(folder, capsys):
    assert run("memory", "--model", folder, "--num-frames", 17) == 0
    printed = capsys.readouterr().out
    assert "17 frames of 32 x 32" in printed
    for word in (*memory.COMPONENTS, *memory.RECIPES, "reference audio", "GiB", "DualBranchTransformer"):
        assert word in printed


def test_a_film_needs_what_one_window_needs(folder, models, capsys):
    assert run("memory", "--model", folder, "--num-frames", 17, "--recipe", "gpu", "--film", "60s") == 0
    printed = capsys.readouterr().out
    assert "A film of 60 s, in 40 such clips that share 0.62 s" in printed and "the window before" in printed
    assert "sequential" not in printed, "another recipe than the one that was asked for"
    assert "A film of 600 s, in 400 such clips" in memory._film_of(600, 17, models)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--film", "long"], "--film long is no length: give seconds or minutes"),
        (["--film", "60s", "--given", "image"], "`given` is 'image', but the windows of a film"),
        (["--film", "0"], "`film` is 0.0, but must be a number of seconds above 0"),
        (["--recipe", "hope"], "`recipe` is 'hope', but must be one of gpu"),
        (["--model", "nowhere"], "nowhere is neither a folder nor a Hub id"),
        (["--model", "."], "has no model_index.json"),
        (["--given", "hope"], "`given` is 'hope', but must be one of image, video"),
        (["--height", "40"], "`height` is 40, but must be a multiple of 16"),
        (["--num-frames", "10"], "`num_frames` is 10, but must be a multiple of 4, plus 1"),
    ],
)
def test_what_cannot_be_estimated_is_refused(arguments, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = arguments if "--model" in arguments else ["--model", folder, *arguments]
    assert run("memory", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry, message",
    [
        (["evil", "Model"], "only diffusers, transformers and baton_diffusers are trusted"),
        (["diffusers", "nothing"], "there is no such class"),
        (["transformers", "AutoTokenizer"], "which is no model"),
    ],
)
def test_no_module_of_a_stranger_is_imported(entry, message, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text("raise SystemExit('evil ran')")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "text_encoder": entry}))
    assert run("memory", "--model", tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_configuration_of_full_size_needs_no_weights():
    printed = memory.report("baton-11b", "model-offload-fp8")
    assert "13,951,150,292" in printed and "5,680,910,336" in printed


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["gpu", "model-offload"])
def test_the_estimate_is_within_a_tenth_of_what_the_gpu_says(recipe, tmp_path):
    sizes = {
        "num_attention_heads": 16,
        "attention_head_dim": 96,
        "num_layers": 12,
        "ffn_dim": 6144,
        "audio_ffn_dim": 6144,
    }
    from tests.tiny import tiny_transformer

    pipe = tiny_pipeline(transformer=tiny_transformer(**sizes))
    pipe.save_pretrained(tmp_path)
    size = {"height": 256, "width": 256, "num_frames": 33}
    models, config = memory.load_components(tmp_path)
    expected = memory.estimate(models, recipe, memory.activations(models, config, **size))

    pipe = BatonPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    if recipe == "gpu":
        pipe.to("cuda")
    else:
        pipe.enable_model_cpu_offload()
    torch.cuda.reset_peak_memory_stats()
    pipe("a red circle jumps", num_inference_steps=1, output_type="pt", **size)
    assert expected.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)


def test_the_page_of_recipes_names_the_one_for_each_card():
    text = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) GB \| `([\w-]+)`", text, flags=re.MULTILINE))
    assert {int(size): name for size, name in rows.items()} == memory.CARDS
