"""What diffusers offers for a large model works on the whole pipeline: offloading, placement, quantisation, tiling, kernels."""

import accelerate
import pytest
import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from diffusers.utils.import_utils import is_flash_attn_available, is_sageattention_available, is_xformers_available

from baton_diffusers import BatonPipeline
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel

from ..tiny import FRAME_RATE, SAMPLING_RATE, random_clip, tiny_cue_parts, tiny_pipeline, tiny_planner
from .calls import PROMPT, assert_same, differ, make, quiet


CPU = torch.device("cpu")
ACCELERATED = torch.cuda.is_available()


@pytest.fixture(scope="module")
def expected(pipe):
    return make(pipe)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    pipe.save_pretrained(folder)
    return folder


def models(pipe):
    return {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}


def read_and_make(pipe):
    """Every model runs: a plan is read off a clip, a prompt is planned, and the clip's sound is given to be gone on with."""
    frames, waveform = random_clip()
    plan = pipe.extract_plan(frames, waveform, FRAME_RATE, SAMPLING_RATE)
    output = make(pipe, continue_from=(frames, waveform), continue_seconds=0.5)
    return plan.video_tokens.cpu(), plan.audio_tokens.cpu(), output.frames.cpu(), output.audio.cpu()


# Offloading


def test_no_weight_of_any_model_is_left_behind_when_layers_are_offloaded(pipe, own_pipe):
    """All weights are away before the run: a layer whose hook is missing would compute with nothing.

    As `enable_sequential_cpu_offload` hooks them, which itself takes an accelerator for granted.
    """
    wanted = read_and_make(pipe)
    for name, model in models(own_pipe).items():
        accelerate.cpu_offload(model, "cpu", offload_buffers=len(model._parameters) > 0)
        assert {weight.device.type for weight in model.parameters()} <= {"meta"}, name
    for found, value in zip(read_and_make(own_pipe), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_planner_writes_cues_while_its_layers_are_offloaded(tied):
    """It reads its embeddings where it predicts tokens and marks times, too: not behind the back of their hook."""
    wanted, pipe = (quiet(tiny_pipeline(**tiny_cue_parts(tied))) for _ in range(2))
    wanted = make(wanted, cue_temperature=8.0)
    assert wanted.cues != [""]
    accelerate.cpu_offload(pipe.planner, "cpu", offload_buffers=len(pipe.planner._parameters) > 0)
    assert {weight.device.type for weight in pipe.planner.parameters()} == {"meta"}
    found = make(pipe, cue_temperature=8.0)
    assert found.cues == wanted.cues
    assert_same(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "form", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}], ids=str
)
def test_groups_of_layers_are_offloaded_in_every_model(pipe, own_pipe, form):
    wanted = read_and_make(pipe)
    own_pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, **form)

    def is_hooked(module):
        registry = getattr(module, "_diffusers_hook", None)
        return registry is not None and registry.get_hook("group_offloading") is not None

    for name, model in models(own_pipe).items():
        assert any(map(is_hooked, model.modules())), name
    planner = own_pipe.planner
    if form["offload_type"] == "leaf_level":
        assert is_hooked(planner.towers[0].attn1.to_q) and is_hooked(planner.language_model.layers[1].mlp.up_proj)
    else:
        assert is_hooked(planner.towers[0]) and is_hooked(own_pipe.transformer.blocks[2])
    for found, value in zip(read_and_make(own_pipe), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


@pytest.mark.skipif(ACCELERATED, reason="there is an accelerator")
def test_whole_models_are_not_offloaded_without_an_accelerator(own_pipe):
    with pytest.raises(RuntimeError, match="`enable_model_cpu_offload` requires accelerator"):
        own_pipe.enable_model_cpu_offload()


OFFLOADS = {
    "models": lambda pipe: pipe.enable_model_cpu_offload(),
    "layers": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "leaves": lambda pipe: pipe.enable_group_offload(onload_device="cuda", offload_type="leaf_level"),
    "blocks, ahead": lambda pipe: pipe.enable_group_offload(
        onload_device="cuda", offload_type="block_level", num_blocks_per_group=1, use_stream=True
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS.keys())
def test_offloaded_pipelines_make_the_same_clip_on_an_accelerator(own_pipe, offload):
    wanted = read_and_make(tiny_pipeline().to("cuda"))
    offload(own_pipe)
    for _ in range(2):
        for found, value in zip(read_and_make(own_pipe), wanted, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=1e-3)
    weights = [weight for model in models(own_pipe).values() for weight in model.parameters()]
    assert {weight.device.type for weight in weights} <= {"cpu", "meta"}


# Placement


def test_a_pipeline_is_loaded_to_a_device(folder, expected):
    loaded = quiet(BatonPipeline.from_pretrained(folder, device_map="cpu"))
    assert_same(make(loaded), expected)


@pytest.mark.parametrize(
    "name, model_class, part, blocks",
    [
        ("transformer", DualBranchTransformer, 0.5, {"blocks.0", "blocks.1", "blocks.2"}),
        ("planner", VAPlannerModel, 0.9, {"language_model.layers.0", "language_model.layers.1", "towers.0"}),
    ],
)
def test_a_model_too_large_for_its_memory_is_split_between_its_blocks(
    folder, expected, own_pipe, tmp_path, name, model_class, part, blocks
):
    """Part of it waits on disk; no block is cut in two."""
    room = int(part * sum(weight.nbytes for weight in getattr(own_pipe, name).parameters()))
    model = model_class.from_pretrained(
        folder / name, device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path
    )
    places = model.hf_device_map
    assert set(places.values()) == {"cpu", "disk"}
    assert not [place for place in places if any(place.startswith(f"{block}.") for block in blocks)]
    own_pipe.register_modules(**{name: model})
    assert_same(make(own_pipe), expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", ["cuda", "balanced"])
def test_a_pipeline_is_placed_on_accelerators(folder, device_map):
    loaded = quiet(BatonPipeline.from_pretrained(folder, device_map=device_map))
    wanted = make(tiny_pipeline().to("cuda"))
    torch.testing.assert_close(make(loaded).frames.cpu(), wanted.frames.cpu(), rtol=0, atol=1e-3)


# Fewer bits


def test_both_large_models_store_their_layers_in_eight_bits(own_pipe, expected):
    for model in (own_pipe.transformer, own_pipe.planner):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    planner, transformer = own_pipe.planner, own_pipe.transformer
    assert transformer.proj_out.weight.dtype == transformer.audio_proj_out.weight.dtype == torch.float32
    for layer in (planner.towers[0].attn1.to_q, planner.language_model.layers[0].mlp.up_proj):
        assert layer.weight.dtype == torch.float8_e4m3fn
    assert planner.language_model.embed_tokens.weight.dtype == planner.norm_out.weight.dtype == torch.float32
    output = make(own_pipe)
    assert differ(output, expected) and output.audio.isfinite().all()
    assert (output.frames - expected.frames).abs().mean() < 0.1


@pytest.mark.parametrize("name, model_class", [("transformer", DualBranchTransformer), ("planner", VAPlannerModel)])
def test_torchao_quantises_the_large_models(folder, own_pipe, expected, name, model_class):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.utils import TorchAOBaseTensor

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = model_class.from_pretrained(folder / name, quantization_config=config, torch_dtype=torch.float32)
    quantised = {part for part, weight in model.named_parameters() if isinstance(weight, TorchAOBaseTensor)}
    large = (
        {"blocks.0.attn1.to_q.weight", "blocks.2.audio_ffn.net.2.weight", "blocks.1.plan_attn.to_k.weight"}
        if name == "transformer"
        else {"language_model.layers.1.mlp.down_proj.weight", "towers.0.attn2.to_v.weight"}
    )
    assert large <= quantised and not [part for part in quantised if "norm" in part or "time_embedder" in part]
    own_pipe.register_modules(**{name: model})
    output = make(own_pipe)
    assert differ(output, expected)
    assert (output.frames - expected.frames).abs().mean() < 0.05


@pytest.mark.skipif(ACCELERATED, reason="there is an accelerator")
@pytest.mark.parametrize("name, model_class", [("transformer", DualBranchTransformer), ("planner", VAPlannerModel)])
def test_bitsandbytes_without_an_accelerator_is_refused(folder, name, model_class):
    with pytest.raises(RuntimeError, match="No GPU found. A GPU is needed for quantization"):
        model_class.from_pretrained(folder / name, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name, model_class", [("transformer", DualBranchTransformer), ("planner", VAPlannerModel)])
def test_bitsandbytes_quantises_the_large_models(folder, name, model_class, bits):
    pytest.importorskip("bitsandbytes")
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    pipe = quiet(BatonPipeline.from_pretrained(folder, dtype=torch.bfloat16)).to("cuda")
    wanted = make(pipe)
    model = model_class.from_pretrained(folder / name, quantization_config=config, torch_dtype=torch.bfloat16)
    assert model.get_memory_footprint() < getattr(pipe, name).get_memory_footprint()
    pipe.register_modules(**{name: model.to("cuda")})
    output = make(pipe)
    assert output.frames.isfinite().all() and (output.frames - wanted.frames).abs().mean() < 0.1


# Kernels


@pytest.mark.parametrize("name", ["transformer", "planner"])
@pytest.mark.parametrize(
    "backend, package, is_installed",
    [
        ("flash", "flash-attn", is_flash_attn_available()),
        ("sage", "sageattention", is_sageattention_available()),
        ("xformers", "xformers", is_xformers_available()),
    ],
)
def test_an_attention_kernel_that_is_not_installed_is_told(pipe, name, backend, package, is_installed):
    if is_installed:
        pytest.skip(f"{package} is installed")
    with pytest.raises(RuntimeError, match=f"not usable because of missing package.*install `{package}"):
        getattr(pipe, name).set_attention_backend(backend)
    processors = [getattr(module, "processor", None) for module in getattr(pipe, name).modules()]
    assert {processor._attention_backend for processor in processors if processor is not None} == {None}


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "sage", "xformers", "_native_cudnn", "_native_flash"])
def test_an_attention_kernel_makes_nearly_the_same_clip(backend):
    pipe = tiny_pipeline().to("cuda", torch.bfloat16)
    wanted = make(pipe)
    try:
        for model in (pipe.transformer, pipe.planner):
            model.set_attention_backend(backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert (make(pipe).frames - wanted.frames).abs().mean() < 0.05


def test_the_planners_towers_take_the_native_kernel(own_pipe, expected):
    own_pipe.planner.set_attention_backend("native")
    own_pipe.transformer.set_attention_backend("native")
    assert {p._attention_backend for p in own_pipe.transformer.attn_processors.values()} == {"native"}
    assert {tower.audio_attn2.processor._attention_backend for tower in own_pipe.planner.towers} == {"native"}
    assert_same(make(own_pipe), expected)


@pytest.mark.slow
def test_the_planners_blocks_compile_without_a_graph_break():
    planner, inputs = tiny_planner(), {"input_ids": torch.arange(3, 9)[None], "duration": 1.0}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        wanted = planner(**inputs)
        planner.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        found = planner(**inputs)
    torch.testing.assert_close(found.video_tokens, wanted.video_tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.audio_tokens, wanted.audio_tokens, rtol=0, atol=1e-5)


# The VAE


def test_the_vae_decodes_clips_one_by_one_and_pictures_by_tiles(own_pipe):
    wanted = make(own_pipe, [PROMPT, PROMPT], height=64, width=64)
    decoded = []
    own_pipe.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(tuple(args[0].shape)))
    own_pipe.vae.enable_slicing()
    assert_same(make(own_pipe, [PROMPT, PROMPT], height=64, width=64), wanted, atol=1e-5)
    assert {shape[0] for shape in decoded} == {1} and {shape[-1] for shape in decoded} == {64 // 8}

    decoded.clear()
    own_pipe.vae.enable_tiling(48, 48, 32, 32)
    tiled = make(own_pipe, [PROMPT, PROMPT], height=64, width=64)
    assert max(shape[-1] for shape in decoded) < 64 // 8
    assert torch.equal(tiled.audio, wanted.audio) and (tiled.frames - wanted.frames).abs().mean() < 0.05
