"""Cached features as the dataset on which planner and transformer train."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ...files import read_json
from ...plan import MAX_SECONDS, SemanticPlan
from ...stage import Scene, training_prompt, write_cues
from ...stage.clips import StageClips
from ..seeds import step_seed
from .cache import EMPTY_PROMPT, PLAN_LAYOUT, describe_source, index_path
from .clips import read_member


_FEATURES = ("latents", "audio_latents", "video_tokens", "audio_tokens", *PLAN_LAYOUT, "duration")


class CachedFeatures:
    """
    What [`cache_features`] wrote, as an endless dataset with prompts.

    Every clip comes up once before any comes up again; each round has its own order. Where the cache has clips of
    several shapes (buckets), every `batch_size` samples in a row, counted from 0, have the same shape: in each round a
    bucket gives as many batches as its clips fill, the last one filled up with clips of its next round, and the batches of
    all buckets are mixed. A sample is a dictionary: `prompt`, `cues` (an empty sheet where there are none), `latents`,
    `audio_latents`, `video_tokens`, `audio_tokens`, `silent`, `static`, and `prompt_embeds`, zero-padded, where a text encoder
    was given to `cache_features`.

    Args:
        folder (`str` or `Path`): where the shards are.
        clips ([`StageClips`], *optional*): the Stage stream that they were made from: prompts are then paraphrased anew
            each time. Without it, and for clips other than Stage's, the prompts are the cached ones.
        seed (`int`, defaults to 0): of the order.
        batch_size (`int`, *optional*): samples that are joined into a batch; needed where there are several buckets.
        include_flagged (`bool`, defaults to `False`): whether silent and static clips come up too. They cannot teach how sound
            and picture belong together, so only tasks of one modality may use them.

    Raises:
        ValueError: if the cache is not there, not finished or damaged, it was made from another stream than `clips`, none of
            its clips can be used, or `batch_size` is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        clips: StageClips | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        include_flagged: bool = False,
    ) -> None:
        folder = Path(folder)
        if (folder / "manifest.json").is_file():
            self._store = _Shards(folder, include_flagged)
        elif (folder / "recipe.json").is_file():
            raise ValueError(f"the features in {folder} are not finished: run `baton cache` again to go on.")
        else:
            raise ValueError(f"there are no features in {folder}: write them with `baton cache`.")
        self.folder = folder
        self._buckets = self._store.buckets
        if not self._buckets:
            raise ValueError(
                f"no clip in {folder} can be used: see its rejects.jsonl, and which are silent or static."
            )
        if len(self._buckets) > 1 and batch_size is None:
            raise ValueError(f"{folder} has clips of {len(self._buckets)} shapes: give the `batch_size` of training.")
        source = self._store.source
        if clips is not None and "stage" in source:
            expected = describe_source(clips)
            if source != expected:
                raise ValueError(
                    f"the features in {folder} were made from {source}, not from {expected}: say so (`data_seed`, `verb_shares`), "
                    "or take the prompts as they were cached (`data_seed=null`)."
                )
        self.clips = clips if "stage" in source else None
        self.seed = seed
        self.batch_size = 1 if batch_size is None else batch_size
        self._batches = [
            bucket for bucket, rows in enumerate(self._buckets) for _ in range(-(-len(rows) // self.batch_size))
        ]
        self._scenes: dict[int, tuple[Scene, int]] = {}  # to draw one takes longer than all else
        self._layouts = {}
        for rows in self._buckets:
            tensors = self._store.tensors(rows[0])
            key = len(tensors["video_tokens"]), len(tensors["audio_tokens"])
            layout = {name: tensors[name] for name in PLAN_LAYOUT} | {"duration": tensors["duration"].item()}
            if self._layouts.setdefault(key, layout)["duration"] != layout["duration"]:
                raise ValueError(f"{folder} has buckets of nearly equal length: their plans cannot be told apart.")

    @property
    def num_clips(self) -> int:
        """Clips that come up."""
        return sum(len(rows) for rows in self._buckets)

    @cached_property
    def empty_prompt_embeds(self) -> torch.Tensor:
        """The text encoder's embeddings of the empty prompt, zero-padded `(max_sequence_length, text_dim)`.

        Raises:
            ValueError: if the cache holds no embeddings.
        """
        path = self.folder / EMPTY_PROMPT
        if not path.is_file():
            raise ValueError(f"{self.folder} has no embeddings of prompts: write them with `baton cache --text`.")
        embeds = load(path.read_bytes())["prompt_embeds"].float()
        return nn.functional.pad(embeds, (0, 0, 0, self._store.max_sequence_length - len(embeds)))

    @property
    def plan_layout(self) -> dict[str, Any]:
        """Times, places and duration of the plans' tokens, where all clips have one duration.

        Raises:
            ValueError: if they have not.
        """
        if len(self._layouts) > 1:
            raise ValueError("the clips have several durations: take the layout of a batch, `plan(...)`.")
        return next(iter(self._layouts.values()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        tensors, facts = self._store.tensors(row), self._store.facts(row)
        sample = {name: value.float() for name, value in tensors.items() if name not in (*PLAN_LAYOUT, "duration")}
        if "prompt_embeds" in sample:
            missing = self._store.max_sequence_length - len(sample["prompt_embeds"])
            sample["prompt_embeds"] = nn.functional.pad(sample["prompt_embeds"], (0, 0, 0, missing))
        if self.clips is None:
            prompt, cues = facts["prompt"], facts.get("cues", "")
        else:
            scene, seed = self.scene(index)
            prompt, cues = training_prompt(scene, index), write_cues(scene, seed)
        flags = {name: torch.tensor(facts[name]) for name in ("silent", "static")}
        return {"prompt": prompt, "cues": cues, **sample, **flags}

    def scene(self, index: int) -> tuple[Scene, int]:
        """The scene of a sample and its render seed, see [`StageClips`].

        Raises:
            ValueError: if the clips are not Stage's, or were opened without `clips`.
        """
        if self.clips is None:
            raise ValueError(
                f"the features in {self.folder} have no scenes: open them with the `StageClips` that they are of."
            )
        number = self._store.facts(self._row(index))["number"]
        if number not in self._scenes:
            self._scenes[number] = self.clips.scene(number)
        return self._scenes[number]

    def plan(self, video_tokens: torch.Tensor, audio_tokens: torch.Tensor) -> SemanticPlan:
        """A batch's tokens as a plan."""
        layout = self._layouts[video_tokens.shape[1], audio_tokens.shape[1]]
        return SemanticPlan(video_tokens=video_tokens, audio_tokens=audio_tokens, **layout)

    def _row(self, index: int) -> Any:
        number, place = divmod(index, self.batch_size)
        round_number, position = divmod(number, len(self._batches))
        if len(self._buckets) == 1:
            bucket, rank = 0, position
        else:
            order = _permutation(len(self._batches), self.seed, round_number, 1 + len(self._buckets))
            buckets = [self._batches[i] for i in order[: position + 1].tolist()]
            bucket, rank = buckets[-1], buckets.count(buckets[-1]) - 1
        rows = self._buckets[bucket]
        # position in the endless stream of the bucket's clips, which repeats each epoch
        place += (round_number * self._batches.count(bucket) + rank) * self.batch_size
        epoch, place = divmod(place, len(rows))
        return rows[int(_permutation(len(rows), self.seed, epoch, bucket)[place])]


@lru_cache(maxsize=64)
def _permutation(length: int, seed: int, epoch: int, stream: int) -> torch.Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(step_seed(seed, epoch, stream)))


class _Shards:
    # The shards of a manifest. Each clip is read where it lies in its shard. A row is (number of the shard, clip of its index).
    def __init__(self, folder: Path, include_flagged: bool) -> None:
        manifest = read_json(folder / "manifest.json")
        buckets: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        with _damaged(folder / "manifest.json"):
            self.source = dict(manifest["recipe"]["source"])
            self.max_sequence_length = manifest["recipe"]["max_sequence_length"]
            shards = [(shard["file"], int(shard["bytes"])) for shard in manifest["shards"]]
            if foreign := [name for name, _ in shards if not re.fullmatch(r"features-\d{5,}\.tar", name)]:
                raise ValueError(f"{foreign[0]!r} is no shard")
        self._paths = [folder / name for name, _ in shards]
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for i, (path, (_, size)) in enumerate(zip(self._paths, shards, strict=True)):
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(f"{path} is missing or damaged: run `baton cache` again with --verify.")
            index = read_json(index_path(path))
            with _damaged(index_path(path)):
                for clip in index["clips"]:
                    for suffix in ("json", "safetensors", "txt"):
                        start, length = clip["members"][suffix]
                        if not 0 <= start <= start + length <= size:
                            raise ValueError(f"clip {clip['number']} lies beyond its shard")
                    if not isinstance(clip["flagged"], bool) or type(clip["number"]) is not int:
                        raise ValueError(f"clip {clip['number']!r} has no number or flag")
                    if include_flagged or not clip["flagged"]:
                        buckets.setdefault(str(clip["bucket"]), []).append((i, clip))
        self.buckets = [rows for _, rows in sorted(buckets.items())]

    def tensors(self, row: tuple[int, dict[str, Any]]) -> dict[str, torch.Tensor]:
        with _damaged(self._paths[row[0]]):
            tensors = load(self._read(row, "safetensors"))
            self._check(f"clip {row[1]['number']}", str(row[1]["bucket"]), tensors)
            return tensors

    def _check(self, name: str, bucket: str, tensors: dict[str, torch.Tensor]) -> None:
        """Refuses what would fail, or spoil a training, when it is joined into a batch with the others of its bucket."""
        if missing := set(_FEATURES) - set(tensors):
            raise ValueError(f"{name} has no {', '.join(sorted(missing))}")
        if foreign := set(tensors) - {*_FEATURES, "prompt_embeds"}:
            raise ValueError(f"{name} has the unknown {', '.join(sorted(foreign))}")
        for feature, value in tensors.items():
            if not value.is_floating_point():
                raise ValueError(f"`{feature}` of {name} is {value.dtype}, not floating-point")
            if not value.isfinite().all():
                raise ValueError(f"`{feature}` of {name} holds NaN or infinite values")
        # prompts have any number of tokens
        shapes = {key: tuple(value.shape)[key == "prompt_embeds" :] for key, value in tensors.items()}
        expected = self._shapes.setdefault(bucket, shapes)
        for feature in sorted(expected.keys() | shapes.keys()):
            if shapes.get(feature) != expected.get(feature):
                raise ValueError(
                    f"`{feature}` of {name} has shape {shapes.get(feature)}, but that of others {expected.get(feature)}"
                )
        if tensors["duration"].ndim or not 0 < tensors["duration"] <= MAX_SECONDS:
            raise ValueError(f"`duration` of {name} is {tensors['duration'].tolist()}, not a number of seconds")

    def facts(self, row: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        with _damaged(self._paths[row[0]]):
            facts = json.loads(self._read(row, "json"))
            is_read = isinstance(facts, dict) and isinstance(facts.get("cues", ""), str)
            if not is_read or not all(isinstance(facts.get(flag), bool) for flag in ("silent", "static")):
                raise ValueError(f"clip {row[1]['number']} has other facts than a clip has")
            facts.get("cues", "").encode()  # refuses what is no text
            return {**facts, "number": row[1]["number"], "prompt": self._read(row, "txt").decode()}

    def _read(self, row: tuple[int, dict[str, Any]], suffix: str) -> bytes:
        return read_member(self._paths[row[0]], row[1]["members"][suffix])


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Names the file if its content is not what `cache_features` wrote."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} is damaged ({reason}): run `baton cache` again with --verify.") from error


def collate_features(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of [`CachedFeatures`] as a batch; prompts and cues become lists."""
    return {
        name: [sample[name] for sample in samples]
        if isinstance(value, str)
        else torch.stack([s[name] for s in samples])
        for name, value in samples[0].items()
    }
