"""Scores in a file of JSON lines, so that an interrupted evaluation can continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from ..files import write_bytes


class KeptScores:
    """
    Scores in a file of JSON lines, one a line, written as they are measured.

    Subclasses name the columns that determine a score, and read a score from its row.

    Args:
        path: The file; `None` keeps the scores in memory alone.

    Attributes:
        measured: How many scores were added to what was there.

    Raises:
        ValueError: if a line holds no score.
    """

    columns: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.measured = 0
        self._scores: dict[tuple, Any] = {}
        if self.path is None or not self.path.is_file():
            return
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # what was being written when the process ended is measured again
        if whole != text:
            write_bytes(self.path, whole.encode())
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._scores[tuple(row[name] for name in self.columns)] = self.read(row)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}, line {number} holds no score ({error!r}): delete the line.") from error

    def read(self, row: dict[str, Any]) -> Any:
        """The score of a row."""
        raise NotImplementedError

    def find(self, key: tuple) -> Any | None:
        """The score whose columns have these values, or `None`."""
        return self._scores.get(key)

    def keep(self, key: tuple, score: Any, row: dict[str, Any]) -> None:
        """Keeps a score under the values of its columns; `row` is the rest of its line."""
        self._scores[key] = score
        self.measured += 1
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(dict(zip(self.columns, key, strict=True)) | row) + "\n")
