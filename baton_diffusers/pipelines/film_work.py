"""The folder that keeps a film while it is made: its plans and the latents of its windows, each under the hash of what it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import files
from ..plan import SemanticPlan
from .components import PipelineParts
from .film_plan import Section


_FORMAT = "baton_diffusers.film.3"
_SAMPLES = 64  # values of each weight that identify it


@dataclass(frozen=True)
class Kept:
    """A window that was made.

    Args:
        latents (`torch.Tensor` of shape `(1, num_channels, num_latent_frames, latent_height, latent_width)`): on the CPU.
        audio_latents (`torch.Tensor` of shape `(1, audio_length, audio_channels)`): on the CPU.
        shared (`torch.Tensor`, *optional*): the video latents that the window before shares with it, as that one has them.
        colours (`torch.Tensor` of shape `(3,)`, *optional*): of the background, to which it was held.
    """

    latents: torch.Tensor
    audio_latents: torch.Tensor
    shared: torch.Tensor | None = None
    colours: torch.Tensor | None = None


class Work:
    """A work folder. What is written appears whole or not at all; what cannot be read, or was changed, is made again.

    Args:
        folder (`Path`): the folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, **parts: Any) -> str:
        """The hash of everything that something is made of."""
        return digest_of([_FORMAT, torch.__version__, sorted(parts.items())])

    def _window(self, take: int, index: int) -> Path:
        return self.folder / f"take-{take + 1:03d}-window-{index + 1:05d}.safetensors"

    def read(self, take: int, index: int, key: str) -> Kept | None:
        """A window that was made of what `key` says, or `None`."""
        kept, found = self._read(take, index)
        return kept if found == key else None

    def read_any(self, take: int, index: int) -> Kept | None:
        """A window, whatever it was made of, or `None`."""
        return self._read(take, index)[0]

    def _read(self, take: int, index: int) -> tuple[Kept | None, str | None]:
        path = self._window(take, index)
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})[_FORMAT])
                kept = Kept(**{name: file.get_tensor(name) for name in file.keys()})
            return (kept, told["key"]) if told["digest"] == digest_of(vars(kept)) else (None, None)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
            return None, None

    def keep(self, take: int, index: int, key: str, kept: Kept) -> Kept:
        """Writes a window.

        Raises:
            OSError: if it cannot be written; all that was kept before stays.
        """
        tensors = {name: tensor.contiguous() for name, tensor in vars(kept).items() if tensor is not None}
        told = {"key": key, "digest": digest_of(vars(kept))}
        path = self._window(take, index)
        with self._writing(path):
            files.write_bytes(path, save(tensors, metadata={_FORMAT: json.dumps(told)}))
        return kept

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error.strerror or error}); {self.folder} keeps what was made before: make room, and "
                "run the same again"
            ) from error

    def _plan(self, take: int) -> Path:
        return self.folder / f"take-{take + 1:03d}-plan"

    def read_plan(self, take: int, key: str) -> tuple[list[Section], SemanticPlan | None] | None:
        """Sections and plan of a take that were made of what `key` says, or `None`."""
        path = self._plan(take)
        try:
            told = files.read_json(path.with_suffix(".json"))
            if told["key"] != key:
                return None
            sections = [Section(**section) for section in told["sections"]]
            if not told["has_plan"]:
                return sections, None
            plan = SemanticPlan.load(path.with_suffix(".safetensors"))
            return (sections, plan) if digest_of(plan) == told["digest"] else None
        except (ValueError, KeyError, TypeError):
            return None

    def keep_plan(self, take: int, key: str, sections: Sequence[Section], plan: SemanticPlan | None) -> None:
        """Writes sections and plan of a take.

        Raises:
            OSError: as `keep`.
        """
        path = self._plan(take)
        told = {
            "key": key,
            "has_plan": plan is not None,
            "digest": digest_of(plan),
            "sections": [asdict(section) for section in sections],
        }
        with self._writing(path.with_suffix(".safetensors")):
            if plan is not None:
                plan.save(path.with_suffix(".safetensors"))
            files.write_json(path.with_suffix(".json"), told)

    def is_written(self, path: str | Path, scale: int) -> bool:
        """Whether `note_written` was called for the film as it is there, and its windows are the same since."""
        try:
            return files.read_json(self.folder / "written.json") == self._state(path, scale)
        except (ValueError, OSError):
            return False

    def note_written(self, path: str | Path, scale: int) -> None:
        """Notes that the film was written from the windows that are there."""
        files.write_json(self.folder / "written.json", self._state(path, scale))

    def _state(self, path: str | Path, scale: int) -> dict[str, Any]:
        written = Path(path).resolve()
        windows = [[window.name, window.stat().st_mtime_ns] for window in sorted(self.folder.glob("take-*-window-*"))]
        return {
            "film": [str(written), written.stat().st_size, written.stat().st_mtime_ns],
            "scale": scale,
            "windows": windows,
        }


def digest_of(value: Any) -> str:
    """The SHA-256 of a value: numbers, texts, arrays, tensors, dataclasses, and sequences and mappings of these."""
    hasher = hashlib.sha256()
    for part in _bytes_of(value):
        hasher.update(part)
    return hasher.hexdigest()


def _bytes_of(value: Any) -> Iterator[bytes]:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        yield value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype.str} {value.shape};".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, SemanticPlan):  # what is rendered of it, without the texts that it was made from
        named = [(field.name, getattr(value, field.name)) for field in fields(value)]
        yield from _bytes_of(
            {name: part for name, part in named if name == "duration" or isinstance(part, torch.Tensor)}
        )
    elif is_dataclass(value):
        yield f"{type(value).__name__} {{".encode()
        for field in fields(value):
            yield f"{field.name}=".encode()
            yield from _bytes_of(getattr(value, field.name))
        yield b"}"
    elif isinstance(value, Mapping):
        yield b"{"
        for name in sorted(value, key=str):
            yield f"{name!r}:".encode()
            yield from _bytes_of(value[name])
        yield b"}"
    elif isinstance(value, (list, tuple)):
        yield f"[{len(value)} ".encode()
        for part in value:
            yield from _bytes_of(part)
        yield b"]"
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield f"{type(value).__name__} {value!r};".encode()
    else:
        raise TypeError(f"a {type(value).__name__} has no digest")


def fingerprint(pipe: PipelineParts) -> str:
    """A hash of a pipeline: its settings, the configurations of its components, and some values of each of their weights. Training
    changes nearly all values, so that these tell one checkpoint from another."""
    parts: dict[str, Any] = {"settings": _plain(dict(pipe.config)), "device": pipe._execution_device.type}
    for name, component in pipe.components.items():
        config = getattr(component, "config", None)
        config = config.to_dict() if hasattr(config, "to_dict") else config
        parts[name] = [type(component).__name__, _plain(dict(config) if isinstance(config, Mapping) else None)]
        if isinstance(component, torch.nn.Module):
            parts[name].append([[key, _sampled(weight)] for key, weight in _weights(component)])
            parts[name].append([_plain(state) for state in map(_adapters, component.modules()) if state])
        elif callable(getattr(component, "get_vocab", None)):
            parts[name].append(_plain(component.get_vocab()))
    return digest_of(parts)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if (
                weight.is_meta and getattr(hook, "weights_map", None) is not None
            ):  # offloaded, and brought when the layer runs
                weight = hook.weights_map[name]
            yield f"{prefix}.{name}", weight


def _adapters(module: torch.nn.Module) -> dict[str, Any]:
    """Which LoRA adapters of a layer are on, and how much."""
    names = ("active_adapters", "scaling", "disable_adapters")
    return (
        {name: getattr(module, name) for name in names} if isinstance(getattr(module, "scaling", None), dict) else {}
    )


def _sampled(weight: torch.Tensor) -> list[Any]:
    values = weight.detach().flatten()
    if not values.is_meta and len(values):
        values = values[:: max(len(values) // _SAMPLES, 1)].to("cpu", torch.float32)
        return [str(weight.dtype), tuple(weight.shape), values]
    return [str(weight.dtype), tuple(weight.shape)]


def _plain(value: Any) -> Any:
    """A configuration as texts and numbers, without what diffusers notes in it: where it was loaded from, and, in an order that differs
    by process, which values are defaults."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if not str(name).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
