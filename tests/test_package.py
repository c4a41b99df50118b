"""The wheel: it carries the default checkpoint, and generates from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from baton_diffusers import BatonPipeline, default_checkpoint, shipped
from baton_diffusers.media import read_clip


ROOT = Path(__file__).parents[1]


def test_a_source_tree_finds_its_checkpoint(monkeypatch, tmp_path):
    assert default_checkpoint() == ROOT / "model_cards" / "baton-nano"
    # An installed wheel has the folder inside the package, and that one comes first.
    inside = tmp_path / "baton_diffusers" / "model_cards" / "baton-nano"
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "baton_diffusers" / "shipped.py"))
    with pytest.raises(ValueError, match="no checkpoint in .*install the wheel"):
        default_checkpoint()
    inside.mkdir(parents=True)
    (inside / "model_index.json").touch()
    assert default_checkpoint() == inside


def test_the_checkpoint_is_small():
    files = [path for path in default_checkpoint().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert max(path.stat().st_size for path in files) <= 15e6


def test_the_checkpoint_loads_in_float32():
    pipe = BatonPipeline.from_pretrained(default_checkpoint())
    models = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    dtypes = {parameter.dtype for model in models for parameter in model.parameters()}
    assert len(models) >= 7 and dtypes == {torch.float32}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("baton_diffusers", "model_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source))
    (path,) = (source / "dist").glob("*.whl")
    return path


def run(*command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_is_complete(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "baton_diffusers").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "model_cards").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"baton_diffusers/{path.relative_to(ROOT).as_posix()}" in names
    assert {name.split("/")[0] for name in names} == {"baton_diffusers", wheel.stem.split("-py3")[0] + ".dist-info"}


def test_an_installed_wheel_generates(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = "import baton_diffusers; print(baton_diffusers.default_checkpoint())"
    where = run(sys.executable, "-c", code, cwd=elsewhere, env=environment)
    assert Path(where.strip()).is_relative_to(site)
    command = [
        site / "bin" / "baton",
        "generate",
        "A red ball on the left bounces twice.",
        "-o",
        "clip.mp4",
        "--steps",
        "2",
    ]
    printed = run(*command, cwd=elsewhere, env=environment)
    assert "49 frames, 3.06 s; generated in" in printed and "peak memory" in printed
    clip = read_clip(elsewhere / "clip.mp4")
    assert clip.frames.shape == (49, 64, 64, 3) and clip.waveform.shape == (1, 49000)
