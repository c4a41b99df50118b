"""What is heard in a clip: Stage's sounds, found by their templates in a log-mel spectrogram."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import maximum_filter, uniform_filter

from .scene import COLOURS, DIGITS, SAMPLING_RATE, VOICES
from .sound import event_sound


WINDOW = 1024  # samples
HOP = 250  # samples; a quarter of a frame
NUM_BANDS = 80
FLOOR = -3.5  # log of the mel magnitude that counts as silence

LEAD = 2  # hops of silence before the onset; a window reaches back over them
LENGTH = 24  # hops of a template: less than the least gap between two sounds
APART = 16  # hops; the nearest that two sounds can be told apart
ENDING = 8  # hops; what starts so close to the end of the clip is cut off
LIKENESS = 0.7  # least correlation of a spectrogram with a template
MARGIN = 0.15  # by which a second sound has to be more like a template than the ending of the first is
STRAY = 2.0  # log magnitude by which a sound has to exceed what explains it; codecs and vocoders stay below 0.7
BLUR = (5, 7)  # hops and bands over which an explanation reaches
PATCH = (5, 5)  # hops and bands that a stray sound fills on average
LEAST_SPREAD = 0.1  # of log-mel magnitude; what varies less is silence or a steady noise


@dataclass(frozen=True)
class Sound:
    """A sound that was heard: its `kind` (landing, flash, contact, word), the `colour` whose pitch or voice it has,
    its `time` of onset in seconds, the `word` that was said, and its `likeness` (0 to 1) to the template."""

    kind: str
    colour: str
    time: float
    word: str | None
    likeness: float


@cache
def _mel_bands() -> np.ndarray:
    """Triangles of equal width on the mel scale, each of unit sum: (513, 80)."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    limits = 0.0, SAMPLING_RATE / 2
    bands = mel_filter_bank(WINDOW // 2 + 1, NUM_BANDS, *limits, SAMPLING_RATE, norm=None, mel_scale="htk")
    return (bands / bands.sum(axis=0)).astype(np.float32)


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram above silence, (hops, 80); hop `i` is centred on sample `250 i`."""
    padded = np.pad(waveform, WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    magnitude = np.abs(np.fft.rfft(windows, axis=1)).astype(np.float32)
    return np.maximum(np.log(magnitude @ _mel_bands() + 1e-9) - FLOOR, 0)


@cache
def _templates() -> tuple[list[tuple[str, str, str | None]], np.ndarray]:
    """(kind, colour, word) of every sound of Stage, and their spectrograms, of zero mean and unit norm, (sounds, 24 * 80)."""
    names = [(kind, colour, None) for kind in ("landing", "flash", "contact") for colour in COLOURS]
    names += [("word", colour, digit) for colour in VOICES for digit in DIGITS]
    templates = []
    for name in names:
        sound = np.zeros(LENGTH * HOP, dtype=np.float32)
        wave = event_sound(*name)[: (LENGTH - LEAD) * HOP]
        sound[LEAD * HOP : LEAD * HOP + len(wave)] = wave
        templates.append(loudness(sound)[:LENGTH].ravel())
    stack = np.stack(templates)
    stack -= stack.mean(axis=1, keepdims=True)
    return names, stack / np.linalg.norm(stack, axis=1, keepdims=True)


@cache
def _endings() -> np.ndarray:
    """How alike the ending of each sound of Stage is to a template, at `APART` hops after its onset and later:
    (sounds, 24 - 16)."""
    endings = []
    for name in _templates()[0]:
        sound = np.zeros(3 * LENGTH * HOP, dtype=np.float32)
        wave = event_sound(*name)
        sound[: len(wave)] = wave
        endings.append(likenesses(sound)[APART:LENGTH].max(axis=1))
    return np.stack(endings)


def likenesses(waveform: np.ndarray) -> np.ndarray:
    """Correlation of the spectrogram from each hop on with each template, (hops, sounds)."""
    _, templates = _templates()
    seen = np.pad(loudness(waveform), ((LEAD, LENGTH), (0, 0)))
    pieces = np.lib.stride_tricks.sliding_window_view(seen, LENGTH, axis=0).transpose(0, 2, 1)
    pieces = pieces.reshape(len(pieces), -1)[: len(waveform) // HOP - ENDING]
    spread = np.maximum(pieces.std(axis=1, keepdims=True), LEAST_SPREAD)
    return pieces @ templates.T / (spread * np.sqrt(LENGTH * NUM_BANDS))


def hear(waveform: np.ndarray) -> tuple[Sound, ...]:
    """Find Stage's sounds in a waveform, in order of time.

    The piece of sound that is most like a template is taken first, then the next best at some distance from it, and so on. The
    ending of a sound is not a second one: as "six" dies away, it is like a contact.

    Args:
        waveform: Mono, shape (samples,), in [-1, 1], at 16 kHz.
    """
    if waveform.ndim != 1 or len(waveform) < LENGTH * HOP:
        raise ValueError(
            f"`waveform` has shape {waveform.shape}, but has to be mono, with at least {LENGTH * HOP} samples."
        )
    names, _ = _templates()
    found = likenesses(np.asarray(waveform, dtype=np.float32))
    best = found.max(axis=1)
    sounds = []
    while best.max() > LIKENESS:
        hop = int(best.argmax())
        number = int(found[hop].argmax())
        kind, colour, word = names[number]
        sounds.append(Sound(kind, colour, hop * HOP / SAMPLING_RATE, word, float(best[hop])))
        best[max(hop - APART + 1, 0) : hop + APART] = 0
        ending = best[hop + APART : hop + LENGTH]
        ending[ending < _endings()[number, : len(ending)] + MARGIN] = 0
    return tuple(sorted(sounds, key=lambda sound: sound.time))


def stray_sounds(waveform: np.ndarray, sounds: Iterable[Sound]) -> tuple[float, ...]:
    """Times in seconds at which something loud enough is heard that none of `sounds` explains.

    Args:
        waveform: As for [`hear`].
        sounds: What [`hear`] has found in it.
    """
    known = np.zeros(len(waveform) + SAMPLING_RATE, dtype=np.float32)
    for sound in sounds:
        wave, start = event_sound(sound.kind, sound.colour, sound.word), round(sound.time * SAMPLING_RATE)
        known[start : start + len(wave)] += wave
    heard, explained = loudness(np.asarray(waveform, dtype=np.float32)), loudness(known[: len(waveform)])
    excess = uniform_filter(np.maximum(heard - maximum_filter(explained, BLUR), 0), PATCH).max(axis=1)
    return tuple(float(hop * HOP / SAMPLING_RATE) for hop in np.flatnonzero(excess > STRAY))
