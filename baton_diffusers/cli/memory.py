"""`baton memory`: what a configuration needs on a GPU."""

import re
from typing import Annotated

import typer

from . import loading
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
    film: Annotated[
        str | None,
        typer.Option(help="A film of this length, made in windows, such as 60s or 10min.", metavar="LENGTH"),
    ] = None,
) -> None:
    """Say what a configuration will need on a GPU; nothing is loaded."""
    loading.import_pipeline()

    from ..memory import report

    print(report(model, recipe, height, width, num_frames, given, None if film is None else _seconds(film)))


def _seconds(length: str) -> float:
    """The seconds of a length such as "60", "60s" or "10min"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min)?", length.strip())
    if found is None:
        raise ValueError(f"--film {length} is no length: give seconds or minutes, such as 60s or 10min")
    return float(found[1]) * (60 if found[2] == "min" else 1)
