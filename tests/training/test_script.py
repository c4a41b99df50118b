"""What training scripts tell a person: one sentence, and an exit code."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
NANO = ROOT / "model_cards" / "baton-nano"
CONFIGS = ROOT / "examples" / "configs" / "nano"


def start(script, *arguments):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    "script, arguments, code, message",
    [
        ("train_lora.py", ["nowhere.yaml"], 2, "nowhere.yaml cannot be read (No such file or directory)"),
        ("train_lora.py", [CONFIGS / "lora.yaml", "rank=0"], 2, "`rank` must be at least 1, got 0"),
        ("train_transformer.py", [CONFIGS / "transformer.yaml", "trainer.stepz=1"], 2, "unknown key `trainer.stepz`"),
    ],
)
def test_a_wrong_input_is_one_sentence(tmp_path, script, arguments, code, message):
    process = start(script, *arguments, f"trainer.run_dir={tmp_path / 'run'}")
    _, errors = process.communicate()
    assert process.returncode == code
    assert len(errors.splitlines()) == 1 and re.fullmatch(rf"{script}: .*{re.escape(message)}.*\n", errors), errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_ctrl_c_leaves_no_traceback(seconds):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # also below a `nohup`
    code += "from baton_diffusers.training import script; print(1, flush=True); "
    code += "from baton_diffusers.training.config import PlannerTraining; "
    code += "script.run(lambda config: time.sleep(60), PlannerTraining, None)"
    command = [sys.executable, "-c", code, str(CONFIGS / "planner.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    process.stdout.readline()
    time.sleep(0.5 + seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors and len(errors.splitlines()) <= 1, errors


def test_training_on_features_needs_no_package_for_clips(tmp_path):
    """A machine that trains on cached features decodes nothing; and no library adds a line to the error."""
    script = ROOT / "examples" / "train_lora.py"
    block = "import sys; sys.modules.update(webdataset=None, imageio_ffmpeg=None, soundfile=None, tensorboard=None); "
    modules = ", ".join(f"baton_diffusers.training.{name}" for name in ("flow_matching", "lora", "planner", "trainer"))
    code = f"{block}import {modules}, baton_diffusers.training.validation; sys.argv[0] = {str(script)!r}; "
    code += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [CONFIGS / "lora.yaml", f"model={NANO}", "features=nowhere", f"trainer.run_dir={tmp_path / 'run'}"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and re.fullmatch("train_lora.py: there are no features in nowhere.*\n", run.stderr), (
        run.stderr
    )
    assert not (tmp_path / "run").exists()
