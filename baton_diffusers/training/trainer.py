"""The training loop of all parts of the system; it can be stopped and resumed at any step.

A run is a folder with `config.yaml`, `log.csv` (the learning curves) and `checkpoints/`. The same command goes on from the newest
checkpoint. With `accelerate launch`, it trains in several processes.
"""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, is_tensorboard_available
from diffusers import ModelMixin
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from ..files import make_folder, write_bytes
from .average import WeightAverage, local
from .checkpoint import (
    finish_folder,
    newest_checkpoint,
    read_checkpoint,
    read_position,
    remove_checkpoints,
    remove_leftovers,
    run_lock,
    write_checkpoint,
)
from .config import TrainerConfig
from .muon import Muon
from .precision import float32_attention
from .seeds import step_seed


OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}

# Settings that may change when a run is continued.
_OF_THE_RUN = ("trainer", "validation", "evaluation_scenes", "output", "export")


class IndexedDataset(Protocol):
    """Data without an end: any non-negative index gives a sample, the same one every time."""

    def __getitem__(self, index: int) -> Any: ...


LossFunction = Callable[[nn.Module, Any, torch.Generator, int], dict[str, torch.Tensor]]


class Trainer:
    """
    Minimises a loss over an endless dataset, and can be stopped and resumed at any step.

    Step `s` sees the samples `s * batch_size ... (s + 1) * batch_size - 1`, in `processes * gradient_accumulation` equal parts. Each
    part has its own generator, seeded by the run's seed, `s` and the part's number. So a resumed run makes the same steps as an
    uninterrupted one, and several processes make the same steps as one process with as many parts.

    Args:
        config: See [`TrainerConfig`].
        module: The module; parameters that require a gradient are trained.
        loss_fn: `loss_fn(module, batch, generator, step)` returns a dictionary of scalar tensors, the same names at every
            step. `"loss"` is minimised; all are logged. It *calls* `module` once (the module may be compiled or wrapped). Batch and
            generator are on its device. If the loss has models of its own, its method `to(device)` moves them; if it has an
            attribute `average`, that becomes the [`WeightAverage`] of the module.
        dataset: See [`IndexedDataset`].
        parameter_groups: Parameter groups of the optimiser; by default weight decay for matrices and none for vectors. A group's
            `lr` replaces `config.learning_rate`.
        collate_fn: Turns a list of samples into a batch; default: PyTorch's.
        save_frozen: Whether checkpoints also hold frozen parameters. Without them they are smaller, and a resumed run takes the
            frozen parameters of `module`.
        validate: `validate(module, step)` gets the module with its current weights (their moving average, if there is one) and
            returns numbers by name, for `validation.csv` and the trackers. Its time does not count for `max_minutes`.
        settings: A dataclass of all settings, with `config` as its `trainer`. A run goes on only with equal settings, except for
            the trainer's, validation's and output folders.

    Raises:
        ValueError: If nothing in `module` requires a gradient, `batch_size` does not divide into parts, nothing in `module`
            knows gradient checkpointing, a tracker is not installed, there is `validate` without `validate_every` or the other
            way round, or FSDP or DeepSpeed cannot serve the `optimizer` or `ema_decay`.
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
                # some parameters have no gradient in a step, such as plan attention in a batch without plans
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
        # accelerate gathers and saves sharded models itself.
        self._sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            if config.gradient_accumulation > 1:
                raise ValueError("`gradient_accumulation` is accelerate's: with DeepSpeed set it to 1.")
            if config.ema_decay is not None:
                raise ValueError(
                    "`ema_decay` needs weights that DeepSpeed keeps to itself: set it to null, or take FSDP."
                )
            plugin = self.accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size // parts
        if self._sharded and config.optimizer == "muon":
            raise ValueError("`optimizer` muon needs whole matrices: with FSDP or DeepSpeed set it to adamw.")
        if config.gradient_checkpointing:
            _enable_gradient_checkpointing(module)
        if self._sharded:
            self._whole = _without_weights(deepcopy(module))
        else:
            self.module.to(self.device)
        if hasattr(loss_fn, "to"):
            loss_fn.to(self.device)
        optimizer = OPTIMIZERS[config.optimizer](
            parameter_groups,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._prepared = torch.compile(self._wrapped) if config.compile is True else self._wrapped
        if config.compile == "regional":
            _compile_repeated_blocks(module)
        self._average = None if config.ema_decay is None else WeightAverage(self.module, config.ema_decay)
        if hasattr(loss_fn, "average"):
            loss_fn.average = self._average
        self._generator = torch.Generator(self.device)
        self._waited = 0.0

    @property
    def device(self) -> torch.device:
        """The device of the training."""
        return self.accelerator.device

    def trained_module(self) -> nn.Module:
        """
        Ends the training. Returns the module with the moving average of its weights, if there is one, in evaluation mode.

        A model sharded by FSDP or DeepSpeed is gathered: the main process gets its weights, on the CPU, the others a module
        without weights.
        """
        if self._average is not None:
            self._average.swap()
            self._average = None
        return self._gathered().eval()

    def _gathered(self) -> nn.Module:
        if not self._sharded:
            return self.module
        weights = self.accelerator.get_state_dict(self._wrapped)
        if self.accelerator.is_main_process:
            self._whole.load_state_dict(weights, assign=True)
        return self._whole

    def progress(self) -> float:
        """Position in the run, from 0 to 1."""
        minutes = 0.0 if self.config.max_minutes is None else self.seconds / 60 / self.config.max_minutes
        return min(1.0, max(self.step / self.config.steps, minutes))

    def learning_rate_factor(self) -> float:
        """The factor of all learning rates at the current step."""
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        decay_fraction = self.config.decay_fraction
        decay = min(1.0, (1 - self.progress()) / decay_fraction) if decay_fraction > 0 else 1.0
        return warmup * decay

    def fit(self) -> nn.Module:
        """
        Trains to the end of the run, from the newest checkpoint if there is one.

        Ctrl-C and SIGTERM finish the step at hand and write a checkpoint first; a second Ctrl-C does not wait.

        Returns:
            The trained module: [`Trainer.trained_module`].

        Raises:
            ValueError: If the run was begun with other `settings`, another training is in its folder, or all its checkpoints are
                damaged.
            FloatingPointError: If the loss or a weight is no longer finite. The checkpoints before it remain.
            KeyboardInterrupt: After Ctrl-C, when the checkpoint is written.
            SystemExit: After SIGTERM, likewise.
        """
        with ExitStack() as stack:
            self._on_main(lambda: self._take_run_dir(stack))
            self.resume()
            self._on_main(self._write_settings)
            if self.device.type == "cpu" and self.config.mixed_precision == "bf16":
                stack.enter_context(float32_attention())
            if self.progress() < 1:
                self._fit()
        return self.trained_module()

    def _fit(self) -> None:
        config, main = self.config, self.accelerator.is_main_process
        self._train_mode()
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
                            f"The loss is {means['loss']} within the {count} steps before step {self.step}. "
                            + self._how_to_go_on()
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
                    self._check_weights()
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

    def save_checkpoint(self) -> Path:
        """Writes weights, moving average, optimiser and position, whole or not at all. Deletes old checkpoints."""
        position = {"step": self.step, "seconds": self.seconds, "settings": self.settings}
        path = self.run_dir / "checkpoints" / f"step_{self.step:08d}"
        if self._sharded:
            temporary = path.with_suffix(".tmp")
            self.accelerator.save_state(str(temporary))
            if self._average is not None:
                torch.save(self._average.state_dict(), temporary / self._shards_name())
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                finish_folder(temporary, path, position)
        else:
            path = path.with_suffix(".pt")
            if self.accelerator.is_main_process:
                module = self.module.state_dict()
                state = {
                    "module": {name: value for name, value in module.items() if name not in self._left_out},
                    "ema": None if self._average is None else self._average.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                    **position,
                }
                write_checkpoint(path, state)
        if self.accelerator.is_main_process:
            remove_checkpoints(self.run_dir, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self) -> bool:
        """Loads the newest checkpoint of the run that is whole; returns whether there was one.

        Raises:
            ValueError: If the run was begun with other `settings`, or all its checkpoints are damaged.
        """
        found: list[Path | None] = [None]
        self._on_main(lambda: found.append(newest_checkpoint(self.run_dir)))
        path = broadcast_object_list(found[-1:])[0]
        if path is None:
            return False
        state = read_position(path) if path.is_dir() else read_checkpoint(path)
        self._check_settings(state["settings"])
        if path.is_dir():
            self.accelerator.load_state(str(path))
            if self._average is not None:
                shards = path / self._shards_name()
                if not shards.is_file():
                    raise ValueError(
                        f"{path} has no {shards.name}: go on with as many processes, and `ema_decay`, as before."
                    )
                self._average.load_state_dict(torch.load(shards, weights_only=True))
        else:
            frozen = {name: value for name, value in self.module.state_dict().items() if name in self._left_out}
            self.module.load_state_dict({**frozen, **state["module"]})
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            if self._average is not None:
                self._average.load_state_dict(state["module"] if state["ema"] is None else state["ema"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        return True

    def _take_run_dir(self, stack: ExitStack) -> None:
        make_folder(self.run_dir)
        stack.enter_context(run_lock(self.run_dir))
        remove_leftovers(self.run_dir)

    def _write_settings(self) -> None:
        text = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
        write_bytes(self.run_dir / "config.yaml", text.encode())

    def _check_settings(self, begun: dict[str, Any]) -> None:
        for name in {**begun, **self.settings}:
            if name not in _OF_THE_RUN and begun.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.run_dir} was begun with `{name}` {begun.get(name)!r}, and cannot go on with "
                    f"{self.settings.get(name)!r}: give another `trainer.run_dir`, with this one's export as `initial` to start there."
                )

    def _on_main(self, do: Callable[[], Any]) -> None:
        """Calls `do` in the main process; its error is raised in all processes."""
        errors: list[Exception | None] = [None]
        if self.accelerator.is_main_process:
            try:
                do()
            except (OSError, ValueError) as error:
                errors = [error]
        broadcast_object_list(errors)
        if errors[0] is not None:
            raise errors[0]

    def _shards_name(self) -> str:
        return f"ema-{self.accelerator.process_index}-of-{self.accelerator.num_processes}.pt"

    def _train_mode(self) -> None:
        """Training mode; frozen parts stay in evaluation mode, without dropout."""
        self._wrapped.train()
        for part in self.module.modules():
            parameters = [*part.parameters()]
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()

    def _check_weights(self) -> None:
        """Refuses to keep weights that are not finite."""
        trained = [(name, local(value)) for name, value in self.module.named_parameters() if value.requires_grad]
        finite = torch.stack([value.isfinite().all() for _, value in trained])
        if self.accelerator.reduce(finite.float(), "mean").min() < 1:
            names = [name for (name, _), good in zip(trained, finite.tolist(), strict=True) if not good]
            where = f"`{names[0]}` and {len(names) - 1} more" if names else "of another process"
            raise FloatingPointError(f"Weights are not finite after step {self.step}: {where}. {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        return (
            f"Run again to go on from the last checkpoint in {self.run_dir}, with a lower `learning_rate` or a smaller "
            "`max_grad_norm`."
        )

    def _validate(self) -> None:
        with self._average.applied() if self._average is not None else nullcontext():
            module = self._gathered()
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
        self._train_mode()

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
            prefetch_factor=4 if config.num_workers else None,
            worker_init_fn=_single_thread,
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
        if self._average is not None:
            self._average.update(self.step)
        self.step += 1
        return means


def _plain(value: Any) -> Any:
    # YAML's safe dump knows no tuples.
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _to_device(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _without_weights(module: nn.Module) -> nn.Module:
    # Makes the parameters meta tensors. Buffers stay: those that are not saved could not be loaded again.
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(value.to("meta"), requires_grad=value.requires_grad))
    return module


def _compile_repeated_blocks(module: nn.Module) -> None:
    able = [part for part in module.modules() if isinstance(part, ModelMixin) and part._repeated_blocks]
    if not able:
        raise ValueError('`compile` is "regional", but no part of `module` has repeated blocks: set it to true.')
    for part in able:
        part.compile_repeated_blocks()


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


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)  # workers are many, and each reads and writes text


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
    # A file of rows that begin with a step. Rows of steps that a resumed run repeats are dropped.
    def __init__(self, path: Path, step: int):
        self.path = path
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                rows = list(csv.reader(file))
        self._kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= step]
        self.header = rows[0] if self._kept else None

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
