"""Features of clips, computed once and stored in WebDataset shards; planner and transformer train on them.

A cache is a folder. `features-00000.tar` and its like hold, for each clip, `KEY.safetensors` (float16 features), `KEY.txt` (the
prompt) and `KEY.json` (its source). Beside each shard lies its index, `features-00000.index.json`; a shard without one is not
finished. `recipe.json` says what the features were made from and with, `manifest.json` lists the shards with counts and
checksums once all are there, and `rejects.jsonl` the clips that could not be used, with the reason of each. With a text
encoder, `empty_prompt.safetensors` has the embedding of the empty prompt, which replaces prompts that training drops.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import torch
from diffusers import AutoencoderKLWan, MMAudioVAE
from safetensors.torch import save
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from ... import coordinates, files
from ...models.audio_16khz import MMAudioVAE16kHz
from ...models.latents import encode_audio_latents, normalise_latents, to_video
from ...models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan
from ...models.wan_clip import encode_clip
from ...stage.clips import StageClips
from .clips import ClipRejected, Clips, shard_members


_BATCH_SIZE = 8
PLAN_LAYOUT = ("video_times", "video_centres", "audio_times")
EMPTY_PROMPT = "empty_prompt.safetensors"


@torch.no_grad()
def cache_features(
    folder: str | Path,
    clips: StageClips | Clips,
    num_clips: int,
    vae: AutoencoderKLWan,
    audio_vae: MMAudioVAE,
    video_semantic_encoder: VideoSemanticEncoder,
    audio_semantic_encoder: AudioSemanticEncoder,
    frame_rate: float,
    audio_latent_rate: float,
    clips_per_shard: int = 512,
    text_encoder: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_sequence_length: int = 512,
    worker: int = 0,
    num_workers: int = 1,
    verify: bool = False,
    audio_latent_min_coverage: float = 0.0,
) -> bool:
    r"""
    Writes normalised latents and plan features of the first `num_clips` clips of a source into shards.

    A shard is whole or absent. After an interruption the same call goes on with the first missing shard, and ends with the
    same bytes. A shard is made again if it is damaged, or if one of its clips, captions or cues has changed since. Any number of
    workers may share the shards; the one that finds all of them done writes the manifest.

    Args:
        folder (`str` or `Path`): where the shards go; made if it is not there.
        clips ([`StageClips`] or [`Clips`]): the source, see [`baton_diffusers.training.data.clips`].
        num_clips (`int`): clips to encode; those that are rejected count.
        vae, audio_vae: the autoencoders; latents are normalised as `BatonPipeline` expects them.
        video_semantic_encoder, audio_semantic_encoder: what the plan is read with.
        frame_rate (`float`): frames per second of the clips.
        audio_latent_rate (`float`): audio latents per second.
        clips_per_shard (`int`, defaults to 512): clips in each file.
        text_encoder (`nn.Module`, *optional*): a frozen text encoder, whose embeddings of the prompts are kept too. Without
            one (nano's learns with the transformer) the prompts alone are. The embedding of the empty prompt is kept beside the shards.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): its tokenizer.
        max_sequence_length (`int`, defaults to 512): tokens after which prompts are cut, with `text_encoder`.
        worker (`int`, defaults to 0): number of this worker: it writes every `num_workers`-th shard.
        num_workers (`int`, defaults to 1): workers that share the work.
        verify (`bool`, defaults to `False`): whether to read finished shards again and redo those whose checksum is wrong.
        audio_latent_min_coverage (`float`, defaults to 0.0): the transformer's, which decides about a clip's last audio latent.

    Returns:
        `bool`: whether all shards are there, the other workers' included.

    Raises:
        ValueError: if the folder holds features of another recipe, `num_clips` is not positive or more than there are, or
            `text_encoder` comes without `tokenizer`.
    """
    if num_clips < 1 or (not isinstance(clips, StageClips) and num_clips > len(clips)):
        available = "any number" if isinstance(clips, StageClips) else f"at most {len(clips)}"
        raise ValueError(f"`num_clips` is {num_clips}, but the source has {available} from 1.")
    if not 0 <= worker < num_workers:
        raise ValueError(f"`worker` is {worker}, but must be one of the {num_workers} from 0.")
    if (text_encoder is None) != (tokenizer is None):
        raise ValueError("`text_encoder` and `tokenizer` go together: give both or neither.")
    components = {
        "vae": vae,
        "audio_vae": audio_vae,
        "video_semantic_encoder": video_semantic_encoder,
        "audio_semantic_encoder": audio_semantic_encoder,
    }
    if text_encoder is not None:
        components["text_encoder"] = text_encoder
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "source": describe_source(clips),
        "clips_per_shard": clips_per_shard,
        "frame_rate": frame_rate,
        "audio_latent_rate": audio_latent_rate,
        "audio_latent_min_coverage": audio_latent_min_coverage,
        "max_sequence_length": None if text_encoder is None else max_sequence_length,
        "components": {name: _fingerprint(model) for name, model in components.items()},
    }
    _check_recipe(folder, recipe)
    if text_encoder is not None and not (folder / EMPTY_PROMPT).is_file():
        embeds = _embed_prompt("", text_encoder, tokenizer, max_sequence_length)
        files.write_bytes(folder / EMPTY_PROMPT, save({"prompt_embeds": embeds.cpu().half().contiguous()}))

    starts = range(0, num_clips, clips_per_shard)
    mine = [(shard, range(start, min(start + clips_per_shard, num_clips))) for shard, start in enumerate(starts)]
    with tqdm(
        total=sum(len(numbers) for _, numbers in mine[worker::num_workers]),
        desc=f"features in {folder}" + (f", worker {worker}" if num_workers > 1 else ""),
        unit="clip",
    ) as bar:
        for shard, numbers in mine[worker::num_workers]:
            path = folder / f"features-{shard:05d}.tar"
            sources = None if isinstance(clips, StageClips) else [clips.digest(number) for number in numbers]
            if _is_done(path, numbers, verify, sources):
                bar.update(len(numbers))
                continue
            (folder / "manifest.json").unlink(missing_ok=True)  # until all shards are done again
            index_path(path).unlink(missing_ok=True)
            encoded: dict[int, dict[str, Any]] = {}
            rejects = []
            waiting: dict[tuple[int, ...], list[tuple[int, dict[str, Any]]]] = {}  # by shape: a batch has one
            for number in [*numbers, None]:
                if number is not None:
                    try:
                        sample = clips[number]
                    except ClipRejected as error:
                        rejects.append({"clip": clips.names[number], "reason": str(error)})
                        bar.update()
                        continue
                    waiting.setdefault(tuple(sample["frames"].shape), []).append((number, sample))
                for batch in waiting.values():
                    if len(batch) == _BATCH_SIZE or (number is None and batch):
                        features = _encode([sample for _, sample in batch], components, tokenizer, recipe)
                        encoded.update(zip((i for i, _ in batch), features, strict=True))
                        bar.update(len(batch))
                        batch.clear()
            _write_shard(path, dict(sorted(encoded.items())), rejects, numbers, sources)
    return _write_manifest(folder, recipe, mine)


def _encode(
    samples: Sequence[dict[str, Any]],
    components: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The features of clips of one shape."""
    vae, audio_vae = components["vae"], components["audio_vae"]
    video_encoder, audio_encoder = components["video_semantic_encoder"], components["audio_semantic_encoder"]
    frame_rate, sampling_rate = recipe["frame_rate"], audio_vae.config.sample_rate
    video = to_video(torch.stack([sample["frames"] for sample in samples]).to(vae.device))
    waveform = torch.stack([sample["waveform"] for sample in samples])
    duration = coordinates.clip_duration(video.shape[2], frame_rate)
    latents = normalise_latents(vae, encode_clip(vae, video.to(vae.dtype)).chunk(2, dim=1)[0])
    audio_latents = encode_audio_latents(
        audio_vae,
        waveform.to(audio_vae.device, audio_vae.dtype),
        duration,
        recipe["audio_latent_rate"],
        recipe["audio_latent_min_coverage"],
    )
    heard = resample(waveform, sampling_rate, audio_encoder.sampling_rate)
    plan = read_plan(
        video_encoder,
        audio_encoder,
        video.to(video_encoder.device),
        frame_rate,
        heard[:, None].to(audio_encoder.device),
        audio_encoder.sampling_rate,
    ).trimmed()
    rows = [
        {
            "latents": latents[i],
            "audio_latents": audio_latents[i],
            "video_tokens": plan.video_tokens[i],
            "audio_tokens": plan.audio_tokens[i],
        }
        for i in range(len(samples))
    ]
    if tokenizer is not None:
        for row, sample in zip(rows, samples, strict=True):
            row["prompt_embeds"] = _embed_prompt(
                sample["prompt"], components["text_encoder"], tokenizer, recipe["max_sequence_length"]
            )
    layout = {name: getattr(plan, name) for name in PLAN_LAYOUT}
    layout["duration"] = torch.tensor(plan.duration, dtype=torch.float64)
    num_frames, height, width = samples[0]["frames"].shape[:3]
    return [
        {
            "tensors": {name: value.cpu().half().contiguous() for name, value in row.items()}
            | {name: value.cpu().contiguous() for name, value in layout.items()},
            "prompt": sample["prompt"],
            "cues": sample.get("cues", ""),
            "name": sample.get("name"),
            "bucket": f"{num_frames}x{height}x{width}",
            "silent": sample.get("silent", False),
            "static": sample.get("static", False),
        }
        for row, sample in zip(rows, samples, strict=True)
    ]


def _embed_prompt(
    prompt: str, text_encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, max_sequence_length: int
) -> torch.Tensor:
    """The embeddings of a prompt's own tokens, `(num_tokens, text_dim)`, read with their padding as `BatonPipeline` does."""
    tokens = tokenizer(
        prompt, padding="max_length", truncation=True, max_length=max_sequence_length, return_tensors="pt"
    ).to(text_encoder.device)
    embeds = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return embeds[tokens.attention_mask.bool()]


def load_feature_models(folder: str | Path, device: torch.device, text: bool = False) -> dict[str, Any]:
    """
    The models that [`cache_features`] takes, by the names of its arguments, from a folder like a saved pipeline's.

    Args:
        folder: Has `vae`, `audio_vae`, `video_semantic_encoder`, `audio_semantic_encoder`, and, for `text`,
            `text_encoder` and `tokenizer`.
        device: Where they are to run.
        text: Whether prompts are to be embedded.

    Raises:
        ValueError: If one of them is missing.
    """
    folder = Path(folder)
    classes = {
        "vae": AutoencoderKLWan,
        "audio_vae": MMAudioVAE,
        "video_semantic_encoder": VideoSemanticEncoder,
        "audio_semantic_encoder": AudioSemanticEncoder,
    }
    if text:
        classes["text_encoder"] = UMT5EncoderModel
    missing = [name for name in (*classes, *(["tokenizer"] if text else [])) if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}: give a pipeline's folder, or one of its parts.")
    if MMAudioVAE.load_config(folder / "audio_vae")["_class_name"] == MMAudioVAE16kHz.__name__:
        classes["audio_vae"] = MMAudioVAE16kHz
    models: dict[str, Any] = {
        name: cls.from_pretrained(folder / name).eval().requires_grad_(False).to(device)
        for name, cls in classes.items()
    }
    if text:
        models["tokenizer"] = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return models


def resample(waveform: torch.Tensor, sampling_rate: int, target_rate: int) -> torch.Tensor:
    """Waveforms `(batch_size, num_samples)` at another sampling rate, by a polyphase filter."""
    if sampling_rate == target_rate:
        return waveform
    common = np.gcd(sampling_rate, target_rate)
    samples = scipy.signal.resample_poly(waveform.numpy(), target_rate // common, sampling_rate // common, axis=-1)
    return torch.from_numpy(samples.astype(np.float32))


def describe_source(clips: StageClips | Clips) -> dict[str, Any]:
    """What a recipe says about the clips of a cache."""
    if isinstance(clips, StageClips):
        source = {"stage": clips.split, "seed": clips.seed, "tier_weights": clips.tier_weights}
        return source | ({"verb_shares": clips.verb_shares} if clips.verb_shares else {})
    form = clips.clip_format
    return {
        "clips": len(clips),
        "names_sha256": hashlib.sha256("\n".join(clips.names).encode()).hexdigest(),
        "buckets": [str(bucket) for bucket in form.buckets],
        "frame_rate": form.frame_rate,
        "sampling_rate": form.sampling_rate,
    }


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    path = folder / "recipe.json"
    if not path.is_file():
        files.write_json(path, recipe, indent=1)
        return
    found = files.read_json(path)
    for name, value in recipe.items():
        if not isinstance(found, dict) or found.get(name) != value:
            if not isinstance(found, dict):
                raise ValueError(f"{path} is damaged: delete {folder}, or restore it.")
            raise ValueError(
                f"{folder} holds features of another recipe: `{name}` is {found.get(name)} there and {value} now. "
                "Choose another folder, or delete this one."
            )


def index_path(path: Path) -> Path:
    """The index of a shard."""
    return path.with_suffix(".index.json")


def _is_done(path: Path, numbers: range, verify: bool, sources: list[str] | None) -> bool:
    try:
        found = files.read_json(index_path(path))
        if (found["first"], found["last"], found["bytes"]) != (numbers[0], numbers[-1], path.stat().st_size):
            return False
        if sources is not None and found.get("sources") != sources:
            return False
        if not all(isinstance(clip["flagged"], bool) for clip in found["clips"]):
            return False
        if not verify:
            return True
        places = {clip["number"]: clip["members"] for clip in found["clips"]}
        return found["sha256"] == _sha256(path) and places == {
            number: {suffix: list(place) for suffix, place in places.items()}
            for number, places in _members(path, list(places)).items()
        }
    except (OSError, KeyError, TypeError, ValueError):  # missing or damaged
        return False


def _members(path: Path, numbers: Sequence[int]) -> dict[int, dict[str, tuple[int, int]]]:
    """Where the parts of a shard's clips lie."""
    found = shard_members(path)
    return {
        number: {suffix: found[f"{number:08d}.{suffix}"] for suffix in ("json", "safetensors", "txt")}
        for number in numbers
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_shard(
    path: Path,
    clips: Mapping[int, dict[str, Any]],
    rejects: list[dict[str, str]],
    numbers: range,
    sources: list[str] | None,
) -> None:
    with files.replacing(path) as partial, tarfile.open(partial, "w") as shard:
        for number, clip in clips.items():
            facts = {
                "clip": clip["name"],
                "bucket": clip["bucket"],
                "silent": clip["silent"],
                "static": clip["static"],
                "cues": clip["cues"],
            }
            parts = {
                "json": json.dumps(facts).encode(),
                "safetensors": save(clip["tensors"]),
                "txt": clip["prompt"].encode(),
            }
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    members = _members(path, list(clips))
    index = {
        "first": numbers[0],
        "last": numbers[-1],
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        "clips": [
            {
                "number": number,
                "bucket": clip["bucket"],
                "flagged": clip["silent"] or clip["static"],
                "members": members[number],
            }
            for number, clip in clips.items()
        ],
        "rejects": rejects,
    } | ({} if sources is None else {"sources": sources})
    files.write_json(index_path(path), index, indent=1)


def _write_manifest(folder: Path, recipe: dict[str, Any], shards: Sequence[tuple[int, range]]) -> bool:
    paths = [folder / f"features-{shard:05d}.tar" for shard, _ in shards]
    if not all(_is_done(path, numbers, False, None) for path, (_, numbers) in zip(paths, shards, strict=True)):
        return False
    indices = [files.read_json(index_path(path)) for path in paths]
    buckets: dict[str, int] = {}
    for index in indices:
        for clip in index["clips"]:
            buckets[clip["bucket"]] = buckets.get(clip["bucket"], 0) + 1
    rejects = [reject for index in indices for reject in index["rejects"]]
    manifest = {
        "num_clips": sum(buckets.values()),
        "num_flagged": sum(clip["flagged"] for index in indices for clip in index["clips"]),
        "num_rejected": len(rejects),
        "buckets": dict(sorted(buckets.items())),
        "shards": [
            {"file": path.name, "num_clips": len(index["clips"]), "bytes": index["bytes"], "sha256": index["sha256"]}
            for path, index in zip(paths, indices, strict=True)
        ],
        "recipe": recipe,
    }
    lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects]
    files.write_bytes(folder / "rejects.jsonl", "".join(lines).encode())
    files.write_json(folder / "manifest.json", manifest, indent=1)
    return True
