"""`BatonModularPipeline`: the pipeline of the modular blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.modular_pipelines import ComponentsManager, ComponentSpec, ModularPipeline, ModularPipelineBlocks
from huggingface_hub import snapshot_download

from ..files import write_json
from ..models.component_files import check_component
from .components import SOUND, PipelineParts
from .lora import BatonLoraLoaderMixin
from .modular_files import write_blocks


class BatonModularPipeline(PipelineParts, ModularPipeline, BatonLoraLoaderMixin):
    """
    A pipeline of [`BatonAutoBlocks`], or of some of its blocks.

    From the same arguments it makes the same bytes as [`BatonPipeline`]. It returns a state, or parts of it:

        pipe = BatonModularPipeline.from_pretrained(folder)
        pipe.load_components()
        clip = pipe(prompt="...", output=["videos", "audio"])
    """

    default_blocks_name = "BatonAutoBlocks"
    default_blocks: ClassVar[type[ModularPipelineBlocks] | None] = None  # `modular_blocks.py` names them

    def __init__(self, blocks: ModularPipelineBlocks | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(self.default_blocks() if blocks is None else blocks, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        blocks: ModularPipelineBlocks | None = None,
        components_manager: ComponentsManager | None = None,
        collection: str | None = None,
        workflow: str | None = None,
        **kwargs: Any,
    ) -> BatonModularPipeline:
        r"""
        Makes the pipeline of a folder or of a repository on the Hub, without its weights; then call `load_components`.

        The blocks come from the installed package: no code of the folder runs.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or the id of a repository.
            blocks (`ModularPipelineBlocks`, *optional*): by default [`BatonAutoBlocks`].
            components_manager, collection, workflow: as for `ModularPipeline.from_pretrained`.
            kwargs: options of the Hub, such as `revision` and `token`.
        """
        modular_config, config = cls._load_pipeline_config(pretrained_model_name_or_path, **kwargs)
        return cls(
            blocks,
            os.fspath(pretrained_model_name_or_path),
            components_manager,
            collection,
            workflow,
            modular_config_dict=modular_config,
            config_dict=config,
        )

    def load_components(self, names: list[str] | str | None = None, **kwargs: Any) -> None:
        """As in diffusers, by default in float32; a single `dtype` leaves `audio_vae` and `vocoder` in float32, since half precision
        is heard.

        Raises:
            ValueError: if a component's weights do not fit its configuration or are not finite, see [`check_component`].
        """
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or torch.float32
        if not isinstance(dtype, dict):
            dtype = {"default": dtype, **dict.fromkeys(SOUND, torch.float32)}
        for name, spec in self._component_specs.items():
            asked = getattr(self, name, None) is None if names is None else name in names or name == names
            if asked and spec.default_creation_method == "from_pretrained" and spec.pretrained_model_name_or_path:
                _check(spec)
        super().load_components(names, dtype=dtype, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As in diffusers, and so that `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` loads the folder."""
        super().save_pretrained(os.fspath(save_directory), **{"overwrite_modular_index": True, **kwargs})
        index = Path(save_directory) / self.config_name
        written = {**json.loads(index.read_text()), "_class_name": ModularPipeline.__name__}
        write_json(index, {name: value for name, value in written.items() if value is not None})
        write_blocks(Path(save_directory))


def _check(spec: ComponentSpec) -> None:
    """Compares a component's weights with its configuration; a repository on the Hub is fetched for it."""
    model_class, source, subfolder = spec.type_hint, spec.pretrained_model_name_or_path, spec.subfolder or ""
    if not isinstance(model_class, type) or not issubclass(model_class, torch.nn.Module):
        return
    if not os.path.isdir(source):
        source = snapshot_download(
            source, revision=spec.revision, allow_patterns=[f"{subfolder}/*.json", f"{subfolder}/*.safetensors"]
        )
    check_component(Path(source, subfolder), model_class, spec.variant)
