"""`baton stage`: scenes of Stage, to look at."""

from pathlib import Path
from typing import Annotated

import typer

from .app import Scale, check_seed, command


@command
def stage(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.", metavar="DIR")],
    tier: Annotated[str | None, typer.Option(help="simple, medium, complex or film.", show_default="any clip")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 4,
    seed: Annotated[
        int, typer.Option(help="Seed of the first scene; each further one adds 1.", callback=check_seed)
    ] = 0,
    seconds: Annotated[float, typer.Option(help="How long each film is, a multiple of 3.", metavar="SECONDS")] = 24.0,
    scale: Scale = 4,
) -> None:
    """Show scenes of Stage: an mp4 and a contact sheet of each, and its prompt."""
    from ..files import make_folder, replacing
    from ..media import write_clip
    from ..stage import render_clip, sample_scene, timeline, write_prompt
    from ..stage.show import contact_sheet

    if tier == "film":
        _films(output, count, seed, seconds, scale)
        return
    scenes = [sample_scene(number, tier) for number in range(seed, seed + count)]
    make_folder(output)
    for number, scene in enumerate(scenes, start=seed):
        clip, prompt = render_clip(scene, number), write_prompt(scene, number)
        path = output / f"{scene.tier}-{number}.mp4"
        write_clip(path, clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate, scale)
        with replacing(path.with_suffix(".png")) as partial:
            contact_sheet(clip.frames, clip.waveform, timeline(scene, number), prompt).save(partial)
        print(f"{path}: {' '.join(prompt.split())}")  # a prompt may have lines


def _films(output: Path, count: int, seed: int, seconds: float, scale: int) -> None:
    """Shows films."""
    import numpy as np

    from ..files import make_folder, replacing
    from ..media import ClipWriter
    from ..stage.films import SHOT_SECONDS, film_prompts, render_film, sample_film
    from ..stage.hearing import hear
    from ..stage.scene import FRAME_RATE, FRAME_SIZE, SAMPLING_RATE
    from ..stage.show import film_sheet

    films = [sample_film(number, seconds) for number in range(seed, seed + count)]
    make_folder(output)
    for number, film in enumerate(films, start=seed):
        prompts, clips = [prompt.text for prompt in film_prompts(film, number)], list(render_film(film, number))
        path = output / f"film-{number}.mp4"
        with ClipWriter(path, FRAME_SIZE, FRAME_SIZE, FRAME_RATE, SAMPLING_RATE, scale) as writer:
            for clip in clips:
                writer.write(clip.frames, clip.waveform[None])
        frames, waveform = (
            np.concatenate(parts) for parts in zip(*[(c.frames, c.waveform) for c in clips], strict=True)
        )
        with replacing(path.with_suffix(".png")) as partial:
            film_sheet(frames, waveform, hear(waveform), prompts, SHOT_SECONDS).save(partial)
        print(path)
        for shot, prompt in enumerate(prompts):
            print(f"  {shot * SHOT_SECONDS:g} s{' (cut)' if shot in film.cuts else ''}: {' '.join(prompt.split())}")
