"""The files that let `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` load a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks

from ..files import write_json
from .components import SETTINGS


BLOCKS_FILE = "modular_blocks.py"
_BLOCKS_CODE = '''"""Lets `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` find the blocks."""

from baton_diffusers import BatonAutoBlocks


__all__ = ["BatonAutoBlocks"]
'''


def write_modular_files(folder: str | os.PathLike, config: Mapping[str, Any], repo_id: str | None = None) -> None:
    r"""
    Writes the files that `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` reads, beside `model_index.json`.

    Args:
        folder (`str` or `os.PathLike`): the folder of a saved `BatonPipeline`.
        config (`Mapping`): the pipeline's configuration.
        repo_id (`str`, *optional*): where on the Hub the folder goes. A folder on this machine is found without.
    """
    index: dict[str, Any] = {
        "_blocks_class_name": "BatonAutoBlocks",
        "_class_name": ModularPipeline.__name__,
        "_diffusers_version": diffusers.__version__,
    }
    for name, value in config.items():
        if name in SETTINGS and value is not None:
            index[name] = value
        elif isinstance(value, (list, tuple)) and len(value) == 2 and value[0] is not None:
            source = {"pretrained_model_name_or_path": repo_id, "subfolder": name, "variant": None, "revision": None}
            index[name] = [*value, {"type_hint": list(value), **source}]
    write_json(Path(folder) / ModularPipeline.config_name, index)
    write_blocks(Path(folder))


def write_blocks(folder: Path) -> None:
    """Writes the two files that name the blocks: a line of code, and its place."""
    (folder / BLOCKS_FILE).write_text(_BLOCKS_CODE)
    auto_map = {"ModularPipelineBlocks": f"{Path(BLOCKS_FILE).stem}.BatonAutoBlocks"}
    write_json(folder / ModularPipelineBlocks.config_name, {"_class_name": "BatonAutoBlocks", "auto_map": auto_map})
