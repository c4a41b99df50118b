"""`baton stage`: scenes of Stage, to look at."""

from pathlib import Path
from typing import Annotated

import typer

from .app import check_seed, command


@command
def stage(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.", metavar="DIR")],
    tier: Annotated[str | None, typer.Option(help="simple, medium or complex.", show_default="any")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 4,
    seed: Annotated[
        int, typer.Option(help="Seed of the first scene; each further one adds 1.", callback=check_seed)
    ] = 0,
    scale: Annotated[int, typer.Option(min=1, help="Write every pixel as SCALE x SCALE pixels.")] = 4,
) -> None:
    """Show scenes of Stage: an mp4 and a contact sheet of each, and its prompt."""
    from ..files import make_folder, replacing
    from ..media import write_clip
    from ..stage import render_clip, sample_scene, timeline, write_prompt
    from ..stage.show import contact_sheet

    scenes = [sample_scene(number, tier) for number in range(seed, seed + count)]
    make_folder(output)
    for number, scene in enumerate(scenes, start=seed):
        clip, prompt = render_clip(scene, number), write_prompt(scene, number)
        path = output / f"{scene.tier}-{number}.mp4"
        write_clip(path, clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate, scale)
        with replacing(path.with_suffix(".png")) as partial:
            contact_sheet(clip.frames, clip.waveform, timeline(scene, number), prompt).save(partial)
        print(f"{path}: {' '.join(prompt.split())}")  # a prompt may have lines
