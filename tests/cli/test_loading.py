import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from baton_diffusers.cli import loading
from baton_diffusers.memory import RECIPES
from baton_diffusers.shipped import default_checkpoint
from tests.cli.commands import PROMPT, loaded_in_vain, run


@pytest.mark.slow
def test_what_is_imported_is_not_collected():
    code = "import gc; from baton_diffusers.cli.loading import import_pipeline; import_pipeline(); print(gc.isenabled(), gc.get_freeze_count())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    enabled, count = result.stdout.split()
    assert enabled == "True" and int(count) > 100_000


@pytest.mark.slow
def test_what_is_not_needed_is_not_imported_and_is_there_later():
    code = "import sys; from baton_diffusers.cli.loading import import_pipeline; import_pipeline(('scipy', 'peft'))"
    code += "; assert not {'scipy', 'peft'} & set(sys.modules); import scipy, peft; from baton_diffusers import BatonPipeline"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model", [(), ("--model", "baton-nano")])
def test_a_scheme_for_deeper_transformers_is_refused_before_weights_are_loaded(tmp_path, monkeypatch, capsys, model):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--guidance", "ovi", *model) == 2
    message = "block 11 of the transformer, but baton-nano has the blocks 0 to 4: give --guidance text"
    assert message in capsys.readouterr().err


def test_checkpoints_of_the_package_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nano = default_checkpoint()
    assert loading.find_checkpoint(None) == loading.find_checkpoint("baton-nano") == (nano, nano)
    (tmp_path / "baton-nano").mkdir()  # a folder here comes first
    assert run("generate", PROMPT, "-o", "clip.mp4", "--model", "baton-nano") == 2


def test_what_the_hub_does_not_give_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, cause in (
        ("some-owner/some-model", "outgoing traffic has been disabled"),
        ("a b/c", "Repo id must use"),
    ):
        assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--model", name) == 2
        error = capsys.readouterr().err
        assert f"baton: {name} is no folder here, and could not be loaded from the Hub: " in error and cause in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_followed_as_its_text_says(name):
    followed, told = Mock(), Mock()
    RECIPES[name].follow(followed)
    exec(RECIPES[name].how, {"pipe": told, "torch": torch})
    assert followed.mock_calls == told.mock_calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_without_a_gpu_is_refused(tmp_path, capsys):
    assert run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--recipe", "model-offload") == 2
    assert "--recipe model-offload needs a GPU with CUDA, and there is none here" in capsys.readouterr().err
