"""LoRA for `BatonPipeline`: load, weigh, fuse, unload and save adapters as in every pipeline of diffusers."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.utils import logging

from ..files import read_json
from ..models.lora_conversion import LoraMatch, match_lora
from .students import METADATA, StudentPreset, StudentsMixin, student_presets


logger = logging.get_logger(__name__)


class BatonLoraLoaderMixin(StudentsMixin, CogVideoXLoraLoaderMixin):
    r"""
    Loads LoRA layers into the transformer.

    It has all of diffusers' methods for adapters: `load_lora_weights`, `set_adapters`, `fuse_lora`, `unfuse_lora`,
    `unload_lora_weights`, `save_lora_weights`, ... They come from diffusers' loader for pipelines with one transformer. This
    class adds two things: it also finds the layers of files that other tools wrote, and of files for Ovi and Wan2.2's 5B model;
    and it refuses a file that does not fit.
    """

    _lora_loadable_modules = ["transformer"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        prefix: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> LoraMatch:
        """
        Loads an adapter from a folder, file, Hub id or dictionary.

        The names of its layers may be ours, Ovi's or, for the video branch, Wan2.2's; in the form of diffusers, PEFT, kohya,
        musubi or ComfyUI, see [`match_lora`]. Layers that the transformer lacks are left out, with a warning.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): where from, e.g. the output of
                `examples/train_lora.py`.
            adapter_name (`str`, *optional*): its name, for `set_adapters`.
            prefix (`str`, *optional*): what the names of its layers begin with, if it is not one of the usual prefixes.
            hotswap (`bool`, defaults to `False`): replace the adapter of that name, see diffusers.
            low_cpu_mem_usage (`bool`, defaults to `True`): do not draw weights that are then replaced.
            kwargs: as in diffusers' loaders: `weight_name`, `subfolder`, `revision`, `token`, ...

        Returns:
            [`LoraMatch`]: which layers matched, and which did not.

        Raises:
            ValueError: if there is no such file, no layer of it is one of the transformer's, one is of another size, lacks a
                part or is not finite, or the name is taken.
            ImportError: without peft.
        """
        if find_spec("peft") is None:
            raise ImportError(
                "an adapter beside the weights needs peft: pip install peft, or add a student to the weights by "
                "`load_student(..., fuse=True)`"
            )
        match, preset = self._match_lora(pretrained_model_name_or_path_or_dict, prefix, kwargs)
        own = {f"{self.transformer_name}.{key}": tensor for key, tensor in match.state_dict().items()}
        metadata = {f"{self.transformer_name}.{key}": value for key, value in match.peft_config().items()}
        before = set(getattr(self.transformer, "peft_config", {}))
        if match.is_flow_map:
            self.transformer.make_flow_map()
        self.load_lora_into_transformer(
            own,
            transformer=self.transformer,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )
        for name in set(self.transformer.peft_config) - before:
            _restore_precision(self.transformer, match, name)
            if preset is not None:
                student_presets(self.transformer)[name] = preset
        return match

    def _match_lora(
        self, source: str | os.PathLike | dict[str, torch.Tensor], prefix: str | None, kwargs: dict[str, Any]
    ) -> tuple[LoraMatch, StudentPreset | None]:
        """The layers of an adapter that the transformer has, and its preset; a warning names others."""
        if self.transformer is None:
            raise ValueError("this pipeline has no `transformer` for a LoRA: load it with one.")
        if not isinstance(source, (str, os.PathLike, dict)):
            raise ValueError(f"{source!r} is no LoRA: give a folder, a file, a Hub id or a dictionary of tensors.")
        state_dict, config = (source, {}) if isinstance(source, dict) else self._read_lora(source, kwargs)
        preset = StudentPreset.read(config)
        match = match_lora(state_dict, self.transformer, prefix, config)
        if match.unmatched:
            logger.warning(
                f"{len(match.layers)} layers of this LoRA are the transformer's, and {len(match.unmatched)} names are not and are "
                f"left out, such as {match.unmatched[0][:200]!r}."
            )
        return match, preset

    @classmethod
    def _read_lora(
        cls, source: str | os.PathLike, kwargs: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of a safetensors file, and what it or PEFT's adapter_config.json beside it says of the alphas."""
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError("`use_safetensors=False` would read a pickle, which can hold code: leave it out.")
        path = Path(source)
        try:
            state_dict, metadata = cls.lora_state_dict(os.fspath(source), return_lora_metadata=True, **kwargs)
        except Exception as error:  # of safetensors, the Hub's client, httpx or the system
            where = "" if path.exists() else ", which is no file or folder here"
            raise ValueError(f"no LoRA could be read from {os.fspath(source)!r}{where}: {error}") from error
        prefix = f"{cls.transformer_name}."
        metadata = metadata if isinstance(metadata, dict) else {}
        config = {key.removeprefix(prefix): value for key, value in metadata.items()}
        beside = (path if path.is_dir() else path.parent) / kwargs.get("subfolder", "") / "adapter_config.json"
        if not config and path.exists() and beside.is_file():
            try:
                config = read_json(beside)
                if not isinstance(config, dict):
                    raise ValueError(f"it holds {type(config).__name__}, not an object")
            except ValueError as error:
                raise ValueError(f"{beside} is damaged ({error}): fetch or save it again.") from error
        return state_dict, config


def save_adapter(
    folder: str | os.PathLike,
    layers: dict[str, torch.Tensor],
    config: dict[str, Any],
    preset: StudentPreset | None = None,
) -> None:
    """
    Saves an adapter for `pipe.load_lora_weights(folder)`.

    Args:
        folder (`str` or `os.PathLike`): where to.
        layers (`dict[str, torch.Tensor]`): its tensors, by PEFT's names.
        config (`dict`): PEFT's.
        preset ([`StudentPreset`], *optional*): how a student makes clips, for `use_preset`.
    """
    BatonLoraLoaderMixin.save_lora_weights(
        folder,
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=config if preset is None else {**config, METADATA: asdict(preset)},
    )


def _restore_precision(transformer: torch.nn.Module, match: LoraMatch, adapter: str) -> None:
    """If weights are stored in 8 bits, PEFT also stores the adapter in 8 bits, but without the hook that casts it for
    computing."""
    parameters = dict(transformer.named_parameters())
    for name, layer in match.layers.items():
        for part, tensor in (("lora_A", layer.down), ("lora_B", layer.up)):
            parameter = parameters[f"{name}.{part}.{adapter}.weight"]
            if parameter.element_size() == 1:
                parameter.data = tensor.to(parameter.device, transformer.dtype)
