"""The command `baton`: one sub-command for each job that a person does often.

Whatever is slow to import is imported inside the commands, so that `baton --help` answers at once.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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

Model = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint: a folder, a Hub id, or baton-nano, which comes with the package.",
        show_default="baton-nano",
        metavar="DIR_OR_HUB_ID",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the pipeline's")]


def _seed(number: int) -> int:
    if not 0 <= number < 2**64:
        raise ValueError(f"--seed {number} is not between 0 and 2**64 - 1: choose another number")
    return number


Seed = Annotated[int, typer.Option(help="The same seed gives the same clip.", callback=_seed)]
Guidance = Annotated[
    str | None,
    typer.Option(
        help="A scheme: none, text, plan, harmony, ccl, ltx2, mova or ovi.",
        show_default="the checkpoint's",
        metavar="NAME",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

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


@app.command(cls=_Command)
def generate(
    prompt: Annotated[str, typer.Argument(help="What is to be seen and heard.", metavar="PROMPT")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The mp4 to write; with --only audio also a wav or flac file.", metavar="FILE.mp4"
        ),
    ],
    model: Model = None,
    seed: Seed = 0,
    only: Annotated[
        str | None,
        typer.Option(
            help="Make the picture (video) or the sound (audio) alone.", show_default="both", metavar="MODALITY"
        ),
    ] = None,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", metavar="", help="Denoise from the prompt alone, without a plan.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(help="Follow this plan (--save-plan, `SemanticPlan.save`) instead of planning.", metavar="FILE"),
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(help="Keep the plan that the planner makes.", metavar="FILE.safetensors")
    ] = None,
    cues: Annotated[
        str | None,
        typer.Option(
            help='Who is where and what happens when, as "red ball left <|0.50|> red ball bounces"; "" leaves it open.',
            show_default="the planner writes them",
            metavar="SHEET",
        ),
    ] = None,
    plan_candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cue sheets that the planner writes; the plan checker chooses the best.",
            show_default="8 with a plan checker",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The first frame: the clip goes on from this picture.", metavar="FILE")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="The picture: a sound is made for this film, which stays.", metavar="FILE")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="The sound: a picture is made for it; it stays.", metavar="FILE")
    ] = None,
    reference_audio: Annotated[
        Path | None,
        typer.Option(
            help="A sound whose style the clip is to have; for checkpoints trained with one.", metavar="FILE"
        ),
    ] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="The clip that goes on: its end is the start of the new one.", metavar="FILE")
    ] = None,
    continue_seconds: Annotated[
        float | None, typer.Option(help="How much of the end of --continue-from stays.", show_default="1")
    ] = None,
    audio_prompt: Annotated[
        str | None, typer.Option(help="What is heard: ends the prompt in the form of the checkpoint.", metavar="TEXT")
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What guidance leads away from.", show_default="the checkpoint's", metavar="TEXT"),
    ] = None,
    audio_negative_prompt: Annotated[
        str | None,
        typer.Option(
            help="The same for the sound.", show_default="the checkpoint's, or the picture's", metavar="TEXT"
        ),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How far from the unprompted clip, 1 for not at all.", show_default="the scheme's"),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(help="Frames of the clip.", show_default="the checkpoint's, or as long as what is given"),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Pixels.", show_default="the checkpoint's, or in the shape of what is given")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", show_default="as --height")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Load in bfloat16, and run on the GPU by this recipe: `baton memory` lists them, with what each will need.",
            show_default="float32, all of it on the GPU where there is one",
            metavar="NAME",
        ),
    ] = None,
    scale: Annotated[int, typer.Option(min=1, help="Write every pixel as SCALE x SCALE pixels.")] = 1,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Draw the clip on a contact sheet, too, with the sounds that are heard in it.", metavar="FILE.png"
        ),
    ] = None,
) -> None:
    """Make a clip from a PROMPT, and from a picture, a film, a sound or a clip where one is given."""
    from .files import check_target, replacing
    from .media import AUDIO_SUFFIXES, check_kept, convert_frame_rate, resample

    texts = {"PROMPT": prompt, "--cues": cues, "--audio-prompt": audio_prompt, "--negative-prompt": negative_prompt}
    for name, text in {**texts, "--audio-negative-prompt": audio_negative_prompt}.items():
        if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name} holds bytes that are not UTF-8: {ascii(text)}")
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
    for file in (image, video, audio, reference_audio, continue_from):
        if file is not None and not file.is_file():
            raise ValueError(f"{file} is not a file: check the path")
    if only is None:  # elsewhere neither is kept whole
        check_kept(video, audio, scale)

    _import_pipeline()

    import torch

    from .plan import SemanticPlan

    loaded_plan = SemanticPlan.load(plan) if plan is not None else None
    guiders = _guiders(guidance)
    _check_guidance(guidance, guiders, model)
    pipe = _load_pipeline(model, recipe)
    if save_plan is not None and pipe.planner is None:
        raise ValueError("--save-plan keeps what a planner makes, and this checkpoint has none: leave it out")
    pipe.register_modules(**guiders)
    if guidance_scale is not None:
        pipe.guider = pipe.guider.new(guidance_scale=guidance_scale)
        pipe.audio_guider = pipe.audio_guider.new(guidance_scale=guidance_scale)
    with _Measured() as measured:
        result = pipe(
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            image=image,
            video=video,
            audio=audio,
            reference_audio=reference_audio,
            continue_from=continue_from,
            continue_seconds=continue_seconds,
            only=only,
            audio_prompt=audio_prompt,
            negative_prompt=negative_prompt,
            audio_negative_prompt=audio_negative_prompt,
            plan=loaded_plan,
            use_plan=not no_plan,
            cues=cues,
            num_plan_candidates=plan_candidates,
            num_frames=num_frames,
            height=height,
            width=width,
            output_type="np",
            **({"num_inference_steps": steps} if steps is not None else {}),
        )
    path = result.save(output, scale=scale)
    frames, waveform = result.clip()
    if frames is None:
        length = f"{waveform.shape[1]} samples, {waveform.shape[1] / result.sampling_rate:.2f} s"
    else:
        length = f"{len(frames)} frames, {len(frames) / result.frame_rate:.2f} s"
    print(f"{path}: {length}; generated in {measured}")
    if result.cues is not None and result.cues[0]:
        print(f"cues: {result.cues[0]}")
    if save_plan is not None:
        result.plan.save(save_plan)
        print(save_plan)
    if sheet is not None:
        from .stage.hearing import hear
        from .stage.scene import FRAME_RATE, SAMPLING_RATE
        from .stage.show import contact_sheet

        frames = convert_frame_rate(frames, result.frame_rate, FRAME_RATE)
        sound = resample(waveform, result.sampling_rate, SAMPLING_RATE).mean(axis=0)
        with replacing(sheet) as partial:
            contact_sheet(frames, sound, hear(sound), prompt).save(partial)
        print(sheet)


@app.command(cls=_Command)
def stage(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.", metavar="DIR")],
    tier: Annotated[str | None, typer.Option(help="simple, medium or complex.", show_default="any")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; each further one adds 1.", callback=_seed)] = 0,
    scale: Annotated[int, typer.Option(min=1, help="Write every pixel as SCALE x SCALE pixels.")] = 4,
) -> None:
    """Show scenes of Stage: an mp4 and a contact sheet of each, and its prompt."""
    from .files import make_folder, replacing
    from .media import write_clip
    from .stage import render_clip, sample_scene, timeline, write_prompt
    from .stage.show import contact_sheet

    scenes = [sample_scene(number, tier) for number in range(seed, seed + count)]
    make_folder(output)
    for number, scene in enumerate(scenes, start=seed):
        clip, prompt = render_clip(scene, number), write_prompt(scene, number)
        path = output / f"{scene.tier}-{number}.mp4"
        write_clip(path, clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate, scale)
        with replacing(path.with_suffix(".png")) as partial:
            contact_sheet(clip.frames, clip.waveform, timeline(scene, number), prompt).save(partial)
        print(f"{path}: {' '.join(prompt.split())}")  # a prompt may have lines


@app.command(cls=_Command)
def evaluate(
    model: Model = None,
    split: Annotated[
        str,
        typer.Option(
            help="The scenes: validation, on which models are chosen; test, opened once, for what is published; "
            "test-combinations (pairs of actors and orders of kinds that no training stream yields) or test-paraphrase (the test "
            "scenes in wordings that none yields)."
        ),
    ] = "validation",
    scenes_per_tier: Annotated[int, typer.Option(min=1, help="How many scenes of each tier.")] = 50,
    measure: Annotated[
        str,
        typer.Option(
            help="What is measured: clips; round-trip, the facts that survive an mp4 and both autoencoders; chain, continuations "
            "each from the mp4 of the one before; or bells, how far their tones are from Stage's own."
        ),
    ] = "clips",
    links: Annotated[int, typer.Option(min=1, help="Continuations of --measure chain.")] = 4,
    steps: Steps = None,
    direction: Annotated[
        str,
        typer.Option(
            help="What is made: t2av (both), a2v (a picture for the scene's own sound), v2a (a sound for its picture), i2av "
            "(both, from its first frame) or continuation (both, from its first second)."
        ),
    ] = "t2av",
    given_from: Annotated[
        str,
        typer.Option(
            help="Where a --direction takes what is given: render, the scene's own; or mp4, the clip that the checkpoint makes of "
            "the prompt, saved and read again."
        ),
    ] = "render",
    guidance: Guidance = None,
    codec_only: Annotated[
        bool,
        typer.Option(
            "--codec-only", metavar="", help="Score the scenes' own renders after both autoencoders: the ceiling."
        ),
    ] = False,
    no_plan: Annotated[bool, typer.Option("--no-plan", metavar="", help="Generate from the text alone.")] = False,
    ground_truth_plan: Annotated[
        bool, typer.Option("--ground-truth-plan", metavar="", help="Follow plans read off the scenes' own renders.")
    ] = False,
    shuffle_prompts: Annotated[
        bool, typer.Option("--shuffle-prompts", metavar="", help="Exchange the prompts within a tier: the control.")
    ] = False,
    ablation: Annotated[
        Path | None,
        typer.Option(
            help="Score the arms of this file on the same scenes, in one table.",
            metavar="FILE.toml",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips made together.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.", callback=_seed)] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Keep the scores. Those of each clip are in FILE.jsonl beside it, and what is there is not measured again.",
            metavar="FILE.json",
        ),
    ] = None,
) -> None:
    """Score a checkpoint on scenes of Stage, by tier, with bootstrap intervals."""
    import time
    from importlib.util import find_spec

    from .files import check_target, write_json

    if json_file is not None:
        check_target(json_file, (".json",))
    if find_spec("jiwer") is None:
        raise ValueError("scoring needs jiwer: pip install 'baton-diffusers[eval]'")
    if codec_only + no_plan + ground_truth_plan > 1:
        raise ValueError("--codec-only, --no-plan and --ground-truth-plan exclude one another: give one of them")
    if codec_only and shuffle_prompts:
        raise ValueError(
            "--codec-only and --shuffle-prompts exclude each other: without prompts there is nothing to shuffle"
        )
    if codec_only and (guidance is not None or direction != "t2av"):
        raise ValueError("--codec-only generates nothing: leave --guidance and --direction out")
    told = model or guidance or codec_only or no_plan or ground_truth_plan or shuffle_prompts or direction != "t2av"
    told = told or given_from != "render"
    if ablation is not None and told:
        raise ValueError(f"--ablation says itself which models and plans are scored: change {ablation} instead")

    _import_pipeline()

    from .evaluation import scores as evaluation
    from .evaluation.arms import Arm, run_arm

    evaluation.check_direction(direction, given_from)
    if measure not in ("clips", "round-trip", "chain", "bells"):
        raise ValueError(f"--measure {measure} is not known: choose clips, round-trip, chain or bells")
    if measure != "clips" and (ablation or no_plan or ground_truth_plan or shuffle_prompts or direction != "t2av"):
        raise ValueError(f"--measure {measure} makes clips from prompts: leave other controls and --direction out")
    if measure == "chain" and (codec_only or split not in ("validation", "test")):
        raise ValueError(
            "--measure chain generates scenes of validation or test: leave --codec-only out, give such a --split"
        )
    _check_guidance(guidance, _guiders(guidance), model)
    examples = evaluation.draw_examples(scenes_per_tier, split, seed)
    if ablation is not None:
        _evaluate_arms(ablation, examples, split, seed, steps, batch_size, json_file)
        return
    pipe = _load_pipeline(model)
    name = str(model or "baton-nano")
    if measure != "clips":
        _measure(measure, pipe, examples, links, split, seed, steps, guidance, codec_only, batch_size, json_file)
        return
    if codec_only:
        use = {"codec_only": True}
    else:
        plan = "none" if no_plan or pipe.planner is None else "planner"
        plan = "ground truth" if ground_truth_plan else plan
        use = {"direction": direction, "plan": plan, "guidance": guidance, "shuffle_prompts": shuffle_prompts}
        use["given_from"] = given_from
    arm = Arm(name, (str(pipe.name_or_path),), **use)
    start = time.perf_counter()
    with _kept_scores(json_file) as kept:
        scores = run_arm(arm, lambda _: pipe, examples, steps, batch_size, kept)
    seconds = time.perf_counter() - start
    summary = evaluation.summarise(scores, direction)
    print(evaluation.format_summary(summary))
    clips = f"{len(examples)} clips"
    if kept.measured < len(examples):
        clips += f", {len(examples) - kept.measured} of them kept in {kept.path},"
    print(f"{clips} in {seconds:.0f} s on {pipe.device.type}; 95% bootstrap intervals in brackets")
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
    if json_file is not None:
        settings = {
            "model": name,
            "steps": steps or pipe.config.num_inference_steps,
            "clips": "codec only" if codec_only else f"plan: {plan}",
            "split": split,
            "direction": direction,
            "given_from": given_from,
            "guidance": guidance or "the checkpoint's",
            "shuffle_prompts": shuffle_prompts,
            "seed": seed,
            "seconds": round(seconds, 1),
            "clips_measured": kept.measured,
            "device": pipe.device.type,
        }
        write_json(json_file, {"settings": settings, "tiers": summary, "hits_by_neighbours": hits})
        print(json_file)


@app.command(cls=_Command)
def cache(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of clips (clip.mp4 with clip.txt, or metadata.jsonl), WebDataset shards, or `stage`.",
            metavar="SOURCE",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the features.", metavar="DIR")],
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder with the autoencoders and semantic encoders: a pipeline's, or one of parts.",
            show_default="baton-nano",
            metavar="DIR",
        ),
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="How many clips.", show_default="all; 8192 of stage")
    ] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            help="A form of clips; may be given several times.",
            show_default="the pipeline's own",
            metavar="FRAMESxHEIGHTxWIDTH",
        ),
    ] = None,
    frame_rate: Annotated[
        float | None, typer.Option(help="Frames per second.", show_default="the transformer's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the stream, for stage.", callback=_seed)] = 0,
    verb_shares: Annotated[
        list[str] | None,
        typer.Option(
            help="A share of the clips in which somebody does this, as hit=0.4, for stage; may be given several times.",
            show_default="as the scenes have it",
            metavar="VERB=SHARE",
        ),
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Clips in each file.")] = 512,
    text: Annotated[
        bool,
        typer.Option("--text", metavar="", help="Keep the text encoder's embeddings, too: for one that stays frozen."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", metavar="", help="Check finished shards, and redo damaged ones.")
    ] = False,
) -> None:
    """Encode clips once for training; stopped or killed, it goes on. Several workers: `accelerate launch -m
    baton_diffusers.cli cache ...`, or anything that sets RANK and WORLD_SIZE."""
    import json

    folder = _folder(model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if verb_shares and source != "stage":
        raise ValueError(f"--verb-shares {verb_shares[0]} is for stage: the clips of {source} are what they are")
    shares = dict(_verb_share(text) for text in verb_shares or [])

    from .stage.scene import FRAME_RATE

    # Folders of parts know no format of clips.
    options = f"--frame-rate {FRAME_RATE:g}, Stage's," if source == "stage" else "--frame-rate and --bucket"
    remedy = "give a pipeline's folder" if text else f"give {options} or a pipeline's folder"

    def setting(file: str, name: str):
        path = folder / file
        value = json.loads(path.read_text()).get(name) if path.is_file() else None
        if value is None:
            raise ValueError(f"{folder} does not say what its `{name}` is, as pipelines do in {file}: {remedy}")
        return value

    if frame_rate is None:
        frame_rate = setting("transformer/config.json", "frame_rate")
    max_sequence_length = {"max_sequence_length": setting("model_index.json", "max_sequence_length")} if text else {}

    import torch

    from .files import make_folder
    from .stage.clips import StageClips
    from .training.data.cache import cache_features, load_feature_models
    from .training.data.clips import Bucket, ClipFormat, open_clips

    # Workers need not know of each other, so there is no process group to wait for.
    worker, num_workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = os.environ.get("LOCAL_RANK", "0")
    device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    if source == "stage":
        found: StageClips | None = StageClips("train", seed=seed, verb_shares=shares)
    else:
        found = None
        if not Path(source).exists():
            raise ValueError(f"{source} is neither a folder of clips, nor a tar file, nor `stage`")
        if bucket:
            buckets = tuple(Bucket.parse(text) for text in bucket)
        else:
            names = ("num_frames", "height", "width")
            buckets = (Bucket(*(setting("model_index.json", name) for name in names)),)
    models = load_feature_models(folder, device, text)
    make_folder(output)
    audio_vae = models["audio_vae"]
    if found is None:
        found = open_clips(source, ClipFormat(buckets, frame_rate, audio_vae.config.sample_rate))
    if clips is None:
        clips = 8192 if source == "stage" else len(found)
    config = folder / "transformer/config.json"
    coverage = json.loads(config.read_text()).get("audio_latent_min_coverage", 0.0) if config.is_file() else 0.0
    whole = cache_features(
        output,
        found,
        clips,
        **models,
        **max_sequence_length,
        frame_rate=frame_rate,
        audio_latent_rate=audio_vae.config.sample_rate / audio_vae.latent_hop_length,
        audio_latent_min_coverage=coverage,
        clips_per_shard=clips_per_shard,
        worker=worker,
        num_workers=num_workers,
        verify=verify,
    )
    if whole:
        manifest = json.loads((output / "manifest.json").read_text())
        buckets_found = ", ".join(f"{count} of {name}" for name, count in manifest["buckets"].items())
        size = sum(shard["bytes"] for shard in manifest["shards"])
        print(
            f"{output}: {manifest['num_clips']} clips ({buckets_found}) in {len(manifest['shards'])} shards, "
            f"{size / 1e6:.1f} MB; {manifest['num_flagged']} silent or static, {manifest['num_rejected']} rejected"
        )
        for line in (output / "rejects.jsonl").read_text(encoding="utf-8").split("\n")[:10]:
            if not line:
                break
            row = json.loads(line)
            print(f"rejected: {row['clip']}: {row['reason']}")


def _evaluate_arms(
    path: Path, examples: list, split: str, seed: int, steps: int | None, batch_size: int, json_file: Path | None
) -> None:
    """Prints one table of all arms of an ablation, or of those that are complete when it ends early, and keeps it after each of
    them. The scores of each clip are kept beside it, so that nothing is measured twice."""
    from .evaluation import arms as ablation
    from .files import write_json

    arms, scores, table = ablation.load_arms(path), {}, {}
    try:
        with _kept_scores(json_file) as kept:
            for arm in arms:
                print(f"{arm.name}: {', '.join(arm.transformer or arm.models)}", file=sys.stderr)
                scores[arm.name] = ablation.run_arm(arm, _load_pipeline, examples, steps, batch_size, kept)
                table = ablation.summarise_arms(arms, scores, examples)
                if json_file is not None:
                    write_json(json_file, {"arms": str(path), "split": split, "seed": seed, "tiers": table})
    finally:
        if table:
            print(ablation.format_arms(table))
            print(
                "95% bootstrap intervals in brackets; those of differences are drawn over pairs, the same scenes for both arms"
            )
        if len(scores) < len(arms):
            print(f"{len(scores)} of {len(arms)} arms are complete", file=sys.stderr)


def _measure(
    measure: str,
    pipe,
    examples: list,
    links: int,
    split: str,
    seed: int,
    steps: int | None,
    guidance: str | None,
    codec_only: bool,
    batch_size: int,
    json_file: Path | None,
) -> None:
    """Prints what `baton evaluate --measure` measures besides clips, and keeps it."""
    from .evaluation import measures, scores
    from .files import write_json

    pipe.register_modules(**_guiders(guidance))
    pipe.set_progress_bar_config(disable=True)
    call = {} if steps is None else {"num_inference_steps": steps}
    if measure == "chain":
        chains = measures.draw_chains(len(examples), links, split, seed)
        result = measures.summarise_chains(measures.score_chains(pipe, chains, batch_size, **call))
        print(measures.format_chains(result))
        print("link 0 is made from the prompt alone; the others go on from the last second of the one before")
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
            print("medians over the dings, less those of Stage's own")
        else:
            trips = measures.round_trips(pipe, make_clips, examples, batch_size)
            result = measures.summarise_trips(trips, examples)
            print(measures.format_trips(result))
            print(
                f"{len(trips)} {'renders' if codec_only else 'clips of its own'}, through an mp4 and both autoencoders"
            )
    if json_file is not None:
        write_json(json_file, {"measure": measure, "split": split, "seed": seed, "result": result})


@contextmanager
def _kept_scores(json_file: Path | None):
    """The scores of clips in a file beside `json_file`. Where the work is cut short, says how to go on."""
    from .evaluation.arms import ScoreFile

    kept = ScoreFile(None if json_file is None else json_file.with_suffix(".jsonl"))
    try:
        yield kept
    except BaseException:
        if kept.measured and kept.path is not None:
            print(f"{kept.path} keeps what was scored: the same command goes on from there", file=sys.stderr)
        elif kept.measured:
            lost = f"{kept.measured} clips were scored, and none is kept"
            print(f"{lost}: with --json FILE.json, the same command goes on where it ended", file=sys.stderr)
        raise


@app.command(cls=_Command)
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
    from .memory import report

    print(report(model, recipe, height, width, num_frames, given))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends in `SystemExit` with 0 (done), 1 (failed), 2 (wrong input) or 130 (interrupted, also by
    SIGTERM)."""
    # Threads that wait for work shall sleep. By default they spin, and beside one busy process a clip takes ten times as long. OpenMP
    # reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main_thread else None
    with suppress(AttributeError):  # a replaced stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        code = app(arguments, prog_name="baton", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):  # newer versions of typer return 130 instead
        code = 130
    except BrokenPipeError:  # whoever read stdout, such as `head`, is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("BATON_DEBUG"):
            traceback.print_exc()
        # Typer's own errors (a missing argument, an unknown option) bring their message and exit code.
        usage = hasattr(error, "format_message")
        message = f"{error.format_message()} See `baton --help`." if usage else str(error)
        print(f"baton: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        return getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1)
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    if code == 130:
        print("baton: interrupted", file=sys.stderr)
    return code


def _verb_share(text: str) -> tuple[str, float]:
    """A verb and its share of the clips, of a text like "hit=0.4"."""
    verb, _, share = text.partition("=")
    try:
        return verb, float(share)
    except ValueError:
        raise ValueError(f"--verb-shares {text} is not of the form VERB=SHARE, as hit=0.4") from None


def _guiders(guidance: str | None) -> dict:
    """The guiders of a published scheme, ready to be registered; none without a name."""
    if guidance is None:
        return {}

    from .guiders import presets

    if guidance not in presets():
        raise ValueError(f"--guidance {guidance} is not known: choose one of {', '.join(presets())}")
    return presets()[guidance]


def _check_guidance(guidance: str | None, guiders: dict, model: str | None) -> None:
    """Refuses a scheme that leaves out blocks which the transformer has not; no weights are loaded for it."""
    from .files import read_json

    skipped = [layer for guider in guiders.values() for layer in guider.skip_layers]
    if not skipped:
        return
    _, configurations = _find_checkpoint(model)
    num_layers = read_json(configurations / "transformer" / "config.json").get("num_layers", 0)
    if max(skipped) >= num_layers:
        raise ValueError(
            f"--guidance {guidance} leaves out block {max(skipped)} of the transformer, and that of {model or 'baton-nano'} has "
            f"the blocks 0 to {num_layers - 1}: give --guidance text, which leaves none out"
        )


def _folder(model: str | None) -> Path:
    """The folder that a name stands for: one here, or a checkpoint that comes with the package; it need not exist."""
    from .checkpoints import default_checkpoint

    if model is None:
        return default_checkpoint()
    folder = Path(model)
    if folder.is_dir() or folder.name != model:
        return folder
    shipped = default_checkpoint().parent / model
    return shipped if shipped.is_dir() else folder


def _find_checkpoint(model: str | None) -> tuple[Path | str, Path]:
    """What `BatonPipeline.from_pretrained` takes, and the folder of its configurations; of a Hub id, only those are fetched."""
    folder = _folder(model)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise ValueError(f"{folder} has no {index.name}: it is not the folder of a saved pipeline")
        if not any(folder.glob("transformer/*.safetensors")):
            raise ValueError(
                f"{folder} holds configurations without weights: make a folder with weights by "
                "conversion_scripts/convert_ovi_to_diffusers.py, see the card of baton-11b, and give that"
            )
        return folder, folder
    if model.count("/") != 1:
        raise ValueError(f"{model} is neither a folder nor a Hub id like 'owner/name'")

    from huggingface_hub import snapshot_download

    try:
        return model, Path(snapshot_download(model, allow_patterns=["model_index.json", "*/config.json"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} is no folder here, and could not be loaded from the Hub: {error}") from error


def _import_pipeline():
    """`BatonPipeline`. While all that it takes is imported, the garbage collector rests, and it never looks at those hundreds of
    thousands of objects again: a third off the time of a cold start."""
    import gc

    cold = "torch" not in sys.modules
    if cold:
        gc.disable()
    from .pipelines.pipeline_baton import BatonPipeline

    if cold:
        gc.freeze()
        gc.enable()
    return BatonPipeline


def _load_pipeline(model: str | None, recipe: str | None = None):
    """The pipeline of a folder or Hub id, or of baton-nano: in float32 on the GPU where there is one, or by a recipe."""
    BatonPipeline = _import_pipeline()

    import logging

    import torch
    from transformers.utils import logging as transformers_logging

    logging.getLogger("diffusers.guiders").setLevel(logging.ERROR)  # no word of guiders being experimental
    transformers_logging.disable_progress_bar()  # one bar for all components is enough

    chosen = None if recipe is None else _recipe(recipe)
    checkpoint, _ = _find_checkpoint(model)
    if chosen is None:
        return BatonPipeline.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe = BatonPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    chosen.follow(pipe)
    return pipe


def _recipe(name: str):
    """The recipe of a name; none can be followed without a GPU."""
    import torch

    from .memory import RECIPES

    if name not in RECIPES:
        raise ValueError(f"--recipe {name} is not known: choose one of {', '.join(RECIPES)}")
    if not torch.cuda.is_available():
        raise ValueError(f"--recipe {name} needs a GPU with CUDA, and there is none here: leave it out")
    return RECIPES[name]


class _Measured:
    """Wall time of a block, and the peak memory of the process up to its end."""

    def __enter__(self) -> "_Measured":
        import time

        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        import resource
        import time

        import torch

        self.seconds = time.perf_counter() - self.start
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        self.peaks = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        if torch.cuda.is_available():
            self.peaks["GPU memory"] = torch.cuda.max_memory_allocated()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, " + ", ".join(f"peak {k} {v / 2**30:.2f} GiB" for k, v in self.peaks.items())


if __name__ == "__main__":
    main()
