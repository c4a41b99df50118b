"""Your own clips as training data: a folder or WebDataset shards, converted to one format, with reasons for clips that are not
used.

A source gives clips by number: `source[number]` is a sample as [`StageClips`] gives it, or raises [`ClipRejected`]. Clips
come from strangers: nothing outside of their folder or shard is read, and sizes are bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ... import coordinates, ffmpeg
from ...cues import format_sheet, parse_sheet
from ...ffmpeg import Source


VIDEO_SUFFIXES = (
    *(
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
    ),
    *(".mts", ".mxf", ".ogm", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
)

# What a clip may lack (ours). Sound may end this much before the picture, and is then filled with silence; fewer source
# frames than this share of the model's rate would be mostly repetition.
MAX_MISSING_SOUND = 0.5  # seconds
MIN_FRAME_RATE_SHARE = 0.5

# A clip at most this loud is silent (-60 dB of full scale), one that differs from its first frame by at most this is static.
SILENT_PEAK = 1e-3
STATIC_CHANGE = 0.5  # of 255, the mean over a frame's pixels

_MAX_TEXT_BYTES = 2**20  # of a caption's file
_MAX_METADATA_BYTES = 2**30


class ClipRejected(ValueError):
    """A clip that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Bucket:
    """The shape of clips, which is the same for all clips of a batch.

    Args:
        num_frames: Frames at the model's rate.
        height: Pixels.
        width: Pixels.
    """

    num_frames: int
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The bucket of a text `FRAMESxHEIGHTxWIDTH`, such as `"49x64x64"`.

        Raises:
            ValueError: If the text is not of that form, or a number is not positive.
        """
        try:
            numbers = [int(number) for number in text.split("x")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or min(numbers) < 1:
            raise ValueError(f"A bucket reads FRAMESxHEIGHTxWIDTH, such as 49x64x64, got {text!r}.")
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class ClipFormat:
    """
    The format that clips are converted to.

    A clip goes into the bucket whose aspect ratio is nearest to its own; of several with that ratio, into the longest one
    that it fills. It is scaled to cover the bucket's size and cropped around its centre; what is longer than the bucket is
    cut off at the end. Frames are dropped or repeated to `frame_rate`; sound of any number of channels becomes one.

    Args:
        buckets: The forms that there are.
        frame_rate: Frames per second.
        sampling_rate: Samples per second.

    Raises:
        ValueError: If there is no bucket, or a rate is not positive.
    """

    buckets: tuple[Bucket, ...]
    frame_rate: float
    sampling_rate: int

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("`buckets` is empty: give at least one, such as Bucket(49, 64, 64).")
        for name in ("frame_rate", "sampling_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def choose(self, num_frames: int | None, aspect: float) -> Bucket:
        """The bucket of a clip of `num_frames` (None for one that is long enough for all) and of `aspect`, width / height.

        Raises:
            ClipRejected: If the clip is shorter than every bucket.
        """
        fitting = [bucket for bucket in self.buckets if num_frames is None or bucket.num_frames <= num_frames]
        if not fitting:
            shortest = min(bucket.num_frames for bucket in self.buckets)
            raise ClipRejected(
                f"too short: {num_frames} frames at {self.frame_rate:g} per second, the shortest bucket has {shortest}"
            )
        return min(
            fitting, key=lambda b: (round(abs(np.log(b.width / b.height / aspect)), 6), -b.num_frames, -b.height)
        )


def read_training_clip(source: str | Path | Source, clip_format: ClipFormat) -> dict[str, Any]:
    """
    Reads a file's first seconds in one of a format's buckets.

    No more is decoded than the longest bucket needs, so that neither a long file nor a header that claims a length it does
    not have costs time or memory.

    Args:
        source: A film with sound, in any of the containers of [`ffmpeg.FORMATS`]; a file, or a part of one.
        clip_format: The format that it is converted to.

    Returns:
        A dictionary: `frames`, uint8 `(num_frames, height, width, 3)`; `waveform`, float32 `(num_samples,)`, as long as
        the frames; `silent` and `static`, bools.

    Raises:
        ClipRejected: If the file is missing, empty, damaged, without picture or sound, too short, of too low a frame
            rate, or its sound ends before its picture.
    """
    try:
        return _read_training_clip(Source.of(source), clip_format)
    except ffmpeg.Unreadable as error:
        raise ClipRejected(str(error)) from error


def _read_training_clip(source: Source, clip_format: ClipFormat) -> dict[str, Any]:
    picture = ffmpeg.read_picture(source)
    if picture.frame_rate < MIN_FRAME_RATE_SHARE * clip_format.frame_rate:
        raise ClipRejected(
            f"{float(picture.frame_rate):.3g} frames per second are fewer than half of the {clip_format.frame_rate:g} to be trained on"
        )
    aspect = picture.width / picture.height
    longest = max(bucket.num_frames for bucket in clip_format.buckets)
    bucket = clip_format.choose(None, aspect)
    frames = _read_frames(source, bucket, longest, clip_format.frame_rate)
    chosen = clip_format.choose(len(frames), aspect)
    if (chosen.height, chosen.width) != (bucket.height, bucket.width):
        frames = _read_frames(source, chosen, longest, clip_format.frame_rate)
    frames = frames[: chosen.num_frames]

    duration = coordinates.clip_duration(chosen.num_frames, clip_format.frame_rate)
    length = coordinates.num_samples(duration, clip_format.sampling_rate)
    samples, _, _ = ffmpeg.decode_samples(source, clip_format.sampling_rate, mono=True, max_seconds=duration)
    waveform = samples[0, :length].clip(-1, 1)
    if not np.isfinite(waveform).all():
        raise ClipRejected("its sound holds values that are not finite")
    missing = (length - len(waveform)) / clip_format.sampling_rate
    if missing > MAX_MISSING_SOUND:
        raise ClipRejected(f"its sound ends {missing:.2f} s before its picture of {duration:.2f} s")
    waveform = np.pad(waveform, (0, length - len(waveform)))

    change = np.abs(frames.astype(np.int16) - frames[0]).mean(axis=(1, 2, 3)).max()
    return {
        "frames": torch.from_numpy(frames),
        "waveform": torch.from_numpy(waveform),
        "silent": bool(np.abs(waveform).max() <= SILENT_PEAK),
        "static": bool(change <= STATIC_CHANGE),
    }


class Clips(ABC):
    """
    Your own clips by number. A clip that cannot be used does not affect the others.

    `clips[number]` is a dictionary: `name`; `prompt`; `cues`, empty if there are none; and what [`read_training_clip`] returns;
    or it raises [`ClipRejected`]. `names[number]` is the clip's name, in characters that can be written.
    """

    clip_format: ClipFormat
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            source, texts = self.find(number)
            told = {"prompt": _caption(texts["text"]), "cues": _cues(texts["cues"])}
            return {"name": self.names[number], **told, **read_training_clip(source, self.clip_format)}
        except OSError as error:
            raise ClipRejected(f"cannot be opened ({error.strerror or error})") from error
        except ffmpeg.Unreadable as error:
            raise ClipRejected(str(error)) from error

    @abstractmethod
    def find(self, number: int) -> tuple[Source, Mapping[str, Any]]:
        """The source of a clip, and its `text` and `cues`.

        Raises:
            ClipRejected, ffmpeg.Unreadable, OSError: If the clip, its text or its cues cannot be read.
        """

    def digest(self, number: int) -> str:
        """A hash of the contents of a clip, its text and its cues. It changes if any of them changes."""
        digest = hashlib.sha256()
        try:
            source, texts = self.find(number)
            digest.update(json.dumps([texts["text"], texts["cues"]]).encode())
            with open(source.path, "rb") as file:
                file.seek(source.start)
                rest = os.fstat(file.fileno()).st_size - source.start if source.size is None else source.size
                while rest > 0 and (chunk := file.read(min(rest, 2**20))):
                    digest.update(chunk)
                    rest -= len(chunk)
        except (OSError, ValueError) as error:  # ClipRejected too: the clip is used once the reason is gone
            digest.update(repr(error).encode())
        return digest.hexdigest()


class ClipFolder(Clips):
    """
    A folder of clips, with those in its sub-folders, in the order of their names.

    The caption of `clip.mp4` is in `clip.txt` beside it, or in `metadata.jsonl` at the top of the folder, one line for each
    clip: `{"file_name": "clip.mp4", "text": "..."}`. For a planner that writes cues, `clip.cues` or `"cues"` in the line may
    hold a cue sheet, see [`baton_diffusers.cues`].

    Nothing outside of the folder is read: a link or a line that leads there is rejected, and so are linked folders and hidden
    files.

    Args:
        folder: The folder.
        clip_format: The format that they are converted to.

    Names are paths within the folder.

    Raises:
        ValueError: If the folder or its `metadata.jsonl` cannot be read, or there is no clip in it.
    """

    def __init__(self, folder: str | Path, clip_format: ClipFormat) -> None:
        self.folder = Path(folder)
        self.clip_format = clip_format
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder of clips.")
        self._root = self.folder.resolve()
        entries = _walk(self.folder)
        self._metadata: dict[str, dict[str, Any]] = {}
        metadata = self.folder / "metadata.jsonl"
        if metadata.is_file():
            for number, row in _read_metadata(self._within(metadata, ValueError)):
                name, reason = _name_within(row["file_name"])
                if reason is not None:
                    entries[f"{metadata.name}, line {number}"] = reason
                else:
                    self._metadata[name] = row
                    entries.setdefault(name, None)
        self._entries = sorted(entries.items())
        self.names = [_printable(name) for name, _ in self._entries]
        if not self.names:
            raise ValueError(f"there are no clips in {folder}: it needs files like clip.mp4 with clip.txt beside.")

    def find(self, number: int) -> tuple[Source, Mapping[str, Any]]:
        """See [`Clips.find`]."""
        name, reason = self._entries[number]
        if reason is not None:
            raise ClipRejected(reason)
        path = self._within(self.folder / name, ClipRejected)
        source = Source.of(path)
        row = self._metadata.get(name, {})
        texts = {"text": row.get("text"), "cues": row.get("cues")}
        for field, suffix in (("text", ".txt"), ("cues", ".cues")):
            beside = path.with_suffix(suffix)
            if texts[field] is None and beside.is_file():
                part = Source(self._within(beside, ClipRejected), 0, beside.stat().st_size)
                texts[field] = _read_text(part, _printable(beside.name))
        return source, texts

    def _within(self, path: Path, kind: type[ValueError]) -> Path:
        if not path.resolve().is_relative_to(self._root):
            raise kind(f"{_printable(path.name)} leads out of the folder: copy there what it leads to")
        return path


class ClipShards(Clips):
    """
    Clips in WebDataset shards: tar files in which `KEY.mp4` and `KEY.txt`, or `KEY.json` with a `text`, belong together. Cues
    may be in `KEY.cues`, or as `cues` in `KEY.json`.

    A key may have dots: `a.b.mp4` goes with `a.b.txt`, or else with `a.txt`. The shards are indexed once, and clips are read
    where they lie.

    Args:
        paths: The tar files, not compressed.
        clip_format: The format that they are converted to.

    Names are `shard.tar/KEY`, or `shard.tar/KEY.mp4` where a key has several films.

    Raises:
        ValueError: If a shard cannot be read, or there is no clip in any.
    """

    def __init__(self, paths: Sequence[str | Path], clip_format: ClipFormat) -> None:
        self.clip_format = clip_format
        self._members: dict[Path, dict[str, tuple[int, int]]] = {}
        self._entries: list[tuple[Path, str]] = []
        names = []
        for path in map(Path, paths):
            self._members[path] = shard_members(path)
            films = [name for name in self._members[path] if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
            stems = Counter(name.rpartition(".")[0] for name in films)
            for name in films:
                stem = name.rpartition(".")[0]
                self._entries.append((path, name))
                names.append(_printable(f"{path.name}/{stem if stems[stem] == 1 else name}"))
        self.names = names
        if not names:
            raise ValueError(f"there are no clips in {', '.join(map(str, paths))}: shards hold KEY.mp4 and KEY.txt.")

    def find(self, number: int) -> tuple[Source, Mapping[str, Any]]:
        """See [`Clips.find`]."""
        path, name = self._entries[number]
        members = self._members[path]
        if (reason := _hidden(PurePosixPath(name).name)) is not None:
            raise ClipRejected(reason)

        def beside(suffix: str) -> str | None:
            stem, folder = name.rpartition(".")[0], PurePosixPath(name).parent
            for key in (stem, str(folder / PurePosixPath(name).name.partition(".")[0])):
                if (member := f"{key}.{suffix}") in members:
                    return _read_text(Source(path, *members[member]), _printable(member))
            return None

        texts: dict[str, Any] = {}
        if (told := beside("json")) is not None:
            try:
                texts = dict(json.loads(told))
            except (TypeError, ValueError, RecursionError) as error:
                raise ClipRejected("its caption cannot be read: KEY.json needs a `text`, in UTF-8") from error
        for field, suffix in (("text", "txt"), ("cues", "cues")):
            if (told := beside(suffix)) is not None:
                texts[field] = told
        return Source(path, *members[name]), {field: texts.get(field) for field in ("text", "cues")}


def open_clips(source: str | Path, clip_format: ClipFormat) -> ClipFolder | ClipShards:
    """Clips of a folder, of a folder of tar files, or of one tar file.

    Raises:
        ValueError: If it is neither of these.
    """
    source = Path(source)
    if source.suffix == ".tar" and source.is_file():
        return ClipShards([source], clip_format)
    shards = sorted(source.glob("*.tar"))
    for shard in shards:
        if not shard.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{shard} leads out of its folder: give the file that it leads to.")
    return ClipShards(shards, clip_format) if shards else ClipFolder(source, clip_format)


def shard_members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the files of a shard lie: `{name: (offset, size)}`, in its order.

    Raises:
        ValueError: If it is not a tar file, or a damaged one.
    """
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as archive:
            for member in archive:
                if member.isfile() and not member.issparse():
                    members[member.name] = (member.offset_data, member.size)
            end = archive.offset
        with open(path, "rb") as file:  # tarfile takes a header that it cannot read for the end
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"there is no member at byte {end}")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read as a tar file ({error}): write or copy it again.") from error
    return members


def read_member(path: Path, place: tuple[int, int]) -> bytes:
    """The bytes of a shard at an offset, of a size."""
    with open(path, "rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def _walk(folder: Path) -> dict[str, str | None]:
    """The films of a folder and of those within, by their path; each with the reason why it cannot be a clip, or None."""
    entries: dict[str, str | None] = {}

    def closed(error: OSError) -> None:
        entries[Path(error.filename).relative_to(folder).as_posix()] = (
            f"a folder that cannot be read ({error.strerror})"
        )

    for place, folders, names in os.walk(folder, onerror=closed):
        relative = Path(place).relative_to(folder)
        for name in folders:
            if (Path(place) / name).is_symlink():
                entries[(relative / name).as_posix()] = (
                    "a linked folder, which is not followed: copy it, or cache it apart"
                )
        for name in names:
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".baton-"):
                entries[(relative / name).as_posix()] = _hidden(name)
    return entries


def _hidden(name: str) -> str | None:
    if name.startswith("._"):
        return "what a Mac keeps beside a file, and no clip"
    return "a hidden file: a clip's name begins without a dot" if name.startswith(".") else None


def _read_metadata(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a `metadata.jsonl`, with the numbers of their lines."""
    rows = []
    if path.stat().st_size > _MAX_METADATA_BYTES:
        raise ValueError(f"{path} has more than {_MAX_METADATA_BYTES / 2**30:g} GiB: split the folder of clips.")
    # What is not UTF-8 stays as lone surrogates, which reject that clip alone. Not `splitlines`: captions may hold U+2028.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line))
            row["file_name"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {number}: a line reads {{"file_name": "clip.mp4", "text": "..."}}, got {line[:200]!r}.'
            ) from error
        rows.append((number, row))
    return rows


def _name_within(name: Any) -> tuple[str, str | None]:
    """A name of `metadata.jsonl` as a path within the folder, or the reason for a refusal."""
    if not isinstance(name, str) or not name or "\0" in name:
        return "", f"its file_name is {name!r}, not the name of a file"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "", f"its file_name is {name!r}, not the name of a file"
    path = PurePosixPath(name)
    if path.is_absolute() or Path(name).is_absolute() or ".." in path.parts:
        return "", f"its file_name {_printable(name)} leads out of the folder"
    if not path.name:
        return "", f"its file_name {name!r} is not the name of a file"
    return str(path), _hidden(path.name)


def _printable(name: str) -> str:
    """A name in characters that can be written; bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_text(source: Source, name: str) -> str:
    if source.size > _MAX_TEXT_BYTES:
        raise ClipRejected(f"{name} has {source.size} bytes, which is no caption")
    data = read_member(source.path, (source.start, source.size))
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClipRejected(f"{name} is not UTF-8") from error


def _caption(text: Any) -> str:
    caption = " ".join(text.split()) if isinstance(text, str) else ""
    if not caption:
        raise ClipRejected("no caption")
    _check_characters("caption", caption)
    return caption


def _check_characters(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ClipRejected(
            f"its {name} holds {text[error.start]!r}, which is no character: write it in UTF-8"
        ) from error


def _cues(sheet: Any) -> str:
    if sheet is None:
        return ""
    if isinstance(sheet, str):
        _check_characters("cues", sheet)
    try:
        return format_sheet(parse_sheet(sheet))
    except (TypeError, ValueError) as error:
        raise ClipRejected(f"its cues: {error}") from error


def _read_frames(source: Source, bucket: Bucket, num_frames: int, frame_rate: float) -> np.ndarray:
    size = f"{bucket.width}:{bucket.height}"
    filters = f"scale=w=iw*sar:h=ih,scale={size}:force_original_aspect_ratio=increase:flags=area,crop={size}"
    frames, _ = ffmpeg.decode_frames(source, frame_rate, filters, bucket.height, bucket.width, num_frames)
    return frames
