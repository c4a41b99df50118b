"""The notebooks run, in as few steps as a clip takes; one that calls for looking is looked at in the documentation."""

from pathlib import Path

import pytest


nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_plans_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "plans.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    loading = next(i for i, cell in enumerate(notebook.cells) if "BatonPipeline.from_pretrained" in cell.source)
    notebook.cells[loading].source += "\npipe.register_to_config(num_inference_steps=2)"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("<video controls loop" in data.get("text/html", "") for data in shown) >= 3
    assert sum("image/png" in data for data in shown) >= 3
    assert (tmp_path / "final.mp4").is_file() and (tmp_path / "plan.safetensors").is_file()
