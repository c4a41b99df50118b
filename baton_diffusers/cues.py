"""Cue sheets: text that says who is in a clip and when things happen, as a planner may write it before it plans.

A sheet is one line of text. It begins with the cast, each member with its place, and goes on with cues, each after a timestamp in
the form that Whisper made common: `"red box middle; orange face right <|0.50|> red box hits orange face <|1.25|> orange face says
two"`. Members of the cast are separated by semicolons, and the last word of each is its place. Both parts may be empty. A prompt
rarely says when and often not where; a clip cannot leave it open. Baton (arXiv:2605.25195) regresses the plan from the prompt
alone, and a regression answers with the mean over all that is open: sheets, ours, commit to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


_TIMESTAMP = re.compile(r"<\|([^|]*)\|>")


class CastMember(NamedTuple):
    """Who is in a clip: a `name` of a few words, and the word that tells its `place`."""

    name: str
    place: str


class Cue(NamedTuple):
    """What happens at an instant: `time` in seconds from the clip's start, and a few words of `text`."""

    time: float
    text: str


class Sheet(NamedTuple):
    """A cue sheet: the `cast` in its order, and the `cues` in order of time."""

    cast: tuple[CastMember, ...] = ()
    cues: tuple[Cue, ...] = ()


def format_timestamp(time: float) -> str:
    """The timestamp token of an instant in seconds, e.g. `"<|0.50|>"`."""
    return f"<|{time:.2f}|>"


def format_sheet(sheet: Sheet) -> str:
    """A sheet as text, its cues in order of time. The empty sheet is the empty text."""
    return " ".join(filter(None, ["; ".join(" ".join(member) for member in sheet.cast), format_cues(sheet.cues)]))


def format_cues(cues: Iterable[Cue | tuple[float, str]]) -> str:
    """The text of some cues, in order of time."""
    return " ".join(f"{format_timestamp(time)} {text}".rstrip() for time, text in sorted(cues, key=lambda cue: cue[0]))


def parse_sheet(text: str) -> Sheet:
    """
    The cast and the cues that a text tells. Spaces around semicolons and timestamps do not matter.

    Raises:
        ValueError: if a member of the cast has no name or no place, or two have the same name; a timestamp is no number of
            seconds, or earlier than the one before it.
    """
    beginning, *parts = _TIMESTAMP.split(text)
    cast: list[CastMember] = []
    for entry in beginning.split(";") if beginning.strip() else ():
        *name, place = entry.split() or [""]
        if not name:
            raise ValueError(
                f"{entry.strip()!r} in a sheet's cast needs a name and a place, as in 'red ball left; blue box right <|0.50|> red ball'."
            )
        member = CastMember(" ".join(name), place)
        if any(member.name == other.name for other in cast):
            raise ValueError(f"{member.name!r} is twice in a sheet's cast: name each member once.")
        cast.append(member)
    cues: list[Cue] = []
    for stamp, words in zip(parts[::2], parts[1::2], strict=True):
        try:
            time = float(stamp)
        except ValueError:
            raise ValueError(f"'<|{stamp}|>' is no timestamp: write seconds, as in '<|0.50|>'.") from None
        if not time >= 0 or (cues and time < cues[-1].time):
            raise ValueError(
                f"'<|{stamp}|>' follows {cues[-1].time if cues else 0.0} seconds: write cues in order of time."
            )
        cues.append(Cue(time, words.strip()))
    return Sheet(tuple(cast), tuple(cues))


def parse_cues(sheet: str) -> list[Cue]:
    """
    The cues of a sheet, without its cast.

    Raises:
        ValueError: if the sheet is malformed, see [`parse_sheet`].
    """
    return list(parse_sheet(sheet).cues)
