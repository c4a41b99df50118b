"""Checkpoints of a run: written whole or not at all, checked when they are read, by one training at a time."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn


_POSITION = "position.json"  # in a checkpoint folder: the run's position, and the sizes of the files


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """
    Keeps other trainings out of a run's folder.

    Raises:
        ValueError: If another one is in it.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another training is running in {run_dir}: wait until it ends, or give another `trainer.run_dir`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first: files, or folders for a model that is sharded over processes."""
    paths = (Path(run_dir) / "checkpoints").glob("step_*")
    return sorted((path for path in paths if path.suffix in ("", ".pt")), key=lambda path: path.stem)


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """
    The newest checkpoint that is whole, or None if the run has none. Damaged ones are renamed, `step_00000100.pt.damaged`, with a
    warning.

    Raises:
        ValueError: If the run has checkpoints, and all are damaged.
    """
    paths = checkpoints(run_dir)
    for path in reversed(paths):
        reason = _damage(path)
        if reason is None:
            return path
        damaged = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink(missing_ok=True)
        path.rename(damaged)
        warnings.warn(
            f"{path} is damaged ({reason}): it is now {damaged.name}, and the checkpoint before it is used.",
            stacklevel=2,
        )
    if paths:
        raise ValueError(
            f"all checkpoints in {paths[0].parent} are damaged: delete the folder to begin the run again."
        )
    return None


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint that is one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    flush(temporary)
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What [`write_checkpoint`] wrote, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def finish_folder(temporary: Path, path: Path, position: dict[str, Any]) -> None:
    """Gives a checkpoint folder its final name, once all processes have written into `temporary`."""
    for file in temporary.rglob("*"):
        if file.is_file():
            flush(file)
    (temporary / _POSITION).write_text(json.dumps({**position, "files": _sizes(temporary)}))
    flush(temporary / _POSITION)
    if path.is_dir():  # of the same step, by a run that was resumed and interrupted at once
        shutil.rmtree(path)
    os.replace(temporary, path)


def read_position(path: Path) -> dict[str, Any]:
    """The run's position, from a checkpoint folder."""
    return json.loads((path / _POSITION).read_text())


def remove_checkpoints(run_dir: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints."""
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def remove_leftovers(run_dir: Path) -> None:
    """Deletes half-written checkpoints of killed runs."""
    for leftover in (run_dir / "checkpoints").glob("*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def load_checkpoint(run_dir: str | Path, module: nn.Module, ema: bool = True) -> int:
    """
    Loads the weights of a run's newest checkpoint, to use or export them beside the training.

    Args:
        run_dir: Folder of the run.
        module: A module like the trained one.
        ema: Whether to take the moving average, if the run keeps one.

    Returns:
        The step of the checkpoint.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        ValueError: If all its checkpoints are damaged, or the newest one is of a sharded model.
    """
    path = newest_checkpoint(run_dir)
    if path is None:
        raise FileNotFoundError(f"No checkpoint in {Path(run_dir) / 'checkpoints'}.")
    if path.is_dir():
        raise ValueError(
            f"{path} is spread over processes: export it by running the training's own command, in as many, to its end."
        )
    state = read_checkpoint(path)
    average = state["ema"] if ema and state["ema"] is not None else {}
    # Checkpoints of adapters hold no frozen weights: these are the module's own.
    frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    module.load_state_dict({**frozen, **state["module"], **average})
    return state["step"]


def flush(path: Path) -> None:
    """Writes a file through to the disk, so that it is whole after a power cut, too."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        if path.is_dir():
            expected = read_position(path)["files"]
            found = _sizes(path)
            wrong = [name for name in expected if found.get(name) != expected[name]]
            return f"{wrong[0]} is missing or cut short" if wrong else None
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
            return None if wrong is None else f"{wrong} has a wrong checksum"
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a folder, by name."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != _POSITION)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
