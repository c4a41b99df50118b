"""A clip or its plan on one picture: pictures in a strip, who acts when, and the sound, on one axis of time."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .cues import Turn
from .media import VideoFile, pictures_of


WIDTH = 960  # pixels of the axis of time
NAMES = 150  # pixels for the names beside it
MARGIN = 22
NUM_TILES = 12
LEAST_TILE, HIGHEST_TILE = 40, 160  # pixels; more narrow tiles would be too many, higher ones would leave no room
LANE = 30
WAVE = 64
AXIS = 24

PAPER, INK, FAINT, SOUND = (252, 251, 248), (34, 36, 46), (150, 150, 158), (70, 110, 170)
LANES = ((20, 135, 128), (190, 90, 40), (96, 76, 190), (170, 60, 100), (80, 120, 40), (60, 100, 160))


def draw_clip(
    duration: float,
    turns: Sequence[Turn] = (),
    cast: Sequence[str] = (),
    prompt: str | None = None,
    frames: np.ndarray | VideoFile | None = None,
    waveform: np.ndarray | None = None,
) -> Image.Image:
    """
    Draws what is known of a clip.

    Args:
        duration (`float`): seconds of the clip.
        turns (`Sequence[Turn]`): who acts when. Turns that are open in time are listed below the axis.
        cast (`Sequence[str]`): who is there, in order from the top; whoever acts besides follows.
        prompt (`str`, *optional*): the caption.
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)` or [`~media.VideoFile`], *optional*): uint8.
        waveform (`np.ndarray` of shape `(num_channels, num_samples)`, *optional*): in [-1, 1].
    """
    timed = [turn for turn in turns if turn.start is not None]
    names = list(dict.fromkeys([*cast, *(turn.who for turn in timed)]))
    caption = wrap(prompt, font(17), NAMES + WIDTH) if prompt else []
    listed = [f"{turn.who}: {turn.what} (about {turn.seconds:.1f} s)" for turn in turns if turn.start is None]
    listed = [line for text in listed for line in wrap(text, font(14), WIDTH)]
    tile_width, tile_height = (0, 0) if frames is None else _tile_size(*frames.shape[1:3])

    strip = MARGIN + 24 * len(caption) + (6 if caption else 0)
    lanes = strip + tile_height + (10 if tile_height else 0)
    wave = lanes + LANE * len(names) + (6 if names else 0)
    axis = wave + (WAVE if waveform is not None else 0)
    height = axis + AXIS + 20 * len(listed) + MARGIN
    left = MARGIN + NAMES
    image = Image.new("RGB", (left + WIDTH + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(image)

    def x(time: float) -> float:
        return left + WIDTH * min(max(time / duration, 0), 1)

    for i, line in enumerate(caption):
        draw.text((MARGIN, MARGIN - 4 + 24 * i), line, INK, font(17))
    if frames is not None:
        chosen = _chosen_frames(len(frames), duration, WIDTH // tile_width, timed)
        for tile, frame in enumerate(pictures_of(frames, chosen)):
            picture = Image.fromarray(frame).resize((tile_width - 2, tile_height), Image.Resampling.BICUBIC)
            image.paste(picture, (left + tile * tile_width + 1, strip))
    for second in _ticks(duration):
        draw.line((x(second), lanes, x(second), axis + 4), (232, 230, 226), 1)
        draw.text((x(second), axis + 6), f"{second:g} s", FAINT, font(13), anchor="ma" if second else "la")
    for row, name in enumerate(names):
        colour, middle = _colour_of(name, row), lanes + LANE * row + LANE // 2
        draw.text((left - 10, middle), _shortened(name, font(14), NAMES - 14), INK, font(14), anchor="rm")
        draw.line((left, middle, left + WIDTH, middle), (226, 224, 220), 1)
        for turn in (turn for turn in timed if turn.who == name):
            _draw_turn(draw, turn, x(turn.start), x(turn.start + turn.seconds), middle, colour, left + WIDTH)
            for time in turn.times:
                draw.line((x(time), middle - 14, x(time), middle - 10), colour, 2)
    if waveform is not None:
        _draw_wave(draw, waveform, left, wave + WAVE / 2)
    draw.line((left, axis, left + WIDTH, axis), FAINT, 1)
    for i, line in enumerate(listed):
        draw.text((left, axis + AXIS + 20 * i), line, INK, font(14))
    return image


def html_picture(image: Image.Image) -> str:
    """An element of HTML that holds the picture."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png([image])).decode()}" style="max-width: 100%">'


def png(images: Sequence[Image.Image]) -> bytes:
    """A PNG file of some pictures, one below another."""
    whole = images[0]
    if len(images) > 1:
        whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), PAPER)
        for number, image in enumerate(images):
            whole.paste(image, (0, sum(above.height for above in images[:number])))
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings along."""
    return ImageFont.load_default(size)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _colour_of(name: str, row: int) -> tuple[int, int, int]:
    """The colour in a name such as "red ball", darkened so that light words are legible on it; without one, the colour of the
    row."""
    told = next((word for word in name.lower().split() if word in ImageColor.colormap), None)
    if told is None:
        return LANES[row % len(LANES)]
    colour = ImageColor.getrgb(told)
    brightness = np.dot(colour, (0.30, 0.59, 0.11))
    return tuple(round(value * min(0.85, 120 / max(brightness, 1))) for value in colour)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a picture of the strip: whole tiles fill the axis."""
    number = NUM_TILES
    while number > 4 and WIDTH // number < LEAST_TILE:
        number -= 1
    tile = WIDTH // number
    if tile * height / width > HIGHEST_TILE:  # a picture on end
        tile = max(LEAST_TILE, round(HIGHEST_TILE * width / height))
        tile = WIDTH // max(WIDTH // tile, 1)
    return tile, max(1, round((tile - 2) * height / width))


def _chosen_frames(num_frames: int, duration: float, num_tiles: int, turns: Sequence[Turn]) -> list[int]:
    """The frame that each tile shows: the one where a turn starts, or the one in the middle of its span."""
    starts = sorted(int(turn.start / duration * num_frames) for turn in turns)
    edges = np.linspace(0, num_frames, num_tiles + 1)
    chosen = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        within = [frame for frame in starts if start <= frame < end]
        chosen.append(min(within[0] if within else int((start + end) / 2), num_frames - 1))
    return chosen


def _ticks(duration: float) -> np.ndarray:
    """Instants of the axis: about ten of them, at round seconds."""
    step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60) if duration / step <= 12), duration)
    return np.arange(0, math.floor(duration / step + 1e-6) + 1) * step


def _draw_turn(
    draw: ImageDraw.ImageDraw, turn: Turn, start: float, end: float, middle: int, colour: tuple, right: int
) -> None:
    end = max(end, start + 4)
    draw.rounded_rectangle((start, middle - 10, end, middle + 10), 4, colour)
    text, label = turn.what, font(13)
    if label.getlength(text) <= end - start - 8:
        draw.text((start + 5, middle), text, PAPER, label, anchor="lm")
    elif label.getlength(text) <= right - end - 6:
        draw.text((end + 5, middle), text, colour, label, anchor="lm")
    else:
        draw.text((start - 5, middle), text, colour, label, anchor="rm")


def _draw_wave(draw: ImageDraw.ImageDraw, waveform: np.ndarray, left: int, middle: float) -> None:
    mono = np.asarray(waveform, dtype=np.float32).reshape(-1, np.shape(waveform)[-1]).mean(axis=0)
    if not len(mono):
        return
    edges = np.linspace(0, len(mono), WIDTH + 1).astype(int)
    for column, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        piece = mono[start : max(end, start + 1)]
        low, high = (
            float(np.clip(value, -1, 1)) * (WAVE / 2 - 3) for value in (min(piece.min(), 0), max(piece.max(), 0))
        )
        draw.line((left + column, middle - high, left + column, middle - low), SOUND, 1)
