"""The command line of training scripts: a configuration file with overrides, a seed, and errors of one sentence."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import load_config


def run(main: Callable[..., None], config_class: type, description: str | None, **flags: str) -> None:
    """
    Runs a training script on its command line, `SCRIPT CONFIG.yaml [key=value ...]`.

    It ends in `SystemExit` with 0 (done), 1 (failed), 2 (wrong input) or 130 (interrupted). An error is one sentence;
    `BATON_DEBUG=1` adds the traceback.

    Args:
        main: Called with the configuration and the flags, after the random generators are seeded. It imports slow packages itself,
            so that mistakes in the configuration are reported at once.
        config_class: The dataclass of the configuration. Its `trainer` is a [`TrainerConfig`], which has the seed.
        description: Text of `--help`.
        flags: Switches: their names and help.
    """
    run_one_of({None: (main, config_class)}, description, **flags)


def run_one_of(
    recipes: Mapping[str | None, tuple[Callable[..., None], type]], description: str | None, **flags: str
) -> None:
    """As [`run`], of a script with several recipes: `SCRIPT NAME CONFIG.yaml [key=value ...]`.

    Args:
        recipes: `main` and `config_class` of each, by name.
        description: Text of `--help`.
        flags: Switches: their names and help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if None not in recipes:
        parser.add_argument("recipe", choices=tuple(recipes))
    parser.add_argument("config", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values in place of the file's: trainer.steps=100"
    )
    for name, text in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    arguments = vars(parser.parse_intermixed_args())
    main, config_class = recipes[arguments.pop("recipe", None)]
    path, overrides = arguments.pop("config"), arguments.pop("overrides")
    sys.exit(_run(main, config_class, path, overrides, arguments))


def _run(main: Callable[..., None], config_class: type, path: str, overrides: list[str], flags: dict[str, Any]) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers tokenise, each for itself
    try:
        config = load_config(path, config_class, overrides)
    except ValueError as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        import torch

        torch.manual_seed(config.trainer.seed)
        torch.set_float32_matmul_precision("high")  # TF32, on GPUs that have it
        main(config, **flags)
        return 0
    except KeyboardInterrupt as error:
        _say(error, "interrupted: the same command goes on from the newest checkpoint, where there is one")
        return 130
    except (ValueError, OSError) as error:
        _say(error)
        return 2
    except Exception as error:
        _say(error)
        return 1


def _say(error: BaseException, message: str | None = None) -> None:
    """One line on standard error, from the main process alone."""
    if os.environ.get("BATON_DEBUG"):
        traceback.print_exception(error)
    if message is None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # A worker's error holds its traceback, with the error itself on the last line.
        message = lines[-1] if "Traceback" in str(error) else " ".join(" ".join(lines).split())
        if not isinstance(error, (ValueError, OSError, FloatingPointError)):
            message = f"{type(error).__name__}: {message}"
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
