"""`baton evaluate`: scores of a checkpoint on scenes of Stage."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import loading
from .app import Guidance, Model, Steps, Student, Turbo, check_seed, command


if TYPE_CHECKING:
    from ..pipelines.pipeline_baton import BatonPipeline


MEASURES = ("clips", "round-trip", "chain", "bells", "editing", "retake", "preview")


Split = Annotated[
    str,
    typer.Option(
        help="The scenes: validation, to choose models; test, once, for published results; test-combinations (pairs of "
        "actors and orders of kinds that training never has) or test-paraphrase (the test scenes in wordings that training "
        "never has)."
    ),
]
Tier = Annotated[
    str | None,
    typer.Option(
        help="film: films of several shots instead of clips.", show_default="the tiers of clips", metavar="film"
    ),
]
Seconds = Annotated[
    float, typer.Option(help="How long each film of --tier film is, a multiple of 3.", metavar="SECONDS")
]
Ways = Annotated[
    str,
    typer.Option(
        help="How the films of --tier film are made, separated by commas: render (Stage's own) and codecs (these after both "
        "autoencoders), clips (each shot by itself), film (one plan), 'window plans' (each window planned by itself) and "
        "continue_from (each window from the clip before)."
    ),
]
Style = Annotated[
    str,
    typer.Option(
        help="Prompts of the films of --tier film: whole (each names the whole cast) or callbacks (as 'the ball that bounced "
        "first')."
    ),
]
Measure = Annotated[
    str,
    typer.Option(
        help="What is measured: clips; round-trip (facts that survive an mp4 and both autoencoders); chain (continuations, each "
        "from the mp4 before it); bells (their tones against Stage's own); editing (whether a corrected plan shows its correction "
        "and nothing else; each edit on as many clips as there are scenes); retake (whether a second that is rendered again "
        "leaves a trace); or preview (facts found in previews, and their share of a clip's time)."
    ),
]
Direction = Annotated[
    str,
    typer.Option(
        help="What is generated: t2av (both), a2v (a picture for the scene's own sound), v2a (a sound for its picture), i2av "
        "(both, from its first frame) or continuation (both, from its first second)."
    ),
]
GivenFrom = Annotated[
    str,
    typer.Option(
        help="Source of the given media of a --direction: render, the scene's own; or mp4, the clip that the checkpoint "
        "makes of the prompt, saved and read again."
    ),
]
CodecOnly = Annotated[
    bool,
    typer.Option(
        "--codec-only", metavar="", help="Score the scenes' own renders after both autoencoders: the ceiling."
    ),
]
GroundTruthPlan = Annotated[
    bool, typer.Option("--ground-truth-plan", metavar="", help="Follow plans read off the scenes' own renders.")
]
ShufflePrompts = Annotated[
    bool, typer.Option("--shuffle-prompts", metavar="", help="Exchange the prompts within a tier: the control.")
]
Ablation = Annotated[
    Path | None,
    typer.Option(
        help="Score the arms of this file on the same scenes, in one table.",
        metavar="FILE.toml",
        exists=True,
        dir_okay=False,
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Save the scores. The scores of clips are in FILE.jsonl beside it, and are not measured again.",
        metavar="FILE.json",
    ),
]


@dataclass(frozen=True)
class _Request:
    """What all kinds of evaluation share: the checkpoint and how it is used, the scenes, and the file of the scores."""

    model: str | None
    steps: int | None
    guidance: str | None
    student: str | None
    split: str
    number: int
    seed: int
    batch_size: int
    json_file: Path | None

    def pipeline(self) -> "BatonPipeline":
        pipe = loading.load_pipeline(self.model)
        pipe.register_modules(**loading.guiders(self.guidance))
        if self.student is not None:
            pipe.load_student(self.student, fuse=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@command
def evaluate(
    model: Model = None,
    split: Split = "validation",
    tier: Tier = None,
    seconds: Seconds = 24.0,
    ways: Ways = "clips,film,window plans,continue_from",
    style: Style = "whole",
    scenes_per_tier: Annotated[int, typer.Option(min=1, help="How many scenes of each tier, or how many films.")] = 50,
    measure: Measure = "clips",
    links: Annotated[int, typer.Option(min=1, help="Continuations of --measure chain.")] = 4,
    steps: Steps = None,
    turbo: Turbo = False,
    student: Student = None,
    direction: Direction = "t2av",
    given_from: GivenFrom = "render",
    guidance: Guidance = None,
    codec_only: CodecOnly = False,
    no_plan: Annotated[bool, typer.Option("--no-plan", metavar="", help="Generate from the text alone.")] = False,
    ground_truth_plan: GroundTruthPlan = False,
    shuffle_prompts: ShufflePrompts = False,
    ablation: Ablation = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips made together.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.", callback=check_seed)] = 0,
    json_file: JsonFile = None,
) -> None:
    """Score a checkpoint on scenes of Stage, by tier, with bootstrap intervals."""
    import time
    from importlib.util import find_spec

    from ..files import check_target, write_json

    if json_file is not None:
        check_target(json_file, (".json",))
    if find_spec("jiwer") is None:
        raise ValueError("scoring needs jiwer: pip install jiwer")
    if codec_only + no_plan + ground_truth_plan > 1:
        raise ValueError("--codec-only, --no-plan and --ground-truth-plan exclude one another: give one of them")
    if codec_only and shuffle_prompts:
        raise ValueError(
            "--codec-only and --shuffle-prompts exclude each other: without prompts there is nothing to shuffle"
        )
    if codec_only and (guidance is not None or direction != "t2av"):
        raise ValueError("--codec-only generates nothing: leave --guidance and --direction out")
    student = loading.find_student(model, turbo, student)
    if student is not None and (guidance is not None or codec_only):
        raise ValueError("a student makes clips without guidance: leave --guidance and --codec-only out")
    controls = codec_only or no_plan or ground_truth_plan or shuffle_prompts or direction != "t2av"
    if ablation is not None and (model or guidance or student or controls or given_from != "render"):
        raise ValueError(f"--ablation says itself which models and plans are scored: change {ablation} instead")

    if tier not in (None, "film"):
        raise ValueError(f"--tier {tier} is not known: give film, or leave it out for the clips of all tiers")
    if tier is None and (seconds != 24.0 or style != "whole" or ways != "clips,film,window plans,continue_from"):
        raise ValueError("--seconds, --ways and --style are for films: add --tier film")
    if tier == "film" and (controls or ablation or measure != "clips" or given_from != "render"):
        raise ValueError(
            "--tier film makes films in several --ways: leave --measure, --direction and other controls out"
        )
    asked = _Request(model, steps, guidance, student, split, scenes_per_tier, seed, batch_size, json_file)
    if tier == "film":
        _evaluate_films(asked, seconds, ways, style)
        return

    loading.import_pipeline()

    from ..evaluation import scores as evaluation
    from ..evaluation.arms import Arm, run_arm

    evaluation.check_direction(direction, given_from)
    if measure not in MEASURES:
        raise ValueError(f"--measure {measure} is not known: choose one of {', '.join(MEASURES)}")
    if measure != "clips" and (ablation or no_plan or ground_truth_plan or shuffle_prompts or direction != "t2av"):
        raise ValueError(f"--measure {measure} makes clips from prompts: leave other controls and --direction out")
    if measure in ("editing", "retake", "preview") and codec_only:
        raise ValueError(f"--measure {measure} generates clips: leave --codec-only out")
    if measure == "chain" and (codec_only or split not in ("validation", "test")):
        raise ValueError(
            "--measure chain generates scenes of validation or test: leave --codec-only out, give such a --split"
        )
    loading.check_guidance(guidance, loading.guiders(guidance), model)
    examples = evaluation.draw_examples(scenes_per_tier, split, seed)
    if ablation is not None:
        _evaluate_arms(asked, ablation, examples)
        return
    if measure != "clips":
        _measure(asked, measure, examples, links, codec_only)
        return
    pipe = loading.load_pipeline(model)
    name = str(model or "baton-nano")
    if codec_only:
        use = {"codec_only": True}
    else:
        plan = "none" if no_plan or pipe.planner is None else "planner"
        plan = "ground truth" if ground_truth_plan else plan
        use = {"direction": direction, "plan": plan, "guidance": guidance, "shuffle_prompts": shuffle_prompts}
        use |= {"given_from": given_from, "student": student}
    arm = Arm(name, (str(pipe.name_or_path),), **use)
    start = time.perf_counter()
    with _kept_scores(json_file) as kept:
        scores = run_arm(arm, lambda _: pipe, examples, steps, batch_size, kept)
    seconds = time.perf_counter() - start
    clips = f"{len(examples)} clips"
    if kept.measured < len(examples):
        clips += f", {len(examples) - kept.measured} of them kept in {kept.path},"
    figures = _print_figures(scores, examples, direction, f"{clips} in {seconds:.0f} s on {pipe.device.type}")
    if json_file is not None:
        settings = {
            "model": name,
            "steps": steps or pipe.config.num_inference_steps,
            "clips": "codec only" if codec_only else f"plan: {plan}",
            "split": split,
            "direction": direction,
            "given_from": given_from,
            "guidance": guidance or ("the checkpoint's" if student is None else "none"),
            "student": student,
            "shuffle_prompts": shuffle_prompts,
            "seed": seed,
            "seconds": round(seconds, 1),
            "clips_measured": kept.measured,
            "device": pipe.device.type,
        }
        write_json(json_file, {"settings": settings, **figures})
        print(json_file)


def _print_figures(scores: list, examples: list, direction: str, work: str) -> dict[str, dict]:
    """Prints the figures of clips, and returns them for a file. `work` says what was measured."""
    from ..evaluation import scores as evaluation

    summary = evaluation.summarise(scores, direction)
    print(evaluation.format_summary(summary))
    print(f"{work}; 95% bootstrap intervals in brackets")
    if direction in evaluation.GIVEN_ASPECTS:
        print(f"made: P-Acc without what is given, the aspects {', '.join(evaluation.GIVEN_ASPECTS[direction])}")
    print("the facts of all tiers that hold, verb by verb:")
    print(evaluation.format_verbs(summary["all"]["verbs"]))
    hits = evaluation.hits_by_neighbours(scores, examples)
    for neighbours, share in hits.items():
        if share is not None:
            beside = "one neighbour" if neighbours == 1 else "two neighbours"
            print(
                f"hits of boxes with {beside} on their target: {evaluation.format_estimate(share)} of {share['hits']}"
            )
    return {"tiers": summary, "hits_by_neighbours": hits}


def _evaluate_films(asked: _Request, seconds: float, ways: str, style: str) -> None:
    """Prints the figures of films, and keeps them."""
    import time

    loading.import_pipeline()

    from ..evaluation import films
    from ..evaluation.arms import Arm, settings_of
    from ..files import write_json

    chosen = [way.strip() for way in ways.split(",")]
    if unknown := [way for way in chosen if way not in films.WAYS]:
        raise ValueError(f"--ways has {unknown[0]!r}: choose among {', '.join(films.WAYS)}")
    examples = films.draw_films(asked.number, seconds, asked.split, asked.seed, style)
    loading.check_guidance(asked.guidance, loading.guiders(asked.guidance), asked.model)
    pipe = asked.pipeline()
    arm = Arm("films", (str(pipe.name_or_path),), guidance=asked.guidance, student=asked.student)
    settings = settings_of(arm, str(pipe.name_or_path), None, asked.steps)
    start = time.perf_counter()
    with _kept_scores(asked.json_file, films.FilmScoreFile) as kept:
        scores = films.run_films(lambda: pipe, examples, chosen, settings, asked.steps, kept)
    summary = films.summarise_films(scores)
    print(films.format_films(summary))
    taken = time.perf_counter() - start
    print(
        f"{kept.measured} films made in {taken:.0f} s on {pipe.device.type}; 95% bootstrap intervals over shots in brackets (of drift, over films)"
    )
    if asked.json_file is not None:
        used = {
            "model": str(asked.model or "baton-nano"),
            "student": asked.student,
            "split": asked.split,
            "seed": asked.seed,
            "style": style,
            "seconds": seconds,
            "steps": asked.steps or pipe.config.num_inference_steps,
        }
        write_json(asked.json_file, {"settings": used, "ways": summary})
        print(asked.json_file)


def _evaluate_arms(asked: _Request, path: Path, examples: list) -> None:
    """Prints one table of all arms of an ablation, or of those that are complete when it ends early, and keeps it after each of
    them. The scores of each clip are kept beside it, so that nothing is measured twice."""
    from ..evaluation import arms as ablation
    from ..files import write_json

    arms, scores, table = ablation.load_arms(path), {}, {}
    try:
        with _kept_scores(asked.json_file) as kept:
            for arm in arms:
                print(f"{arm.name}: {', '.join(arm.transformer or arm.models)}", file=sys.stderr)
                scores[arm.name] = ablation.run_arm(
                    arm, loading.load_pipeline, examples, asked.steps, asked.batch_size, kept
                )
                table = ablation.summarise_arms(arms, scores, examples)
                if asked.json_file is not None:
                    used = {"arms": str(path), "split": asked.split, "seed": asked.seed}
                    write_json(asked.json_file, {**used, "tiers": table})
    finally:
        if table:
            print(ablation.format_arms(table))
            print(
                "95% bootstrap intervals in brackets; intervals of differences are drawn over pairs, the same scenes for both arms"
            )
        if len(scores) < len(arms):
            print(f"{len(scores)} of {len(arms)} arms are complete", file=sys.stderr)


def _measure(asked: _Request, measure: str, examples: list, links: int, codec_only: bool) -> None:
    """Prints what `baton evaluate --measure` measures besides clips, and keeps it."""
    from ..evaluation import corrections, measures, previews, scores
    from ..files import write_json

    pipe, steps, seed, batch_size = asked.pipeline(), asked.steps, asked.seed, asked.batch_size
    call = {} if steps is None else {"num_inference_steps": steps}
    if measure == "chain":
        chains = measures.draw_chains(len(examples), links, asked.split, seed)
        result = measures.summarise_chains(measures.score_chains(pipe, chains, batch_size, **call))
        print(measures.format_chains(result))
        print("link 0 is made from the prompt alone; the others go on from the last second of the one before")
    elif measure == "editing":
        pool = corrections.draw_mixed(3 * len(examples), asked.split, seed)
        result = corrections.summarise_editing(
            corrections.measure_editing(pipe, pool, len(examples), batch_size, **call)
        )
        print(corrections.format_editing(result))
    elif measure == "preview":
        result = previews.summarise_previews(previews.measure_previews(pipe, examples, **call))
        print(previews.format_previews(result))
    elif measure == "retake":
        result = corrections.summarise_retakes(corrections.measure_retake(pipe, examples, batch_size, **call))
        print(corrections.format_retakes(result))
        print(f"{result['kept']:.0%} of {result['clips']} clips are equal outside of the second, bit for bit")
    else:
        if measure == "bells":
            examples = measures.bell_examples(min(len(examples), 9), seed)
        plan = "none" if pipe.planner is None else "planner"
        if codec_only and measure == "bells":
            make_clips = scores.reconstructed_clips(pipe)
        elif codec_only:
            make_clips = scores.rendered_clips
        else:
            make_clips = scores.generated_clips(pipe, examples, steps, plan)
        if measure == "bells":
            result = measures.measure_bells(make_clips, examples, batch_size)
            print(measures.format_bells(result))
            print("medians over the dings, less the medians of Stage's own")
        else:
            trips = measures.round_trips(pipe, make_clips, examples, batch_size)
            result = measures.summarise_trips(trips, examples)
            print(measures.format_trips(result))
            print(
                f"{len(trips)} {'renders' if codec_only else 'clips of its own'}, through an mp4 and both autoencoders"
            )
    if asked.json_file is not None:
        write_json(asked.json_file, {"measure": measure, "split": asked.split, "seed": seed, "result": result})


@contextmanager
def _kept_scores(json_file: Path | None, of: type | None = None):
    """The scores of clips, or `of` films, in a file beside `json_file`. Where the work is cut short, says how to go on."""
    from ..evaluation.arms import ScoreFile

    kept = (of or ScoreFile)(None if json_file is None else json_file.with_suffix(".jsonl"))
    try:
        yield kept
    except BaseException:
        if kept.measured and kept.path is not None:
            print(f"{kept.path} keeps what was scored: the same command goes on from there", file=sys.stderr)
        elif kept.measured:
            lost = f"{kept.measured} {'clips' if of is None else 'films'} were scored, and none is kept"
            print(f"{lost}: with --json FILE.json, the same command goes on where it ended", file=sys.stderr)
        raise
