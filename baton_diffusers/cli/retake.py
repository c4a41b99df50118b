"""`baton retake`: a part of a clip is rendered again."""

from pathlib import Path
from typing import Annotated

import typer

from . import loading
from .app import Guidance, Model, Seed, Steps, command


@command
def retake(
    clip: Annotated[Path, typer.Argument(help="The clip: a film with sound.", metavar="CLIP")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The mp4 to write; it may be CLIP itself.", metavar="FILE.mp4")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="What happens in the clip as a whole.", show_default="the prompt of --plan", metavar="TEXT"),
    ] = None,
    start: Annotated[float | None, typer.Option(help="Second at which the new part begins.", show_default="0")] = None,
    end: Annotated[
        float | None, typer.Option(help="Second at which it ends.", show_default="the end of the clip")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="The plan of the clip as a whole (`baton generate --save-plan`, `baton plan`).", metavar="FILE"
        ),
    ] = None,
    cues: Annotated[
        str | None,
        typer.Option(
            help="The cue sheet of the clip as a whole, to be planned.",
            show_default="fitted to the clip, without --plan",
            metavar="SHEET",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Render only the picture (video) or only the sound (audio) again.",
            show_default="both",
            metavar="MODALITY",
        ),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option(
            help='Render the events of one actor of the cue sheet alone, such as "red ball".', metavar="NAME"
        ),
    ] = None,
    model: Model = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Render a part of a CLIP again, and keep the rest: another take, or another plan."""
    from ..files import check_target
    from ..media import read_clip

    check_target(output, (".mp4",))
    if not clip.is_file():
        raise ValueError(f"{clip} is not a file: check the path")
    if prompt is None and plan is None:
        raise ValueError("nothing says what happens in the clip: give --prompt, or the --plan that it was made from")

    loading.import_pipeline()

    import torch

    from ..plan import SemanticPlan

    loaded_plan = SemanticPlan.load(plan) if plan is not None else None
    guiders = loading.guiders(guidance)
    loading.check_guidance(guidance, guiders, model)
    pipe = loading.load_pipeline(model)
    pipe.register_modules(**guiders)
    before = read_clip(clip, frame_rate=pipe.frame_rate)
    new = pipe.retake(
        before._replace(waveform=before.waveform.clip(-1, 1)),
        start,
        end,
        prompt,
        cues,
        loaded_plan,
        torch.Generator().manual_seed(seed),
        only,
        actor,
        output_type="np",
        **({"num_inference_steps": steps} if steps is not None else {}),
    )
    path = new.save(output)
    until = before.duration if end is None else end
    print(f"{path}: {start or 0:g} to {until:.4g} s of {before.duration:.4g} s rendered anew")
    if new.cues is not None and new.cues[0]:
        print(f"cues: {new.cues[0]}")
