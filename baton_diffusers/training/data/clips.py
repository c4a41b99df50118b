"""Clips of one's own as training data: a folder or WebDataset shards, brought to one form, with reasons for what is not used.

A source gives clips by number: `source[number]` is a sample like those of [`StageClips`], or raises [`ClipRejected`].
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch

from ... import coordinates
from ...cues import format_cues, parse_cues


VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm")

# What a clip may lack (ours). Sound may end this much before the picture, and is then filled with silence; fewer source
# frames than this share of the model's rate would be mostly repetition.
MAX_MISSING_SOUND = 0.5  # seconds
MIN_FRAME_RATE_SHARE = 0.5

# A clip at most this loud is silent (-60 dB of full scale), one that differs from its first frame by at most this is static.
SILENT_PEAK = 1e-3
STATIC_CHANGE = 0.5  # of 255, the mean over a frame's pixels

_TIMEOUT = 120  # seconds that ffmpeg may take for a clip


class ClipRejected(ValueError):
    """A clip that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Bucket:
    """A form of clips: those of one batch have the same.

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
    What clips are brought to.

    A clip goes into the bucket whose aspect ratio is nearest to its own, and among those of that ratio into the longest one
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


def read_training_clip(path: str | Path, clip_format: ClipFormat) -> dict[str, Any]:
    """
    Reads a file's first seconds in one of a format's buckets.

    No more is decoded than the longest bucket needs, so that neither a long file nor a header that claims a length it does
    not have costs time or memory.

    Args:
        path: Any file that ffmpeg decodes.
        clip_format: What it is brought to.

    Returns:
        A dictionary: `frames`, uint8 `(num_frames, height, width, 3)`; `waveform`, float32 `(num_samples,)`, as long as
        the frames; `silent` and `static`, bools.

    Raises:
        ClipRejected: If the file is missing, empty, damaged, without picture or sound, too short, of too low a frame
            rate, or its sound ends before its picture.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipRejected("not a file")
    if path.stat().st_size == 0:
        raise ClipRejected("empty file")
    # One frame as Y4M, whose header states size, pixel aspect and rate: "YUV4MPEG2 W64 H64 F16:1 Ip A1:1 ...".
    probe = _decode(path, "video", ["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe"])
    fields = {field[:1]: field[1:] for field in probe.split(b"\n", 1)[0].decode().split(" ")[1:]}
    numerator, denominator = map(int, fields["F"].split(":"))
    source_rate = numerator / denominator
    if source_rate < MIN_FRAME_RATE_SHARE * clip_format.frame_rate:
        raise ClipRejected(
            f"{source_rate:.3g} frames per second are fewer than half of the {clip_format.frame_rate:g} to be trained on"
        )
    pixel_width, pixel_height = map(int, fields.get("A", "0:0").split(":"))
    aspect = int(fields["W"]) / int(fields["H"]) * (pixel_width / pixel_height if pixel_width * pixel_height else 1)

    longest = max(bucket.num_frames for bucket in clip_format.buckets)
    bucket = clip_format.choose(None, aspect)
    frames = _read_frames(path, bucket, longest, clip_format.frame_rate)
    chosen = clip_format.choose(len(frames), aspect)
    if (chosen.height, chosen.width) != (bucket.height, bucket.width):
        frames = _read_frames(path, chosen, longest, clip_format.frame_rate)
    frames = frames[: chosen.num_frames]

    duration = coordinates.clip_duration(chosen.num_frames, clip_format.frame_rate)
    length = coordinates.num_samples(duration, clip_format.sampling_rate)
    resample = ["-af", "aresample=async=1:first_pts=0", "-ar", str(clip_format.sampling_rate), "-ac", "1"]
    samples = _decode(path, "audio", [*resample, "-t", f"{duration:.6f}", "-f", "f32le"])
    waveform = np.frombuffer(samples, dtype="<f4")[:length].clip(-1, 1)
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


class ClipFolder:
    """
    A folder of clips, with those in its sub-folders, in the order of their names.

    The caption of `clip.mp4` is in `clip.txt` beside it, or in `metadata.jsonl` at the top of the folder, one line for each
    clip: `{"file_name": "clip.mp4", "text": "..."}`. When things happen, for a planner that writes cues, may be told in `clip.cues`
    or as `"cues"` in the line, as a sheet of [`baton_diffusers.cues`].

    Args:
        folder: The folder.
        clip_format: What clips are brought to.

    `clips[number]` is a dictionary: `name`, the path within the folder; `prompt`; `cues`, empty if there are none; and what
    [`read_training_clip`] returns.

    Raises:
        ValueError: If the folder or its `metadata.jsonl` cannot be read, or there is no clip in it.
    """

    def __init__(self, folder: str | Path, clip_format: ClipFormat) -> None:
        self.folder = Path(folder)
        self.clip_format = clip_format
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder of clips.")
        self._metadata = _read_metadata(self.folder / "metadata.jsonl")
        found = {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        }
        self.names: Sequence[str] = sorted(found | set(self._metadata))
        if not self.names:
            raise ValueError(f"there are no clips in {folder}: it needs files like clip.mp4 with clip.txt beside.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name = self.names[number]
        path = self.folder / name
        texts = dict(self._metadata.get(name, {}))
        for field, suffix in (("text", ".txt"), ("cues", ".cues")):
            if texts.get(field) is None and path.with_suffix(suffix).is_file():
                try:
                    texts[field] = path.with_suffix(suffix).read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    raise ClipRejected(f"{path.with_suffix(suffix).name} is not UTF-8") from error
        told = {"prompt": _caption(texts.get("text")), "cues": _cues(texts.get("cues"))}
        return {"name": name, **told, **read_training_clip(path, self.clip_format)}


class ClipShards:
    """
    Clips in WebDataset shards: tar files in which `KEY.mp4` and `KEY.txt`, or `KEY.json` with a `text`, belong together, and
    `KEY.cues`, or `cues` in `KEY.json`, where there are any.

    The shards are indexed once, and clips are read where they lie.

    Args:
        paths: The tar files, not compressed.
        clip_format: What clips are brought to.

    Samples are like those of [`ClipFolder`], with `shard.tar/KEY` for a name.

    Raises:
        ValueError: If a shard cannot be read, or there is no clip in any.
    """

    def __init__(self, paths: Sequence[str | Path], clip_format: ClipFormat) -> None:
        self.clip_format = clip_format
        self._clips: list[tuple[Path, dict[str, tuple[int, int]]]] = []
        names: list[str] = []
        for path in map(Path, paths):
            for key, members in index_shard(path).items():
                if any(f".{suffix.lower()}" in VIDEO_SUFFIXES for suffix in members):
                    self._clips.append((path, members))
                    names.append(f"{path.name}/{key}")
        self.names: Sequence[str] = names
        if not names:
            raise ValueError(f"there are no clips in {', '.join(map(str, paths))}: shards hold KEY.mp4 and KEY.txt.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path, members = self._clips[number]
        suffix = next(suffix for suffix in members if f".{suffix.lower()}" in VIDEO_SUFFIXES)
        try:
            texts = dict(json.loads(read_member(path, members["json"]))) if "json" in members else {}
            for field, member in (("text", "txt"), ("cues", "cues")):
                if member in members:
                    texts[field] = read_member(path, members[member]).decode()
        except (UnicodeDecodeError, json.JSONDecodeError, TypeError, ValueError) as error:
            raise ClipRejected("its caption cannot be read: KEY.json needs a `text`, in UTF-8") from error
        told = {"prompt": _caption(texts.get("text")), "cues": _cues(texts.get("cues"))}
        # Most containers have to be sought in, which a pipe cannot.
        with tempfile.NamedTemporaryFile(suffix=f".{suffix}") as file:
            file.write(read_member(path, members[suffix]))
            file.flush()
            sample = read_training_clip(file.name, self.clip_format)
        return {"name": self.names[number], **told, **sample}


def open_clips(source: str | Path, clip_format: ClipFormat) -> ClipFolder | ClipShards:
    """Clips of a folder, of a folder of tar files, or of one tar file.

    Raises:
        ValueError: If it is none of them.
    """
    source = Path(source)
    if source.suffix == ".tar":
        return ClipShards([source], clip_format)
    shards = sorted(source.glob("*.tar"))
    return ClipShards(shards, clip_format) if shards else ClipFolder(source, clip_format)


def index_shard(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where the samples of a WebDataset shard lie: `{key: {suffix: (offset, size)}}`, in the order of the file.

    Raises:
        ValueError: If it is not a tar file, or a damaged one.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    name = PurePosixPath(member.name)
                    stem, _, suffix = name.name.partition(".")
                    samples.setdefault(str(name.with_name(stem)), {})[suffix] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read as a tar file ({error}): write or copy it again.") from error
    return samples


def read_member(path: Path, place: tuple[int, int]) -> bytes:
    """The bytes of a shard at an offset, of a size."""
    with open(path, "rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows[row["file_name"]] = dict(row)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f'{path}, line {number}: a line reads {{"file_name": "clip.mp4", "text": "..."}}, got {line!r}.'
                ) from error
    return rows


def _caption(text: Any) -> str:
    caption = " ".join(text.split()) if isinstance(text, str) else ""
    if not caption:
        raise ClipRejected("no caption")
    return caption


def _cues(sheet: Any) -> str:
    if sheet is None:
        return ""
    try:
        return format_cues(parse_cues(sheet))
    except (TypeError, ValueError) as error:
        raise ClipRejected(f"its cues: {error}") from error


def _read_frames(path: Path, bucket: Bucket, num_frames: int, frame_rate: float) -> np.ndarray:
    size = f"{bucket.width}:{bucket.height}"
    filters = (
        f"fps=fps={frame_rate}:start_time=0,scale=w=iw*sar:h=ih,"
        f"scale={size}:force_original_aspect_ratio=increase:flags=area,crop={size}"
    )
    arguments = ["-vf", filters, "-frames:v", str(num_frames), "-pix_fmt", "rgb24", "-f", "rawvideo"]
    frames = np.frombuffer(bytearray(_decode(path, "video", arguments)), np.uint8)
    return frames.reshape(-1, bucket.height, bucket.width, 3)


def _decode(path: Path, kind: str, arguments: list[str]) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error", "-i", f"file:{path}"]
    command += ["-map", f"0:{kind[0]}:0", *arguments, "pipe:1"]
    try:
        run = subprocess.run(command, capture_output=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ClipRejected(f"ffmpeg took more than {_TIMEOUT} s for its {kind}") from error
    errors = run.stderr.decode(errors="replace").strip()
    if "matches no streams" in errors:
        raise ClipRejected(f"no {kind} stream")
    # ffmpeg returns whatever it could decode of a damaged file, and says so only here.
    if run.returncode != 0 or errors or not run.stdout:
        # The first line is the cause. It begins with a part of ffmpeg and its address, which is another in every run.
        cause = re.sub(r"\[[^]]* @ 0x[0-9a-f]+\] *", "", errors.splitlines()[0]) if errors else "nothing was decoded"
        cause = cause.replace(f"file:{path}", "").strip(": ")
        raise ClipRejected(f"its {kind} is truncated, damaged or of an unknown format ({cause})")
    return run.stdout
