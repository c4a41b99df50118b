"""Every extra brings what it needs: each is installed in a clean environment, imported and used once. Minutes, and an index of
packages, are needed: `pytest -m slow tests/test_extras.py`."""

import shutil
import sys
import tomllib

import pytest

from .test_package import ROOT, run, wheel  # noqa: F401


BATON = ("-m", "baton_diffusers.cli")
GENERATE = (*BATON, "generate", "A red ball bounces.", "-o", "clip.mp4", "--steps", "1")
# What each extra is for: modules that it makes importable, and a command. The extra "" is none.
USES = {
    "": ("baton_diffusers.pipelines.pipeline_baton", GENERATE),
    "train": (
        "baton_diffusers.training.trainer, baton_diffusers.training.lora",
        (*BATON, "cache", "stage", "-o", "f", "--clips", "1"),
    ),
    "app": ("gradio, baton_diffusers.studio.page", (*BATON, "studio", "--help")),
    "eval": ("jiwer, matplotlib", (*BATON, "evaluate", "--scenes-per-tier", "1", "--steps", "1")),
    "quantization": ("torchao, bitsandbytes", GENERATE),
}
ELSEWHERE = {
    "dev",
    "docs",
    "xformers",
}  # dev, with docs, is the environment of these tests; xformers is built for GPUs


def extras():
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]) - ELSEWHERE


def test_every_extra_has_a_use():
    assert extras() == set(USES) - {""}


@pytest.fixture(scope="module")
def plain(wheel, tmp_path_factory):  # noqa: F811
    """The Python of an environment with the wheel and no extra."""
    folder = tmp_path_factory.mktemp("plain") / "venv"
    run(sys.executable, "-m", "venv", folder)
    constraints = ROOT / "constraints.txt"
    index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
    run(folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "-c", constraints, *index, "torch")
    run(folder / "bin/python", "-m", "pip", "install", "-q", "-c", constraints, wheel)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("extra", USES)
def test_an_extra_is_whole(plain, wheel, tmp_path, extra):  # noqa: F811
    modules, command = USES[extra]
    folder = shutil.copytree(plain, tmp_path / "venv", symlinks=True)
    python = folder / "bin" / "python"
    if extra:
        run(
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            ROOT / "constraints.txt",
            f"baton-diffusers[{extra}] @ {wheel.as_uri()}",
        )
    run(python, "-c", f"import {modules}", cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    run(python, *command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)})
