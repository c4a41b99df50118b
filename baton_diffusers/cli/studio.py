"""`baton studio`: the page on which clips are planned, corrected and rendered."""

from importlib.util import find_spec
from typing import Annotated

import typer

from . import loading
from .app import Model, Student, Turbo, command


@command
def studio(
    model: Model = None,
    turbo: Turbo = False,
    student: Student = None,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; 0.0.0.0 lets the whole network in.", metavar="ADDRESS"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = 7860,
) -> None:
    """Open the studio: plan a clip in the browser, see and correct the plan, render it, render parts again."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the studio needs gradio: in a clone, pip install -e '.[app]'") from error

    student = loading.find_student(model, turbo, student)
    starts_quick = student is not None
    if student is None and (loading.find_folder(model) / "turbo").is_dir() and find_spec("peft") is not None:
        student = loading.find_student(model, True, None)  # a switch on the page
    pipe = loading.load_pipeline(model)
    if student is not None:
        pipe.load_student(student)
    pipe.set_progress_bar_config(disable=True)

    from ..studio.page import serve

    serve(
        pipe,
        model,
        student,
        starts_quick,
        host,
        port,
        started=lambda address: print(f"studio: {address} (Ctrl+C ends it)", flush=True),
    )
