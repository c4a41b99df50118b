"""`baton generate`: a clip from a prompt, and from media that are given."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import loading
from .app import (
    Guidance,
    Model,
    PlanCandidates,
    Recipe,
    Scale,
    Seed,
    Sigmas,
    Steps,
    Student,
    Timesteps,
    Turbo,
    command,
)
from .measured import Measured
from .workers import Worker


if TYPE_CHECKING:
    import PIL.Image

    from ..pipelines.pipeline_output import BatonPipelineOutput


_SHEET_SIDE = 256  # pixels of a frame for the contact sheet


Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The mp4 to write; with --only audio also a wav or flac file; with --prompts a folder.",
        metavar="FILE.mp4",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="Make many clips, one for each line: a prompt, or in a .jsonl file an object with arguments of the call, `seed` and "
        "`name`. What is there is not made again. Several processes share the work, as in `baton film`.",
        metavar="FILE",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(help="Make the picture (video) or the sound (audio) alone.", show_default="both", metavar="MODALITY"),
]
NoPlan = Annotated[bool, typer.Option("--no-plan", metavar="", help="Denoise from the prompt alone, without a plan.")]
Plan = Annotated[
    Path | None,
    typer.Option(help="Follow this plan (--save-plan, `SemanticPlan.save`) instead of planning.", metavar="FILE"),
]
SavePlan = Annotated[
    Path | None, typer.Option(help="Keep the plan that the planner makes.", metavar="FILE.safetensors")
]
Cues = Annotated[
    str | None,
    typer.Option(
        help='Who is where and what happens when, such as "red ball left <|0.50|> red ball bounces"; "" leaves it open.',
        show_default="the planner writes them",
        metavar="SHEET",
    ),
]
Image = Annotated[
    Path | None, typer.Option(help="The first frame: the clip begins with this picture.", metavar="FILE")
]
Video = Annotated[Path | None, typer.Option(help="A video that is kept: a sound is generated for it.", metavar="FILE")]
Audio = Annotated[
    Path | None, typer.Option(help="A sound that is kept: a picture is generated for it.", metavar="FILE")
]
ReferenceAudio = Annotated[
    Path | None,
    typer.Option(help="A sound whose style the clip takes; for checkpoints trained with it.", metavar="FILE"),
]
ContinueFrom = Annotated[
    Path | None, typer.Option(help="A clip to continue: its end is the start of the new one.", metavar="FILE")
]
ContinueSeconds = Annotated[
    float | None, typer.Option(help="Seconds of the end of --continue-from that are kept.", show_default="1")
]
AudioPrompt = Annotated[
    str | None,
    typer.Option(help="Description of the sound; it ends the prompt, in the form of the checkpoint.", metavar="TEXT"),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(help="What guidance leads away from.", show_default="the checkpoint's", metavar="TEXT"),
]
AudioNegativePrompt = Annotated[
    str | None,
    typer.Option(help="The same for the sound.", show_default="the checkpoint's, or the picture's", metavar="TEXT"),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="Strength of guidance away from the clip without prompt; 1 for none.", show_default="the scheme's"
    ),
]
NumFrames = Annotated[
    int | None,
    typer.Option(help="Frames of the clip.", show_default="the checkpoint's, or as long as what is given"),
]
Height = Annotated[
    int | None, typer.Option(help="Pixels.", show_default="the checkpoint's, or in the shape of what is given")
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        help="Also draw the clip on a contact sheet, with the sounds that are heard in it.", metavar="FILE.png"
    ),
]


@command
def generate(
    output: Output,
    prompt: Annotated[str | None, typer.Argument(help="What is to be seen and heard.", metavar="PROMPT")] = None,
    prompts: Prompts = None,
    model: Model = None,
    seed: Seed = 0,
    only: Only = None,
    no_plan: NoPlan = False,
    plan: Plan = None,
    save_plan: SavePlan = None,
    cues: Cues = None,
    plan_candidates: PlanCandidates = None,
    image: Image = None,
    video: Video = None,
    audio: Audio = None,
    reference_audio: ReferenceAudio = None,
    continue_from: ContinueFrom = None,
    continue_seconds: ContinueSeconds = None,
    audio_prompt: AudioPrompt = None,
    negative_prompt: NegativePrompt = None,
    audio_negative_prompt: AudioNegativePrompt = None,
    steps: Steps = None,
    sigmas: Sigmas = None,
    timesteps: Timesteps = None,
    turbo: Turbo = False,
    student: Student = None,
    guidance: Guidance = None,
    guidance_scale: GuidanceScale = None,
    num_frames: NumFrames = None,
    height: Height = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="as --height")] = None,
    recipe: Recipe = None,
    scale: Scale = 1,
    sheet: Sheet = None,
) -> None:
    """Make a clip from a PROMPT, with a picture, a video, a sound or a clip to continue if you like; or many clips, with
    --prompts."""
    from .batch import generate_all, read_rows

    if (prompt is None) == (prompts is None):
        raise ValueError("give one PROMPT, or a file of them with --prompts FILE")
    rows, worker = [], Worker.this()
    media = {"image": image, "video": video, "audio": audio, "reference_audio": reference_audio}
    media |= {"continue_from": continue_from, "only": only, "audio_prompt": audio_prompt, "cues": cues}
    if prompts is not None:
        for option, value in {**media, "plan": plan, "save_plan": save_plan, "sheet": sheet}.items():
            if value is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} {value} is for one clip: leave it out, or give it in the lines of a "
                    ".jsonl file"
                )
        rows = read_rows(prompts)
    elif worker.total > 1:
        raise ValueError(
            f"{worker.total} processes cannot share one clip: start one, or give many with --prompts FILE"
        )
    else:
        texts = {"PROMPT": prompt, "--cues": cues, "--audio-prompt": audio_prompt}
        given = (image, video, audio, reference_audio, continue_from)
        _check_one(output, texts, only, no_plan, plan, save_plan, given, sheet)
        if only is None:  # elsewhere neither is kept whole
            from ..media import check_kept

            check_kept(video, audio, scale)
    for name, text in {"--negative-prompt": negative_prompt, "--audio-negative-prompt": audio_negative_prompt}.items():
        _check_text(name, text)
    grid = {"sigmas": _numbers("--sigmas", sigmas), "timesteps": _numbers("--timesteps", timesteps)}
    student = loading.find_student(model, turbo, student)
    if student is not None and (guidance is not None or guidance_scale is not None):
        raise ValueError("a student needs no guidance: leave --guidance and --guidance-scale out")

    # diffusers and transformers import both if they are there; nano has no use for them: a fifth off the imports.
    loading.import_pipeline(without=("scipy", "peft") if model is None else ())

    import torch

    from ..plan import SemanticPlan
    from ..schedulers import check_grid

    length = check_grid(**grid)
    if steps is not None and length not in (None, steps):
        raise ValueError(f"--steps {steps} does not fit the {length} steps of --sigmas or --timesteps: leave it out")
    loaded_plan = SemanticPlan.load(plan) if plan is not None else None
    guiders = loading.guiders(guidance)
    loading.check_guidance(guidance, guiders, model)
    pipe = loading.load_pipeline(model, recipe)
    if save_plan is not None and pipe.planner is None:
        raise ValueError("--save-plan keeps what a planner makes, and this checkpoint has none: leave it out")
    pipe.register_modules(**guiders)
    if student is not None:
        pipe.load_student(student, fuse=True)
    if guidance_scale is not None:
        pipe.guider = pipe.guider.new(guidance_scale=guidance_scale)
        pipe.audio_guider = pipe.audio_guider.new(guidance_scale=guidance_scale)
    call = {
        "negative_prompt": negative_prompt,
        "audio_negative_prompt": audio_negative_prompt,
        "use_plan": not no_plan,
        "num_plan_candidates": plan_candidates,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        **grid,
    }
    if prompts is not None:
        generate_all(pipe, rows, output, seed, scale, worker, **call)
        return
    with Measured() as measured:
        result = pipe(
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            continue_seconds=continue_seconds,
            plan=loaded_plan,
            output_type="pil",  # in floats, a kept video would take four times the memory
            **media,
            **call,
        )
    drawn = None if sheet is None else _contact_sheet(result, prompt)  # a kept film may be what OUTPUT replaces
    path = result.save(output, scale=scale)
    print(f"{path}: {_length(result)}; generated in {measured}")
    if result.cues is not None and result.cues[0]:
        print(f"cues: {result.cues[0]}")
    if save_plan is not None:
        result.plan.save(save_plan)
        print(save_plan)
    if drawn is not None:
        from ..files import replacing

        with replacing(sheet) as partial:
            drawn.save(partial)
        print(sheet)


def _length(result: "BatonPipelineOutput") -> str:
    frames, waveform = result.parts()
    if frames is None:
        return f"{waveform.shape[1]} samples, {waveform.shape[1] / result.sampling_rate:.2f} s"
    return f"{len(frames)} frames, {len(frames) / result.frame_rate:.2f} s"


def _contact_sheet(result: "BatonPipelineOutput", prompt: str) -> "PIL.Image.Image":
    """The clip on a picture, with the sounds that are heard in it. Of a large video, small frames are enough."""
    import numpy as np
    import PIL.Image

    from ..media import pictures_of, resample, shown_frames
    from ..stage.hearing import hear
    from ..stage.scene import FRAME_RATE, SAMPLING_RATE
    from ..stage.show import contact_sheet

    frames, waveform = result.parts()
    small = []
    for picture in pictures_of(frames, shown_frames(len(frames), result.frame_rate, FRAME_RATE)):
        image = PIL.Image.fromarray(picture)
        image.thumbnail((_SHEET_SIDE, _SHEET_SIDE))
        small.append(np.asarray(image))
    sound = resample(waveform, result.sampling_rate, SAMPLING_RATE).mean(axis=0)
    return contact_sheet(np.stack(small), sound, hear(sound), prompt)


def _numbers(name: str, text: str | None) -> list[float] | None:
    """The numbers between commas."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} {text} is no list of numbers: write them as 1,0.5") from None


def _check_text(name: str, text: str | None) -> None:
    if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds bytes that are not UTF-8: {ascii(text)}")


def _check_one(
    output: Path,
    texts: dict[str, str | None],
    only: str | None,
    no_plan: bool,
    plan: Path | None,
    save_plan: Path | None,
    given: tuple[Path | None, ...],
    sheet: Path | None,
) -> None:
    """Refuses options of one clip that cannot be or not go together, before anything is loaded."""
    from ..files import check_target
    from ..media import AUDIO_SUFFIXES

    for name, text in texts.items():
        _check_text(name, text)
    if only not in (None, "video", "audio"):
        raise ValueError(f"--only {only} is no modality: give video or audio, or leave it out for both")
    check_target(output, (".mp4", *AUDIO_SUFFIXES) if only == "audio" else (".mp4",))
    if sheet is not None:
        check_target(sheet, (".png",))
        if only is not None:
            raise ValueError("--sheet draws picture and sound: leave it out with --only")
    if no_plan and plan is not None:
        raise ValueError("--no-plan and --plan exclude each other: give one of them")
    if save_plan is not None:
        check_target(save_plan, (".safetensors",))
        if no_plan or plan is not None:
            raise ValueError("--save-plan keeps the plan that the planner makes: leave --no-plan and --plan out")
    for file in given:
        if file is not None and not file.is_file():
            raise ValueError(f"{file} is not a file: check the path")
