"""Planned, synchronised video with its sound from a prompt, in the manner of diffusers.

The public names are imported when they are first used: `import baton_diffusers` alone does not import torch.
"""

from importlib import import_module
from typing import Any


__version__ = "0.1.0"

_MODULES = {
    "BatonAutoBlocks": "pipelines.modular_blocks",
    "BatonModularPipeline": "pipelines.modular_blocks",
    "BatonPipeline": "pipelines.pipeline_baton",
    "BatonPipelineOutput": "pipelines.pipeline_output",
    "Clip": "media",
    "DualBranchTransformer": "models.transformer_dual_branch",
    "SemanticPlan": "plan",
    "Shot": "shots",
    "VAPlannerModel": "models.va_planner",
    "default_checkpoint": "shipped",
    "read_audio": "media",
    "read_clip": "media",
    "write_audio": "media",
    "write_clip": "media",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
