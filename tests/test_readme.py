"""What the README and the quickstart notebook tell people to type is run here."""

import importlib.util
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from baton_diffusers import BatonPipeline
from baton_diffusers.cli import main
from baton_diffusers.media import read_clip


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


FEW_STEPS = 2  # what is shown here is that the code runs, not how good the clips are


@pytest.fixture
def few_steps(monkeypatch):
    load = BatonPipeline.from_pretrained

    def load_for_few_steps(*args, **kwargs):
        pipe = load(*args, **kwargs)
        pipe.register_to_config(num_inference_steps=FEW_STEPS)
        return pipe

    monkeypatch.setattr(BatonPipeline, "from_pretrained", load_for_few_steps)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_snippets_run(tmp_path, monkeypatch, few_steps):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for snippet in blocks("python"):
        if "torchao" not in snippet or importlib.util.find_spec("torchao"):
            exec(snippet, namespace)
    clip = read_clip("clip.mp4")
    assert clip.frames.shape == (49, 512, 512, 3) and clip.waveform.shape == (1, 49000)
    assert namespace["clip"].plan.duration == 49 / 16


def test_the_commands_run(tmp_path, monkeypatch, capsys, few_steps):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("baton ")]
    assert {line.split()[1] for line in lines} == {"generate", "stage", "evaluate"}
    for line in lines:
        arguments = shlex.split(line.replace("--scenes-per-tier 50", "--scenes-per-tier 1"), comments=True)[1:]
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 0, capsys.readouterr().err
    assert read_clip("bell.mp4").frames.shape == (49, 512, 512, 3)


def test_the_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = [line.split() for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")]
    assert commands and {command[1] for command in commands} <= targets


def test_its_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing, missing


@pytest.mark.slow
def test_the_quickstart_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    loading = next(i for i, cell in enumerate(notebook.cells) if "BatonPipeline.from_pretrained" in cell.source)
    notebook.cells[loading].source += f"\npipe.register_to_config(num_inference_steps={FEW_STEPS})"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<video controls loop" in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown)
