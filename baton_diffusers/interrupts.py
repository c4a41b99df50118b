"""Imported first by a script, it makes Ctrl-C one line on standard error, also while slow packages are imported."""

import sys


_before = sys.excepthook


def _hook(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"{sys.argv[0]}: interrupted", file=sys.stderr)
    else:
        _before(kind, error, traceback)


sys.excepthook = _hook
