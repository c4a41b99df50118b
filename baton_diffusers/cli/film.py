"""`baton film`: films of any length, from files or from one prompt."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import loading
from .app import Guidance, Model, PlanCandidates, Recipe, Scale, Steps, Student, Turbo, check_seed, command
from .measured import Measured
from .workers import Worker


@command
def film(
    films: Annotated[
        list[str],
        typer.Argument(help="Film files (.toml, .yaml, .json); or one prompt, with --seconds.", metavar="FILE..."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The mp4 to write; for several films, their folder.", metavar="FILE.mp4"),
    ],
    work: Annotated[
        Path | None,
        typer.Option(
            help="Keep what is made here; the same command goes on from there. Needed by several processes.",
            show_default="a temporary folder",
            metavar="DIR",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="How long the film of a prompt lasts.")] = None,
    model: Model = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same film.", show_default="the file's, or 0"),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Follow this plan of the whole film instead of planning.", metavar="FILE")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(help="Keep the plan of the whole film.", metavar="FILE.safetensors")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Seconds that neighbouring windows share.", show_default="1, or a third of a shorter window"
        ),
    ] = None,
    plan_candidates: PlanCandidates = None,
    steps: Steps = None,
    turbo: Turbo = False,
    student: Student = None,
    guidance: Guidance = None,
    recipe: Recipe = None,
    scale: Scale = 1,
) -> None:
    """Make films of any length: shots under one plan. Several processes share the work: `accelerate launch -m baton_diffusers.cli film
    ...`, or anything that sets RANK and WORLD_SIZE."""
    from ..files import check_target, make_folder
    from ..shots import FILE_SUFFIXES, as_shots, read_film

    worker = Worker.this()
    names = [Path(name) for name in films]
    are_files = [name.suffix.lower() in FILE_SUFFIXES for name in names]
    if not all(are_files) and len(films) > 1:
        raise ValueError(
            f"{films[are_files.index(False)]} is no film file ({', '.join(FILE_SUFFIXES)}): give files, or one prompt"
        )
    if all(are_files) and seconds is not None:
        raise ValueError(f"--seconds {seconds:g} is for a prompt, and the shots of a file say their own: leave it out")
    if worker.total > 1 and work is None:
        raise ValueError(f"{worker.total} processes share a film by the folder that keeps it: give --work DIR")
    if len(films) > 1:
        for option, value in (("--plan", plan), ("--save-plan", save_plan)):
            if value is not None:
                raise ValueError(f"{option} {value} is for one film, and {len(films)} are given: make them one by one")
        stems = [name.stem for name in names]
        if again := [stem for number, stem in enumerate(stems) if stem in stems[:number]]:
            raise ValueError(
                f"two films have the name {again[0]}: rename one of them, since the mp4 is named after it"
            )
    asked = [
        read_film(name) if is_file else as_shots(text, seconds)
        for name, text, is_file in zip(names, films, are_files, strict=True)
    ]
    several = len(films) > 1
    if several:
        make_folder(output)
    targets = [check_target(output / f"{name.stem}.mp4" if several else output, (".mp4",)) for name in names]
    folders = [None if work is None else work / name.stem if several else work for name in names]
    if save_plan is not None:
        check_target(save_plan, (".safetensors",))
    student = loading.find_student(model, turbo, student)
    if student is not None and guidance is not None:
        raise ValueError("a student needs no guidance: leave --guidance out")

    loading.import_pipeline()
    guiders = loading.guiders(guidance)
    loading.check_guidance(guidance, guiders, model)
    pipe = loading.load_pipeline(model, recipe)
    pipe.register_modules(**guiders)
    if student is not None:
        pipe.load_student(student, fuse=True)
    options = {
        "seed": None if seed is None else check_seed(seed),
        "overlap_seconds": overlap,
        "num_inference_steps": steps,
        "num_plan_candidates": plan_candidates,
        "plan": plan,
    }
    # All are looked at before the first is made.
    made = [
        pipe.film(name if is_file else shots, work=folder, stream=True, **options)
        for name, shots, is_file, folder in zip(names, asked, are_files, folders, strict=True)
    ]
    if save_plan is not None:
        if made[0].plan is None:
            raise ValueError("--save-plan keeps what a planner makes, and this checkpoint has none: leave it out")
        made[0].plan.save(save_plan)
    tasks = [(film, take) for film in range(len(made)) for take in made[film].takes]
    failures: dict[int, Exception] = {}
    if worker.total > 1:
        for number in worker.share([take.made_frames for _, take in tasks]):
            index, take = tasks[number]
            try:
                made[index].render([take.number])
            except (OSError, RuntimeError, ValueError) as error:
                failures[index] = error
    for index, one in enumerate(made):
        if index in failures:
            continue
        try:
            with Measured() as measured:
                if worker.total > 1:
                    path = one.finish(targets[index], scale)
                else:
                    path = one.save(targets[index], scale)
            if path is None:
                print(f"{targets[index]}: other processes go on with it")
            else:
                print(f"{path}: {one.num_frames} frames, {one.duration:.2f} s; made in {measured}")
        except (OSError, RuntimeError, ValueError) as error:
            if not several:
                raise
            failures[index] = error
    if failures:
        for index, error in failures.items():
            print(f"{names[index]}: {' '.join(str(error).split())}", file=sys.stderr)
        raise RuntimeError(
            f"{len(failures)} of {len(made)} films failed, see above; the same command goes on with them"
        )
