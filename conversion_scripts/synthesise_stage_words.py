"""Synthesise Stage's words: the digits zero to nine in a low and a high voice, as `baton_diffusers/stage/data/words.npz`.

Run once, with espeak-ng installed (`apt-get install espeak-ng`):

    python conversion_scripts/synthesise_stage_words.py

Each digit is spoken at the slowest speed at which it lasts at most five frames (0.3125 s), stripped of silence so that
its first sample is its onset, brought to a common loudness, and faded in over 2 ms and out over 10 ms. The file holds one
int16 array per voice and digit at 16 kHz, under the key `"<voice>_<digit>"`.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# espeak-ng voice and pitch (0 to 99) that come to a mean fundamental of about 110 and 220 Hz.
VOICES = {"low": ("en-us", 66), "high": ("en-us+f2", 70)}
SAMPLING_RATE = 16000
MAX_SAMPLES = 5 * SAMPLING_RATE // 16
LOUDNESS = 0.13  # root mean square
SILENCE = 0.02  # of the peak


def speak(text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
    """Speak `text` with espeak-ng and return it at 16 kHz without leading and trailing silence."""
    command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", text]
    wave, rate = soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout))
    wave = resample_poly(wave, SAMPLING_RATE, rate)
    loud = np.flatnonzero(np.abs(wave) > SILENCE * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1]


def synthesise(text: str, voice: str, pitch: int) -> np.ndarray:
    """Speak `text` as slowly as five frames allow, at the common loudness, with faded ends, as int16."""
    for speed in range(200, 451, 10):
        wave = speak(text, voice, pitch, speed)
        if len(wave) <= MAX_SAMPLES:
            break
    else:
        raise RuntimeError(
            f"{text!r} in voice {voice!r} lasts {len(wave) / SAMPLING_RATE:.3f} s even at 450 words per minute"
        )
    fade_in, fade_out = SAMPLING_RATE * 2 // 1000, SAMPLING_RATE * 10 // 1000
    wave[:fade_in] *= np.linspace(0, 1, fade_in)
    wave[-fade_out:] *= np.linspace(1, 0, fade_out)
    wave *= LOUDNESS / np.sqrt(np.mean(wave**2))
    return np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "baton_diffusers" / "stage" / "data" / "words.npz"
    parser.add_argument("--output", type=Path, default=default)
    path = parser.parse_args().output
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {f"{v}_{d}": synthesise(d, *settings) for v, settings in VOICES.items() for d in DIGITS}
    np.savez_compressed(path, **words)
    for key, wave in words.items():
        print(f"{key:12s} {len(wave) / SAMPLING_RATE:.3f} s, peak {np.abs(wave).max() / 32767:.2f}")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
