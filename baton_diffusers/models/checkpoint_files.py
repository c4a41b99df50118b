"""Files of weights, handled one part at a time: published ones read and checked, ours written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


Shapes = Mapping[str, Sequence[int]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


class PublishedWeights:
    r"""
    The tensors of a published checkpoint, in one file or several, read when they are asked for.

    Args:
        files (`str`, `os.PathLike` or a sequence of them): `.safetensors`, or `.pt`, `.pth` or `.ckpt` as `torch.save` writes
            them; of the latter only tensors are read, and no code in them is run.
        prefix (`str`, defaults to `""`): only keys that begin like this, which is then left out.
        entry (`str`, *optional*): the entry of a pickled dictionary that holds the tensors.

    Attributes:
        shapes (`dict[str, tuple[int, ...]]`): shape of each tensor.
        dtypes (`dict[str, torch.dtype]`): dtype of each tensor.

    Raises:
        ValueError: if a file is missing, truncated, corrupt, or without such an entry.
    """

    def __init__(
        self, files: str | os.PathLike | Sequence[str | os.PathLike], prefix: str = "", entry: str | None = None
    ) -> None:
        files = [files] if isinstance(files, (str, os.PathLike)) else files
        self.name = str(files[0]) if len(files) == 1 else str(Path(files[0]).parent)
        self._prefix, self._entry = prefix, entry
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for file in map(Path, files):
            if not file.is_file():
                raise ValueError(f"{file} is not a file.")
            for key, (shape, dtype) in self._index(file).items():
                if key.startswith(prefix):
                    key = key.removeprefix(prefix)
                    self._file_of[key], self.shapes[key], self.dtypes[key] = file, shape, dtype

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of `keys`. Files are mapped anew for each call, so that what was read before is not kept in memory."""
        tensors = {}
        for file in dict.fromkeys(self._file_of[key] for key in keys):
            wanted = [key for key in keys if self._file_of[key] == file]
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as source:
                    tensors.update({key: source.get_tensor(self._prefix + key) for key in wanted})
            else:
                pickled = self._unpickle(file)
                tensors.update({key: pickled[self._prefix + key] for key in wanted})
        return tensors

    def _index(self, file: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if file.suffix != ".safetensors":
            return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in self._unpickle(file).items()}
        try:
            with safe_open(file, framework="pt") as source:
                slices = {key: source.get_slice(key) for key in source.keys()}
                return {key: (tuple(s.get_shape()), _DTYPES[s.get_dtype()]) for key, s in slices.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is truncated or corrupt ({error}): fetch it again.") from error
        except KeyError as error:
            raise ValueError(f"{file} holds tensors of type {error}, which is not supported.") from error

    def _unpickle(self, file: Path) -> dict[str, torch.Tensor]:
        try:
            # Files of old versions of PyTorch are not zip archives and cannot be mapped.
            pickled = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # what a damaged pickle raises is not specified
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{file} is truncated, corrupt, or not a file of tensors ({message}): fetch it again."
            ) from error
        if self._entry is not None:
            if not isinstance(pickled, dict) or self._entry not in pickled:
                raise ValueError(f"{file} has no entry {self._entry!r}: is it the right file?")
            pickled = pickled[self._entry]
        if not isinstance(pickled, dict):
            raise ValueError(f"{file} holds a {type(pickled).__name__}, not a dictionary of tensors.")
        return {key: value for key, value in pickled.items() if isinstance(value, torch.Tensor)}


def check_keys(shapes: Shapes, expected: Shapes, name: str, hint: str = "") -> None:
    r"""
    Compares the keys and shapes of a published file with those that it should have.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): what the file has.
        expected (`Mapping[str, Sequence[int]]`): what it should have, under the published keys.
        name (`str`): what to call the file in the message.
        hint (`str`, defaults to `""`): a remedy to add to it.

    Raises:
        ValueError: naming the first key that is missing, unexpected or misshapen.
    """
    for key, shape in expected.items():
        if key not in shapes:
            raise ValueError(f"{name} lacks {key!r}.{hint}")
        if tuple(shapes[key]) != tuple(shape):
            raise ValueError(f"{name}: {key!r} has shape {tuple(shapes[key])}, but must have {tuple(shape)}.{hint}")
    for key in shapes:
        if key not in expected:
            raise ValueError(f"{name} has the unexpected {key!r}.{hint}")


@contextmanager
def new_folder(target: str | os.PathLike, num_bytes: int) -> Iterator[Path]:
    r"""
    A folder that appears under its name when it is complete, and not at all if writing it fails.

    Args:
        target (`str` or `os.PathLike`): the folder, which must not exist yet, or be empty.
        num_bytes (`int`): what will be written to it, about.

    Yields:
        `Path`: the folder to write to, beside the target.

    Raises:
        ValueError: if the target is there already, or the disk has no room for it.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: name another folder, or remove it.")
    missing = [folder for folder in target.parents if not folder.exists()]
    free = shutil.disk_usage(next(folder for folder in target.parents if folder.exists())).free
    if free < num_bytes:
        raise ValueError(
            f"{target} will take {num_bytes / 2**30:.2f} GiB, but the disk has {free / 2**30:.2f} GiB left: free some, or "
            "name a folder on another disk."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(target)
    except BaseException:
        shutil.rmtree(folder)
        for parent in missing:
            parent.rmdir()
        raise


def save_weights(
    folder: Path,
    parameters: Mapping[str, torch.Tensor],
    read: Callable[[list[str]], Mapping[str, torch.Tensor]],
    weights_name: str = "diffusion_pytorch_model",
    max_shard_size: int | str = "5GB",
) -> None:
    r"""
    Writes weights as diffusers and transformers do: safetensors in shards, with an index if there are several. One shard at a
    time is in memory.

    Args:
        folder (`Path`): where to.
        parameters (`Mapping[str, torch.Tensor]`): tensors on the meta device that tell names, shapes and dtypes.
        read (`Callable[[list[str]], Mapping[str, torch.Tensor]]`): gives the tensors of some names.
        weights_name (`str`, defaults to `"diffusion_pytorch_model"`): the files' name; `"model"` in transformers.
        max_shard_size (`int` or `str`, defaults to `"5GB"`): size of the shards, unless a single tensor is larger.

    Raises:
        OSError: if a file cannot be written.
    """
    split = split_torch_state_dict_into_shards(
        dict(parameters), filename_pattern=f"{weights_name}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    for filename, names in split.filename_to_tensors.items():
        tensors = {name: tensor.contiguous() for name, tensor in read(names).items()}
        try:
            save_file(tensors, folder / filename, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / filename} could not be written: {error}") from error
        del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{weights_name}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
