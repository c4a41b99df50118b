"""`baton plan`: plans that are made, looked at, read off clips, corrected and compared, without rendering."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import loading
from .app import Model, PlanCandidates, Seed, app, group


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline
    from ..plan import SemanticPlan


_SPAN = 0.5  # seconds of a row of the table of differences

plan_app, command = group("plan", "Make, show, read, correct and compare plans, without rendering.")
app.add_typer(plan_app)

PlanFile = Annotated[
    Path, typer.Argument(help="A plan (`baton plan make`, `baton generate --save-plan`).", metavar="PLAN")
]
NewPlan = Annotated[Path, typer.Option("--output", "-o", help="The plan to write.", metavar="FILE.safetensors")]
Figure = Annotated[
    Path | None, typer.Option(help="Draw the plan: storyboard, who acts when, and waveform.", metavar="FILE.png")
]
Preview = Annotated[
    Path | None, typer.Option(help="Write its small pictures and its scratch track as a clip.", metavar="FILE.mp4")
]


@command
def make(
    prompt: Annotated[str, typer.Argument(help="What is to be seen and heard.", metavar="PROMPT")],
    output: NewPlan,
    model: Model = None,
    seed: Seed = 0,
    cues: Annotated[
        str | None,
        typer.Option(help="The cue sheet to follow.", show_default="the planner writes it", metavar="SHEET"),
    ] = None,
    plan_candidates: PlanCandidates = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames of the clip.", show_default="the checkpoint's")
    ] = None,
    figure: Figure = None,
    preview: Preview = None,
) -> None:
    """Plan a clip from a PROMPT: `baton generate --plan` renders it."""
    _check_targets(output, figure, preview)
    loading.import_pipeline()

    import torch

    pipe = loading.load_pipeline(model)
    plan = pipe.plan(
        prompt,
        num_frames=num_frames,
        generator=torch.Generator().manual_seed(seed),
        cues=cues,
        num_plan_candidates=plan_candidates,
    )
    _keep(pipe, plan, output, figure, preview)


@command
def show(
    plan: PlanFile,
    figure: Figure = None,
    preview: Preview = None,
    model: Model = None,
) -> None:
    """Show a PLAN: who acts or speaks when, and for how long."""
    from ..plan import SemanticPlan

    _check_targets(None, figure, preview)
    loaded = SemanticPlan.load(plan)
    pipe = None if figure is preview is None else loading.load_pipeline(model)
    _keep(pipe, loaded, None, figure, preview)


@command
def extract(
    clip: Annotated[Path, typer.Argument(help="The clip: a film with sound.", metavar="CLIP")],
    output: NewPlan,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What happens in it: a cue sheet is fitted to the clip, so that its plan can be corrected.",
            show_default="no sheet",
            metavar="TEXT",
        ),
    ] = None,
    model: Model = None,
    seed: Seed = 0,
    figure: Figure = None,
    preview: Preview = None,
) -> None:
    """Read the plan off a real CLIP."""
    from dataclasses import replace

    from ..media import read_clip

    _check_targets(output, figure, preview)
    if not clip.is_file():
        raise ValueError(f"{clip} is not a file: check the path")
    loading.import_pipeline()

    import torch

    pipe = loading.load_pipeline(model)
    plan = pipe.extract_plan(*read_clip(clip, sampling_rate=pipe.sampling_rate))
    if prompt is not None:
        sheets = pipe.prepare_cues(prompt, given_plan=plan, generator=torch.Generator().manual_seed(seed))
        plan = replace(plan, prompts=(prompt,), sheets=None if sheets is None else tuple(sheets))
    _keep(pipe, plan, output, figure, preview)


@command
def edit(
    plan: PlanFile,
    edits: Annotated[
        list[str],
        typer.Argument(
            help="Corrections of the cue sheet, in order, such as 'move 0 0.25', 'delete 1', \"recolour 'red ball' blue\"; events are "
            "counted from 0.",
            metavar="EDIT...",
        ),
    ],
    output: NewPlan,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the clip is asked for by.", show_default="the plan's, or the sheet in words"),
    ] = None,
    model: Model = None,
    figure: Figure = None,
    preview: Preview = None,
) -> None:
    """Correct a PLAN on its cue sheet; tokens that the edits do not change are kept."""
    from ..plan import SemanticPlan

    _check_targets(output, figure, preview)
    loaded = SemanticPlan.load(plan)
    sheet = loaded.sheet
    for text in edits:
        sheet = sheet.edit(text)
    pipe = loading.load_pipeline(model)
    _keep(pipe, pipe.edit_plan(loaded, sheet, prompt), output, figure, preview)


@command
def diff(
    plan: PlanFile,
    other: Annotated[Path, typer.Argument(help="Another plan.", metavar="OTHER")],
) -> None:
    """Compare a PLAN with an OTHER one: prompt, cast, cues, and the times at which their tokens differ."""
    from ..plan import SemanticPlan

    lines = difference(SemanticPlan.load(plan), SemanticPlan.load(other))
    print("\n".join(lines) or "no difference")


def difference(plan: SemanticPlan, other: SemanticPlan) -> list[str]:
    """What differs between two plans, in lines of text; `-` marks what the first one has, and `+` what the other has."""
    import torch

    from ..cues import format_timestamp, parse_sheet

    lines = []
    plan, other = plans = plan.trimmed(), other.trimmed()
    if plan.batch_size != other.batch_size:
        return [f"- {plan.batch_size} clips", f"+ {other.batch_size} clips"]
    if abs(plan.duration - other.duration) > 1e-5:
        lines += [f"{mark} {one.duration:.4f} s" for mark, one in zip("-+", plans, strict=True)]
    for index in range(plan.batch_size):
        own = []
        prompts, sheets = (
            [None if texts is None else texts[index] for texts in (getattr(one, name) for one in plans)]
            for name in ("prompts", "sheets")
        )
        if prompts[0] != prompts[1]:
            own += [f"{mark} prompt: {text!r}" for mark, text in zip("-+", prompts, strict=True) if text is not None]
        told = [parse_sheet(sheet or "") for sheet in sheets]
        entries = [
            [" ".join(member) for member in sheet.cast]
            + [f"{format_timestamp(cue.time)} {cue.text}" for cue in sheet.cues]
            for sheet in told
        ]
        own += [f"- {entry}" for entry in entries[0] if entry not in entries[1]]
        own += [f"+ {entry}" for entry in entries[1] if entry not in entries[0]]
        lines += own if plan.batch_size == 1 or not own else [f"clip {index}:", *own]
    rows = []
    for name in ("video", "audio"):
        ours, theirs = (getattr(one, f"{name}_tokens").float() for one in plans)
        times = getattr(plan, f"{name}_times")
        if ours.shape != theirs.shape or not torch.allclose(times, getattr(other, f"{name}_times"), atol=1e-5):
            return [*lines, f"the {name} tokens lie at other times: they are not compared"]
        squares = (ours - theirs).square().mean(dim=(0, 2))
        starts = [i * _SPAN for i in range(-int(-plan.duration // _SPAN))]
        within = [(times >= start) & (times < start + _SPAN) for start in starts]
        rows.append([squares[span].mean().sqrt().item() if span.any() else 0.0 for span in within])
    if any(value > 0 for row in rows for value in row):
        lines.append("tokens differ by (root mean square):")
        lines.append("     seconds  video  audio")
        for start, video, audio in zip(starts, *rows, strict=True):
            lines.append(f"{start:5.2f} - {min(start + _SPAN, plan.duration):4.2f}  {video:5.2f}  {audio:5.2f}")
    return lines


def _check_targets(output: Path | None, figure: Path | None, preview: Path | None) -> None:
    from ..files import check_target

    for path, suffix in ((output, ".safetensors"), (figure, ".png"), (preview, ".mp4")):
        if path is not None:
            check_target(path, (suffix,))


def _keep(
    pipe: BatonPipeline | None, plan: SemanticPlan, output: Path | None, figure: Path | None, preview: Path | None
) -> None:
    """Prints a plan, writes it, and draws it. Everything that can fail comes before anything is written."""
    from ..files import replacing

    decodes = pipe is not None and (pipe.video_plan_decoder is not None or pipe.audio_plan_decoder is not None)
    seen = pipe.preview(plan) if decodes or preview is not None else None
    print(plan)
    for index in range(plan.batch_size):
        if plan.turns(index):
            print(plan.table(index))
    if output is not None:
        plan.save(output)
        print(output)
    if figure is not None:
        with replacing(figure) as partial:
            (plan if seen is None else seen).figure().save(partial, "PNG")
        print(figure if decodes else f"{figure}, without pictures: the checkpoint has no plan decoders")
    if preview is not None:
        print(seen.save(preview, scale=max(1, 256 // seen.clip()[0].shape[2]) if seen.frames is not None else 1))
