"""Cue sheets: text that says when things happen, as a planner may write it before it plans.

A cue is an instant and what happens then. A sheet is one line of text, in which each instant is a timestamp token in the form
that Whisper made common: `"<|0.50|> red ball <|0.88|> red ball <|1.56|> purple face three"`. A prompt rarely says when; a clip
cannot leave it open. Baton (arXiv:2605.25195) regresses the plan from the prompt alone, and a regression answers with the
mean over all times: cues, ours, commit to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


_TIMESTAMP = re.compile(r"<\|([^|]*)\|>")


class Cue(NamedTuple):
    """What happens at an instant: `time` in seconds from the clip's start, and a few words of `text`."""

    time: float
    text: str


def format_timestamp(time: float) -> str:
    """The timestamp token of an instant in seconds, e.g. `"<|0.50|>"`."""
    return f"<|{time:.2f}|>"


def format_cues(cues: Iterable[Cue | tuple[float, str]]) -> str:
    """The sheet of some cues, in order of time. The empty sheet says nothing of times."""
    return " ".join(f"{format_timestamp(time)} {text}".rstrip() for time, text in sorted(cues, key=lambda cue: cue[0]))


def parse_cues(sheet: str) -> list[Cue]:
    """
    The cues of a sheet.

    Raises:
        ValueError: if it does not begin with a timestamp, a timestamp is no number of seconds, or one is earlier than the
            one before it.
    """
    start, *parts = _TIMESTAMP.split(sheet)
    if start.strip():
        raise ValueError(f"a cue sheet begins with a timestamp, as in '<|0.50|> red ball', but this with {start!r}.")
    cues: list[Cue] = []
    for stamp, text in zip(parts[::2], parts[1::2], strict=True):
        try:
            time = float(stamp)
        except ValueError:
            raise ValueError(f"'<|{stamp}|>' is no timestamp: write seconds, as in '<|0.50|>'.") from None
        if not time >= 0 or (cues and time < cues[-1].time):
            raise ValueError(
                f"'<|{stamp}|>' follows {cues[-1].time if cues else 0.0} seconds: write cues in order of time."
            )
        cues.append(Cue(time, text.strip()))
    return cues
