"""Cue sheets: text that says who is in a clip and when things happen, as a planner may write it before it plans.

A sheet is one line of text. It begins with the cast, each member with its place, and goes on with cues, each after a timestamp in
the form that Whisper made common: `"red box middle; orange face right <|0.50|> red box hits orange face <|1.25|> orange face says
two"`. Members of the cast are separated by semicolons, and the last word of each is its place. Both parts may be empty. A prompt
rarely says when and often not where; a clip cannot leave it open. Baton (arXiv:2605.25195) regresses the plan from the prompt
alone, and a regression answers with the mean over all that is open: sheets, ours, commit to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple


_TIMESTAMP = re.compile(r"<\|([^|]*)\|>")
_SPEECH = re.compile(r"<S>(.*?)<E>", re.DOTALL)

# What a cue lasts at most, in seconds. A sheet says when a thing begins, not when it ends.
LONGEST_CUE = 0.5
_WORDS_PER_SECOND = 2.5  # of English that is spoken


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


class Turn(NamedTuple):
    """What one actor does in a row: `who`, each of its `deeds`, the `start` in seconds, and how many `seconds` it lasts.

    A `start` of `None` is open.
    """

    who: str
    deeds: tuple[str, ...]
    start: float | None
    seconds: float

    @property
    def what(self) -> str:
        """The deeds in a few words, e.g. "bounces 2x"."""
        runs = [(deed, len(list(run))) for deed, run in groupby(self.deeds)]
        return ", ".join(deed if number == 1 else f"{deed} {number}x" for deed, number in runs)


class PlanCandidate(NamedTuple):
    """A cue sheet, and its score by a plan checker in nats, 0 at best; `None` if nothing checked it."""

    sheet: str
    score: float | None = None


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


def sheet_turns(sheet: Sheet, duration: float, names: Sequence[str] | None = None) -> list[Turn]:
    """
    Who acts when in a clip, and for how long: runs of cues of one actor.

    A cue lasts until the next one or the clip's end, and `LONGEST_CUE` seconds at most.

    Args:
        sheet ([`Sheet`]): the cue sheet.
        duration (`float`): seconds of the clip.
        names (`Sequence[str]`, *optional*): names of actors; by default the sheet's cast. A cue that begins with none of them is a
            turn of its own, under its whole text.
    """
    names = [member.name for member in sheet.cast] if names is None else names
    ends = [cue.time for cue in sheet.cues[1:]] + [duration]
    turns: list[Turn] = []
    for cue, end in zip(sheet.cues, ends, strict=False):
        who = next((name for name in names if f"{cue.text} ".startswith(f"{name} ")), cue.text)
        deed = cue.text[len(who) :].strip()
        end = max(min(end, cue.time + LONGEST_CUE), cue.time)
        if turns and turns[-1].who == who:
            turns[-1] = Turn(who, (*turns[-1].deeds, deed), turns[-1].start, end - turns[-1].start)
        else:
            turns.append(Turn(who, (deed,), cue.time, end - cue.time))
    return turns


def spoken_turns(prompt: str) -> list[Turn]:
    """
    What is said in a prompt between `<S>` and `<E>`, in order. When is open; how long is an estimate from the number of words.

    `who` is what the prompt says before the speech, since the last speech or sentence.
    """
    turns, end = [], 0
    for speech in _SPEECH.finditer(prompt):
        before = re.split(r"[.!?;]\s", prompt[end : speech.start()])[-1]
        who = re.sub(r"^(and|then|while)\s+", "", before.strip(" ,:\n\t\"'"), flags=re.IGNORECASE)
        words = " ".join(speech[1].split())
        turns.append(Turn(who, (f'"{words}"',), None, len(words.split()) / _WORDS_PER_SECOND))
        end = speech.end()
    return turns


def format_turns(turns: Iterable[Turn]) -> str:
    """A table of turns: who, what, when and how long."""
    rows = [("who", "what", "when", "how long")]
    for turn in turns:
        when = "open" if turn.start is None else f"{turn.start:.2f} s"
        rows.append((turn.who, turn.what, when, f"{'about ' if turn.start is None else ''}{turn.seconds:.2f} s"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
