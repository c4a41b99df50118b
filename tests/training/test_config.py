"""Configuration files: read into dataclasses, with every mistake named in one sentence."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from baton_diffusers.training.config import TrainerConfig, load_config


@dataclass
class Whole:
    trainer: TrainerConfig
    widths: tuple[int, ...] = (1, 2)
    name: str = "x"
    options: dict = field(default_factory=dict)
    other: TrainerConfig | None = None


def test_configuration_files(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {run_dir: runs/x, steps: 10, learning_rate: 1e-4}\nwidths: [4, 8]\noptions: {a: 1e-3}\n")
    overrides = ["trainer.steps=20", "trainer.ema_decay=null", "name=y", "trainer.mixed_precision=no", "options.b=on"]
    config = load_config(path, Whole, [*overrides, "other.run_dir=z", "other.steps=1", "trainer.compile=true"])
    assert config.trainer.mixed_precision == "no" and config.options == {"a": 1e-3, "b": "on"}, "not as in YAML 1.1"
    assert config.trainer.steps == 20 and config.trainer.learning_rate == 1e-4 and config.trainer.ema_decay is None
    assert config.trainer.compile is True and config.other.run_dir == "z"
    assert config.widths == (4, 8) and config.name == "y"


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.stepz=20", "unknown key `trainer.stepz`; it may be one of run_dir, steps, "),
        ("other.stepz=20", "unknown key `other.stepz`; it may be one of run_dir, steps, "),
        ("stepz=20", "unknown key `stepz`; it may be one of trainer, widths, name, options, other"),
        ("other.run_dir=x", "`other.steps` is missing, and has no default"),
        ("trainer.steps=many", "`trainer.steps` is 'many', but it should be a valid integer"),
        ("trainer.steps=true", "`trainer.steps` is True, but it should be a valid integer"),
        ("trainer.run_dir=null", "`trainer.run_dir` is None, but it should be a valid string"),
        ("trainer.steps=0", "`steps` must be at least 1, got 0"),
        ("trainer.validate_every=0", "`validate_every` must be at least 1, or None, got 0"),
        ("trainer.learning_rate=.inf", "`learning_rate` must be a positive number, got inf"),
        ("trainer.seed=18446744073709551616", r"`seed` must be less than 2\*\*63"),
        ("trainer.seed=-1", "`seed` must be 0 or more, got -1"),
        ("trainer.betas=[0.9, 1.0]", r"`betas` must be in \[0, 1\)"),
        ("trainer.decay_fraction=2", r"in \[0, 1\]"),
        ("trainer.optimizer=sgd", "`optimizer` must be one of adamw, muon, got 'sgd'"),
        ("trainer.mixed_precision=int3", "`mixed_precision` must be one of no, fp16, bf16, got 'int3'"),
        ("trainer.compile=maybe", "`compile` must be true, false or regional, got 'maybe'"),
        ("name.first=a", "`name` is a value"),
        ("name=[", "'name=\\[': the value is not YAML"),
        ("steps", "reads `key=value`"),
        ("trainer=5", "`trainer` must hold the keys of TrainerConfig, got 5"),
    ],
)
def test_mistakes_are_named(tmp_path, override, message):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {run_dir: runs/x, steps: 10}\nname: x\n")
    with pytest.raises(ValueError, match=message):
        load_config(path, Whole, [override])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"run_dir: runs/x\n", "`steps` is missing"),
        (b"", "`run_dir` is missing"),
        (b"- run_dir", "must hold the keys of TrainerConfig"),
        (b"run_dir: [", "cannot be read as a YAML file"),
        (b"\xff", "line 1: it holds bytes that are not UTF-8"),
        (b"#" * 2**21, "has more than 1.04858 MB"),
        (b"[" * 10**5, "cannot be read as a YAML file"),
        (None, "cannot be read .No such file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"config.yaml.*{message}"):
        load_config(path, TrainerConfig)


def test_configuration_is_read_without_torch():
    code = "import sys, baton_diffusers.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
