"""The documentation builds, its links lead somewhere, and its snippets run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from baton_diffusers import BatonPipeline


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages whose Python runs on nano. The others show weights or data of one's own.
RUNS = ("quickstart", "directions", "plans", "films", "guidance", "memory", "blocks")


def test_it_builds_without_a_dead_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "generate_cues" in (tmp_path / "site" / "api" / "index.html").read_text()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    reports = {f"reports/{name}" for name in re.findall(r"\((\w+\.md)\)", (DOCS / "reports/index.md").read_text())}
    assert listed | reports == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = BatonPipeline.from_pretrained

    def load_for_few_steps(*args, **kwargs):
        pipe = load(*args, **kwargs)
        pipe.register_to_config(num_inference_steps=2)
        return pipe

    monkeypatch.setattr(BatonPipeline, "from_pretrained", load_for_few_steps)
    namespace = {}
    for snippet in re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL):
        exec(snippet, namespace)
