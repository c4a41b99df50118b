"""The sound of Stage: thuds, dings and clacks in the pitch of their actor's colour, and words in a face's voice."""

from functools import cache

import numpy as np

from .scene import COLOURS, NUM_SAMPLES, SAMPLING_RATE, VOICES, Scene, timeline
from .words import load_words


LOWEST = {"landing": 180.0, "flash": 1000.0, "contact": 700.0}  # Hz, for red; each further colour is a fourth higher
FOURTH = 4 / 3
DECAY = {"landing": 0.07, "flash": 0.09, "contact": 0.02}  # seconds to 1/e
LENGTH = {"landing": 0.28, "flash": 0.34, "contact": 0.12}  # seconds
GAIN = {"landing": 0.6, "flash": 0.4, "contact": 0.7}
PARTIAL = 2.76  # frequency of a bell's partial, as a multiple of its pitch
FADE_IN = 0.002  # seconds
FADE_OUT = 0.01


def pitch(kind: str, colour: str) -> float:
    """Pitch in Hz of the sound of a landing, flash or contact of an actor of this colour."""
    return LOWEST[kind] * FOURTH ** COLOURS.index(colour)


def event_sound(kind: str, colour: str, word: str | None = None) -> np.ndarray:
    """The sound of an event: float32, shape (samples,), with its onset at the first sample.

    Args:
        kind: landing (a decaying tone), flash (a decaying tone with a partial), contact (a burst of noise around its
            pitch, over a click) or word.
        colour: Colour of the actor, which sets the pitch, or the voice of a word.
        word: The digit, for a word.
    """
    return load_words()[VOICES[colour], word] if kind == "word" else _tone(kind, colour)


@cache
def _tone(kind: str, colour: str) -> np.ndarray:
    frequency = pitch(kind, colour)
    t = np.arange(round(LENGTH[kind] * SAMPLING_RATE)) / SAMPLING_RATE
    if kind == "landing":
        wave = np.sin(2 * np.pi * frequency * t)
    elif kind == "flash":
        wave = np.sin(2 * np.pi * frequency * t) + 0.4 * np.sin(2 * np.pi * PARTIAL * frequency * t)
    else:
        noise = np.fft.rfft(np.random.default_rng(0).standard_normal(len(t)))
        octaves = np.log2(np.fft.rfftfreq(len(t), 1 / SAMPLING_RATE).clip(1) / frequency)
        wave = np.fft.irfft(noise * (np.exp(-0.5 * (octaves / 0.12) ** 2) + 0.03), len(t))
        wave /= np.abs(wave).max()
    wave *= np.exp(-t / DECAY[kind]) * np.minimum(1, t / FADE_IN) * np.minimum(1, (t[-1] - t) / FADE_OUT)
    wave = (GAIN[kind] * wave / np.abs(wave).max()).astype(np.float32)
    wave.setflags(write=False)
    return wave


def render_audio(scene: Scene, seed: int) -> np.ndarray:
    """The sound of `scene` for one render `seed`: mono float32 in [-1, 1], shape (49000,), at 16 kHz."""
    waveform = np.zeros(NUM_SAMPLES, dtype=np.float32)
    for event in timeline(scene, seed):
        sound = event_sound(event.kind, scene.actors[event.actor].colour, event.word)
        start = round(event.time * SAMPLING_RATE)
        waveform[start : start + len(sound)] += sound
    return waveform
