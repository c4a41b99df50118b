"""`baton cache`: features of clips, for training."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from . import loading
from .app import check_seed, command
from .workers import Worker


@command
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
    seed: Annotated[int, typer.Option(help="Seed of the stream, for stage.", callback=check_seed)] = 0,
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
    """Encode clips once for training; a stopped or killed run continues. Several workers: `accelerate launch -m
    baton_diffusers.cli cache ...`, or anything that sets RANK and WORLD_SIZE."""
    from ..files import make_folder, read_json

    folder = loading.find_folder(model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if verb_shares and source != "stage":
        raise ValueError(f"--verb-shares {verb_shares[0]} is for stage: the clips of {source} are what they are")
    shares = dict(_verb_share(text) for text in verb_shares or [])

    from ..stage.scene import FRAME_RATE

    # A folder of parts does not store the format of clips.
    options = f"--frame-rate {FRAME_RATE:g}, Stage's," if source == "stage" else "--frame-rate and --bucket"
    remedy = "give a pipeline's folder" if text else f"give {options} or a pipeline's folder"

    def setting(file: str, name: str):
        path = folder / file
        found = read_json(path) if path.is_file() else None
        value = found.get(name) if isinstance(found, dict) else None
        if value is None:
            raise ValueError(f"{folder} does not say what its `{name}` is, as pipelines do in {file}: {remedy}")
        return value

    if frame_rate is None:
        frame_rate = setting("transformer/config.json", "frame_rate")
    max_sequence_length = {"max_sequence_length": setting("model_index.json", "max_sequence_length")} if text else {}

    import torch

    from ..stage.clips import StageClips
    from ..training.data.cache import cache_features, load_feature_models
    from ..training.data.clips import Bucket, ClipFormat, open_clips

    # Workers need not know of each other, so there is no process group to wait for.
    worker, num_workers = Worker.this()
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
    audio_vae = models["audio_vae"]
    if found is None:
        found = open_clips(source, ClipFormat(buckets, frame_rate, audio_vae.config.sample_rate))
    make_folder(output)
    if clips is None:
        clips = 8192 if source == "stage" else len(found)
    config = folder / "transformer/config.json"
    coverage = read_json(config).get("audio_latent_min_coverage", 0.0) if config.is_file() else 0.0
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
        manifest = read_json(output / "manifest.json")
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


def _verb_share(text: str) -> tuple[str, float]:
    """A verb and its share of the clips, of a text like "hit=0.4"."""
    verb, _, share = text.partition("=")
    try:
        return verb, float(share)
    except ValueError:
        raise ValueError(f"--verb-shares {text} is not of the form VERB=SHARE, as hit=0.4") from None
