"""One resumable training loop, shared by every part of the system, and the YAML files that configure it.

A run is a folder. It holds `config.yaml`, `log.csv` (the learning curves) and `checkpoints/`; running the same command
again goes on from the newest checkpoint. Started by `accelerate launch`, the same command trains in several processes.
"""

import csv
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import is_tensorboard_available
from diffusers import ModelMixin
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from .muon import Muon


Config = TypeVar("Config")


# Settings of a training that may change while a run lasts.
_OF_THE_RUN = ("trainer", "validation", "evaluation_scenes", "output", "export")

OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}


@dataclass
class TrainerConfig:
    """
    What a run of [`Trainer`] does, whatever it trains.

    Args:
        run_dir: Folder of the run; created, and gone on from when it holds a checkpoint.
        steps: Optimiser steps of the whole run.
        batch_size: Samples per step, those of all processes together.
        gradient_accumulation: Parts in which each process computes its samples of a step, one after another, to save
            memory. What a step does depends only on `processes * gradient_accumulation`, the number of parts.
        gradient_checkpointing: Whether activations are computed again in the backward pass instead of kept.
        learning_rate: The constant rate. A parameter group may bring its own as `lr`.
        warmup_steps: Steps over which the rate rises linearly from zero.
        decay_fraction: Last share of the run over which the rate falls linearly to zero. The position in the run is
            `max(step / steps, minutes / max_minutes)`.
        optimizer: "adamw", or "muon" ([`~training.muon.Muon`]): dearer steps, of which some trainings need ten times fewer.
        weight_decay: The optimiser's, on tensors of two or more dimensions; vectors and scalars are not decayed.
        betas: AdamW's; with Muon those of vectors and scalars.
        max_grad_norm: Total gradient norm to clip to; None clips nothing.
        ema_decay: Decay of the moving average of the weights, warmed up as `(1 + step) / (10 + step)`; None keeps none.
        seed: Seeds the generator of every step, together with the step's number.
        max_minutes: Ends the run, decay included, after this much training time (summed over interruptions). None
            leaves `steps` alone to decide. A run resumed is equal to one never interrupted only without it.
        checkpoint_every: Steps between checkpoints.
        checkpoint_minutes: Minutes between checkpoints, in addition.
        keep_checkpoints: Newest checkpoints that are kept; older ones are deleted.
        log_every: Steps averaged into one row of `log.csv`.
        validate_every: Steps between validations, with what is given to [`Trainer`] for it; None leaves them out.
        trackers: Names of accelerate's trackers that get the learning curves too, such as "tensorboard" and "wandb". None
            takes tensorboard where it is installed.
        num_workers: Processes that load data beside the training; 0 loads in the training process.
        mixed_precision: As in `accelerate.Accelerator`: "no", "fp16" or "bf16".
        compile: Whether the module is run through `torch.compile`.
    """

    run_dir: str
    steps: int
    batch_size: int = 8
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    seed: int = 0
    max_minutes: float | None = None
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 5.0
    keep_checkpoints: int = 2
    log_every: int = 50
    validate_every: int | None = None
    trackers: tuple[str, ...] | None = None
    num_workers: int = 0
    mixed_precision: str = "no"
    compile: bool = False

    def __post_init__(self):
        self.betas = tuple(self.betas)
        counts = ("steps", "batch_size", "gradient_accumulation", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"`validate_every` must be at least 1, or None, got {self.validate_every}.")
        for name in ("learning_rate", "max_grad_norm", "max_minutes", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}.")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"`decay_fraction` is a share of the run, in [0, 1], got {self.decay_fraction}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), or None for no moving average, got {self.ema_decay}.")


class IndexedDataset(Protocol):
    """Data without an end: any non-negative index gives a sample, the same one every time."""

    def __getitem__(self, index: int) -> Any: ...


LossFunction = Callable[[nn.Module, Any, torch.Generator, int], dict[str, torch.Tensor]]


class Trainer:
    """
    Minimises a loss over an endless dataset, and can be stopped and resumed at any step.

    Step `s` sees the samples `s * batch_size ... (s + 1) * batch_size - 1`, cut into as many equal parts as there are
    processes times `gradient_accumulation`. Each part draws all its randomness from a generator seeded by the run's seed,
    `s` and its own number. So a run resumed makes the same steps as one never interrupted, and several processes make the
    same as one that computes the parts one after another.

    Args:
        config: See [`TrainerConfig`].
        module: What is trained: its parameters that require a gradient.
        loss_fn: `loss_fn(module, batch, generator, step)` returns a dictionary of scalar tensors, the same names at every
            step. `"loss"` is minimised; all are logged. `module` is to be *called* (it may be compiled or wrapped); the
            batch and the generator are on its device.
        dataset: See [`IndexedDataset`].
        parameter_groups: Parameter groups of the optimiser, where the default (decay for matrices, none for vectors) does not
            do. A group's `lr` replaces `config.learning_rate`.
        collate_fn: Turns a list of samples into a batch; default: PyTorch's.
        save_frozen: Whether checkpoints hold the parameters of `module` that do not require a gradient, too. Without them
            they are as small as what is trained; the module has to be built alike to resume.
        validate: `validate(module, step)` looks at what is trained so far (the moving average, where there is one) and
            returns numbers by name, for `validation.csv` and the trackers. It takes no time of `max_minutes`.
        settings: A dataclass with all that decides what is learnt, `config` as its `trainer`. The run keeps it, and goes on only
            with the same, but for what is said of the trainer, of validation and of where results go.

    Raises:
        ValueError: If nothing in `module` requires a gradient, `batch_size` does not divide into parts, nothing in `module`
            knows gradient checkpointing, a tracker is not installed, there is `validate` without `validate_every` or the other
            way round, or a moving average is asked for of parameters that are spread over processes.
    """

    def __init__(
        self,
        config: TrainerConfig,
        module: nn.Module,
        loss_fn: LossFunction,
        dataset: IndexedDataset,
        parameter_groups: list[dict[str, Any]] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        save_frozen: bool = True,
        validate: Callable[[nn.Module, int], dict[str, float]] | None = None,
        settings: Any = None,
    ):
        if (config.validate_every is None) != (validate is None):
            raise ValueError(
                f"`validate_every` is {config.validate_every}, but this training has "
                f"{'nothing' if validate is None else 'something'} to validate with: give both or neither."
            )
        self.config = config
        self.module = module
        self.loss_fn = loss_fn
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.validate = validate
        self.settings = _plain({"trainer": asdict(config)} if settings is None else asdict(settings))
        self._left_out = set()
        if not save_frozen:
            self._left_out = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        self.run_dir = Path(config.run_dir)
        self.step = 0
        self.seconds = 0.0

        if parameter_groups is None:
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            parameter_groups = [
                {"params": [p for p in trained if p.ndim >= 2]},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ]
        parameter_groups = [group for group in parameter_groups if len(group["params"]) > 0]
        if not parameter_groups:
            raise ValueError("Nothing to train: no parameter of `module` requires a gradient.")

        trackers = config.trackers
        if trackers is None:
            trackers = ("tensorboard",) if is_tensorboard_available() else ()
        available = [str(tracker) for tracker in get_available_trackers()]
        if missing := [
            name for name in trackers if name not in available
        ]:  # which accelerate would leave out silently
            raise ValueError(
                f"`trackers` names {missing[0]!r}, but installed are {', '.join(available) or 'none'}: install it first."
            )
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(trackers) or None,
            project_dir=config.run_dir,
            kwargs_handlers=[
                # parts of a model may lie idle in a step, such as plan attention where no sample has a plan
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # the others wait while the main process validates or saves, for longer than the usual 10 minutes
                InitProcessGroupKwargs(timeout=timedelta(hours=4)),
            ],
        )
        parts = self.accelerator.num_processes * config.gradient_accumulation
        if config.batch_size % parts:
            raise ValueError(
                f"`batch_size` is {config.batch_size}, but must be a multiple of {parts}: {self.accelerator.num_processes} "
                f"processes times `gradient_accumulation` {config.gradient_accumulation}."
            )
        # What accelerate spreads over processes it also gathers and saves itself.
        self._sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            if config.gradient_accumulation > 1:
                raise ValueError("`gradient_accumulation` is accelerate's: with DeepSpeed set it to 1.")
            plugin = self.accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size // parts
        if self._sharded and config.optimizer == "muon":
            raise ValueError("`optimizer` muon needs whole matrices: with FSDP or DeepSpeed set it to adamw.")
        if self._sharded and config.ema_decay is not None:
            raise ValueError(
                "`ema_decay` needs the whole model in every process: with FSDP or DeepSpeed set it to null."
            )
        if config.gradient_checkpointing:
            _enable_gradient_checkpointing(module)
        if self._sharded:
            self._whole = _without_weights(deepcopy(module))
        else:
            self.module.to(self.accelerator.device)
        self._ema = None
        if config.ema_decay is not None:
            self._ema = deepcopy(module).eval().requires_grad_(False)
        optimizer = OPTIMIZERS[config.optimizer](
            parameter_groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._prepared = torch.compile(self._wrapped) if config.compile else self._wrapped
        self._generator = torch.Generator(self.accelerator.device)
        self._waited = 0.0

    @property
    def device(self) -> torch.device:
        """Where the module is trained."""
        return self.accelerator.device

    def ema_module(self) -> nn.Module:
        """
        The module with the moving average of the weights, for evaluation and saving; without one, the module.

        A model that FSDP or DeepSpeed has spread over processes is gathered for saving: the main process gets its weights, on
        the CPU, the others a module without any.
        """
        if self._sharded:
            weights = self.accelerator.get_state_dict(self._wrapped)
            if self.accelerator.is_main_process:
                self._whole.load_state_dict(weights, assign=True)
            return self._whole
        return self.module if self._ema is None else self._ema

    def progress(self) -> float:
        """Position in the run, from 0 to 1."""
        minutes = 0.0 if self.config.max_minutes is None else self.seconds / 60 / self.config.max_minutes
        return min(1.0, max(self.step / self.config.steps, minutes))

    def learning_rate_factor(self) -> float:
        """What the learning rates are multiplied by at the current step."""
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        decay_fraction = self.config.decay_fraction
        decay = min(1.0, (1 - self.progress()) / decay_fraction) if decay_fraction > 0 else 1.0
        return warmup * decay

    def fit(self) -> nn.Module:
        """
        Trains to the end of the run, from the newest checkpoint if there is one.

        Ctrl-C and SIGTERM finish the step at hand and write a checkpoint first; a second Ctrl-C does not wait.

        Returns:
            The trained module: [`Trainer.ema_module`].

        Raises:
            ValueError: If the run was begun with other `settings`.
            FloatingPointError: If the loss is no longer finite. The checkpoints before it remain.
            KeyboardInterrupt: After Ctrl-C, when the checkpoint is written.
            SystemExit: After SIGTERM, likewise.
        """
        config, main = self.config, self.accelerator.is_main_process
        self._check_settings()
        self.accelerator.wait_for_everyone()
        if main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _replace(self.run_dir / "config.yaml", yaml.safe_dump(self.settings, sort_keys=False))
        self.accelerator.wait_for_everyone()
        self.resume()
        if self.progress() >= 1:
            return self.ema_module()

        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        count = 0
        self._waited, first_second = 0.0, self.seconds
        last_time = last_checkpoint = time.monotonic()
        with (
            _caught_signals() as caught,
            _LearningCurve(self.run_dir / "log.csv", self.step) if main else nullcontext() as curve,
            self._trackers(),
            tqdm(
                total=config.steps,
                initial=self.step,
                desc=self.run_dir.name,
                unit="step",
                mininterval=2,
                disable=not main,
            ) as bar,
        ):
            batches = self._batches()
            while True:
                for name, value in self._train_step(batches).items():
                    sums[name] = sums.get(name, 0.0) + value
                count += 1
                now = time.monotonic()
                self.seconds += now - last_time
                last_time = now
                bar.update()

                due = config.checkpoint_minutes is not None and now - last_checkpoint > 60 * config.checkpoint_minutes
                signalled, due = self._agree(caught[0] if caught else 0, due)
                ended = self.progress() >= 1
                checkpointing = ended or signalled or due or self.step % config.checkpoint_every == 0
                if self.step % config.log_every == 0 or checkpointing:
                    means = self._means(sums, count)
                    if not math.isfinite(means["loss"]):
                        raise FloatingPointError(
                            f"The loss is {means['loss']} within the {count} steps before step {self.step}. Run again to "
                            f"go on from the last checkpoint in {self.run_dir}, with a lower `learning_rate` or a "
                            "stronger `max_grad_norm`."
                        )
                    rate = self.optimizer.param_groups[0]["lr"]
                    waiting = self._waited / (self.seconds - first_second)
                    if main:
                        curve.write(self.step, self.step * config.batch_size, self.seconds, rate, means)
                    self.accelerator.log(
                        {**means, "learning_rate": rate, "seconds": self.seconds, "waiting_for_data": waiting},
                        self.step,
                    )
                    facts = {
                        "loss": f"{means['loss']:.4g}",
                        "done": f"{self.progress():.0%}",
                        "waits": f"{waiting:.1%}",
                    }
                    bar.set_postfix(facts, refresh=False)
                    sums, count = {}, 0
                if checkpointing:
                    self.save_checkpoint()
                    last_checkpoint = time.monotonic()
                if config.validate_every is not None and (ended or self.step % config.validate_every == 0):
                    self._validate()
                    last_time = time.monotonic()
                if ended:
                    break
                if signalled == signal.SIGTERM:
                    sys.exit(128 + signal.SIGTERM)
                if signalled:
                    raise KeyboardInterrupt
        if main:
            print(f"{self.run_dir}: step {self.step}; {waiting:.1%} of the time was spent waiting for data")
        return self.ema_module()

    def save_checkpoint(self) -> Path:
        """Writes weights, moving average, optimiser and position, whole or not at all; deletes what is too old to keep."""
        folder = self.run_dir / "checkpoints"
        position = {"step": self.step, "seconds": self.seconds}
        if self._sharded:
            path = folder / f"step_{self.step:08d}"
            temporary = path.with_suffix(".tmp")
            self.accelerator.save_state(str(temporary))
            if self.accelerator.is_main_process:
                (temporary / "position.json").write_text(json.dumps(position))
                for file in temporary.rglob("*"):
                    if file.is_file():
                        _flush(file)
        else:
            path = folder / f"step_{self.step:08d}.pt"
            temporary = path.with_suffix(".tmp")
            if self.accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                state = {
                    "module": self._saved(self.module),
                    "ema": None if self._ema is None else self._saved(self._ema),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                    **position,
                }
                torch.save(state, temporary)
                _flush(temporary)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if path.is_dir():  # of the same step, by a run that was resumed and interrupted at once
                shutil.rmtree(path)
            os.replace(temporary, path)
            for old in checkpoints(self.run_dir)[: -self.config.keep_checkpoints]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.accelerator.wait_for_everyone()
        return path

    def _check_settings(self) -> None:
        path = self.run_dir / "config.yaml"
        if not path.is_file() or not checkpoints(self.run_dir):
            return
        begun = yaml.safe_load(path.read_text())
        for name in {**begun, **self.settings}:
            if name not in _OF_THE_RUN and begun.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.run_dir} was begun with `{name}` {begun.get(name)!r}, and cannot go on with "
                    f"{self.settings.get(name)!r}: give another `trainer.run_dir`, with this one's export as `initial` to start there."
                )

    def resume(self) -> bool:
        """Loads the newest checkpoint of the run; returns whether there was one."""
        if self.accelerator.is_main_process:
            for leftover in (self.run_dir / "checkpoints").glob("*.tmp"):  # of a run that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        self.accelerator.wait_for_everyone()
        paths = checkpoints(self.run_dir)
        if not paths:
            return False
        if paths[-1].is_dir():
            self.accelerator.load_state(str(paths[-1]))
            state = json.loads((paths[-1] / "position.json").read_text())
        else:
            state = torch.load(paths[-1], map_location=self.device, weights_only=True)
            self._load(self.module, state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if self._ema is not None:
                self._load(self._ema, state["module"] if state["ema"] is None else state["ema"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        return True

    def _validate(self) -> None:
        module = self.ema_module()
        if self.accelerator.is_main_process:
            module.to(self.device).eval()  # what was gathered is on the CPU
            with torch.no_grad():
                values = self.validate(module, self.step)
            if values:
                with _LearningCurve(self.run_dir / "validation.csv", self.step - 1) as curve:
                    curve.write_row({"step": self.step, **values})
            self.accelerator.log({f"validation.{name}": value for name, value in values.items()}, self.step)
        if self._sharded:
            _without_weights(module)
        self.accelerator.wait_for_everyone()
        self.module.train()

    def _saved(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: value for name, value in module.state_dict().items() if name not in self._left_out}

    def _load(self, module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        frozen = {name: value for name, value in module.state_dict().items() if name in self._left_out}
        module.load_state_dict({**frozen, **weights})

    @contextmanager
    def _trackers(self) -> Iterator[None]:
        # Rows of steps that a resumed run makes again are dropped from tensorboard as from log.csv.
        facts = {key: value for key, value in asdict(self.config).items() if isinstance(value, (int, float, str))}
        options = {
            "tensorboard": {"purge_step": self.step + 1},
            "wandb": {"name": self.run_dir.name, "dir": str(self.run_dir)},
        }
        self.accelerator.init_trackers("tracked", facts, options)
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def _agree(self, signalled: int, due: bool) -> tuple[int, bool]:
        # Processes have clocks of their own, and a signal reaches them at different steps: the largest value counts.
        if self.accelerator.num_processes > 1:
            values = torch.tensor([[signalled, due, self.seconds]], dtype=torch.float64, device=self.device)
            signalled, due, self.seconds = self.accelerator.gather(values).amax(dim=0).tolist()
        return int(signalled), bool(due)

    def _means(self, sums: dict[str, torch.Tensor], count: int) -> dict[str, float]:
        values = torch.stack([torch.as_tensor(value, device=self.device).float() for value in sums.values()])
        return dict(zip(sums, (self.accelerator.reduce(values, "mean") / count).tolist(), strict=True))

    def _batches(self) -> Iterator[Any]:
        config, accelerator = self.config, self.accelerator
        part_size = config.batch_size // (accelerator.num_processes * config.gradient_accumulation)
        loader = DataLoader(
            self.dataset,
            batch_size=part_size,
            sampler=_Parts(
                self.step, config.batch_size, part_size, accelerator.process_index, accelerator.num_processes
            ),
            collate_fn=self.collate_fn,
            num_workers=config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield _to_device(batch, self.device)

    def _train_step(self, batches: Iterator[Any]) -> dict[str, torch.Tensor]:
        factor = self.learning_rate_factor()
        for group, base_rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base_rate * factor

        means: dict[str, torch.Tensor] = {}
        accumulation = self.config.gradient_accumulation
        for i in range(accumulation):
            started = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - started
            part = i * self.accelerator.num_processes + self.accelerator.process_index
            seed = step_seed(self.config.seed, self.step, part)
            self._generator.manual_seed(seed)
            torch.manual_seed(seed)  # for dropout and the like, which take no generator
            last = i == accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self._wrapped):
                losses = self.loss_fn(self._prepared, batch, self._generator, self.step)
                self.accelerator.backward(losses["loss"] / accumulation)
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value.detach() / accumulation
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema()
        self.step += 1
        return means

    @torch.no_grad()
    def _update_ema(self) -> None:
        if self._ema is None:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages, values = [], []
        for average, value in zip(self._ema.state_dict().values(), self.module.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of a generator: well-mixed bits of the run's seed, the step's number and the part of the step."""
    return int(np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0])


def checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first: files, or folders where accelerate saved a model spread over processes."""
    paths = (Path(run_dir) / "checkpoints").glob("step_*")
    return sorted((path for path in paths if path.suffix != ".tmp"), key=lambda path: path.stem)


def load_checkpoint(run_dir: str | Path, module: nn.Module, ema: bool = True) -> int:
    """
    Loads the weights of a run's newest checkpoint, to use or export them beside the training.

    Args:
        run_dir: Folder of the run.
        module: The module that was trained, built alike.
        ema: Whether to take the moving average, where the run keeps one.

    Returns:
        The step of the checkpoint.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        ValueError: If its weights are spread over files, as processes that share a model write them.
    """
    paths = checkpoints(run_dir)
    if not paths:
        raise FileNotFoundError(f"No checkpoint in {Path(run_dir) / 'checkpoints'}.")
    if paths[-1].is_dir():
        raise ValueError(
            f"{paths[-1]} is spread over processes: export it by running the training's own command, in as many, to its end."
        )
    state = torch.load(paths[-1], map_location="cpu", weights_only=True)
    module.load_state_dict(state["ema"] if ema and state["ema"] is not None else state["module"])
    return state["step"]


def load_config(path: str | Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """
    Reads a YAML file into a dataclass, whose fields may be dataclasses.

    Args:
        path: The file; its keys are the fields of `cls`.
        cls: The dataclass.
        overrides: `key=value` texts, as from the command line; the key of a nested field is dotted
            (`trainer.steps=100`), the value is YAML.

    Raises:
        ValueError: For an unknown or missing key, or a value of the wrong type, naming it.
    """
    with open(path) as file:
        values = yaml.safe_load(file) or {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"An override reads `key=value`, got {override!r}.")
        *parents, name = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ValueError(f"Override {override!r}: `{parent}` is a value, it holds no keys.")
        section[name] = yaml.safe_load(text)
    return _build(cls, values, str(path), "")


def _build(cls: type[Config], values: Any, source: str, prefix: str) -> Config:
    if not isinstance(values, dict):
        raise ValueError(f"{source}: `{prefix.rstrip('.')}` must hold the keys of {cls.__name__}, got {values!r}.")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    if unknown := [key for key in values if key not in known]:
        raise ValueError(
            f"{source}: unknown key `{prefix}{unknown[0]}` for {cls.__name__}; it knows {', '.join(known)}."
        )
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{source}: `{prefix}{name}` is missing and {cls.__name__} has no default for it.")
    return cls(**{key: _convert(hints[key], value, source, prefix + key) for key, value in values.items()})


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
        return _convert(hint, value, source, key)
    if is_dataclass(hint):
        return _build(hint, value, source, key + ".")
    expected = origin or hint
    if expected is Any:
        return value
    if expected is tuple and isinstance(value, list):
        return tuple(value)
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads "1e-3" as text: its floats need a point.
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", str(value)):
            return float(value)
    if expected is str and value is False:
        return "no"  # as in `mixed_precision=no`, which YAML 1.1 reads as false
    if expected is int and isinstance(value, bool) or not isinstance(value, expected):
        raise ValueError(f"{source}: `{key}` must be {expected.__name__}, got {value!r}.")
    return value


def _plain(value: Any) -> Any:
    # YAML's safe dump knows no tuples.
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _to_device(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _without_weights(module: nn.Module) -> nn.Module:
    # Parameters that have a shape and no data. Buffers stay: those that are not saved could not be loaded again.
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(value.to("meta"), requires_grad=value.requires_grad))
    return module


def _enable_gradient_checkpointing(module: nn.Module) -> None:
    models = [part for part in module.modules() if isinstance(part, (ModelMixin, PreTrainedModel))]
    able = [part for part in models if getattr(part, "_supports_gradient_checkpointing", False)]
    able += [part for part in models if getattr(part, "supports_gradient_checkpointing", False)]
    if not able:
        raise ValueError("`gradient_checkpointing` is set, but no part of `module` knows it.")
    for part in able:
        if isinstance(part, ModelMixin):
            part.enable_gradient_checkpointing()
        else:
            part.gradient_checkpointing_enable()


def _flush(path: Path) -> None:
    # To the disk, so that after a power cut, too, what has its name is whole.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _replace(path: Path, text: str) -> None:
    # Whole or not at all.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class _Parts(Sampler[int]):
    # The samples of one process, from a step on: parts `process`, `process + num_processes`, ... of every step.
    def __init__(self, step: int, batch_size: int, part_size: int, process: int, num_processes: int):
        self.step = step
        self.batch_size = batch_size
        self.part_size = part_size
        self.process = process
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[int]:
        stride = self.part_size * self.num_processes
        start = self.step * self.batch_size + self.process * self.part_size
        while True:
            yield from range(start, start + self.part_size)
            start += stride


class _LearningCurve:
    # A file of rows that begin with a step; those of steps that a resumed run makes again are dropped.
    def __init__(self, path: Path, step: int):
        self.path = path
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                rows = list(csv.reader(file))
        self.header = rows[0] if rows else None
        self._kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= step]

    def __enter__(self):
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            if self.header is not None:
                csv.writer(file).writerows([self.header, *self._kept])
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", newline="")
        self._writer = csv.writer(self._file)
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, step: int, samples: int, seconds: float, learning_rate: float, losses: dict[str, float]) -> None:
        facts = {
            "step": step,
            "samples": samples,
            "seconds": f"{seconds:.1f}",
            "learning_rate": f"{learning_rate:.6g}",
        }
        self.write_row({**facts, **{name: f"{value:.6g}" for name, value in losses.items()}})

    def write_row(self, values: dict[str, Any]) -> None:
        header = list(values)
        if self.header is None:
            self.header = header
            self._writer.writerow(header)
        if header != self.header:
            raise ValueError(f"{self.path} has the columns {self.header}, but now there are {header}.")
        self._writer.writerow(values.values())
        self._file.flush()


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    # Collects Ctrl-C and SIGTERM instead of dying of them; a second Ctrl-C acts at once. Python lets only the main
    # thread set handlers: elsewhere nothing is caught.
    caught: list[int] = []

    def catch(number, frame):
        if number in caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, catch)
    except ValueError:
        pass
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
