"""`Shot`: the description of a film, shot by shot, from Python or from a file.

A film file is TOML, YAML or JSON. It has a list of `shots`, and may have settings of the whole film beside it (`SETTINGS`):

    seed = 3

    [[shots]]
    prompt = "A red ball on the left bounces twice."
    seconds = 3

    [[shots]]
    prompt = "A purple face on the right says one."
    seconds = 2.5
    cut = true
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from . import files


if TYPE_CHECKING:
    from .pipelines.given import GivenPicture, GivenSound
    from .plan import SemanticPlan

MAX_SHOT_SECONDS = 600.0
_MAX_FILE_BYTES = 4_000_000
FILE_SUFFIXES = (".toml", ".yaml", ".yml", ".json")

# Settings of a whole film that its file may have, each an argument of `BatonPipeline.film`, with what it must be.
SETTINGS = {
    "seed": int,
    "overlap_seconds": float,
    "num_inference_steps": int,
    "num_plan_candidates": int,
    "height": int,
    "width": int,
    "negative_prompt": str,
    "audio_negative_prompt": str,
}
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_FILE_KEYS = {
    "prompt": str,
    "seconds": float,
    "cut": bool,
    "image": str,
    "audio": str,
    "voices": str,
    "cues": str,
    "plan": str,
}
_PATHS = ("image", "audio", "voices", "plan")


@dataclass(frozen=True)
class Shot:
    """A part of a film.

    Args:
        prompt (`str`): what is seen and heard.
        seconds (`float`): how long it lasts, at most `MAX_SHOT_SECONDS`.
        cut (`bool`, defaults to `False`): whether it begins with a hard cut. Otherwise it goes on from the shot before.
        image (*optional*): its first frame, as `image` of a call. Such a shot begins the film, or begins with a cut.
        audio (*optional*): its sound, as `audio` of a call: the picture is made for it.
        voices (*optional*): a sound with the voices that are to be heard, as `reference_audio` of a call. It holds for the shots
            that follow, too, until one has another.
        cues (`str`, *optional*): its cue sheet, with times from the shot's start. By default the planner writes it.
        plan ([`SemanticPlan`] or the path of its file, *optional*): takes the place of the planner's, for the shot's seconds.

    Raises:
        ValueError: if the prompt is no text, or `seconds` no number above 0 and up to `MAX_SHOT_SECONDS`.
    """

    prompt: str
    seconds: float
    cut: bool = False
    image: GivenPicture | None = None
    audio: GivenSound | None = None
    voices: GivenSound | None = None
    cues: str | None = None
    plan: SemanticPlan | str | Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"`prompt` is {self.prompt!r}, but a shot needs a text that says what is seen and heard.")
        is_number = isinstance(self.seconds, Real) and not isinstance(self.seconds, bool)
        if not is_number or not 0 < self.seconds < math.inf:
            raise ValueError(f"`seconds` is {self.seconds!r}, but a shot lasts a number of seconds above 0.")
        if self.seconds > MAX_SHOT_SECONDS:
            raise ValueError(
                f"`seconds` is {self.seconds:g}, but a shot lasts at most {MAX_SHOT_SECONDS:g}: split it into several."
            )
        if not isinstance(self.cut, bool):
            raise ValueError(f"`cut` is {self.cut!r}, but must be True or False.")
        if self.cues is not None and not isinstance(self.cues, str):
            raise ValueError(f"`cues` is {self.cues!r}, but must be a cue sheet as text.")


class FilmFile(NamedTuple):
    """What a film file says: its `shots`, and the `settings` of the whole film, arguments of `BatonPipeline.film`."""

    shots: tuple[Shot, ...]
    settings: dict[str, Any]


def as_shots(shots: Any, seconds: float | None = None) -> tuple[Shot, ...]:
    """Shots in any of the forms that `BatonPipeline.film` takes, other than a file.

    Args:
        shots: shots, mappings of a shot's arguments, or one text.
        seconds (`float`, *optional*): how long the film of one text lasts.

    Raises:
        ValueError: if they are none of these, or there are none.
    """
    if isinstance(shots, str):
        if seconds is None:
            raise ValueError("one prompt makes a film of a length that it does not say: give `seconds`, too.")
        return (Shot(shots, seconds),)
    if seconds is not None:
        raise ValueError(f"`seconds` is {seconds!r}, but shots say their own length: leave it out.")
    if isinstance(shots, Shot) or not isinstance(shots, Sequence) or not shots:
        raise ValueError(
            f"`shots` is {shots!r}, but must be a list of at least one `Shot`, a text, or the path of a film file."
        )
    return tuple(_as_shot(shot, number) for number, shot in enumerate(shots))


def _as_shot(shot: Any, number: int) -> Shot:
    if isinstance(shot, Shot):
        return shot
    if not isinstance(shot, Mapping):
        raise ValueError(f"shot {number} is {shot!r}, but must be a `Shot`.")
    if unknown := shot.keys() - {field.name for field in fields(Shot)}:
        raise ValueError(f"shot {number} has no argument {sorted(map(str, unknown))[0]!r}.")
    try:
        return Shot(**shot)
    except (TypeError, ValueError) as error:
        raise ValueError(f"shot {number}: {error}") from error


def read_film(path: str | Path) -> FilmFile:
    """Reads a film file. Its paths are relative to its folder, and may not lead out of it.

    Raises:
        ValueError: naming the file, the line and the remedy, if the file cannot be read, a key is unknown, missing or of another
            kind, a shot is none, or a file that it names is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix!r}: a film file ends in {', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}."
        )
    text = files.read_text(path, _MAX_FILE_BYTES)
    read = _read_toml if path.suffix.lower() == ".toml" else _read_yaml
    return _Reader(path).film(*read(path, text))


# Where a value stands: the line of each key, by its way from the top, as ("shots", 1, "prompt").
_Lines = dict[tuple[str | int, ...], int]


@dataclass(frozen=True)
class _Reader:
    path: Path

    def film(self, values: Any, lines: _Lines) -> FilmFile:
        if not isinstance(values, dict):
            raise self.error(lines, (), "it holds no keys: give a list of `shots`")
        known = [*SETTINGS, "shots"]
        for key in values:
            if key not in known:
                raise self.error(lines, (key,), f"the key {key!r} is unknown: use {', '.join(known)}")
        shots = values.pop("shots", None)
        if not isinstance(shots, list) or not shots:
            raise self.error(lines, ("shots",), "`shots` must be a list of at least one shot")
        settings = {key: self.value(lines, (key,), value, SETTINGS[key]) for key, value in values.items()}
        return FilmFile(tuple(self.shot(lines, number, shot) for number, shot in enumerate(shots)), settings)

    def shot(self, lines: _Lines, number: int, values: Any) -> Shot:
        way = ("shots", number)
        if not isinstance(values, dict):
            raise self.error(
                lines, way, f"shot {number + 1} is {values!r}, but must have the keys `prompt` and `seconds`"
            )
        for key, value in values.items():
            if key not in _FILE_KEYS:
                raise self.error(lines, (*way, key), f"a shot has no key {key!r}: use {', '.join(_FILE_KEYS)}")
            values[key] = self.value(lines, (*way, key), value, _FILE_KEYS[key])
            if key in _PATHS:
                values[key] = self.inside(lines, (*way, key), value)
        for key in ("prompt", "seconds"):
            if key not in values:
                raise self.error(lines, way, f"shot {number + 1} has no `{key}`")
        try:
            return Shot(**values)
        except ValueError as error:
            key = re.match(r"`(\w+)`", str(error))
            raise self.error(lines, (*way, key[1]) if key else way, str(error).rstrip(".")) from error

    def value(self, lines: _Lines, way: tuple, value: Any, kind: type) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(lines, way, f"`{way[-1]}` is {value!r}, but must be {_KINDS[kind]}")
        return value

    def inside(self, lines: _Lines, way: tuple, name: str) -> Path:
        try:
            return files.inside(self.path.parent, name)
        except ValueError as error:
            raise self.error(lines, way, str(error)) from error

    def error(self, lines: _Lines, way: tuple, message: str) -> ValueError:
        while way and way not in lines:
            way = way[:-1]
        return ValueError(f"{self.path}, line {lines.get(way, 1)}: {message}.")


# YAML and JSON. JSON is YAML, except for tabs


def _read_yaml(path: Path, text: str) -> tuple[Any, _Lines]:
    text = text.replace("\t", " ") if path.suffix.lower() == ".json" else text
    lines: _Lines = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return (None if node is None else _yaml_value(node, (), lines, yaml.SafeLoader(""))), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{path}, line {mark.line + 1 if mark else 1}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): correct it.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: a film is a list of shots.") from error


def _yaml_value(node: yaml.Node, way: tuple, lines: _Lines, loader: yaml.SafeLoader) -> Any:
    """The value of a node. An alias is refused: it could make a small file a huge one."""
    if id(node) in loader.constructed_objects:
        raise yaml.MarkedYAMLError(
            problem="an alias (*name) is not read here: write it out", problem_mark=node.start_mark
        )
    loader.constructed_objects[id(node)] = True
    lines.setdefault(way, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        values = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name in values:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is there twice", problem_mark=key.start_mark)
            lines[(*way, name)] = key.start_mark.line + 1
            values[name] = _yaml_value(value, (*way, name), lines, loader)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_yaml_value(value, (*way, i), lines, loader) for i, value in enumerate(node.value)]
    if node.tag.startswith("tag:yaml.org,2002:") and node.tag.rsplit(":", 1)[1] in (
        "str",
        "int",
        "float",
        "bool",
        "null",
    ):
        return loader.construct_object(node)
    return node.value


# TOML, whose reader in Python's library says no lines


def _read_toml(path: Path, text: str) -> tuple[Any, _Lines]:
    try:
        return tomllib.loads(text), dict(_toml_lines(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        message = str(error)[: place.start()] if place else re.sub(r" \(at end of document\)$", "", str(error))
        raise ValueError(f"{path}, line {line}: {message}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: a film is a list of shots.") from error


def _toml_lines(text: str) -> Iterator[tuple[tuple, int]]:
    way: tuple = ()
    counts: dict[str, int] = {}
    open_quote = None
    for number, line in enumerate(text.splitlines(), start=1):
        if open_quote is None:
            if table := re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line):
                index = counts[table[1]] = counts.get(table[1], -1) + 1
                way = (table[1], index)
                if not index:
                    yield (table[1],), number
                yield way, number
            elif table := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
                way = (table[1],)
                yield way, number
            elif key := re.match(r"""\s*(["']?)([\w-]+)\1\s*[=.]""", line):
                yield (*way, key[2]), number
        for quote in re.findall(r'"""|\'\'\'', line):
            open_quote = quote if open_quote is None else None if quote == open_quote else open_quote
