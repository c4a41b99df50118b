"""The scripts beside the package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """A script of the repository, such as "benchmarks/denoise_step.py", executed anew but for its main part."""
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
