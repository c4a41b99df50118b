"""Files that appear whole or not at all: the one place that writes, and that says beforehand what cannot be written.

While a file is written it has a hidden temporary name, `.baton-...`, in its own folder, and is locked. A process that is killed
leaves that file without its lock; the next write to the folder removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


try:
    import fcntl
except ImportError:  # Windows has other locks: there, temporaries of killed runs stay
    fcntl = None

_PREFIX = ".baton-"
_MAX_JSON_BYTES = 2**26


def check_target(path: str | Path, suffixes: Sequence[str] = ()) -> Path:
    """Refuse a path that cannot be written to, before the work starts. It tries to write to the folder.

    Args:
        path: where to write.
        suffixes: the endings that the name may have, e.g. `(".mp4",)`; default: any.

    Returns:
        The path.

    Raises:
        ValueError: the name has another ending or is too long, the folder does not exist or is read-only, or the path is
            a folder, a device, a pipe or a read-only file.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} ends in {path.suffix!r}: give a name that ends in {' or '.join(suffixes)}")
    try:
        target = _target(path)
        if suffixes and target.suffix.lower() not in suffixes:
            raise ValueError(f"{path} leads to {target}, which ends in {target.suffix!r}: choose another name")
        with temporary(target):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}): choose another name or folder"
        ) from None
    return path


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, and try to write there, before the work starts.

    Args:
        path: the folder; it may be there.

    Returns:
        The path.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with temporary(path / "file"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the folder {path} cannot be written to ({reason}): choose another one") from None
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`. If the body succeeds, the file of that name takes the place of `path`; if not, it
    vanishes. A link is followed: the file it leads to is replaced.

    Raises:
        ValueError: `path` is a folder, a device, a pipe, a read-only file, or in a folder that does not exist.
        OSError: the folder is read-only, or the name too long.
    """
    target = _target(Path(path))
    with temporary(target) as partial:
        yield partial
        if target.exists():
            os.chmod(partial, target.stat().st_mode)
        os.replace(partial, target)


@contextmanager
def temporary(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """A hidden, locked, empty file beside `path`, with its suffix or another; removed at the end, or, if this process is
    killed, by the next write to the folder."""
    _sweep(path.parent)
    partial = path.with_name(f"{_PREFIX}{uuid.uuid4().hex}{path.suffix if suffix is None else suffix}")
    # `open` refuses what `os.replace` would only refuse after the work: names that are too long, read-only folders.
    with suppress(FileNotFoundError):
        os.lstat(path)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _lock(descriptor)
        yield partial
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: hidden and locked beside `path`, and removed at the end unless it was renamed."""
    _sweep(path.parent)
    partial = path.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield partial
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Locks a file for this process alone; the file is created if needed. Yields whether it is locked: `False` if another
    process holds it. A killed process releases its lock."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        yield fcntl is None or _lock(descriptor, wait=False)
    finally:
        os.close(descriptor)


def inside(folder: str | Path, name: str) -> Path:
    """The file that a text names in a folder, for texts that come from others.

    Raises:
        ValueError: the name leads out of the folder, or to no file.
    """
    folder = Path(folder).resolve()
    try:
        file = (folder / name).resolve()
        is_file = file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a loop of links, a zero within it
        raise ValueError(f"{name!r} is no name of a file ({getattr(error, 'strerror', None) or error})") from error
    if not file.is_relative_to(folder):
        raise ValueError(f"{name} is not within {folder}: put it there")
    if not is_file:
        raise ValueError(f"{name} is not a file in {folder}: check the name")
    return file


def read_text(path: str | Path, max_bytes: int) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: the file cannot be read, has more than `max_bytes`, or is no text; the message names it, and the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): check the path"
        ) from error
    if len(data) > max_bytes:
        raise ValueError(
            f"{path} has more than {max_bytes / 1e6:g} MB, which is more than is read here: check the path"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: it holds bytes that are not UTF-8: save it as UTF-8") from error


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file atomically; a power failure leaves the old or the new one.

    Raises:
        ValueError, OSError: as for [`replacing`].
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> Path:
    """Write a value as JSON, atomically, in UTF-8.

    Raises:
        ValueError, OSError: as for [`replacing`].
    """
    return write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: the file does not exist, is damaged, or is larger than any that is written; the message names it.
    """
    try:
        if not Path(path).is_file():  # a pipe or a device would never end
            raise ValueError("it is not a file")
        return json.loads(read_text(path, _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): restore it, or make it again") from error


def _target(path: Path) -> Path:
    """The file that is written for `path`: the one that a link leads to."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: make it before writing {path.name}")
    if target.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is a device or a pipe: give the name of a file")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"{path} is read-only: choose another name, or make it writable")
    return target


def _lock(descriptor: int, wait: bool = True) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: temporaries that nobody holds a lock on."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(_PREFIX) and (is_folder or entry.is_file(follow_symlinks=False)):
                with suppress(OSError):
                    descriptor = os.open(entry.path, os.O_RDONLY if is_folder else os.O_WRONLY)
                    try:
                        if _lock(descriptor, wait=False):
                            (shutil.rmtree if is_folder else os.unlink)(entry.path)
                    finally:
                        os.close(descriptor)
