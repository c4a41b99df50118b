"""Writes some of Stage's training clips after AAC and H.264, at usual rates and sizes: `waveform.npz` and `frames.npz`.

python examples/nano/coded_clips.py runs/pool --clips 256
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from robust_codecs import POOL_SEED

from baton_diffusers.stage.clips import StageClips


def main(folder: Path, num_clips: int) -> None:
    """Writes what AAC and H.264, at usual rates and sizes, make of some training clips: `waveform.npz` and `frames.npz`."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    clips = StageClips("train", POOL_SEED)
    rng = np.random.default_rng(0)
    sounds, films = [], []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clip.mp4"
        for index in range(num_clips):
            sample = clips[index]
            frames, waveform = sample["frames"].numpy(), (sample["waveform"].numpy() * 32767).astype("<i2")
            (Path(scratch) / "in.raw").write_bytes(frames.tobytes())
            (Path(scratch) / "in.pcm").write_bytes(waveform.tobytes())
            scale, crf, rate = rng.choice([1, 2, 4, 8]), rng.integers(14, 31), rng.choice([48, 64, 96, 128, 160])
            size = 64 * scale
            flags = rng.choice(["neighbor", "bilinear", "bicubic"])
            subprocess.run(
                [*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-r", "16", "-i", f"{scratch}/in.raw"]
                + ["-f", "s16le", "-ar", "16000", "-ac", "1", "-i", f"{scratch}/in.pcm"]
                + [
                    "-vf",
                    f"scale={size}:{size}:flags={flags}",
                    "-c:v",
                    "libx264",
                    "-crf",
                    str(crf),
                    "-pix_fmt",
                    "yuv420p",
                ]
                + ["-c:a", "aac", "-b:a", f"{rate}k", str(path)],
                check=True,
            )
            read = [*ffmpeg, "-i", str(path)]
            sound = subprocess.run(
                [*read, "-f", "s16le", "-ar", "16000", "-ac", "1", "-"], check=True, capture_output=True
            )
            film = subprocess.run(
                [*read, "-vf", "scale=64:64:flags=area", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                check=True,
                capture_output=True,
            )
            coded = np.frombuffer(sound.stdout, "<i2")[: len(waveform)]
            sounds.append(np.pad(coded, (0, len(waveform) - len(coded))))
            films.append(np.frombuffer(film.stdout, np.uint8).reshape(-1, 64, 64, 3)[: len(frames)])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "waveform.npz", coded=np.stack(sounds), indices=np.arange(num_clips))
    np.savez_compressed(folder / "frames.npz", coded=np.stack(films), indices=np.arange(num_clips))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=256)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.clips)
