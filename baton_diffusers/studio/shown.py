"""What the page shows of plans and clips, as JSON: sheets, small pictures and the outline of a sound."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import PIL.Image

from ..cues import CastMember, Cue, Sheet, format_sheet, parse_sheet


MAX_PICTURES = 32
MAX_CAST, MAX_CUES, MAX_LETTERS = 32, 200, 200
_PICTURE_SIDE = 96  # pixels of the longer side of a small picture
_PEAKS = 240


def sheet_to_json(sheet: str) -> dict[str, Any]:
    """A cue sheet as the page's timeline holds it: `cast` of names and places, `cues` of times and texts."""
    parsed = parse_sheet(sheet)
    return {"cast": [member._asdict() for member in parsed.cast], "cues": [cue._asdict() for cue in parsed.cues]}


def sheet_from_json(value: Any) -> str:
    """
    The cue sheet of a timeline. It comes from a browser, so nothing of it is taken for granted.

    Raises:
        ValueError: if it is no sheet, or a long one.
    """
    try:
        cast = tuple(CastMember(_words(member["name"]), _words(member["place"])) for member in value["cast"])
        cues = tuple(Cue(_seconds(cue["time"]), _words(cue["text"], least=0)) for cue in value["cues"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"the page sent no cue sheet ({type(error).__name__}): reload it.") from error
    if len(cast) > MAX_CAST or len(cues) > MAX_CUES:
        raise ValueError(
            f"a sheet of {len(cast)} actors and {len(cues)} events is too long: at most {MAX_CAST} and {MAX_CUES} are planned."
        )
    text = format_sheet(Sheet(cast, cues))
    parse_sheet(text)  # what was typed may hold timestamps or semicolons
    return text


def _words(value: Any, least: int = 1) -> str:
    if not isinstance(value, str):
        raise TypeError
    words = " ".join(value.split())
    if not least <= len(words) <= MAX_LETTERS:
        raise ValueError(
            f"{words[:40]!r} has {len(words)} letters: write an actor or event in {least} to {MAX_LETTERS}."
        )
    return words


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if not 0 <= value < 1e6:
        raise ValueError(f"an event at {value} seconds cannot be planned: move it to 0 or later.")
    return float(value)


def storyboard(frames: np.ndarray, frame_rate: float) -> list[dict[str, Any]]:
    """At most `MAX_PICTURES` of a clip's frames, evenly spaced, each with its time in seconds and an address that holds the picture."""
    number = min(len(frames), MAX_PICTURES)
    indices = np.linspace(0, len(frames) - 1, number).round().astype(int)
    return [{"time": float(index / frame_rate), "src": picture(frames[index])} for index in indices]


def picture(pixels: np.ndarray) -> str:
    """A small picture of uint8 pixels `(height, width, 3)`, as an address that holds it."""
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def outline(waveform: np.ndarray) -> list[float]:
    """The loudest sample of each of `_PEAKS` equal parts of a waveform `(num_channels, num_samples)`, in [0, 1]."""
    loudness = np.abs(waveform).max(axis=0)
    parts = np.array_split(loudness, min(_PEAKS, len(loudness)))
    return [round(float(part.max()), 3) for part in parts]
