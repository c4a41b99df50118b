"""The one decoder: ffmpeg, as a process of its own that may open the file it is given and nothing else.

Files come from strangers. Formats that name other files (a playlist, a pattern of pictures) are not on the list of formats, and
local files are the only protocol. The header is read first: a file that would not fit in memory is refused before it is decoded, and
a file whose header lies is refused when the limit is reached.
"""

from __future__ import annotations

import re
import statistics
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .containers import ends_within_a_unit


# Containers that hold what they show. Not among them, on purpose: hls, dash, concat, image2, lavfi, sdp and similar ones.
FORMATS = (
    *(
        "3gp",
        "aac",
        "ac3",
        "aiff",
        "amr",
        "asf",
        "au",
        "avi",
        "caf",
        "dv",
        "eac3",
        "flac",
        "flv",
        "gif",
        "ivf",
        "matroska",
    ),
    *("mov", "mp3", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "ogg", "tta", "w64", "wav", "wv", "yuv4mpegpipe"),
)

MAX_BYTES = 2 * 2**30  # of decoded frames or samples
MAX_PIXELS = 2**26  # of one frame: twice 8K
MIN_FRAME_RATE, MAX_FRAME_RATE = 1.0, 1000.0  # per second
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1000, 768_000  # per second
TIMEOUT = 300  # seconds that ffmpeg may take for one stream

# A file that ends this much before its header says was cut short.
_MISSING_SECONDS = 0.25

_STREAMS = {"video": "0:V:0", "audio": "0:a:0"}  # V: no cover picture of a song
_MAX_FRAMES = 2**24  # that are counted
_SMALL_BYTES = 2**28  # of decoded frames or samples: a file of fewer is read whole
_FIRST_SAMPLES = ("-frames:a", "1", "-c:a", "pcm_f32be", "-f", "au")

# Rates that cameras and screens have: measured ones are rounded to the nearest of them.
_USUAL_RATES = (
    5,
    6,
    8,
    10,
    12,
    15,
    16,
    20,
    Fraction(24000, 1001),
    24,
    25,
    30,
    48,
    50,
    60,
    72,
    75,
    90,
    100,
    120,
    144,
    240,
)


class Unreadable(ValueError):
    """A file that cannot be read; the message follows its name, as in "is empty: ..."."""


class Source(NamedTuple):
    """A file, or a part of one, such as a member of a tar file.

    Args:
        path: The file.
        start: Where the part begins, in bytes.
        size: Its length in bytes; `None` for all that follows.
        skip: Seconds that are not decoded; what follows begins at time zero.
    """

    path: Path
    start: int = 0
    size: int | None = None
    skip: float = 0.0

    @classmethod
    def of(cls, source: str | Path | Source) -> Source:
        """A path or source as a source.

        Raises:
            Unreadable: It is no file, or empty.
        """
        source = source if isinstance(source, Source) else cls(Path(source))
        try:
            if not source.path.is_file():
                raise Unreadable("is not a file: check the path")
            size = source.path.stat().st_size - source.start if source.size is None else source.size
        except (OSError, ValueError) as error:  # a name that is too long or holds a zero, a folder that is closed
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(
                f"cannot be opened ({getattr(error, 'strerror', None) or error}): check the path"
            ) from error
        if size <= 0:
            raise Unreadable("is empty: download or export it again")
        return source

    @property
    def arguments(self) -> list[str]:
        """What ffmpeg is told to open."""
        options = ["-format_whitelist", ",".join(FORMATS), "-max_pixels", str(MAX_PIXELS), "-threads", "4"]
        options += ["-ss", f"{self.skip:.6f}"] if self.skip else []
        # Without a protocol in front, ffmpeg takes "a:b.mp4" for one and "-b.mp4" for an option.
        if self.size is None:
            return [*options, "-protocol_whitelist", "file", "-i", f"file:{self.path}"]
        part = f"subfile,,start,{self.start},end,{self.start + self.size},,:{self.path}"
        return [*options, "-protocol_whitelist", "file,subfile", "-i", part]


class Picture(NamedTuple):
    """What the header and the first frame say of a film.

    Args:
        height: Pixels, as shown.
        width: Pixels, as shown: turned, and with square pixels.
        frame_rate: Frames per second.
        seconds: How long it lasts, with its sound; `None` where the header does not say.
        square: Whether its pixels are square as they are.
    """

    height: int
    width: int
    frame_rate: Fraction
    seconds: float | None
    square: bool


def read_picture(source: str | Path | Source) -> Picture:
    """Size, rate and length of a film, from its header and its first frame.

    A rate that the header leaves open or overstates, as browsers and phones write it, is measured.

    Raises:
        Unreadable: The file cannot be read, has no film, or its size or rate is beyond the limits.
    """
    source = Source.of(source)
    # The header of a Y4M stream states what comes out of the decoder: "YUV4MPEG2 W64 H64 F16:1 Ip A1:1 ...".
    run = _decode(source, "video", ["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe"], MAX_PIXELS * 2)
    fields = {field[:1]: field[1:] for field in bytes(run.data[:200]).split(b"\n", 1)[0].decode().split(" ")[1:]}
    height, width = int(fields["H"]), int(fields["W"])
    pixel_width, pixel_height = map(int, fields.get("A", "0:0").split(":"))
    square = not pixel_width * pixel_height or pixel_width == pixel_height
    if not square:
        width = max(round(width * pixel_width / pixel_height / 2), 1) * 2
    if height * width > MAX_PIXELS:
        raise Unreadable(
            f"has frames of {width}x{height} pixels: at most {MAX_PIXELS / 1e6:.0f} million are read, scale it down"
        )
    numerator, denominator = map(int, fields["F"].split(":"))
    rate, average = Fraction(numerator, max(denominator, 1)), run.average_rate
    if average is None or not MIN_FRAME_RATE <= rate <= 2 * average:
        rate = _measured_rate(source) or rate
    if not MIN_FRAME_RATE <= rate <= MAX_FRAME_RATE:
        raise Unreadable(
            f"has {float(rate):g} frames per second: from {MIN_FRAME_RATE:g} to {MAX_FRAME_RATE:g} are read, convert it"
        )
    return Picture(height, width, rate.limit_denominator(1001), run.seconds, square)


def decode_frames(
    source: str | Path | Source,
    frame_rate: Fraction | float,
    filters: str,
    height: int,
    width: int,
    max_frames: int | None = None,
) -> tuple[np.ndarray, bool]:
    """Frames of a film at a constant rate, from time zero.

    Args:
        source: The file.
        frame_rate: Frames per second to convert to.
        filters: ffmpeg's filters that make frames of `height` x `width` pixels.
        height: Pixels that come out.
        width: Pixels that come out.
        max_frames: Decode no more.

    Returns:
        uint8 of shape `(num_frames, height, width, 3)`, and whether there are more, which were not decoded: more than
        `max_frames`, or than `MAX_BYTES` hold.

    Raises:
        Unreadable: The file is truncated or damaged.
    """
    limit = MAX_BYTES // (height * width * 3)
    limit = limit if max_frames is None else min(limit, max_frames)
    vf = _at_rate(frame_rate, filters)
    arguments = ["-vf", vf, "-frames:v", str(limit + 1), "-pix_fmt", "rgb24", "-f", "rawvideo"]
    source = Source.of(source)
    run = _decode(source, "video", arguments, (limit + 1) * height * width * 3)
    frames = np.frombuffer(run.data, np.uint8).reshape(-1, height, width, 3)
    if len(frames) <= limit:
        _check_whole(source, run, len(frames) / float(frame_rate))
    return frames[:limit], len(frames) > limit


def count_frames(
    source: str | Path | Source, frame_rate: Fraction | float, max_frames: int | None = None
) -> tuple[int, bool]:
    """How many frames of a film there are at a constant rate. All of it is decoded, and none of it is kept.

    Args:
        source: The file.
        frame_rate: Frames per second to convert to.
        max_frames: Decode no more.

    Returns:
        The number, and whether there are more than `max_frames`.

    Raises:
        Unreadable: The file is truncated or damaged.
    """
    filters = _at_rate(frame_rate, "scale=2:2:flags=neighbor")
    limit = _MAX_FRAMES if max_frames is None else max_frames
    arguments = ["-vf", filters, "-frames:v", str(limit + 1), "-pix_fmt", "gray", "-f", "rawvideo"]
    source = Source.of(source)
    run = _decode(source, "video", arguments, (limit + 1) * 4)
    number = len(run.data) // 4
    if number <= limit:
        _check_whole(source, run, number / float(frame_rate))
    return min(number, limit), number > limit


def stream_frames(
    source: str | Path | Source, frame_rate: Fraction | float, filters: str, height: int, width: int
) -> Iterator[np.ndarray]:
    """The frames that [`decode_frames`] returns, one after another: uint8 of shape `(height, width, 3)`. Only one is in memory.

    Raises:
        Unreadable: The file is damaged, when its last frame has been read.
    """
    source, size = Source.of(source), height * width * 3
    arguments = ["-vf", _at_rate(frame_rate, filters), "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    with _Process([*source.arguments, "-map", _STREAMS["video"], *arguments]) as process:
        while len(frame := process.read(size)) == size:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        run = process.finish()
    if run.returncode != 0 or run.errors:
        raise _undecodable(source, "video", run)


def decode_samples(
    source: str | Path | Source,
    sampling_rate: int | None = None,
    mono: bool = False,
    max_seconds: float | None = None,
) -> tuple[np.ndarray, int, bool]:
    """Samples of a sound, from time zero.

    Args:
        source: The file.
        sampling_rate: Samples per second to convert to; default: the file's.
        mono: Whether to mix all channels into one.
        max_seconds: Decode no more.

    Returns:
        float32 of shape `(num_channels, num_samples)`, its rate, and whether there are more, which were not decoded: beyond
        `max_seconds`, or than `MAX_BYTES` hold.

    Raises:
        Unreadable: The file has no sound, or none without an end that is missing, or is damaged.
    """
    # The AU container states channels and rate in front of plain float samples.
    arguments = ["-af", "aresample=async=1:first_pts=0", "-c:a", "pcm_f32be", "-map_metadata", "-1", "-f", "au"]
    arguments += ["-ar", str(int(sampling_rate))] if sampling_rate is not None else []
    arguments += ["-ac", "1"] if mono else []
    if max_seconds is not None:
        arguments += ["-t", f"{max_seconds + 0.1:.6f}"]
    source = Source.of(source)
    run = _decode(source, "audio", arguments, MAX_BYTES, stop=True)
    _, offset, _, _, rate, num_channels = struct.unpack(">6I", run.data[:24])
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise Unreadable(
            f"has {rate} samples per second: from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} are read, convert it"
        )
    whole = (len(run.data) - offset) // (4 * num_channels) * 4 * num_channels
    samples = np.frombuffer(run.data, "u1")[offset : offset + whole].view(">f4").reshape(-1, num_channels)
    if not len(samples):
        raise Unreadable("holds an audio stream without samples: export the file again")
    limit = len(samples) if max_seconds is None else round(max_seconds * rate)
    more = run.stopped or len(samples) > limit
    if not more:
        _check_whole(source, run, len(samples) / rate)
    return np.ascontiguousarray(samples[:limit].T, dtype=np.float32), rate, more


def sound_rate(source: str | Path | Source) -> int:
    """Samples per second of a sound, from its header.

    Raises:
        Unreadable: As for [`decode_samples`].
    """
    run = _decode(Source.of(source), "audio", _FIRST_SAMPLES, 2**20, stop=True)
    return struct.unpack(">6I", run.data[:24])[4]


def seconds_before_the_end(source: str | Path | Source, seconds: float, only: str | None = None) -> float:
    """How much of a long file can be left out if its last `seconds` are needed; 0 for a file that is small, or whose length is
    not known.

    Args:
        source: The file.
        seconds: How much is needed.
        only: "video" or "audio" if only that stream is read.

    Raises:
        Unreadable: As for [`read_picture`] and [`sound_rate`].
    """
    if only == "audio":
        run = _decode(Source.of(source), "audio", _FIRST_SAMPLES, 2**20, stop=True)
        length, rate, size = run.seconds, Fraction(1), 4 * sound_rate(source)
    else:
        picture = read_picture(source)
        length, rate, size = picture.seconds, picture.frame_rate, picture.height * picture.width * 3
    if length is None or length <= seconds or length * rate * size <= _SMALL_BYTES:
        return 0.0
    return float(int((length - seconds) * rate) / rate)  # at a frame, so that the same frames are seen


def convert(input_arguments: Sequence[str], array: np.ndarray, output_arguments: Sequence[str]) -> bytearray:
    """Raw frames or samples, converted in memory.

    Raises:
        RuntimeError: ffmpeg cannot.
    """
    run = _run([*input_arguments, "-i", "pipe:0", *output_arguments, "pipe:1"], array, None)
    if run.returncode != 0 or not run.data:
        raise RuntimeError(f"ffmpeg could not convert {array.shape} values: {run.cause}")
    return run.data


def encode(arguments: Sequence[str], frames: Iterable[np.ndarray], path: Path) -> None:
    """Write a file.

    Args:
        arguments: Of ffmpeg, up to the name of the file.
        frames: What ffmpeg reads as `pipe:0`, in pieces.
        path: Where to.

    Raises:
        RuntimeError: ffmpeg cannot.
    """
    with Encoder(arguments, path) as encoder:
        for piece in frames:
            encoder.write(piece)
        encoder.close()


class Encoder:
    """Writes a file from frames that come one after another: a context in which [`write`] feeds them.

    Args:
        arguments: Of ffmpeg, up to the name of the file; it reads `pipe:0`.
        path: Where to.

    Raises:
        RuntimeError: ffmpeg cannot.
    """

    def __init__(self, arguments: Sequence[str], path: Path) -> None:
        self._arguments, self._path = arguments, path

    def __enter__(self) -> Encoder:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*_command(), *self._arguments, f"file:{self._path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        return self

    def write(self, frames: np.ndarray) -> None:
        """Feeds frames, and waits until they are taken."""
        try:
            self._process.stdin.write(memoryview(np.ascontiguousarray(frames)).cast("B"))
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Ends the file.

        Raises:
            RuntimeError: ffmpeg could not write it.
        """
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            self._log.seek(0)
            errors = [text for level, text in _lines(self._log.read(1 << 18)) if level in ("error", "fatal")]
            raise RuntimeError(f"ffmpeg could not write {self._path}: {errors[0] if errors else 'it was ended'}")

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._log.close()


class _Run(NamedTuple):
    returncode: int
    data: bytearray  # what was written to `pipe:1`
    log: list[tuple[str, str]]  # level and text
    stopped: bool  # more data would have come

    @property
    def errors(self) -> list[str]:
        """What ffmpeg could not decode. It returns the rest, and says so only here."""
        # A cut transport stream may begin within a packet; elsewhere, a packet that is cut is the end of a truncated file.
        cut = () if self._says(r"Input #0, mpegts") else ("corrupt input packet", "Packet corrupt")
        return [text for level, text in self.log if level in ("error", "fatal") or text.startswith(cut or ("\0",))]

    @property
    def cause(self) -> str:
        """The first error, which is the cause of the others."""
        return self.errors[0] if self.errors else "nothing was decoded"

    @property
    def seconds(self) -> float | None:
        """How long the header says that the file is; `None` where it does not know."""
        found = self._says(r"  Duration: (\d+):(\d\d):(\d\d\.\d+)")
        if found is None or self._says("Estimating duration from bitrate"):
            return None
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])

    @property
    def container(self) -> str:
        """ffmpeg's name of the format."""
        found = self._says(r"Input #0, (.+), from ")
        return found[1] if found else ""

    @property
    def only_sound(self) -> bool:
        """Whether the file has no film."""
        return not self._says(r"  Stream #0:\d+.*: Video: (?!.*\(attached pic\))")

    @property
    def average_rate(self) -> float | None:
        """Frames per second, on average, of the first film; `None` where the header does not say."""
        found = self._says(r"  Stream #0:\d+.*: Video: (?!.*\(attached pic\)).*?, ([\d.]+)(k?) fps,")
        return None if found is None else float(found[1]) * (1000 if found[2] else 1)

    def _says(self, pattern: str) -> re.Match | None:
        for _, text in self.log:
            if text.startswith("Output #0"):  # what follows is of the converted stream
                return None
            if found := re.match(pattern, text):
                return found
        return None


def _at_rate(frame_rate: Fraction | float, filters: str) -> str:
    return ",".join([f"fps=fps={frame_rate}:start_time=0", *([filters] if filters else [])])


def _decode(source: Source, kind: str, arguments: Sequence[str], max_bytes: int, stop: bool = False) -> _Run:
    """The first stream of `kind` ("video" or "audio") of a file, decoded without any error."""
    run = _run([*source.arguments, "-map", _STREAMS[kind], *arguments, "pipe:1"], None, max_bytes, TIMEOUT)
    if run.stopped and (stop or kind == "video"):
        return run
    if run.returncode != 0 or run.errors or not run.data:
        raise _undecodable(source, kind, run)
    return run


def _undecodable(source: Source, kind: str, run: _Run) -> Unreadable:
    """What a failed run means."""
    cause = run.cause.replace(f"file:{source.path}", "").strip(": .")
    if "Format not on whitelist" in cause:
        return Unreadable(
            "is a playlist, a picture or of another format that is not read: give a film or sound as mp4, mov, mkv, webm, avi, "
            "wav, flac, mp3 or the like"
        )
    if any("matches no streams" in text for text in run.errors):
        return Unreadable(f"has no {kind} stream: give a file that holds {kind}")
    if run.returncode == _TIMED_OUT:
        return Unreadable(f"takes ffmpeg more than {TIMEOUT} s for its {kind}: convert or cut it first")
    return Unreadable(
        f"cannot be read as {kind} ({cause}): it is truncated, damaged or of an unknown format; download or export it again"
    )


def _check_whole(source: Source, run: _Run, seconds: float) -> None:
    """Refuses a file that was cut short. One of its streams was decoded to the end, after `seconds`.

    A file whose header says no length, and that was cut between two of its units, cannot be judged.
    """
    with source.path.open("rb") as file:
        end = file.seek(0, 2) if source.size is None else source.start + source.size
        if ends_within_a_unit(file, source.start, end, run.container):
            raise Unreadable("is truncated: it ends within a unit of its format; download or export it again")
    if run.seconds is None or (expected := run.seconds - source.skip) - seconds < _MISSING_SECONDS:
        return
    end = seconds if run.only_sound else _last_packet(source)  # sound and picture may end apart
    if expected - end >= _MISSING_SECONDS:
        raise Unreadable(
            f"is truncated: {end:.2f} of its {expected:.2f} seconds are there; download or export it again"
        )


def _last_packet(source: Source) -> float:
    """Seconds after which the last packet of all streams ends; none is decoded."""
    arguments = ["-map", "0", "-ignore_unknown", "-c", "copy", "-f", "framecrc", "pipe:1"]
    lines = _run([*source.arguments, *arguments], None, 2**28, TIMEOUT).data.decode(errors="replace").splitlines()
    units = {line[4]: Fraction(line[7:]) for line in lines if line.startswith("#tb ")}
    packets = (line.split(",") for line in lines if line[:1].isdigit())
    return max(
        (float((int(pts) + int(length)) * units[stream]) for stream, _, pts, length, *_ in packets), default=0.0
    )


def _measured_rate(source: Source) -> Fraction | None:
    """Frames per second from the times of the first minute's packets, which are not decoded; `None` for fewer than two."""
    run = _decode(source, "video", ["-c", "copy", "-t", "60", "-frames:v", "7200", "-f", "framecrc"], 2**22)
    unit, times = Fraction(1), []
    for line in run.data.decode(errors="replace").splitlines():
        if line.startswith("#tb 0: "):
            unit = Fraction(line.removeprefix("#tb 0: "))
        elif line[:1].isdigit():
            times.append(int(line.split(",")[2]))
    times.sort()
    steps = [later - earlier for earlier, later in zip(times, times[1:], strict=False) if later > earlier]
    if not steps:
        return None
    # A jittering clock: the mean of the steps that are about the usual one.
    middle = statistics.median(steps)
    usual = [step for step in steps if step < 1.5 * middle]
    rate = len(usual) / (sum(usual) * unit)
    nearest = min(_USUAL_RATES, key=lambda known: abs(known - rate))
    return Fraction(nearest) if abs(nearest - rate) < 0.02 * rate else rate.limit_denominator(1001)


_TIMED_OUT = -1000
_LOG_LINE = re.compile(r"(?:\[[^\]]* @ 0x[0-9a-f]+\] )*\[(\w+)\] (.*)")


class _Process:
    """ffmpeg while it writes to `pipe:1`; it is ended with the context.

    Args:
        arguments: Of ffmpeg.
        stdin: What it reads from `pipe:0`.
        timeout: Seconds after which it is ended.
    """

    def __init__(
        self, arguments: Sequence[str], stdin: np.ndarray | None = None, timeout: float = threading.TIMEOUT_MAX
    ) -> None:
        self._arguments, self._stdin, self._timeout = arguments, stdin, timeout

    def __enter__(self) -> _Process:
        source = subprocess.DEVNULL if self._stdin is None else subprocess.PIPE
        command = [*_command(), *self._arguments]
        self._process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._log, self._late = bytearray(), threading.Event()
        self._timer = threading.Timer(self._timeout, self._end)
        self._threads = [threading.Thread(target=self._read_log, daemon=True)]
        if self._stdin is not None:
            self._threads.append(threading.Thread(target=self._feed, daemon=True))
        self._timer.daemon = True
        for thread in (*self._threads, self._timer):
            thread.start()
        return self

    def _read_log(self) -> None:
        for chunk in iter(lambda: self._process.stderr.read1(1 << 16), b""):
            self._log.extend(chunk[: max((1 << 18) - len(self._log), 0)])

    def _feed(self) -> None:
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(memoryview(np.ascontiguousarray(self._stdin)).cast("B"))

    def _end(self) -> None:
        self._late.set()
        self._process.kill()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        return self._process.stdout.read(size)

    def read_some(self, size: int) -> bytes:
        """The next bytes that are there, at most `size`; none at the end."""
        return self._process.stdout.read1(size)

    def finish(self, data: bytearray | None = None, stopped: bool = False) -> _Run:
        """Waits for the end, or brings it about if enough has been read."""
        if stopped:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        returncode = _TIMED_OUT if self._late.is_set() else self._process.returncode
        return _Run(returncode, bytearray() if data is None else data, _lines(self._log), stopped)

    def __exit__(self, *_) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        self._process.stdout.close()
        self._process.stderr.close()


def _run(
    arguments: Sequence[str], stdin: np.ndarray | None, max_bytes: int | None, timeout: float = threading.TIMEOUT_MAX
) -> _Run:
    """Run ffmpeg, with an array for its input; stop it when it has written `max_bytes`, or after `timeout` seconds."""
    data, stopped = bytearray(), False
    with _Process(arguments, stdin, timeout) as process:
        for chunk in iter(lambda: process.read_some(1 << 20), b""):
            data += chunk
            if max_bytes is not None and len(data) >= max_bytes > 0:
                stopped = bool(process.read_some(1))
                break
        return process.finish(data, stopped)


def _command() -> list[str]:
    import imageio_ffmpeg  # not on machines that train on cached features alone

    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-y", "-loglevel", "level+info"]


def _lines(log: bytes | bytearray) -> list[tuple[str, str]]:
    """Level and text of each line of a log."""
    lines = (_LOG_LINE.match(line) for line in log.decode(errors="replace").splitlines())
    return [(line[1], line[2]) for line in lines if line]
