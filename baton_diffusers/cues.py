"""Cue sheets: text that says who is in a clip and when things happen. A planner may write a sheet before it plans.

A sheet is one line of text. It begins with the cast, each member with its place, and goes on with cues, each after a timestamp in
the form that Whisper made common: `"red box middle; orange face right <|0.50|> red box hits orange face <|1.25|> orange face says
two"`. Members of the cast are separated by semicolons, and the last word of each is its place. Both parts may be empty. A
prompt rarely says when things happen, and often not where; a clip needs both. Baton (arXiv:2605.25195) regresses the plan from
the prompt alone, and a regression averages over everything that the prompt leaves open. A sheet (ours) commits to one choice.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple


_TIMESTAMP = re.compile(r"<\|([^|]*)\|>")
_SPEECH = re.compile(r"<S>(.*?)<E>", re.DOTALL)

# The longest that a cue lasts, in seconds. A sheet says when an event begins, not when it ends.
LONGEST_CUE = 0.5
_WORDS_PER_SECOND = 2.5  # of English that is spoken


class CastMember(NamedTuple):
    """An actor of a clip: its `name` in a few words, and its `place` in one word."""

    name: str
    place: str


class Cue(NamedTuple):
    """An event: its `time` in seconds from the clip's start, and a few words of `text`."""

    time: float
    text: str


class Sheet(NamedTuple):
    """A cue sheet: the `cast` in its order, and the `cues` in order of time.

    Its methods return an edited sheet. An `event` is the number of a cue, from 0 on; an `actor` is a name of the cast. An edit that
    the sheet does not allow raises a ValueError; whether a planner can plan the sheet is checked by `BatonPipeline.edit_plan`.
    """

    cast: tuple[CastMember, ...] = ()
    cues: tuple[Cue, ...] = ()

    # Events

    def move(self, event: int, seconds: float, last: int | None = None) -> Sheet:
        """Moves an event later by some seconds, or earlier if negative. With `last`, moves all events up to that one, such as
        the bounces of a ball. Other events stay."""
        last = event if last is None else last
        self._cue(event), self._cue(last)
        if last < event:
            raise ValueError(f"no events go from {event} to {last}: give the first of them, and then the last.")
        moved = [self._at(number, self.cues[number].time + seconds) for number in range(event, last + 1)]
        return self._replace(cues=_in_order((*self.cues[:event], *moved, *self.cues[last + 1 :])))

    def retime(self, event: int, time: float) -> Sheet:
        """Sets the time of an event in seconds. If it passes other events, the order changes."""
        return self._with_event(event, self._at(event, time))

    def delete(self, event: int) -> Sheet:
        """Deletes an event. The others keep their times."""
        self._cue(event)
        return self._with_event(event)

    def duplicate(self, event: int, seconds: float) -> Sheet:
        """Repeats an event some seconds later. Other events keep their times."""
        cue = self._cue(event)
        return self.add_event(cue.time + seconds, cue.text)

    def reword(self, event: int, deed: str) -> Sheet:
        """Changes what is done or said in an event: `reword(1, "says five")`. To change who acts, see [`revoice`]."""
        cue, actor = self._cue(event), self.actor_of(event)
        deed = _words(deed)
        if not deed:
            raise ValueError(
                f"event {event} ({cue.text!r}) needs a deed such as 'says five': use `delete` to leave it out."
            )
        return self._with_event(event, cue._replace(text=deed if actor is None else f"{actor} {deed}"))

    def revoice(self, event: int, actor: str) -> Sheet:
        """Gives an event to another actor of the cast. To change what is done, see [`reword`]."""
        cue, before = self._cue(event), self.actor_of(event)
        self._number_of(actor)
        if before is None:
            raise ValueError(
                f"event {event} ({cue.text!r}) names no actor of the cast: use `reword` for its whole text."
            )
        return self._with_event(event, cue._replace(text=actor + cue.text[len(before) :]))

    def actor_of(self, event: int) -> str | None:
        """The actor of the cast whose name begins an event, if any."""
        text = f"{self._cue(event).text} "
        names = [member.name for member in self.cast if text.startswith(f"{member.name} ")]
        return max(names, key=len, default=None)

    # Actors

    def move_actor(self, actor: str, place: str) -> Sheet:
        """Moves an actor to a free place. To exchange two actors, see [`swap`]."""
        number = self._number_of(actor)
        self._check_free(place, actor)
        return self._with_actor(number, self.cast[number]._replace(place=place))

    def swap(self, actor: str, other: str) -> Sheet:
        """Exchanges the places of two actors. They keep their events."""
        one, two = self._number_of(actor), self._number_of(other)
        places = self.cast[one].place, self.cast[two].place
        sheet = self._with_actor(one, self.cast[one]._replace(place=places[1]))
        return sheet._with_actor(two, self.cast[two]._replace(place=places[0]))

    def recolour(self, actor: str, colour: str) -> Sheet:
        """Changes the colour of an actor, in all its events too: it replaces the first word of its name. It cannot change the
        kind of the actor."""
        number = self._number_of(actor)
        name = _words(" ".join([colour, *actor.split()[1:]]))
        if len(colour.split()) != 1 or name in [member.name for member in self.cast]:
            raise ValueError(f"{actor!r} cannot become {name!r}: choose one word that makes a name of its own.")
        sheet = self._with_actor(number, self.cast[number]._replace(name=name))
        renamed = re.compile(rf"\b{re.escape(actor)}\b")
        return sheet._replace(cues=tuple(cue._replace(text=renamed.sub(name, cue.text)) for cue in self.cues))

    def add_actor(self, name: str, place: str) -> Sheet:
        """Adds an actor at a free place. It does nothing yet: `add_event` gives it something to do."""
        name = _words(name)
        if not name or name in [member.name for member in self.cast]:
            raise ValueError(f"an actor cannot be added as {name!r}: give a name that the cast does not have yet.")
        self._check_free(place)
        return self._replace(cast=(*self.cast, CastMember(name, place)))

    def remove_actor(self, actor: str) -> Sheet:
        """Removes an actor, its events, and the events that name it."""
        number = self._number_of(actor)
        named = re.compile(rf"\b{re.escape(actor)}\b")
        return Sheet(
            self.cast[:number] + self.cast[number + 1 :], tuple(cue for cue in self.cues if not named.search(cue.text))
        )

    def add_event(self, time: float, text: str) -> Sheet:
        """Adds an event: `add_event(1.5, "red ball bounces")`. Other events keep their times."""
        text = _words(text)
        if not (0 <= time < math.inf and text):
            raise ValueError(f"no event {text!r} can be added at {time:g} seconds: give a time from 0 on, and a text.")
        names = [member.name for member in self.cast]
        if names and not any(f"{text} ".startswith(f"{name} ") for name in names):
            raise ValueError(
                f"the event {text!r} begins with no actor of the cast: begin it with {_listed(names, ' or ')}."
            )
        return self._replace(cues=_in_order((*self.cues, Cue(time, text))))

    # All of them by name, and the sheet in words

    def edit(self, command: str) -> Sheet:
        """Applies an edit that is written as text, with the name of a method and its arguments: `edit("move 0 0.25")`,
        `edit("recolour 'red ball' blue")`.

        Raises:
            ValueError: if there is no such edit, its arguments do not fit the method, or the method refuses it.
        """
        try:
            name, *arguments = shlex.split(command) or [""]
        except ValueError as error:
            raise ValueError(f"the edit {command!r} has no closing quotation mark ({error}): add it.") from error
        kinds = _EDITS.get(name)
        if kinds is None:
            raise ValueError(f"the edit {command!r} begins with none of {', '.join(_EDITS)}: write one of them first.")
        try:
            if name == "move" and len(arguments) == 2:
                arguments.append(arguments[0])
            values = [kind(argument) for kind, argument in zip(kinds.values(), arguments, strict=True)]
        except ValueError:
            form = " ".join([name, *(argument.upper() for argument in _EDITS[name])])
            raise ValueError(
                f"the edit {command!r} is not of the form {form!r}, with quotes around several words."
            ) from None
        return getattr(self, name)(*values)

    def to_prompt(self) -> str:
        """The sheet in an English sentence or two, without times, as a text encoder reads it: "A red ball is on the left. The red ball
        bounces twice."."""
        cast = [f"{_a(member.name)} is {_PLACES.get(member.place, f'({member.place})')}" for member in self.cast]
        sentences = [_sentence(_listed(cast))] if cast else []
        steps: list[tuple[str | None, list[str]]] = []
        for event, cue in enumerate(self.cues):
            actor = self.actor_of(event)
            deed = cue.text if actor is None else cue.text[len(actor) :].strip()
            for member in self.cast:
                deed = re.sub(rf"\b{re.escape(member.name)}\b", f"the {member.name}", deed)
            if steps and steps[-1][0] == actor:
                steps[-1][1].append(deed)
            else:
                steps.append((actor, [deed]))
        told = [" ".join(filter(None, [f"the {actor}" if actor else "", _deeds(deeds)])) for actor, deeds in steps]
        return " ".join([*sentences, _sentence(", then ".join(told)) if told else "Nothing moves."])

    def _cue(self, event: int) -> Cue:
        if isinstance(event, bool) or not isinstance(event, int) or not 0 <= event < len(self.cues):
            known = f"they go from 0 to {len(self.cues) - 1}" if self.cues else "the sheet has none"
            raise ValueError(f"there is no event {event!r}: {known}.")
        return self.cues[event]

    def _at(self, event: int, time: float) -> Cue:
        cue = self._cue(event)
        if not 0 <= time < math.inf:
            raise ValueError(
                f"event {event} ({cue.text!r}) cannot happen at {time:g} seconds: choose a time from 0 on."
            )
        return cue._replace(time=time)

    def _number_of(self, actor: str) -> int:
        names = [member.name for member in self.cast]
        if actor not in names:
            raise ValueError(
                f"there is no actor {actor!r} in the cast: it has {', '.join(map(repr, names)) or 'none'}."
            )
        return names.index(actor)

    def _check_free(self, place: str, actor: str | None = None) -> None:
        if len(_words(place).split()) != 1:
            raise ValueError(f"{place!r} is no place: give one word such as 'left'.")
        for member in self.cast:
            if member.place == place and member.name != actor:
                raise ValueError(f"{place!r} is the place of {member.name!r}: choose a free one, or swap the two.")

    def _with_event(self, event: int, *cues: Cue) -> Sheet:
        return self._replace(cues=_in_order((*self.cues[:event], *cues, *self.cues[event + 1 :])))

    def _with_actor(self, number: int, member: CastMember) -> Sheet:
        return self._replace(cast=(*self.cast[:number], member, *self.cast[number + 1 :]))


# The edits that can be written as text, and what their arguments are.
_EDITS: dict[str, dict[str, type]] = {
    "move": {"event": int, "seconds": float, "last": int},
    "retime": {"event": int, "time": float},
    "delete": {"event": int},
    "duplicate": {"event": int, "seconds": float},
    "reword": {"event": int, "deed": str},
    "revoice": {"event": int, "actor": str},
    "add_event": {"time": float, "text": str},
    "move_actor": {"actor": str, "place": str},
    "swap": {"actor": str, "other": str},
    "recolour": {"actor": str, "colour": str},
    "add_actor": {"name": str, "place": str},
    "remove_actor": {"actor": str},
}
_PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_TIMES = {1: "once", 2: "twice", 3: "three times"}


def _in_order(cues: Iterable[Cue]) -> tuple[Cue, ...]:
    return tuple(sorted(cues, key=lambda cue: cue.time))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listed(phrases: list[str], last: str = " and ") -> str:
    return last.join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _words(text: str) -> str:
    """A text with one space between words, as it can stand in a sheet."""
    if ";" in text or "<|" in text:
        raise ValueError(f"{text!r} cannot stand in a sheet: leave out ';' and '<|', which part its entries.")
    return " ".join(text.split())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _deeds(deeds: list[str]) -> str:
    """What one actor does in a row: "bounces twice", "says three nine", "waves and leaves"."""
    if len(set(deeds)) == 1 and " " not in deeds[0]:
        return f"{deeds[0]} {_TIMES.get(len(deeds), f'{len(deeds)} times')}"
    verb = deeds[0].split(" ")[0]
    if all(deed.startswith(f"{verb} ") for deed in deeds):
        return " ".join([verb, *(deed[len(verb) + 1 :] for deed in deeds)])
    return _listed(deeds)


class Turn(NamedTuple):
    """What one actor does in a row: `who`, each of its `deeds`, the `start` in seconds, and how many `seconds` it lasts.

    A `start` of `None` is open. `times` are the instants of the deeds, if they are known.
    """

    who: str
    deeds: tuple[str, ...]
    start: float | None
    seconds: float
    times: tuple[float, ...] = ()

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
    The cast and the cues of a sheet's text. Spaces around semicolons and timestamps do not matter.

    Raises:
        ValueError: if a member of the cast has no name or no place, or two have the same name; a timestamp is no number of
            seconds, or earlier than the one before it.
    """
    beginning, *parts = _TIMESTAMP.split(text)
    cast: dict[str, CastMember] = {}
    for entry in beginning.split(";") if beginning.strip() else ():
        *name, place = entry.split() or [""]
        if not name:
            raise ValueError(
                f"{entry.strip()!r} in a sheet's cast needs a name and a place, as in 'red ball left; blue box right <|0.50|> red ball'."
            )
        member = CastMember(" ".join(name), place)
        if member.name in cast:
            raise ValueError(f"{member.name!r} is twice in a sheet's cast: name each member once.")
        cast[member.name] = member
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
    return Sheet(tuple(cast.values()), tuple(cues))


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
            last = turns[-1]
            turns[-1] = Turn(who, (*last.deeds, deed), last.start, end - last.start, (*last.times, cue.time))
        else:
            turns.append(Turn(who, (deed,), cue.time, end - cue.time, (cue.time,)))
    return turns


def spoken_turns(prompt: str) -> list[Turn]:
    """
    What is said in a prompt between `<S>` and `<E>`, in order. Times are open; the length is estimated from the number of
    words. `who` is the text before the speech, since the last speech or sentence.
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
