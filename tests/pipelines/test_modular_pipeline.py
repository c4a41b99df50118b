"""Folders as modular pipelines: what is written beside `model_index.json`, and what it brings back."""

import json
import shutil

import pytest
import torch
from diffusers import ComponentsManager, ModularPipeline
from safetensors.torch import load_file, save_file

from baton_diffusers import BatonModularPipeline
from baton_diffusers.pipelines.modular_files import write_modular_files

from ..tiny import tiny_pipeline
from .calls import PROMPT, make, quiet, seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_pipeline(negative_prompt="left").save_pretrained(folder)
    return folder


def clip(pipe):
    return quiet(pipe)(prompt=PROMPT, generator=seeds(0), output_type="pt", output=["videos", "audio"])


def test_a_folder_is_loaded_by_its_own_code_and_by_the_package(folder, tmp_path):
    remote = ModularPipeline.from_pretrained(str(folder), trust_remote_code=True)
    remote.load_components(dtype=torch.float32)
    own = BatonModularPipeline.from_pretrained(folder)
    own.load_components()
    assert type(remote.blocks).__name__ == type(own.blocks).__name__ == "BatonAutoBlocks"
    assert own.config.negative_prompt == "left" and own.config.num_frames == 9 and own.frame_rate == 8.0
    expected = clip(own)
    own.save_pretrained(tmp_path / "again")
    again = ModularPipeline.from_pretrained(str(tmp_path / "again"), trust_remote_code=True)
    again.load_components(dtype=torch.float32)
    for pipe in (remote, again):
        assert all(torch.equal(found, expected[name]) for name, found in clip(pipe).items())


def test_only_a_pipeline_that_is_trusted_runs_the_code_of_its_folder(folder):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        ModularPipeline.from_pretrained(str(folder))


def test_an_index_names_the_repository_it_goes_to(folder, tmp_path):
    pipe = tiny_pipeline(planner=None, planner_tokenizer=None)
    pipe.save_config(tmp_path)
    write_modular_files(tmp_path, pipe.config, repo_id="someone/tiny")
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert index["transformer"][2]["pretrained_model_name_or_path"] == "someone/tiny" and "planner" not in index
    here = json.loads((folder / "modular_model_index.json").read_text())
    assert here["transformer"][2]["pretrained_model_name_or_path"] is None  # found where the index lies


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "spoilt")
    file = tmp_path / "spoilt" / "text_encoder" / "model.safetensors"
    state = load_file(file)
    save_file({key: tensor for key, tensor in state.items() if "block.1." not in key}, file, {"format": "pt"})
    pipe = BatonModularPipeline.from_pretrained(tmp_path / "spoilt")
    pipe.load_components(["vae", "tokenizer"])
    with pytest.raises(ValueError, match="model.safetensors lacks 'encoder.block.1"):
        pipe.load_components()
    assert getattr(pipe, "transformer", None) is None


def test_sound_is_loaded_in_float32(folder):
    pipe = BatonModularPipeline.from_pretrained(folder)
    pipe.load_components(dtype=torch.bfloat16)
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.audio_vae.dtype == pipe.vocoder.dtype == torch.float32
    assert clip(pipe)["audio"].isfinite().all()


def test_a_workflow_loads_what_it_needs(folder):
    pipe = BatonModularPipeline.from_pretrained(folder, workflow="text2video")
    assert "vocoder" not in pipe.component_names
    pipe.load_components()
    found = quiet(pipe)(prompt=PROMPT, only="video", generator=seeds(0), output_type="pt", output="videos")
    assert found.shape == (1, 9, 3, 32, 32)


def test_a_components_manager_holds_the_components(folder):
    manager = ComponentsManager()
    pipe = BatonModularPipeline.from_pretrained(folder, components_manager=manager)
    pipe.load_components()
    assert len(manager.components) == sum(part is not None for part in pipe.components.values())
    assert make(tiny_pipeline(negative_prompt="left")).frames.shape == clip(pipe)["videos"].shape
