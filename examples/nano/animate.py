"""Makes the README's looping pictures: frames over the spectrogram of their sound, with a line that runs with the time.

python examples/nano/animate.py clip.webp [--model FOLDER] [--prompt TEXT] [--seed 0]
python examples/nano/animate.py docs/assets/film.webp --film examples/nano/film.toml [--sheet film.png] [--save film.mp4] [--work FOLDER]
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from baton_diffusers import BatonPipeline, default_checkpoint
from baton_diffusers.stage.hearing import hear
from baton_diffusers.stage.show import film_sheet


SCALE, HEIGHT = 5, 96
PAGE = 6.0  # seconds of a film's sound that are shown at once
CAPTION_HEIGHT = 52
PROMPT = "A red ball on the left bounces twice, then a purple face on the right says three nine."


def spectrogram(waveform: np.ndarray, width: int) -> Image.Image:
    """The logarithmic magnitudes of a sound, low tones at the bottom."""
    window = torch.hann_window(512)
    magnitudes = torch.stft(torch.from_numpy(waveform), 512, 128, window=window, return_complex=True).abs()
    levels = (magnitudes[:160].flip(0).clamp(min=1e-4).log10() + 2.5).clamp(0, 4) / 4
    grey = Image.fromarray((255 * levels.numpy()).astype(np.uint8))
    return grey.resize((width, HEIGHT), Image.Resampling.BILINEAR).convert("RGB")


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A text in lines of this width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    return "\n".join(lines)


def pictures(
    frames: np.ndarray, waveform: np.ndarray, rates: tuple[float, int], page: float, captions: list[str] | None
) -> list[Image.Image]:
    """
    One picture for each frame.

    Args:
        frames: uint8 (frames, height, width, 3).
        waveform: (samples,).
        rates: Frames and samples per second.
        page: Seconds of sound that are shown at once.
        captions: What is said of each frame.
    """
    frame_rate, sampling_rate = rates
    size, font, drawn = frames.shape[2] * SCALE, ImageFont.load_default(13), []
    top = 0 if captions is None else CAPTION_HEIGHT
    length, samples = round(page * frame_rate), round(page * sampling_rate)
    sound = np.pad(waveform, (0, -len(waveform) % samples)).reshape(-1, samples)
    pages = [spectrogram(part, size) for part in sound]
    for number, frame in enumerate(frames):
        picture = Image.new("RGB", (size, top + size + HEIGHT))
        draw = ImageDraw.Draw(picture)
        if captions is not None:
            draw.multiline_text((6, 3), wrapped(captions[number], font, size - 12), (235, 235, 235), font, spacing=1)
        picture.paste(Image.fromarray(frame).resize((size, size), Image.Resampling.NEAREST), (0, top))
        picture.paste(pages[number // length], (0, top + size))
        x = round(size * (number % length + 0.5) / length)
        draw.line([(x, top + size), (x, top + size + HEIGHT)], fill=(255, 80, 60), width=2)
        drawn.append(picture)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default=default_checkpoint())
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--film", type=Path, help="a film file, in place of the prompt")
    parser.add_argument("--sheet", type=Path, help="of a film: where strips of its frames over its sound go")
    parser.add_argument("--save", type=Path, help="of a film: the mp4")
    parser.add_argument(
        "--work", type=Path, help="of a film: a folder that keeps its windows, so that the same command goes on"
    )
    parser.add_argument("--seed", type=int, help="default: the film file's, or 0")
    arguments = parser.parse_args()
    if arguments.film is None and (arguments.sheet or arguments.save or arguments.work):
        parser.error("--sheet, --save and --work are for a --film")
    pipe = BatonPipeline.from_pretrained(arguments.model)
    if arguments.film is None:
        generator = torch.Generator().manual_seed(arguments.seed or 0)
        clip = pipe(arguments.prompt, generator=generator, output_type="np")
        frames, waveform = (255 * clip.frames[0]).round().astype(np.uint8), clip.audio[0].mean(axis=0)
        made, step, told = (
            pictures(frames, waveform, (clip.frame_rate, clip.sampling_rate), len(frames) / clip.frame_rate, None),
            1,
            clip.cues[0],
        )
    else:
        film = pipe.film(arguments.film, seed=arguments.seed, work=arguments.work, stream=True)
        if arguments.save:
            film.save(arguments.save, scale=4)
        clip = film.clip()
        frames, waveform = clip.frames, clip.waveform.mean(axis=0)
        captions = [s.prompt for s in film.shots for _ in range(round(s.seconds * film.frame_rate))]
        made = pictures(frames, waveform, (film.frame_rate, film.sampling_rate), PAGE, captions)
        step, told = 2, repr(film)
        if arguments.sheet:
            prompts = [shot.prompt for shot in film.shots]
            film_sheet(frames, waveform, hear(waveform), prompts, film.shots[0].seconds).save(arguments.sheet)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 * step / clip.frame_rate)
    made[0].save(
        arguments.output,
        save_all=True,
        append_images=made[step::step],
        duration=duration,
        loop=0,
        quality=60,
        method=6,
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB; {told}")


if __name__ == "__main__":
    main()
