"""Files of weights, handled one part at a time: published ones read and checked, ours written whole or not at all."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import read_json, temporary_folder


logger = logging.get_logger(__name__)

Shapes = Mapping[str, Sequence[int]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# bitsandbytes: weight.absmax, weight.quant_map, weight_format, SCB; torchao: _weight_qdata, _weight_scale.
_QUANTISED_WEIGHT = re.compile(r"(^|\.)(?:_?weight[._].*|SCB)$")

_REMEDY = " Its config.json is another model's, or the file is not whole: fetch or save the folder again."


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
        ValueError: if a file is missing, truncated, corrupt, or without such an entry, or two hold the same tensor.
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
                    if key in self._file_of:
                        raise ValueError(f"{file} and {self._file_of[key]} both hold {key!r}: remove one of them.")
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

    def check_finite(self) -> None:
        r"""
        Reads all tensors once, in place: 3 to 10 GB a second and core, so 2 to 8 s for 22 GB that are in memory. The time to
        read the disk is not lost, since the loading that follows finds the file in memory.

        Raises:
            ValueError: naming the first tensor with a NaN or an infinity, and its file.
        """
        for file in dict.fromkeys(self._file_of.values()):
            keys = [key for key, holder in self._file_of.items() if holder == file]
            if file.suffix != ".safetensors":
                pickled = self._unpickle(file)
                spoilt = [key for key in keys if not is_finite(pickled[self._prefix + key])]
            else:
                with safe_open(file, framework="pt") as source:
                    spoilt = [key for key in keys if not is_finite(source.get_tensor(self._prefix + key))]
            if spoilt:
                raise ValueError(f"{file}: {spoilt[0]!r} holds NaN or infinite values: fetch or save the file again.")

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


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinities; no copy of it is made, unless it is of 8 bits."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # The extremes are NaN where a value is. Reduced so, it is 20 times as fast as `torch.isfinite`.
    low, high = (tensor.bfloat16() if tensor.element_size() == 1 else tensor).aminmax()
    return math.isfinite(low) and math.isfinite(high)


def check_keys(shapes: Shapes, expected: Shapes, name: str, hint: str = "") -> None:
    r"""
    Compares the keys and shapes of a published file with those that it should have.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): what the file has.
        expected (`Mapping[str, Sequence[int]]`): what it should have, under the published keys.
        name (`str`): what to call the file in the message.
        hint (`str`, defaults to `""`): a remedy to add to it.

    Raises:
        ValueError: naming the first key that is missing, misshapen or unexpected.
    """

    def refuse(keys: list[str], what: str) -> None:
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{name} {what} {keys[0]!r}{others}.{hint}")

    refuse([key for key in expected if key not in shapes], "lacks")
    for key, shape in expected.items():
        if tuple(shapes[key]) != tuple(shape):
            raise ValueError(f"{name}: {key!r} has shape {tuple(shapes[key])}, but must have {tuple(shape)}.{hint}")
    refuse([key for key in shapes if key not in expected], "has the unexpected")


def component_class(name: str, library: str, class_name: str) -> type:
    r"""
    The class that a `model_index.json` names for a component. A stranger may have written the file, so nothing is imported but
    diffusers, transformers and this package.

    Args:
        name (`str`): the component.
        library (`str`): a module, as `save_pretrained` records it.
        class_name (`str`): a class in it.

    Raises:
        ValueError: if the module is another, or has no such class.
    """
    known = ("diffusers", "diffusers.guiders", "transformers")
    if not isinstance(library, str) or not (library in known or library.startswith("baton_diffusers.")):
        raise ValueError(
            f"model_index.json takes `{name}` from {library!r}, but only diffusers, transformers and baton_diffusers are trusted: "
            f"make that component yourself and give it as `{name}=`."
        )
    try:
        found = getattr(importlib.import_module(library), class_name, None)
    except (ImportError, TypeError):
        found = None
    if not isinstance(found, type):
        raise ValueError(
            f"model_index.json names {library}.{class_name} as `{name}`, and there is no such class: correct the file, or update "
            f"{library.partition('.')[0]}."
        )
    return found


def check_configuration(folder: str | os.PathLike, component_class: type) -> None:
    r"""
    Refuses a configuration of another class, or one that lacks settings: diffusers would silently use defaults for them.

    Args:
        folder (`str` or `os.PathLike`): the component's.
        component_class (`type`): its class; one without a configuration of diffusers is not judged.

    A class may have gained settings since the file was saved. So a file of another version of diffusers may lack settings, and
    for a class of this package a missing setting is a warning.

    Raises:
        ValueError: if the file is missing or damaged, lacks settings of the class, or is another class's.
    """
    if issubclass(component_class, PreTrainedTokenizerBase):
        needed = {"tokenizer.json": {"model", "added_tokens"}, "tokenizer_config.json": {"tokenizer_class"}}
        for file in (Path(folder, name) for name in needed):
            if file.is_file() and not needed[file.name] <= set(read_json(file)):  # some tokenizers have other files
                raise ValueError(f"{file} holds no tokenizer: fetch or save the folder again.")
    if not issubclass(component_class, ConfigMixin):
        return
    file = Path(folder) / component_class.config_name
    config, name = read_json(file), component_class.__name__
    settings = component_class._get_init_keys(component_class) - {"self", "args", "kwargs"}
    if not isinstance(config, dict) or (settings and not settings & config.keys()):
        raise ValueError(f"{file} holds no settings of a {name}: fetch or save the folder again.")
    saved = config.get("_class_name", name)
    if saved != name:
        raise ValueError(
            f"{file} is of a {saved}, but model_index.json names a {name}: fetch or save the folder again, or give that component "
            "yourself."
        )
    if missing := sorted(settings - config.keys()):
        default = inspect.signature(component_class).parameters[missing[0]].default
        lacks = f"{file} lacks `{missing[0]}` of a {name}"
        ours = component_class.__module__.startswith("baton_diffusers.")
        same_version = config.get("_diffusers_version", diffusers.__version__) == diffusers.__version__
        if default is inspect.Parameter.empty or (same_version and not ours):
            raise ValueError(
                f"{lacks}, which diffusers {diffusers.__version__} writes: fetch or save the folder again."
            )
        if ours:
            logger.warning(f"{lacks}: the default {default!r} is used, since the file may be older than this setting.")


def check_component(folder: str | os.PathLike, model_class: type[torch.nn.Module], variant: str | None = None) -> None:
    r"""
    Compares the weights of a saved model with its configuration, and reads them once for NaN and infinities.

    Nothing is loaded: names and shapes are in the heads of the files. On loading, diffusers would leave a missing tensor on the
    meta device, and transformers would draw it at random, both with no more than a warning.

    Args:
        folder (`str` or `os.PathLike`): the component's, with config.json and safetensors, in shards or not.
        model_class (`type`): a `ModelMixin` or `PreTrainedModel`; any other class has no weights.
        variant (`str`, *optional*): as in `from_pretrained`; without such a file, the plain one counts.

    Raises:
        ValueError: naming the first tensor that is missing, misshapen, unexpected or not finite, and its file.
    """
    if not issubclass(model_class, (ModelMixin, PreTrainedModel)):
        return
    folder = Path(folder)
    published = PublishedWeights(weight_files(folder, model_class, variant))
    config = read_json(folder / "config.json")
    _check_sizes(config, published, folder / "config.json")
    model = empty_model(folder, model_class)
    state = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for key, tensor in state.items():
        tied.setdefault(id(tensor), []).append(key)
    expected = {  # of tensors that are one, one name is enough
        key: tensor.shape
        for key, tensor in state.items()
        if key in published.shapes
        or (key == (names := tied[id(tensor)])[0] and not set(names) & set(published.shapes))
    }

    shapes = published.shapes
    if (
        isinstance(config, dict) and "quantization_config" in config
    ):  # a weight is then several tensors of other shapes, named after it in the manner of each library
        stored = {key: key if key in expected else _QUANTISED_WEIGHT.sub(r"\1weight", key) for key in shapes}
        shapes = {
            stem: expected[stem] if stem.endswith("weight") and stem in expected else shapes[key]
            for key, stem in stored.items()
        }
    for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ():
        shapes = {key: shape for key, shape in shapes.items() if key in expected or not re.search(pattern, key)}
    for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ():
        expected = {key: shape for key, shape in expected.items() if key in shapes or not re.search(pattern, key)}
    check_keys(shapes, expected, published.name, _REMEDY)
    published.check_finite()


def load_component(folder: str | os.PathLike, model_class: type[torch.nn.Module], **kwargs: Any) -> torch.nn.Module:
    r"""
    Loads a saved model, after [`check_component`] has accepted it.

    Args:
        folder (`str` or `os.PathLike`): the component's.
        model_class (`type`): a `ModelMixin` or `PreTrainedModel`.
        kwargs: as for its `from_pretrained`.

    Raises:
        ValueError: if there is no such folder, or as [`check_component`].
    """
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a {model_class.__name__}: it has no config.json.")
    check_component(folder, model_class)
    return model_class.from_pretrained(folder, **kwargs)


def weight_files(folder: Path, model_class: type, variant: str | None = None) -> list[Path]:
    """The files that `from_pretrained` would read: one, or the shards of an index.

    Raises:
        ValueError: if there are none, or the index names other files than safetensors beside it.
    """
    is_diffusers = issubclass(model_class, ModelMixin)
    stem = "diffusion_pytorch_model" if is_diffusers else "model"
    for infix in (f".{variant}", "") if variant else ("",):
        whole, index = folder / f"{stem}{infix}.safetensors", folder / f"{stem}.safetensors.index{infix}.json"
        if index.is_file() and (is_diffusers or not whole.is_file()):
            return _shards(index)
        if whole.is_file():
            return [whole]
    raise ValueError(f"{folder} has no {stem}.safetensors: only safetensors are loaded, since pickles can hold code.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r}): fetch or save the folder again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is not a safetensors file beside it: do not trust it.")
    if not names:
        raise ValueError(f"{index} names no files: fetch or save the folder again.")
    return [index.parent / name for name in names]


def empty_model(folder: Path, model_class: type[torch.nn.Module]) -> torch.nn.Module:
    """The model of a configuration, its weights on the meta device.

    Raises:
        ValueError: if config.json is missing, damaged, or another model's.
    """
    try:
        if issubclass(model_class, ModelMixin):
            config = model_class.load_config(folder)
            with (
                init_empty_weights()
            ):  # as diffusers itself loads; `torch.device("meta")` is not for every constructor
                return model_class.from_config(config)
        config = model_class.config_class.from_pretrained(folder)
        with torch.device("meta"):  # keeps tied weights tied
            return model_class(config)
    except Exception as error:  # whatever a constructor makes of a wrong value
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder / 'config.json'} does not describe a {model_class.__name__} ({message}): fetch or save the folder again."
        ) from error


def _check_sizes(config: Any, published: PublishedWeights, file: Path) -> None:
    """Refuses a configuration of more layers than there are tensors, or of a layer wider than all of them: to build it would
    take all memory."""
    num_tensors = len(published.shapes)
    num_values = sum(math.prod(shape) for shape in published.shapes.values())
    for name, value in config.items() if isinstance(config, dict) else ():
        counts, measures = (
            re.search(r"^num_.*(layers|blocks)$|depth$", name),
            re.search(r"dim$|channels$|(hidden|vocab|intermediate)_size$", name),
        )
        limit = num_tensors if counts else num_values if measures else math.inf
        if isinstance(value, (int, float)) and value > max(limit, 1):
            raise ValueError(
                f"{file} has a `{name}` of {value}, but the weights beside it are only {num_tensors} tensors of {num_values} "
                f"values.{_REMEDY}"
            )
        _check_sizes(value, published, file)


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
    try:
        with temporary_folder(target) as folder:
            yield folder
            folder.replace(target)
    except BaseException:
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
