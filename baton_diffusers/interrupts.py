"""Imported first by a script, it makes Ctrl-C one line on standard error, also while slow packages are imported."""

import os
import signal
import sys
import threading


_hook_before, _unraisable_before = sys.excepthook, sys.unraisablehook


def _hook(kind, error, traceback) -> None:
    # A package that is interrupted while it is imported may raise an error of its own.
    cause = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        _hook_before(kind, error, traceback)
    else:
        print(f"{sys.argv[0]}: interrupted", file=sys.stderr)


def _unraisable(unraisable) -> None:
    """Interrupts again, once this has returned, where the interruption fell into a destructor or a callback, which swallows it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        _unraisable_before(unraisable)


sys.excepthook, sys.unraisablehook = _hook, _unraisable
