"""What trainings are told: dataclasses, and the YAML files that they are read from. Nothing here imports torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError


Config = TypeVar("Config")

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("no", "fp16", "bf16")


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
        optimizer: "adamw", or "muon" ([`~training.muon.Muon`]), whose steps cost more; some trainings need ten times fewer.
        weight_decay: The optimiser's, on tensors of two or more dimensions; vectors and scalars are not decayed.
        betas: AdamW's; with Muon those of vectors and scalars.
        max_grad_norm: Total gradient norm to clip to; None clips nothing.
        ema_decay: Decay of the moving average of the trained weights, warmed up as `(1 + step) / (10 + step)`; None keeps none.
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

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "gradient_accumulation", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"`validate_every` must be at least 1, or None, got {self.validate_every}.")
        for name in ("warmup_steps", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.seed >= 2**63:
            raise ValueError(f"`seed` must be less than 2**63, got {self.seed}.")
        for name in ("learning_rate", "max_grad_norm", "max_minutes", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be a positive number, got {value}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` must be a number from 0 on, got {self.weight_decay}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` must be in [0, 1), got {self.betas}.")
        for name, known in (("optimizer", OPTIMIZERS), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"`decay_fraction` is a share of the run, in [0, 1], got {self.decay_fraction}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), or None for no moving average, got {self.ema_decay}.")


def load_config(path: str | Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """
    Reads a YAML file into a dataclass, whose fields may be dataclasses.

    Args:
        path: The file; its keys are the fields of `cls`.
        cls: The dataclass.
        overrides: `key=value` texts, as from the command line; the key of a nested field is dotted
            (`trainer.steps=100`), the value is YAML.

    Raises:
        ValueError: For a file that is not there or no YAML, an unknown or missing key, or a value of the wrong type, naming it.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Yaml)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a YAML file: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold the keys of {cls.__name__}, such as `trainer:`, but it holds {values!r}.")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"An override reads `key=value`, got {override!r}.")
        *parents, name = key.split(".")
        section = values
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise ValueError(f"Override {override!r}: `{parent}` is a value, it holds no keys.")
        try:
            section[name] = yaml.load(text, _Yaml)
        except yaml.YAMLError as error:
            raise ValueError(f"Override {override!r}: the value is not YAML: {error}") from error
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] == "missing")  # a misspelt key is missing, too
        raise ValueError(f"{path}: {_sentence(cls, first)}") from None
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans and floats: `no` is a word, and `1e-4` a number. Dates are words, too."""


_Yaml.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({_FLOAT})$"), list("-+.0123456789"))


def _sentence(cls: type, error: dict[str, Any]) -> str:
    """What is wrong with a value, by pydantic's first error."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"`{place}` is missing, and has no default."
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = ", ".join(field.name for field in fields(_section(cls, error["loc"][:-1])))
        return f"unknown key `{place}`; it may be one of {known}."
    if error["type"] == "dataclass_type":
        return f"`{place}` must hold the keys of {error['ctx']['class_name']}, got {error['input']!r}."
    return f"`{place}` is {error['input']!r}, but it {error['msg'].removeprefix('Input ')}."


def _section(cls: type, keys: Sequence[str]) -> type:
    """The dataclass of a nested field."""
    for key in keys:
        hint = get_type_hints(cls)[key]
        cls = next(option for option in (hint, *get_args(hint)) if is_dataclass(option))
    return cls
