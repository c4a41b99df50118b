"""The command `baton`: one sub-command, and one module, for each job that a person does often.

Whatever is slow to import is imported inside the commands, so that `baton --help` answers at once.
"""

from .entry import main


__all__ = ["main"]
