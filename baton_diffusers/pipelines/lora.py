"""LoRA for `BatonPipeline`: load, weigh, fuse, unload and save adapters as in every pipeline of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin


class BatonLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Loads LoRA layers into the transformer.

    All of diffusers' methods for adapters are there, and none of them is Baton's own: `load_lora_weights`, `set_adapters`,
    `fuse_lora`, `unfuse_lora`, `unload_lora_weights`, `save_lora_weights`, ... Of diffusers' loaders this one is for any
    pipeline with one transformer; what is added is that a file without any layer for it is refused.
    """

    _lora_loadable_modules = ["transformer"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Loads an adapter from a folder, file, Hub id or dictionary.

        Args:
            pretrained_model_name_or_path_or_dict (`str` or `dict`): where from, e.g. the output of
                `examples/train_lora.py`.
            adapter_name (`str`, *optional*): its name, for `set_adapters`.
            kwargs: as in diffusers' loaders: `weight_name`, `subfolder`, `revision`, `token`, `hotswap`, ...

        Raises:
            ValueError: if there is no LoRA layer for the transformer in it.
        """
        prefix = f"{self.transformer_name}."
        options = {name: value for name, value in kwargs.items() if name not in ("hotswap", "low_cpu_mem_usage")}
        names = list(self.lora_state_dict(pretrained_model_name_or_path_or_dict, **options))
        if not any(name.startswith(prefix) and "lora" in name for name in names):
            found = f"such as {names[0]!r}" if names else "none at all"
            raise ValueError(
                f"no LoRA layer is for the transformer: their names start with {prefix!r}, but those found are {found}."
            )
        super().load_lora_weights(pretrained_model_name_or_path_or_dict, adapter_name, **kwargs)
