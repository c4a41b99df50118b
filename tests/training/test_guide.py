"""What the guide tells people to type (docs/own-data.md to docs/scaling.md) is run here, in its order, with the least that each command can do.

Takes ten minutes: run with `pytest -m slow tests/training/test_guide.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGES = ("own-data", "lora", "training", "scaling")
GUIDE = "\n".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)

PLAIN = "trainer.steps=1 trainer.warmup_steps=0 trainer.max_minutes=null trainer.batch_size"
# What is added to a command that has the text.
LEAST = {
    "train_tokenizer.py": "--scenes 200",
    "train_codecs.py": f"{PLAIN}=1",
    "train_semantic_encoders.py": f"{PLAIN}=2",
    "cache_features.py": "--clips 2",
    "cache stage": "--clips 2",
    "train_planner.py": f"{PLAIN}=2 evaluation_scenes=2 trainer.validate_every=1",
    "reading.py": f"{PLAIN}=2 evaluation_scenes=2",
    "train_transformer.py": f"{PLAIN}=2 trainer.compile=false trainer.mixed_precision=no",
    "train_lora.py": f"{PLAIN}=2",
    "baton evaluate": "--scenes-per-tier 1 --steps 1",
}


def commands(block):
    lines = []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"  +#.*", "", line)
        lines.append(" ".join([line, *(least for text, least in LEAST.items() if text in line)]))
    return "\n".join(lines)


@pytest.mark.slow
def test_the_guides_commands_run(tmp_path):
    for name in ("examples", "benchmarks", "model_cards"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    blocks = re.findall(r"```(bash|python)\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(blocks) >= 6
    printed = ""
    for language, block in blocks:
        if "make test" in block:  # which runs this
            continue
        if language == "python":
            run = [sys.executable, "-c", block.replace("generator=", "num_inference_steps=1, generator=")]
        else:
            run = ["bash", "-ec", commands(block)]
        result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr[-3000:]}"
        printed += result.stdout
    assert "8 clips (8 of 49x64x64)" in printed and "rejected: broken.mp4: " in printed
    assert (tmp_path / "runs" / "my_lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "runs" / "planner" / "validation.csv").read_text().startswith("step,video,audio\n1,")
    assert (tmp_path / "my_checkpoint" / "model_index.json").is_file()
    assert "| complex | 1 |" in printed
