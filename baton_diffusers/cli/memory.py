"""`baton memory`: what a configuration needs on a GPU."""

from typing import Annotated

import typer

from .app import command


@command
def memory(
    model: Annotated[
        str,
        typer.Option(help="A configuration: a folder, a Hub id, or one that comes with the package.", metavar="NAME"),
    ] = "baton-11b",
    recipe: Annotated[str | None, typer.Option(help="The way to run it.", show_default="all of them")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", show_default="the configuration's")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="the configuration's")] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames of the clip.", show_default="the configuration's")
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            help="What the clip is made for: image, video, audio or reference_audio.",
            show_default="a prompt alone",
            metavar="KIND",
        ),
    ] = None,
) -> None:
    """Say what a configuration will need on a GPU; nothing is loaded."""
    from ..memory import report

    print(report(model, recipe, height, width, num_frames, given))
