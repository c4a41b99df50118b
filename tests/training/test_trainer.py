"""The training loop: exact resumption, schedules, checkpoints, configuration files."""

import csv
import os
import re
import signal
import time
from copy import deepcopy
from dataclasses import dataclass, field, replace

import pytest
import torch
import yaml
from accelerate.utils import is_wandb_available
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from baton_diffusers.training.trainer import (
    Trainer,
    TrainerConfig,
    _without_weights,
    checkpoints,
    load_checkpoint,
    load_config,
)
from tests.training.stages import make_trainer as make_stage


class Numbers:
    """Sample `i` is a vector drawn from seed `i`."""

    def __init__(self, on_index=None):
        self.seen = []
        self.on_index = on_index

    def __getitem__(self, index):
        self.seen.append(index)
        if self.on_index is not None:
            self.on_index(index)
        return torch.randn(4, generator=torch.Generator().manual_seed(index))


def noisy_loss(module, batch, generator, step):
    noise = torch.randn(batch.shape, generator=generator, device=batch.device)
    error = module(batch + 0.1 * noise) - batch.flip(-1)
    return {"loss": error.square().mean(), "worst": error.abs().max()}


def make_trainer(run_dir, dataset=None, **kwargs):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 4))
    defaults = {"steps": 12, "batch_size": 3, "warmup_steps": 2, "log_every": 4, "ema_decay": 0.9, "trackers": ()}
    settings = {**defaults, **kwargs}
    return Trainer(TrainerConfig(run_dir=str(run_dir), **settings), module, noisy_loss, dataset or Numbers())


def rows(run_dir):
    with open(run_dir / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_samples_are_counted_through(tmp_path):
    dataset = Numbers()
    make_trainer(tmp_path, dataset, steps=4).fit()
    assert dataset.seen[:12] == list(range(12))


@pytest.mark.parametrize("number, optimizer", [(signal.SIGINT, "adamw"), (signal.SIGTERM, "muon")])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, number, optimizer):
    whole = make_trainer(tmp_path / "whole", optimizer=optimizer)
    whole.fit()

    def interrupt(index):
        if index == 18:  # in step 6
            os.kill(os.getpid(), number)

    part = make_trainer(tmp_path / "part", Numbers(interrupt), optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        part.fit()
    assert part.step == 7
    resumed = make_trainer(tmp_path / "part", optimizer=optimizer)
    resumed.fit()

    for pair in ((whole.module, resumed.module), (whole.ema_module(), resumed.ema_module())):
        for expected, value in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert rows(tmp_path / "whole")[-1]["loss"] == rows(tmp_path / "part")[-1]["loss"]
    assert [int(row["step"]) for row in rows(tmp_path / "part")] == [4, 7, 8, 12]


def test_the_scale_of_half_precision_gradients_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, steps=4)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)  # accelerate makes one on a GPU alone
    trainer.save_checkpoint()
    resumed = make_trainer(tmp_path, steps=4)
    resumed.accelerator.scaler = torch.amp.GradScaler("cpu")
    assert resumed.resume() and resumed.accelerator.scaler.state_dict()["scale"] == 2.0**7
    without = make_trainer(tmp_path, steps=4)
    assert without.resume() and without.accelerator.scaler is None


def test_finished_run_does_nothing(tmp_path):
    make_trainer(tmp_path).fit()
    again = make_trainer(tmp_path, dataset := Numbers())
    again.fit()
    assert again.step == 12 and dataset.seen == []


def test_loss_falls_and_average_follows(tmp_path):
    trainer = make_trainer(tmp_path, steps=300, learning_rate=1e-2, log_every=100)
    ema = trainer.fit()
    first, *_, last = rows(tmp_path)
    assert float(last["loss"]) < 0.5 * float(first["loss"])
    assert int(last["samples"]) == 900 and set(last) >= {"seconds", "learning_rate", "worst"}
    assert ema is trainer.ema_module() and not ema.training
    assert any((a != b).any() for a, b in zip(ema.parameters(), trainer.module.parameters(), strict=True))


def test_keeps_two_checkpoints_and_loads_the_newest(tmp_path):
    trainer = make_trainer(tmp_path, checkpoint_every=5)
    trainer.fit()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000010.pt", "step_00000012.pt"]
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 4))
    assert load_checkpoint(tmp_path, module) == 12
    torch.testing.assert_close(module.state_dict(), trainer.ema_module().state_dict(), rtol=0, atol=0)
    load_checkpoint(tmp_path, module, ema=False)
    torch.testing.assert_close(module.state_dict(), trainer.module.state_dict(), rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="No checkpoint"):
        load_checkpoint(tmp_path / "elsewhere", module)


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    make_trainer(tmp_path, checkpoint_every=2, keep_checkpoints=3).fit()
    assert [path.stem for path in checkpoints(tmp_path)] == ["step_00000008", "step_00000010", "step_00000012"]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    make_trainer(tmp_path, steps=4).fit()
    half = tmp_path / "checkpoints" / "step_00000006.tmp"
    half.write_bytes(b"half")
    with open(tmp_path / "log.csv", "a") as file:
        file.write("2")
    trainer = make_trainer(tmp_path, steps=8)
    trainer.fit()
    assert trainer.step == 8 and not half.exists()
    assert [int(row["step"]) for row in rows(tmp_path)] == [4, 8]


def test_a_step_in_parts_has_the_gradient_of_the_whole(tmp_path):
    def loss(module, batch, generator, step):
        return {"loss": (module(batch) - batch.flip(-1)).square().mean()}

    trainers = []
    for parts in (1, 3):
        dataset = Numbers()
        trainer = make_trainer(tmp_path / str(parts), dataset, gradient_accumulation=parts, steps=4, log_every=1)
        trainer.module[1].p = 0.0
        trainer.loss_fn = loss
        trainer.fit()
        assert dataset.seen[:12] == list(range(12))
        trainers.append(trainer)
    for a, b in zip(*(trainer.module.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    first, second = (rows(tmp_path / str(parts)) for parts in (1, 3))
    for a, b in zip(first, second, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
    with pytest.raises(ValueError, match="`batch_size` is 3.*multiple of 2"):
        make_trainer(tmp_path, gradient_accumulation=2)


@pytest.mark.parametrize("stage", [1, 2])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, stage):
    weights = []
    for checkpointing in (False, True):
        trainer = make_stage(stage, tmp_path / str(checkpointing), steps=2, gradient_checkpointing=checkpointing)
        weights.append(trainer.fit().state_dict())
        flags = [
            part.gradient_checkpointing for part in trainer.module.modules() if hasattr(part, "gradient_checkpointing")
        ]
        assert any(flags) == checkpointing
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        make_trainer(tmp_path, gradient_checkpointing=True)


def test_what_accelerate_saves_of_a_sharded_model_resumes_too(tmp_path):
    def sharded(folder, dataset=None):
        trainer = make_trainer(folder, dataset, ema_decay=None, checkpoint_every=5)
        # One process cannot spread a model: what is tested is that its way of saving keeps all there is.
        trainer._whole, trainer._sharded = _without_weights(deepcopy(trainer.module)), True
        return trainer

    def fail(index):
        if index == 21:
            raise OSError("the disk is gone")

    whole = sharded(tmp_path / "whole").fit()
    with pytest.raises(OSError):
        sharded(tmp_path / "part", Numbers(fail)).fit()
    assert [path.name for path in checkpoints(tmp_path / "part")] == ["step_00000005"]
    (tmp_path / "part" / "checkpoints" / "step_00000007.tmp").mkdir()
    resumed = sharded(tmp_path / "part").fit()
    torch.testing.assert_close(whole.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    assert [path.name for path in checkpoints(tmp_path / "part")] == ["step_00000010", "step_00000012"]


def test_a_sharded_model_is_gathered_for_validation(tmp_path):
    seen = []

    def validate(module, step):
        seen.append((step, sum(value.sum().item() for value in module.state_dict().values())))
        return {}

    trainer = make_trainer(tmp_path, ema_decay=None)
    trainer.module.register_buffer("table", torch.ones(2), persistent=False)
    trainer._whole, trainer._sharded = (
        _without_weights(deepcopy(trainer.module)),
        True,
    )  # as if: one process has it all
    trainer.validate, trainer.config.validate_every = validate, 12
    trained = trainer.fit()
    assert seen == [(12, sum(value.sum().item() for value in trainer.module.state_dict().values()))]
    assert trained is not trainer.module and (trained.table == 1).all(), "what is not saved is there, too"
    torch.testing.assert_close(trained.state_dict(), trainer.module.state_dict(), rtol=0, atol=0)
    assert not (tmp_path / "validation.csv").exists(), "nothing was scored"


def test_what_is_trained_so_far_is_validated(tmp_path):
    seen = []

    def validate(module, step):
        assert module is trainer.ema_module() and not module.training and not torch.is_grad_enabled()
        seen.append(step)
        torch.manual_seed(0)  # must not disturb the training
        return {"score": step / 10}

    with pytest.raises(ValueError, match="`validate_every` is 5, but this training has nothing"):
        make_trainer(tmp_path, validate_every=5)
    plain = make_trainer(tmp_path / "plain").fit()
    trainer = make_trainer(tmp_path / "validated")
    trainer.validate, trainer.config.validate_every = validate, 5
    torch.testing.assert_close(trainer.fit().state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert seen == [5, 10, 12]
    text = (tmp_path / "validated" / "validation.csv").read_text()
    assert text.split() == ["step,score", "5,0.5", "10,1.0", "12,1.2"]


def test_the_time_spent_waiting_for_data_is_told(tmp_path, capsys):
    shares = []
    for pause in (0.0, 0.05):
        make_trainer(tmp_path / str(pause), Numbers(lambda index: time.sleep(pause)), steps=10).fit()  # noqa: B023
        shares.append(float(re.search(r"step 10; (\d+\.\d)% of the time", capsys.readouterr().out)[1]))
    assert shares[0] < shares[1] and shares[1] > 50


def test_tensorboard_gets_the_learning_curves_once(tmp_path):
    make_trainer(tmp_path, steps=8, trackers=("tensorboard",)).fit()
    (tmp_path / "checkpoints" / "step_00000008.pt").rename(tmp_path / "checkpoints" / "step_00000004.pt")
    state = torch.load(tmp_path / "checkpoints" / "step_00000004.pt")
    torch.save({**state, "step": 4}, tmp_path / "checkpoints" / "step_00000004.pt")
    make_trainer(tmp_path, steps=8, trackers=("tensorboard",)).fit()
    events = EventAccumulator(str(tmp_path / "tracked")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [4, 8]
    assert {"worst", "learning_rate", "waiting_for_data"} <= set(events.Tags()["scalars"])


def test_a_tracker_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(ValueError, match="`trackers` names 'weights', but installed are .*tensorboard"):
        make_trainer(tmp_path, trackers=("weights",))


@pytest.mark.skipif(not is_wandb_available(), reason="wandb is not installed")
def test_wandb_gets_the_learning_curves_in_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_trainer(tmp_path, steps=8, trackers=("wandb",)).fit()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"waiting_for_data" in record.read_bytes()


def test_learning_rate_rises_stays_and_falls(tmp_path):
    trainer = make_trainer(tmp_path, steps=100, warmup_steps=10, decay_fraction=0.5)
    factors = {}
    for trainer.step in (0, 9, 49, 75, 100):
        factors[trainer.step] = trainer.learning_rate_factor()
    assert factors == pytest.approx({0: 0.1, 9: 1.0, 49: 1.0, 75: 0.5, 100: 0.0})


def test_minutes_end_the_run_in_decay(tmp_path):
    trainer = make_trainer(tmp_path, steps=10**6, max_minutes=0.02, log_every=1, decay_fraction=0.5)
    trainer.fit()
    assert 1 < trainer.step < 10**6 and trainer.progress() == 1
    rates = [float(row["learning_rate"]) for row in rows(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)


def test_parameter_groups_keep_their_rate(tmp_path):
    module = nn.Linear(4, 4)
    frozen = module.weight.detach().clone()
    config = TrainerConfig(run_dir=str(tmp_path), steps=3, batch_size=2)
    groups = [{"params": [module.weight], "lr": 0.0}, {"params": [module.bias]}]
    Trainer(config, module, noisy_loss, Numbers(), parameter_groups=groups).fit()
    torch.testing.assert_close(module.weight.detach(), frozen, rtol=0, atol=0)
    with pytest.raises(ValueError, match="Nothing to train"):
        Trainer(config, nn.Linear(4, 4).requires_grad_(False), noisy_loss, Numbers())


@dataclass
class Settings:
    trainer: TrainerConfig
    features: str = "runs/features"
    output: str = "runs/export"


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path):
    config = TrainerConfig(run_dir=str(tmp_path), steps=3, batch_size=2, checkpoint_every=2, trackers=())

    def train(**changes):
        settings = replace(Settings(config), **changes)
        return Trainer(settings.trainer, nn.Linear(4, 4), noisy_loss, Numbers(), settings=settings).fit()

    train()
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert kept["features"] == "runs/features" and kept["trainer"]["steps"] == 3
    train(trainer=replace(config, steps=5), output="elsewhere")
    with pytest.raises(ValueError, match="begun with `features` 'runs/features', and cannot go on with 'other'"):
        train(features="other")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["features"] == "runs/features"


def test_steps_between_validations_are_counted_from_one(tmp_path):
    with pytest.raises(ValueError, match="`validate_every` must be at least 1, or None, got 0"):
        TrainerConfig(run_dir=str(tmp_path), steps=3, validate_every=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.loss_fn = lambda module, batch, generator, step: {"loss": module(batch).sum() * float("nan")}
    with pytest.raises(FloatingPointError, match="nan"):
        trainer.fit()
    assert checkpoints(tmp_path) == []


@dataclass
class Whole:
    trainer: TrainerConfig
    widths: tuple[int, ...] = (1, 2)
    name: str = "x"
    options: dict = field(default_factory=dict)


def test_configuration_files(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {run_dir: runs/x, steps: 10, learning_rate: 1e-4}\nwidths: [4, 8]\noptions: {a: 1}\n")
    overrides = ["trainer.steps=20", "trainer.ema_decay=null", "name=y", "trainer.mixed_precision=no"]
    config = load_config(path, Whole, overrides)
    assert config.trainer.mixed_precision == "no", "which YAML reads as false"
    assert config.trainer.steps == 20 and config.trainer.learning_rate == 1e-4 and config.trainer.ema_decay is None
    assert config.widths == (4, 8) and config.name == "y" and config.options == {"a": 1}


@pytest.mark.parametrize(
    "override, message",
    [
        ("trainer.stepz=20", "unknown key `trainer.stepz` for TrainerConfig"),
        ("trainer.steps=many", "`trainer.steps` must be int, got 'many'"),
        ("trainer.run_dir=null", "`trainer.run_dir` must be str"),
        ("trainer.steps=0", "`steps` must be at least 1"),
        ("trainer.decay_fraction=2", r"in \[0, 1\]"),
        ("trainer.optimizer=sgd", "`optimizer` must be one of adamw, muon, got 'sgd'"),
        ("name.first=a", "`name` is a value"),
        ("steps", "reads `key=value`"),
        ("trainer=5", "`trainer` must hold the keys of TrainerConfig"),
    ],
)
def test_configuration_errors_are_precise(tmp_path, override, message):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {run_dir: runs/x, steps: 10}\nname: x\n")
    with pytest.raises(ValueError, match=message):
        load_config(path, Whole, [override])


def test_missing_key_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: runs/x\n")
    with pytest.raises(ValueError, match="`steps` is missing"):
        load_config(path, TrainerConfig)
