"""Show a clip on one sheet: its frames over the spectrogram of its sound, on the same axis of time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from ..figure import font, wrap
from .hearing import Sound, loudness
from .scene import FRAME_RATE, SAMPLING_RATE, Event
from .sight import Sight


NUM_TILES = 16
TILE_WIDTH = 96
WIDTH = NUM_TILES * TILE_WIDTH
MARGIN = 28
GAP_HEIGHT = 18
SPECTROGRAM_HEIGHT = 200
LABEL_HEIGHT = 34
AXIS_HEIGHT = 26
LOUDEST = 5.5  # log-mel magnitude above silence that is shown at full brightness

PAPER, INK, FAINT = (252, 251, 248), (34, 36, 46), (150, 150, 158)
HEAT = ((18, 16, 34), (62, 31, 98), (147, 45, 110), (229, 98, 78), (251, 180, 100), (253, 244, 205))
MARKS = {"landing": (20, 135, 128), "flash": (190, 132, 0), "contact": (200, 62, 52), "word": (96, 76, 190)}


def contact_sheet(
    frames: np.ndarray,
    waveform: np.ndarray,
    events: Sequence[Event | Sight | Sound] | None = None,
    prompt: str | None = None,
) -> Image.Image:
    """Draw a clip as a strip of frames over its log-mel spectrogram.

    Args:
        frames: RGB uint8, (frames, height, width, 3), at 16 frames/s.
        waveform: Mono, (samples,), in [-1, 1], at 16 kHz.
        events: Instants to mark: a [`timeline`], or what the scorer has seen or heard. A tile of the strip shows the
            frame of the first instant within it; without one, the frame in its middle.
        prompt: Caption above the strip.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"`frames` is {frames.dtype} {frames.shape}, but has to be uint8 (frames, height, width, 3).")
    if waveform.ndim != 1:
        raise ValueError(f"`waveform` has shape {waveform.shape}, but has to be mono, (samples,).")
    events = events or ()
    duration = len(frames) / FRAME_RATE
    tile_height = round(TILE_WIDTH * frames.shape[1] / frames.shape[2])
    caption = wrap(prompt, font(21), WIDTH) if prompt else []
    strip_top = MARGIN + 30 * len(caption) + (12 if caption else 0)
    strip_bottom = strip_top + tile_height
    sound_top = strip_bottom + GAP_HEIGHT
    sound_bottom = sound_top + SPECTROGRAM_HEIGHT
    axis_top = sound_bottom + (LABEL_HEIGHT if events else 0)
    height = axis_top + AXIS_HEIGHT + MARGIN // 2
    sheet = Image.new("RGB", (WIDTH + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(caption):
        draw.text((MARGIN, MARGIN - 6 + 30 * i), line, INK, font(21))
    for tile, index in enumerate(_chosen_frames(len(frames), events)):
        picture = Image.fromarray(frames[index]).resize((TILE_WIDTH - 2, tile_height), Image.Resampling.BICUBIC)
        sheet.paste(picture, (MARGIN + tile * TILE_WIDTH + 1, strip_top))
    sheet.paste(_spectrogram(waveform, duration), (MARGIN, sound_top))

    def x(time: float) -> float:
        return MARGIN + WIDTH * time / duration

    for half_second in range(int(2 * duration) + 1):
        time = half_second / 2
        draw.line((x(time), sound_bottom, x(time), sound_bottom + 5), FAINT, 1)
        draw.text((x(time), axis_top + 8), f"{time:g} s", FAINT, font(13), anchor="ma" if half_second else "la")
    for event in events:
        colour, at = MARKS[event.kind], x(event.time)
        draw.polygon([(at - 5, strip_bottom + 9), (at + 5, strip_bottom + 9), (at, strip_bottom + 1)], colour)
        draw.line((at, strip_bottom + 9, at, sound_top - 1), colour, 2)
        for y in range(sound_top, sound_bottom, 8):
            draw.line((at, y, at, y + 3), (255, 255, 255), 1)
        draw.line((at, sound_bottom, at, sound_bottom + 12), colour, 2)
        label, middle = getattr(event, "word", None) or event.kind, sound_bottom + 20
        half = font(14).getlength(label) / 2
        centre = min(max(at, MARGIN + half + 7), MARGIN + WIDTH - half - 7)
        draw.rounded_rectangle((centre - half - 7, middle - 10, centre + half + 7, middle + 10), 9, colour)
        draw.text((centre, middle), label, (255, 255, 255), font(14), anchor="mm")
    return sheet


def film_sheet(
    frames: np.ndarray,
    waveform: np.ndarray,
    events: Sequence[Sight | Sound],
    prompts: Sequence[str],
    shot_seconds: float,
    shots_a_strip: int = 2,
) -> Image.Image:
    """Draw a film as strips, one below the other, each of some shots.

    Args:
        frames, waveform: As for [`contact_sheet`].
        events: Instants to mark, with times from the film's start.
        prompts: The prompt of each shot.
        shot_seconds: How long a shot is.
        shots_a_strip: How many shots a strip shows.
    """
    strips = []
    for first in range(0, len(prompts), shots_a_strip):
        last = min(first + shots_a_strip, len(prompts))
        start, end = first * shot_seconds, last * shot_seconds
        within = [replace(event, time=event.time - start) for event in events if start <= event.time < end]
        caption = "   |   ".join(" ".join(prompt.split()) for prompt in prompts[first:last])
        picture = frames[round(start * FRAME_RATE) : round(end * FRAME_RATE)]
        sound = waveform[round(start * SAMPLING_RATE) : round(end * SAMPLING_RATE)]
        strips.append(contact_sheet(picture, sound, within, f"{start:g} s: {caption}"))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), PAPER)
    for number, strip in enumerate(strips):
        sheet.paste(strip, (0, sum(other.height for other in strips[:number])))
    return sheet


def _chosen_frames(num_frames: int, events: Sequence[Event | Sight | Sound]) -> list[int]:
    """The frame that each tile of the strip shows."""
    instants = sorted(round(event.time * FRAME_RATE) for event in events)
    edges = np.linspace(0, num_frames, NUM_TILES + 1)
    chosen = []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        within = [frame for frame in instants if start <= frame < end]
        chosen.append(min(within[0] if within else int((start + end) / 2), num_frames - 1))
    return chosen


def _spectrogram(waveform: np.ndarray, duration: float) -> Image.Image:
    """The log-mel spectrogram over `duration` seconds, with high pitches on top."""
    samples = round(duration * SAMPLING_RATE)
    waveform = np.pad(waveform[:samples].astype(np.float32), (0, max(samples - len(waveform), 0)))
    heat = np.clip(loudness(waveform).T[::-1] / LOUDEST, 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    image = np.stack([np.interp(heat, steps, channel) for channel in np.transpose(HEAT)], axis=-1)
    return Image.fromarray(image.astype(np.uint8)).resize((WIDTH, SPECTROGRAM_HEIGHT), Image.Resampling.BICUBIC)
