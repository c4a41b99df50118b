"""Pipelines in folders: what comes back, and what is refused before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, MagnitudeAwareGuidance
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from baton_diffusers import BatonPipeline
from baton_diffusers.guiders import PlanGuidance

from ..tiny import FRAME_RATE, NUM_FRAMES, SAMPLING_RATE, random_clip, random_plan, tiny_cue_parts, tiny_pipeline
from .calls import PROMPT, assert_same, make, quiet


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    pipe.save_pretrained(folder)
    return folder


def test_saved_and_loaded_makes_the_same_clip(pipe, folder):
    expected = make(pipe, num_inference_steps=None)
    for loaded in (
        BatonPipeline.from_pretrained(folder),
        BatonPipeline.from_pretrained(str(folder)),
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
    ):
        assert type(loaded) is BatonPipeline
        assert_same(make(quiet(loaded)), expected)
        assert loaded.config.num_frames == NUM_FRAMES and loaded.config.max_sequence_length == 16
        frames, waveform = random_clip()
        found, wanted = (p.extract_plan(frames, waveform, FRAME_RATE, SAMPLING_RATE) for p in (loaded, pipe))
        assert torch.equal(found.video_tokens, wanted.video_tokens)


def test_plain_diffusers_says_how_the_folder_is_loaded(folder):
    with pytest.raises(ValueError, match="Pass `trust_remote_code=True`"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "guiders",
    [
        (PlanGuidance(5.0, 2.0, 1.5, guidance_rescale=0.3), PlanGuidance(2.0, stop=0.5)),
        (ClassifierFreeGuidance(2.5), AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5)),
    ],
    ids=["ours", "diffusers"],
)
def test_a_bare_pipeline_comes_back_with_its_guiders(tmp_path, guiders):
    absent = dict.fromkeys(("planner", "planner_tokenizer", "video_semantic_encoder", "audio_semantic_encoder"))
    bare = tiny_pipeline(**absent, guider=guiders[0], audio_guider=guiders[1])
    bare.save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path))
    assert loaded.planner is None and loaded.audio_semantic_encoder is None
    for name, guider in zip(("guider", "audio_guider"), guiders, strict=True):
        assert type(getattr(loaded, name)) is type(guider)
        assert {**getattr(loaded, name).config, "_use_default_values": None} == {
            **guider.config,
            "_use_default_values": None,
        }
    assert_same(make(loaded, plan=random_plan()), make(bare, plan=random_plan()))


def test_a_pipeline_without_a_text_encoder_comes_back(pipe, tmp_path):
    absent = dict.fromkeys(("text_encoder", "tokenizer", "planner", "planner_tokenizer"))
    tiny_pipeline(**absent).save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path))
    given = dict(zip(("prompt_embeds", "negative_prompt_embeds"), pipe.encode_prompt(PROMPT)[:2], strict=True))
    assert_same(make(loaded, None, **given), make(pipe, use_plan=False))


def test_a_component_is_left_out_or_replaced_on_loading(pipe, folder):
    loaded = quiet(BatonPipeline.from_pretrained(folder, planner=None, guider=PlanGuidance(2.0)))
    assert loaded.planner is None and loaded.guider.guidance_scale == 2.0
    assert make(loaded).plan is None


def dtypes(pipe):
    return {
        name: {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
        for name, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
    }


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "half"
    tiny_pipeline().to(torch.float16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kwargs", [{}, {"dtype": torch.float32}, {"torch_dtype": torch.float32}], ids=str)
def test_weights_stored_in_half_precision_are_loaded_in_float32(half_folder, kwargs):
    loaded = BatonPipeline.from_pretrained(half_folder, **kwargs)
    assert len(dtypes(loaded)) == 8 and set.union(*dtypes(loaded).values()) == {torch.float32}
    assert make(quiet(loaded)).frames.dtype == torch.float32


def test_another_dtype_is_asked_for(half_folder):
    loaded = quiet(BatonPipeline.from_pretrained(half_folder, dtype=torch.bfloat16))
    found = dtypes(loaded)
    # half precision is heard in the sound
    assert found.pop("vocoder") == found.pop("audio_vae") == {torch.float32}
    assert all(torch.bfloat16 in dtypes for dtypes in found.values())
    assert torch.float32 in found["transformer"]
    assert make(loaded).audio.dtype == torch.float32


def test_a_dtype_for_each_component_is_taken_at_its_word(half_folder):
    asked = {"default": torch.float32, "audio_vae": torch.bfloat16, "vae": torch.float16}
    found = dtypes(BatonPipeline.from_pretrained(half_folder, dtype=asked))
    assert found["audio_vae"] == {torch.bfloat16} and torch.float16 in found["vae"]
    assert found["transformer"] == found["text_encoder"] == {torch.float32}


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vocoder"])
@pytest.mark.parametrize("length", [0, 6, -1])
def test_a_truncated_weights_file_is_named(folder, tmp_path, component, length):
    shutil.copytree(folder, tmp_path / "broken")
    (file,) = (tmp_path / "broken" / component).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"broken/{component}/{file.name} is truncated or corrupt.*again"):
        BatonPipeline.from_pretrained(tmp_path / "broken")


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} has no model_index.json"):
        BatonPipeline.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "ffn_dim": 64}))
    with pytest.raises(ValueError, match="blocks.0.ffn.net.0.proj"):
        BatonPipeline.from_pretrained(tmp_path / "other")


def test_a_guider_that_diffusers_keeps_in_a_subpackage_is_saved_and_loaded(tmp_path):
    pipe = tiny_pipeline(guider=MagnitudeAwareGuidance(guidance_scale=3.0))
    pipe.save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path))
    assert isinstance(loaded.guider, MagnitudeAwareGuidance) and loaded.guider.guidance_scale == 3.0
    assert torch.equal(make(loaded).frames, make(quiet(pipe)).frames)


def test_shards_and_variants_are_checked_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="20KB", variant="fp16")
    assert len(list((tmp_path / "transformer").glob("*.fp16-*.safetensors"))) > 2
    assert_same(make(quiet(BatonPipeline.from_pretrained(tmp_path, variant="fp16"))), make(pipe))
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = tmp_path / "transformer" / weight_map["proj_out.weight"]
    shard.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{shard.name} is not a file"):
        BatonPipeline.from_pretrained(tmp_path, variant="fp16")
    index.write_text(json.dumps({"weight_map": {**weight_map, "proj_out.weight": "../gone.safetensors"}}))
    with pytest.raises(ValueError, match="index.fp16.json names '../gone.safetensors'.*do not trust it"):
        BatonPipeline.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_need_one_name(tmp_path, tied):
    pipe = tiny_pipeline(**tiny_cue_parts(tied))
    pipe.save_pretrained(tmp_path)
    assert_same(make(quiet(BatonPipeline.from_pretrained(tmp_path))), make(pipe))


def without(word):
    return lambda state: {key: tensor for key, tensor in state.items() if word not in key}


def filled(key, value):
    return lambda state: {**state, key: torch.full_like(state[key], value)}


SPOILT_WEIGHTS = {
    "missing": (
        "transformer",
        without("modulation_proj"),
        "safetensors lacks 'condition_embedder.modulation_proj.weight'",
    ),
    "missing from the text encoder": ("text_encoder", without("block.1."), r"lacks 'encoder.block.1.*' and \d+ more"),
    "missing from the vae": ("vae", without("decoder"), r"vae/.*lacks 'decoder.*' and \d+ more.*save the folder"),
    "nothing at all": ("vocoder", lambda state: {}, "vocoder/.*lacks 'window'"),
    "unexpected": ("planner", lambda state: {**state, "x": torch.ones(1)}, "planner/.*has the unexpected 'x'"),
    "named differently": (
        "vae",
        lambda state: {f"x.{key}": t for key, t in state.items()},
        "lacks 'encoder.conv_in.weight'",
    ),
    "misshapen": (
        "audio_vae",
        lambda state: {**state, "vae.data_mean": torch.ones(3)},
        r"'vae.data_mean' has shape \(3,\)",
    ),
    "not a number": ("vae", filled("decoder.conv_out.weight", float("nan")), "'decoder.conv_out.weight' holds NaN or"),
    "infinite": ("text_encoder", filled("shared.weight", float("-inf")), "'shared.weight' holds NaN or infinite"),
}


@pytest.mark.parametrize("component, spoil, message", SPOILT_WEIGHTS.values(), ids=SPOILT_WEIGHTS)
def test_weights_that_do_not_fit_are_named(folder, tmp_path, component, spoil, message):
    shutil.copytree(folder, tmp_path / "spoilt")
    (file,) = (tmp_path / "spoilt" / component).glob("*.safetensors")
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        BatonPipeline.from_pretrained(tmp_path / "spoilt")


def test_what_is_given_is_not_read(pipe, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "spoilt")
    shutil.rmtree(tmp_path / "spoilt" / "vae")
    (tmp_path / "spoilt" / "planner" / "config.json").unlink()
    loaded = BatonPipeline.from_pretrained(tmp_path / "spoilt", vae=pipe.vae, planner=None)
    assert loaded.vae is pipe.vae and loaded.planner is None


def entry(name, library, class_name):
    return changed("model_index.json", **{name: [library, class_name]})


def changed(path, **values):
    return lambda folder: change(folder / path, **values)


def written(path, text):
    return lambda folder: (folder / path).write_text(text)


def removed(path):
    return lambda folder: (folder / path).unlink()


def change(file, **values):
    """Settings of a file of JSON exchanged, and left out where the value is `...`."""
    values = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


SPOILT_FOLDERS = {
    "a module of one's own": (entry("guider", "antigravity", "Guider"), "takes `guider` from 'antigravity', but only"),
    "a module beside": (entry("vae", "diffusers_evil", "AutoencoderKLWan"), "takes `vae` from 'diffusers_evil'"),
    "no class": (entry("scheduler", "diffusers", "import_utils"), "names diffusers.import_utils as `scheduler`"),
    "no module": (
        entry("planner", "baton_diffusers.nothing", "VAPlannerModel"),
        "baton_diffusers.nothing.VAPlannerModel",
    ),
    "a class in the folder": (changed("model_index.json", _class_name=["evil", "Evil"]), "does not name the pipeline"),
    "an entry of another form": (changed("model_index.json", vae=5), "model_index.json is damaged"),
    "an index cut short": (written("model_index.json", "{"), "model_index.json is missing or damaged"),
    "an index of depth": (written("model_index.json", "[" * 100_000), "model_index.json is missing or damaged"),
    "another pipeline": (
        written("model_index.json", '{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}'),
        "holds a WanPipeline without audio_scheduler, audio_vae, scheduler, transformer, vocoder",
    ),
    "a tokenizer cut short": (written("tokenizer/tokenizer.json", "{"), "tokenizer/tokenizer.json is missing or"),
    "a tokenizer of nothing": (written("tokenizer/tokenizer.json", "{}"), "tokenizer/tokenizer.json holds no"),
    "a tokenizer without settings": (
        written("planner_tokenizer/tokenizer_config.json", "{}"),
        "planner_tokenizer/tokenizer_config.json holds no tokenizer",
    ),
    "no folder": (lambda f: shutil.rmtree(f / "vae"), "has no folder 'vae'"),
    "no configuration": (removed("transformer/config.json"), "transformer/config.json is missing or damaged"),
    "a scheduler without settings": (
        written("scheduler/scheduler_config.json", "{}"),
        "scheduler_config.json holds no settings of a FlowMatchEulerDiscreteScheduler",
    ),
    "a guider without settings": (
        written("guider/guider_config.json", '{"_class_name": "PlanGuidance"}'),
        "guider_config.json holds no settings of a PlanGuidance",
    ),
    "a scheduler without one setting": (
        changed("scheduler/scheduler_config.json", shift=...),
        "scheduler_config.json lacks `shift` of a FlowMatchEulerDiscreteScheduler, which diffusers",
    ),
    "a guider of no file": (removed("guider/guider_config.json"), "guider_config.json is missing or damaged"),
    "a vocoder without settings": (
        written("vocoder/config.json", "{}"),
        "vocoder/config.json holds no settings of a GriffinLimVocoder",
    ),
    "another scheduler's settings": (
        changed("scheduler/scheduler_config.json", _class_name="UniPCMultistepScheduler"),
        "is of a UniPCMultistepScheduler, but model_index.json names a FlowMatchEulerDiscreteScheduler",
    ),
    "a configuration of words": (changed("transformer/config.json", num_layers="many"), "does not describe a Dual"),
    "a billion layers": (
        changed("transformer/config.json", num_layers=10**9),
        "`num_layers` of 1000000000, but the weights beside it are only",
    ),
    "layers of a billion": (
        changed("transformer/config.json", ffn_dim=10**9),
        "`ffn_dim` of 1000000000, but the weights beside it are only",
    ),
    "fewer layers": (changed("transformer/config.json", num_layers=1), r"unexpected 'blocks.1.*' and \d+ more"),
    "more layers": (changed("text_encoder/config.json", num_layers=3), "lacks 'encoder.block.2"),
    "a pickle": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(
            f / "vae" / "diffusion_pytorch_model.bin"
        ),
        "vae has no diffusion_pytorch_model.safetensors: only safetensors",
    ),
}


@pytest.mark.parametrize("spoil, message", SPOILT_FOLDERS.values(), ids=SPOILT_FOLDERS)
def test_a_folder_that_cannot_be_trusted_is_refused(folder, tmp_path, spoil, message):
    shutil.copytree(folder, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(ValueError, match=message):
        BatonPipeline.from_pretrained(tmp_path / "spoilt")


def test_a_setting_that_a_file_lacks_is_said_where_it_may_be_newer_than_the_file(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "older")
    change(tmp_path / "older" / "scheduler" / "scheduler_config.json", _diffusers_version="0.30.0", shift=...)
    change(tmp_path / "older" / "guider" / "guider_config.json", guidance_scale=...)
    BatonPipeline.from_pretrained(tmp_path / "older")
    said = [record.message for record in caplog.records if "lacks" in record.message]
    assert (
        len(said) == 1
        and "guider_config.json lacks `guidance_scale` of a PlanGuidance: the default 4.0 is used" in said[0]
    )


@pytest.mark.parametrize(
    "path", ["typo", "a/b/c", "./typo", "/typo", "~/typo", "", Path("typo"), Path("owner/name")], ids=repr
)
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(ValueError, match=f"{str(path)!r} is neither a folder nor a Hub id"):
        BatonPipeline.from_pretrained(path)


def test_a_pipeline_comes_from_the_hub(pipe, folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = BatonPipeline.from_pretrained("owner/tiny", **options)
    assert_same(make(quiet(loaded)), make(pipe))
    (repository / "snapshots" / commit / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="vae/"):
        BatonPipeline.from_pretrained("owner/tiny", **options)
    with pytest.raises(ValueError, match="owner/other is no folder here, and could not be loaded from the Hub"):
        BatonPipeline.from_pretrained("owner/other", **options)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dtype": "bfloat16"}, "`dtype` is 'bfloat16', but must be a torch.dtype"),
        ({"torch_dtype": {"vae": 16}}, "`dtype` is .*16.*, but must be"),
        ({"use_safetensors": False}, "would read pickles"),
    ],
)
def test_arguments_that_cannot_work_are_refused(folder, kwargs, message):
    with pytest.raises(ValueError, match=message):
        BatonPipeline.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("fused", [False, True])
def test_a_pipeline_is_saved_without_its_lora_layers(own_pipe, tmp_path, caplog, fused):
    before = make(own_pipe)
    own_pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "mine")
    if fused:
        own_pipe.fuse_lora()
    changed = make(own_pipe)
    own_pipe.save_pretrained(tmp_path)
    assert "adapters mine are not saved with the pipeline, only what `fuse_lora` has added" in caplog.text
    assert_same(make(quiet(BatonPipeline.from_pretrained(tmp_path))), changed if fused else before)
    assert_same(make(own_pipe), changed)


@pytest.mark.parametrize("source", [0, 2**70, 1.5, None, b"folder"])
def test_what_is_no_path_is_no_checkpoint(source):
    with pytest.raises((ValueError, TypeError), match="neither a folder nor a Hub id"):
        BatonPipeline.from_pretrained(source)
