"""The command `baton`, with its exit codes."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from . import cache, evaluate, film, generate, memory, plan, retake, stage, studio  # noqa: F401 (each registers its command)
from .app import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends in `SystemExit` with 0 (done), 1 (failed), 2 (wrong input) or 130 (interrupted, also by
    SIGTERM)."""
    # Threads that wait for work shall sleep. By default they spin, and beside one busy process a clip takes ten times as long. OpenMP
    # reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    """Runs the command line and returns its exit code; an error is one line on stderr."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main_thread else None
    with suppress(AttributeError):  # a replaced stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        code = app(arguments, prog_name="baton", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):  # newer versions of typer return 130 instead
        code = 130
    except BrokenPipeError:  # whoever read stdout, such as `head`, is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("BATON_DEBUG"):
            traceback.print_exc()
        # Typer's own errors (a missing argument, an unknown option) bring their message and exit code.
        usage = hasattr(error, "format_message")
        message = f"{error.format_message()} See `baton --help`." if usage else str(error)
        print(f"baton: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        return getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1)
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    if code == 130:
        print("baton: interrupted", file=sys.stderr)
    return code
