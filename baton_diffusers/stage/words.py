"""The digits that faces say, in a low and a high voice; made by `conversion_scripts/synthesise_stage_words.py`."""

from functools import cache
from pathlib import Path

import numpy as np

from .scene import DIGITS, FRAME_RATE, SAMPLING_RATE, VOICES


WORDS_FILE = Path(__file__).parent / "data" / "words.npz"


@cache
def load_words() -> dict[tuple[str, str], np.ndarray]:
    """The waveform of each (voice, digit): float32, shape (samples,), at 16 kHz. The first sample is the onset."""
    with np.load(WORDS_FILE) as data:
        words = {(v, d): data[f"{v}_{d}"].astype(np.float32) / 32767 for v in VOICES.values() for d in DIGITS}
    for word in words.values():
        word.setflags(write=False)
    return words


def word_frames(voice: str, digit: str) -> int:
    """The frames for which a mouth is open to say `digit` in `voice`: every frame that its sound touches."""
    samples = len(load_words()[voice, digit])
    return -(-samples * FRAME_RATE // SAMPLING_RATE)
