"""How a `BatonPipeline` is loaded and saved: the files of a folder are checked before any of them is loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers.utils import logging

from ..files import read_json, write_json
from ..models.component_files import check_component, check_configuration, component_class
from .modular_files import write_modular_files


_PIPELINE_FILE = '''"""Lets `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` find the class."""

from baton_diffusers import BatonPipeline


__all__ = ["BatonPipeline"]
'''

# How model_index.json names the class: plain `DiffusionPipeline` finds it in pipeline.py, and asks for `trust_remote_code=True`.
_CLASS_NAME = ["pipeline", "BatonPipeline"]

# Half precision is heard in what these make.
_SOUND = ("audio_vae", "vocoder")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


logger = logging.get_logger(__name__)


class BatonLoadingMixin:
    """`from_pretrained` and `save_pretrained` of [`BatonPipeline`]; they check, then call `DiffusionPipeline`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        r"""
        Loads a pipeline from a folder or from the Hub; see `DiffusionPipeline.from_pretrained` for the arguments.

        First the files of every component are compared with its configuration, and read once for NaN and infinities, which takes
        2 to 8 s for 22 GB on one core. Only safetensors are read, and only classes of diffusers, transformers and this package
        are made.

        Without `dtype` all components are loaded in float32: transformers' models would otherwise keep the dtype of their file. A single `dtype` leaves `audio_vae` and `vocoder` in float32, since half precision is heard in the sound; a
        dictionary with a dtype for each component is taken at its word.

        Raises:
            ValueError: if there is no such pipeline, a component's weights are missing, misshapen, unexpected or not finite, a
                component is of another library, or an argument is of the wrong type.
        """
        torch_dtype = kwargs.pop("torch_dtype", None)  # the older name of `dtype`
        dtype = kwargs.pop("dtype", None) or torch_dtype or torch.float32
        dtypes = dtype if isinstance(dtype, dict) else {"default": dtype, **dict.fromkeys(_SOUND, torch.float32)}
        for value in dtypes.values():
            if not isinstance(value, torch.dtype):
                raise ValueError(
                    f"`dtype` is {dtype!r}, but must be a torch.dtype such as torch.bfloat16, or a dictionary of them."
                )
        if kwargs.get("use_safetensors") is False:
            raise ValueError("`use_safetensors=False` would read pickles, which can hold code: leave it out.")
        kwargs = {**kwargs, "dtype": dtypes, "use_safetensors": True}
        folder = cls._checkpoint_folder(pretrained_model_name_or_path, kwargs)
        cls._check_checkpoint(folder, kwargs)
        kwargs.pop("force_download", None)  # it was
        return super().from_pretrained(os.fspath(pretrained_model_name_or_path), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        r"""
        Saves all components; see `DiffusionPipeline.save_pretrained` for the arguments. With a small `pipeline.py` beside the
        index, and the files of [`write_modular_files`], plain `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`
        and `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` load the folder as well.

        LoRA layers are not saved with the transformer, only what `fuse_lora` has added to its weights: a warning says so.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(_PIPELINE_FILE)  # first: `push_to_hub=True` uploads what is there
        for name in ("guider", "audio_guider"):
            # diffusers does not export all of its guiders at its top level, where it would look for them on loading.
            class_name = type(getattr(self, name)).__name__
            if self.config[name][0] == "diffusers" and not hasattr(diffusers, class_name):
                self.register_to_config(**{name: ("diffusers.guiders", class_name)})
        write_modular_files(folder, self.config, kwargs.get("repo_id") if kwargs.get("push_to_hub") else None)
        adapters = list(getattr(self.transformer, "peft_config", {}))
        if adapters:
            logger.warning(
                f"the LoRA adapters {', '.join(adapters)} are not saved with the pipeline, only what `fuse_lora` has added: keep "
                "their own files."
            )
        with _without_adapters(self.transformer), self._as_teacher():
            super().save_pretrained(save_directory, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes model_index.json, as diffusers does, so that plain `DiffusionPipeline` finds the class."""
        write_json(Path(json_file_path), {**json.loads(self.to_json_string()), "_class_name": _CLASS_NAME})

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The entries of model_index.json, without the code in the folder that they name: this class does not need it."""
        entries = super()._dict_from_json_file(*args, **kwargs)
        return {**entries, "_class_name": cls.__name__} if entries.get("_class_name") == _CLASS_NAME else entries

    @classmethod
    def _checkpoint_folder(cls, name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> Path:
        """The folder of a checkpoint, fetched from the Hub if it is not here."""
        is_path = isinstance(name_or_path, (str, os.PathLike))  # a number would be a file that is open
        if is_path and os.path.isdir(name_or_path):
            return Path(name_or_path)
        if not isinstance(name_or_path, str) or not _HUB_ID.fullmatch(name_or_path):
            raise ValueError(f"{str(name_or_path)!r} is neither a folder nor a Hub id like 'owner/name'.")
        options = (
            "cache_dir",
            "force_download",
            "proxies",
            "local_files_only",
            "token",
            "revision",
            "custom_pipeline",
        )
        options += ("custom_revision", "variant", "use_safetensors", "trust_remote_code", *cls._component_names())
        try:
            return Path(cls.download(name_or_path, **{name: kwargs[name] for name in options if name in kwargs}))
        except Exception as error:  # of the Hub's client, of httpx or of the system
            raise ValueError(
                f"{name_or_path} is no folder here, and could not be loaded from the Hub: {error}"
            ) from error

    @classmethod
    def _component_names(cls) -> list[str]:
        return cls._get_signature_keys(cls)[0]

    @classmethod
    def _check_checkpoint(cls, folder: Path, kwargs: dict[str, Any]) -> None:
        """Refuses a folder if a component would not be loaded completely."""
        index = folder / cls.config_name
        if not index.is_file():
            raise ValueError(f"{folder} has no {cls.config_name}: it is not the folder of a saved pipeline.")
        try:
            entries = read_json(index)
            sources = {
                name: entries[name] for name in cls._component_names() if name in entries and name not in kwargs
            }
            sources = {name: (library, class_name) for name, (library, class_name) in sources.items() if library}
        except TypeError as error:
            raise ValueError(f"{index} is damaged ({error}): fetch or save the folder again.") from error
        class_name = entries.get("_class_name")
        if class_name == _CLASS_NAME:
            class_name = cls.__name__
        if not isinstance(class_name, str):
            raise ValueError(f"{index} does not name the pipeline's class: fetch or save the folder again.")
        required = set(cls._component_names()) - set(cls._optional_components)
        if missing := sorted(required - sources.keys() - kwargs.keys()):
            raise ValueError(
                f"{folder} holds a {class_name} without {', '.join(missing)}: give the folder of a {cls.__name__}, or "
                "those components themselves."
            )
        for name, (library, class_name) in sources.items():
            found = component_class(name, library, class_name)
            if not (folder / name).is_dir():
                raise ValueError(
                    f"{folder} has no folder {name!r}, which its {index.name} lists: fetch or save it again."
                )
            for file in sorted((folder / name).glob("*.json")):
                read_json(file)  # whose error names the file
            check_configuration(folder / name, found)
            check_component(folder / name, found, kwargs.get("variant"))


@contextmanager
def _without_adapters(model: torch.nn.Module | None) -> Iterator[None]:
    """Within this context, the model has its original layers instead of PEFT's wrappers."""
    parents = list(model.modules()) if model is not None else []
    wrapped = [(parent, name, child) for parent in parents for name, child in parent.named_children()]
    wrapped = [(parent, name, child) for parent, name, child in wrapped if hasattr(child, "base_layer")]
    try:
        for parent, name, child in wrapped:
            setattr(parent, name, child.base_layer)
        yield
    finally:
        for parent, name, child in wrapped:
            setattr(parent, name, child)
