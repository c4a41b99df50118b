"""The application `baton`: how its commands are registered, and the options that several of them have."""

from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup


class _PlainHelp:
    """`--help` without `<bool>` behind it."""

    def get_help_option(self, context):
        option = super().get_help_option(context)
        if option is not None:
            option.metavar = ""
        return option


class _Command(_PlainHelp, TyperCommand):
    pass


class _Group(_PlainHelp, TyperGroup):
    pass


app = typer.Typer(
    name="baton",
    cls=_Group,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong input. With BATON_DEBUG=1 an error shows its traceback.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def command(function):
    """Registers a function as a command of `baton`, named after it."""
    return app.command(cls=_Command)(function)


def group(name, help_text):
    """A group of commands `baton NAME COMMAND`, and a decorator that registers a function as one of them."""
    commands = typer.Typer(name=name, cls=_Group, help=help_text, no_args_is_help=True)

    def register(function):
        return commands.command(cls=_Command)(function)

    return commands, register


Model = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint: a folder, a Hub id, or baton-nano, which comes with the package.",
        show_default="baton-nano",
        metavar="DIR_OR_HUB_ID",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the pipeline's")]
Sigmas = Annotated[
    str | None,
    typer.Option(
        help="Noise levels of the steps before the schedulers' shifts, such as 1,0.8,0.4.",
        show_default="equal parts",
        metavar="NUMBERS",
    ),
]
Timesteps = Annotated[
    str | None,
    typer.Option(
        help="Instead of --sigmas, 1000 times the noise levels after the shifts, as published for few-step LoRAs: 1000,757,522.",
        show_default="equal parts",
        metavar="NUMBERS",
    ),
]


def check_seed(number: int) -> int:
    """The seed, if torch takes it.

    Raises:
        ValueError: if it is negative, or 2**64 or more.
    """
    if not 0 <= number < 2**64:
        raise ValueError(f"--seed {number} is not between 0 and 2**64 - 1: choose another number")
    return number


Seed = Annotated[int, typer.Option(help="The same seed gives the same clip.", callback=check_seed)]
Guidance = Annotated[
    str | None,
    typer.Option(
        help="A scheme: none, text, plan, harmony, ccl, ltx2, mova or ovi.",
        show_default="the checkpoint's",
        metavar="NAME",
    ),
]

Turbo = Annotated[
    bool,
    typer.Option(
        "--turbo", metavar="", help="Few steps without guidance: the student in the checkpoint's own folder `turbo`."
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        help="The same for a student of your own (examples/train_distillation.py): its folder.",
        metavar="DIR_OR_HUB_ID",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="Load in bfloat16, and run on the GPU by this recipe: `baton memory` lists them, with what each will need.",
        show_default="float32, on the GPU if there is one",
        metavar="NAME",
    ),
]
PlanCandidates = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cue sheets that the planner writes; the plan checker chooses the best.",
        show_default="8 with a plan checker",
    ),
]
Scale = Annotated[int, typer.Option(min=1, help="Write every pixel as SCALE x SCALE pixels.")]


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"baton {__version__}")
        raise typer.Exit


@app.callback()
def baton(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", help="Show the version and exit.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Plan a clip, then denoise its picture and its sound together under that plan."""
