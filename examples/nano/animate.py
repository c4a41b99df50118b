"""Makes the README's looping picture: a clip's frames over the spectrogram of its sound, with a line that runs with the time.

python examples/nano/animate.py docs/assets/clip.webp [--model FOLDER] [--prompt TEXT] [--seed 0]
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from baton_diffusers import BatonPipeline, default_checkpoint


SCALE, HEIGHT = 5, 96
PROMPT = "A red ball on the left bounces twice, then a purple face on the right says three nine."


def spectrogram(waveform: np.ndarray, width: int) -> Image.Image:
    """The logarithmic magnitudes of a sound, low tones at the bottom."""
    window = torch.hann_window(512)
    magnitudes = torch.stft(torch.from_numpy(waveform), 512, 128, window=window, return_complex=True).abs()
    levels = (magnitudes[:160].flip(0).clamp(min=1e-4).log10() + 2.5).clamp(0, 4) / 4
    grey = Image.fromarray((255 * levels.numpy()).astype(np.uint8))
    return grey.resize((width, HEIGHT), Image.Resampling.BILINEAR).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default=default_checkpoint())
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipe = BatonPipeline.from_pretrained(arguments.model)
    clip = pipe(arguments.prompt, generator=torch.Generator().manual_seed(arguments.seed), output_type="np")
    frames, waveform = clip.frames[0], clip.audio[0].mean(axis=0)
    size = frames.shape[2] * SCALE
    sound = spectrogram(waveform, size)
    pictures = []
    for number, frame in enumerate(frames):
        picture = Image.new("RGB", (size, size + HEIGHT))
        image = Image.fromarray((255 * frame).round().astype(np.uint8))
        picture.paste(image.resize((size, size), Image.Resampling.NEAREST))
        picture.paste(sound, (0, size))
        x = round(size * (number + 0.5) / len(frames))
        ImageDraw.Draw(picture).line([(x, size), (x, size + HEIGHT)], fill=(255, 80, 60), width=2)
        pictures.append(picture)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 / clip.frame_rate)
    pictures[0].save(
        arguments.output, save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=60, method=6
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB; {clip.cues[0]}")


if __name__ == "__main__":
    main()
