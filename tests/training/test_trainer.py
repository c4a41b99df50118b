"""The training loop: exact resumption, schedules, checkpoints, configuration files."""

import csv
import os
import re
import signal
import time
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from accelerate.utils import is_wandb_available
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from baton_diffusers.training.checkpoint import checkpoints
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.trainer import Trainer, _without_weights
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

    states = [torch.load(checkpoints(tmp_path / name)[-1]) for name in ("whole", "part")]
    for name in ("module", "ema"):
        torch.testing.assert_close(states[1][name], states[0][name], rtol=0, atol=0)
    torch.testing.assert_close(resumed.module.state_dict(), states[0]["ema"], rtol=0, atol=0)
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
    assert not ema.training
    state = torch.load(checkpoints(tmp_path)[-1])
    torch.testing.assert_close(ema.state_dict(), state["ema"], rtol=0, atol=0)
    assert all((state["module"][name] != value).any() for name, value in state["ema"].items())


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


def test_repeated_blocks_are_compiled_alone(tmp_path):
    trainer = make_stage(2, tmp_path / "compiled", steps=1, compile="regional")
    blocks = [part for part in trainer.module.modules() if type(part).__name__ == "DualBranchTransformerBlock"]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    assert trainer._prepared is trainer._wrapped
    with pytest.raises(ValueError, match='"regional", but no part of `module` has repeated blocks'):
        make_trainer(tmp_path, compile="regional")


def test_what_accelerate_saves_of_a_sharded_model_resumes_too(tmp_path):
    def sharded(folder, dataset=None):
        trainer = make_trainer(folder, dataset, checkpoint_every=5)
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
        assert module is trainer.module and not module.training and not torch.is_grad_enabled()
        newest = torch.load(checkpoints(trainer.run_dir)[-1])
        torch.testing.assert_close(module.state_dict(), newest["ema"], rtol=0, atol=0)
        seen.append(step)
        torch.manual_seed(0)  # must not disturb the training
        return {"score": step / 10}

    with pytest.raises(ValueError, match="`validate_every` is 5, but this training has nothing"):
        make_trainer(tmp_path, validate_every=5)
    plain = make_trainer(tmp_path / "plain").fit()
    trainer = make_trainer(tmp_path / "validated", checkpoint_every=5)
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


def poisoned_loss(module, batch, generator, step):
    losses = noisy_loss(module, batch, generator, step)
    return {**losses, "loss": losses["loss"] * (float("nan") if step == 7 else 1)}


def infinite_gradient(module, batch, generator, step):
    losses = noisy_loss(module, batch, generator, step)
    if step == 7:  # of the finite loss 0 the gradient is infinite
        losses["loss"] = losses["loss"] + (module[0].weight.sum() * 0).abs().sqrt()
    return losses


@pytest.mark.parametrize(
    "loss, said", [(poisoned_loss, "loss is nan"), (infinite_gradient, "not finite after step 8")]
)
def test_what_is_not_finite_stops_the_run_and_is_never_kept(tmp_path, loss, said):
    trainer = make_trainer(tmp_path, checkpoint_every=2)
    trainer.loss_fn = loss
    with pytest.raises(FloatingPointError, match=said):
        trainer.fit()
    newest = torch.load(checkpoints(tmp_path)[-1])
    assert newest["step"] == 6 and all(value.isfinite().all() for value in newest["module"].values())
    assert make_trainer(tmp_path).fit() is not None, "with another loss it goes on from there"


def test_frozen_parts_have_no_dropout(tmp_path):
    module = nn.ModuleDict(
        {
            "frozen": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
            "head": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
        }
    )
    module["frozen"].requires_grad_(False)
    seen = []

    def loss(module, batch, generator, step):
        seen.append([module[name][1].training for name in ("frozen", "head")])
        return {"loss": module["head"](module["frozen"](batch)).square().mean()}

    config = TrainerConfig(run_dir=str(tmp_path), steps=2, batch_size=2, trackers=(), validate_every=1)
    Trainer(config, module, loss, Numbers(), validate=lambda module, step: {}).fit()
    assert seen == [[False, True]] * 2


def test_the_models_of_a_loss_are_moved_to_where_the_module_is(tmp_path):
    class Loss:
        moved_to = None

        def to(self, device):
            self.moved_to = device

        def __call__(self, *arguments):
            return noisy_loss(*arguments)

    loss = Loss()
    trainer = Trainer(TrainerConfig(run_dir=str(tmp_path), steps=1, trackers=()), nn.Linear(4, 4), loss, Numbers())
    assert loss.moved_to == trainer.device
