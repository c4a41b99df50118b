"""Given media of a clip, besides its prompt: pictures and sounds of any kind, size and rate are read and checked.

[`read_given`] turns them into one [`Given`]: arrays, and the spans of time to make anew. It refuses what cannot be used.
`conditions.py` puts them on the model's grid.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging

from .. import coordinates
from ..ffmpeg import MAX_BYTES
from ..media import (
    Clip,
    VideoFile,
    fit_sound,
    picture_pixels,
    pictures_of,
    read_audio,
    read_end,
    read_image,
    resample,
    shown_frames,
)
from .components import ClipGeometry, ClipSize
from .pipeline_output import BatonPipelineOutput


logger = logging.get_logger(__name__)

# What a call takes; each also as a list with one for each prompt.
GivenPicture = str | Path | PIL.Image.Image | np.ndarray | torch.Tensor | list
GivenFrames = str | Path | VideoFile | np.ndarray | torch.Tensor | list
GivenSound = str | Path | np.ndarray | torch.Tensor | list
GivenClips = str | Path | Clip | BatonPipelineOutput | tuple[GivenFrames, GivenSound] | list
Mask = np.ndarray | torch.Tensor | Sequence[int] | Sequence[tuple[float, float]]

Spans = tuple[tuple[float, float], ...]

KEPT_SECONDS = 1.0
MODALITIES = ("video", "audio")
# Rates of recordings. At other rates a clip would have no length, or fill the memory when it is converted.
FRAME_RATES = (1, 1000)
SAMPLING_RATES = (1000, 768_000)


class GivenMedia(TypedDict, total=False):
    """The arguments of `BatonPipeline.__call__` for given media.

    Each medium is given once for all prompts or once for each (as a list, or a batch of arrays). The clips of one call agree in
    size, length and rates.

    Args:
        image (*optional*): the first frame: a file, a PIL image, an array `(height, width, 3)`, or a tensor `(3, height, width)`;
            uint8, or floating point in [0, 1].
        video (*optional*): the picture: a file, a list of PIL images, of arrays `(height, width, 3)` or of tensors `(3, height,
            width)`, an array `(num_frames, height, width, 3)`, or a tensor `(num_frames, 3, height, width)`; uint8, or floating
            point in [0, 1].
        audio (*optional*): the sound: a file, or an array or tensor `(num_samples,)` or `(num_channels, num_samples)` of one or two
            channels in [-1, 1]. Beside a `video`, up to half a second more or less is cut or padded with silence.
        reference_audio (*optional*): a sound whose style (voice, timbre, room) the clip takes, in the same forms as `audio` and
            of any length (Harmony's global path, arXiv:2511.21579). A checkpoint must have been trained with it.
        continue_from (*optional*): the clip to continue; the prompt describes what comes then. A file, a
            [`BatonPipelineOutput`], a [`~media.Clip`], or a pair of `video` and `audio`.
        continue_seconds (`float`, *optional*): how much of its end is the start of the new clip, to the nearest whole latent frame;
            by default 1 second. More is steadier, but leaves less time for new events.
        video_mask (*optional*): which part of `video` to generate: 1 for frames to generate and 0 for frames to keep, or spans
            `(start, end)` in seconds to generate. A latent frame is kept only if all of its frames are.
        audio_mask (*optional*): the same for `audio`, with a value for each sample.
        video_frame_rate (`float`, *optional*): frames per second of arrays, tensors and images in `video` and `continue_from`; by
            default the pipeline's. Files say their own.
        audio_sampling_rate (`int`, *optional*): samples per second of arrays and tensors in `audio`, `reference_audio` and
            `continue_from`; by default the pipeline's. Files say their own.
        only (`str`, *optional*): "video" or "audio" makes clips of that modality alone. The other is not computed, and is
            `None` in the output. The generated stream reads context tokens in its place (CCL's routing, arXiv:2603.18600): a
            checkpoint must have been trained so. Guidance by the other modality has no effect.
    """

    image: GivenPicture | None
    video: GivenFrames | None
    audio: GivenSound | None
    reference_audio: GivenSound | None
    continue_from: GivenClips | None
    continue_seconds: float | None
    video_mask: Mask | None
    audio_mask: Mask | None
    video_frame_rate: float | None
    audio_sampling_rate: int | None
    only: str | None


@dataclass(frozen=True)
class GivenVideo:
    """Given pictures.

    Args:
        frames (`np.ndarray` of shape `(num_clips, num_frames, height, width, 3)`): uint8, or floating point in [0, 1]; or a list of
            clips of one shape, of which some are a [`~media.VideoFile`].
        frame_rate (`float`): frames per second.
        new (`tuple`): spans `(start, end)` in seconds to generate; the last may end at infinity.
    """

    frames: np.ndarray | list[np.ndarray | VideoFile]
    frame_rate: float
    new: Spans = ()

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return len(self.frames[0])

    @property
    def duration(self) -> float:
        """Seconds that the frames last."""
        return coordinates.clip_duration(self.num_frames, self.frame_rate)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames[0].shape[1:3]

    def check_output(self, output_type: str) -> None:
        """Refuses a file whose frames are too large for an array.

        Raises:
            ValueError: naming their size.
        """
        size = math.prod(self.frames[0].shape)
        if output_type in ("np", "pt") and isinstance(self.frames, list) and size > MAX_BYTES:
            raise ValueError(
                f"`output_type` is {output_type!r}, which holds all frames of `video` in memory, and they take {size / 2**30:.1f} GiB as "
                f"uint8: at most {MAX_BYTES / 2**30:g} are read; choose 'pil', which reads them from the file, or scale the video down."
            )

    def output(self, num_clips: int, output_type: str) -> list[Sequence[PIL.Image.Image]] | np.ndarray | torch.Tensor:
        """The frames as a [`BatonPipelineOutput`] holds them, see `check_output`. Each clip is repeated in a row to make `num_clips`;
        tensors are on the CPU."""
        self.check_output(output_type)
        clips = [clip for clip in self.frames for _ in range(num_clips // len(self.frames))]
        if output_type == "pil":
            return [clip if isinstance(clip, VideoFile) else _images(clip) for clip in clips]
        frames = np.empty((len(clips), *self.frames[0].shape), np.float32)
        for row, clip in zip(frames, clips, strict=True):
            for number, picture in enumerate(pictures_of(clip, range(len(clip)))):
                row[number] = picture
            if isinstance(clip, VideoFile) or clip.dtype == np.uint8:
                row /= 255
        return frames if output_type == "np" else torch.from_numpy(frames).movedim(-1, 2)

    def __str__(self) -> str:
        return f"{self.duration:.4f} seconds ({self.num_frames} frames at {self.frame_rate:g} per second)"


@dataclass(frozen=True)
class GivenAudio:
    """Given sounds.

    Args:
        waveform (`np.ndarray` of shape `(num_clips, num_channels, num_samples)`): float32 in [-1, 1].
        sampling_rate (`int`): samples per second.
        new (`tuple`): spans `(start, end)` in seconds to generate; the last may end at infinity.
    """

    waveform: np.ndarray
    sampling_rate: int
    new: Spans = ()

    @property
    def duration(self) -> float:
        """Seconds that the samples last."""
        return self.waveform.shape[2] / self.sampling_rate

    def output(self, num_clips: int, output_type: str) -> np.ndarray | torch.Tensor:
        """The samples as a [`BatonPipelineOutput`] holds them, each clip repeated in a row to make `num_clips`; a tensor lies on
        the CPU."""
        waveform = np.repeat(self.waveform, num_clips // len(self.waveform), axis=0)
        return torch.from_numpy(waveform) if output_type == "pt" else waveform

    def __str__(self) -> str:
        return f"{self.duration:.4f} seconds ({self.waveform.shape[2]} samples at {self.sampling_rate} per second)"


@dataclass(frozen=True)
class Given:
    """What is given of the clips of one call, both modalities on one time axis from the clip's start.

    Args:
        video ([`GivenVideo`], *optional*): pictures.
        audio ([`GivenAudio`], *optional*): sounds.
        duration (`float`, *optional*): seconds that the clips last, if the media decide that.
        reference_audio ([`GivenAudio`], *optional*): sounds whose style the clips are to have, with a time axis of their own.
        only (`str`, *optional*): "video" or "audio" for clips of that modality alone.
        goes_on (`bool`, defaults to `False`): whether they are the end of another clip, and the prompt tells what comes then.
    """

    video: GivenVideo | None = None
    audio: GivenAudio | None = None
    duration: float | None = None
    reference_audio: GivenAudio | None = None
    only: str | None = None
    goes_on: bool = False

    @property
    def keeps_video(self) -> bool:
        """Whether the whole picture is given, so that only sound is made."""
        return self.video is not None and not self.video.new

    @property
    def keeps_audio(self) -> bool:
        """Whether the whole sound is given, so that only picture is made."""
        return self.audio is not None and not self.audio.new

    @property
    def num_clips(self) -> dict[str, int]:
        """How many clips of each kind are given."""
        sounds = {"audio": self.audio, "reference audio": self.reference_audio}
        video = {} if self.video is None else {"video": len(self.video.frames)}
        return video | {name: len(sound.waveform) for name, sound in sounds.items() if sound is not None}

    def known_masks(self, pipe: ClipGeometry, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which latents are known: bool, `(num_latent_frames,)` and `(audio_length,)`. A latent is known if all its frames or samples are."""
        latents = pipe.latent_format
        duration, rate = pipe.clip_duration(num_frames), latents["audio_latent_rate"]
        return (
            known_latent_frames(self.video, num_frames, pipe.frame_rate, latents["temporal_stride"]),
            known_audio_latents(self.audio, duration, rate, latents["audio_latent_min_coverage"]),
        )

    def settled_masks(self, pipe: ClipGeometry, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which latents are not generated: the known ones, and with `only` all of the other modality."""
        mask, audio_mask = self.known_masks(pipe, num_frames)
        return mask | (self.only == "audio"), audio_mask | (self.only == "video")

    def fixes_timing(self, pipe: ClipGeometry, num_frames: int) -> bool:
        """Whether the media fix the times of events: a sound does, and a picture that goes beyond its first frame."""
        mask, audio_mask = self.known_masks(pipe, num_frames)
        return bool(mask[1:].any() or audio_mask.any())

    def default_size(
        self, pipe: ClipGeometry, height: int | None, width: int | None, num_frames: int | None
    ) -> ClipSize:
        """The size of the clips: as given in the call, else as the media have it, else the pipeline's default."""
        default = pipe.config.height, pipe.config.width
        if self.video is not None:
            default = fit_size(self.video.size, math.prod(default), pipe.size_multiples)
        if num_frames is None:
            num_frames = pipe.config.num_frames if self.duration is None else self._num_frames(pipe)
        return ClipSize(default[0] if height is None else height, default[1] if width is None else width, num_frames)

    def _num_frames(self, pipe: ClipGeometry) -> int:
        return coordinates.num_frames_covering(self.duration, pipe.frame_rate, pipe.latent_format["temporal_stride"])

    def check(self, pipe: ClipGeometry, batch_size: int, num_frames: int) -> None:
        """Refuses media that do not fit the number of prompts or the length of the clips, or that leave nothing to generate.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        for name, number in self.num_clips.items():
            if number not in (1, batch_size):
                raise ValueError(
                    f"{number} clips of {name} are given for {batch_size} prompts: give one for each, or one for all."
                )
        if self.duration is not None and num_frames != self._num_frames(pipe):
            decides = self.video is not None and self.video.duration == self.duration  # and is no first frame alone
            name, whole = ("video", self.video) if decides else ("audio", self.audio)
            raise ValueError(
                f"`{name}` lasts {whole}, but `num_frames` {num_frames} at {pipe.frame_rate:g} per second last "
                f"{pipe.clip_duration(num_frames):.4f}: leave `num_frames` out, or cut one to the other."
            )
        mask, audio_mask = self.settled_masks(pipe, num_frames)
        if self.num_clips and mask.all() and audio_mask.all():
            raise ValueError(
                f"what is given fills all {num_frames} frames of the clip, which leaves nothing to make: give more `num_frames`, "
                "or keep less."
            )
        stride, audio_rate = pipe.latent_format["temporal_stride"], pipe.latent_format["audio_latent_rate"]
        if self.video is not None and not mask.any():
            raise ValueError(
                f"`video_mask` keeps no latent frame: these are frame 0 alone and then each {stride} frames in a row, from frame 1 "
                "on. Keep more, or leave `video` out."
            )
        if self.audio is not None and not audio_mask.any():
            raise ValueError(
                f"`audio_mask` keeps no audio latent: one covers {1 / audio_rate:.4f} seconds. Keep more, or leave `audio` out."
            )


# Reading


def check_names(media: GivenMedia, call: Callable) -> None:
    """Refuses arguments that a `call` of a pipeline does not have.

    Raises:
        TypeError: naming the first, and the one that may be meant.
    """
    for name, value in media.items():
        if name in GivenMedia.__annotations__:
            continue
        if "guidance_scale" in name:
            raise TypeError(
                f"`{name}` is a setting of the guiders: set `pipe.guider = pipe.guider.new(guidance_scale={value!r})`, and "
                "`pipe.audio_guider` likewise."
            )
        near = difflib.get_close_matches(name, [*inspect.signature(call).parameters, *GivenMedia.__annotations__], n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"`help(pipe.{call.__name__})` lists them."
        raise TypeError(f"the call has no argument `{name}`: {hint}")


def read_given(
    frame_rate: float,
    sampling_rate: int,
    temporal_stride: int,
    image: GivenPicture | None = None,
    video: GivenFrames | None = None,
    audio: GivenSound | None = None,
    reference_audio: GivenSound | None = None,
    continue_from: GivenClips | None = None,
    continue_seconds: float | None = None,
    video_mask: Mask | None = None,
    audio_mask: Mask | None = None,
    video_frame_rate: float | None = None,
    audio_sampling_rate: int | None = None,
    only: str | None = None,
    max_seconds: float | None = None,
) -> Given:
    r"""
    Reads what is given of the clips, as `BatonPipeline.__call__` describes it.

    Args:
        frame_rate (`float`): the pipeline's frames per second.
        sampling_rate (`int`): the pipeline's samples per second.
        temporal_stride (`int`): pixel frames for each video latent frame.
        image, video, audio, reference_audio, continue_from, continue_seconds, video_mask, audio_mask, video_frame_rate,
            audio_sampling_rate, only: the arguments of the call.
        max_seconds (`float`, *optional*): the longest `video` or `audio`; a longer file is refused before it is decoded.

    Raises:
        ValueError: if one of them cannot be read or used, or two of them contradict each other.
    """
    if only is not None and only not in MODALITIES:
        raise ValueError(f"`only` is {only!r}, but must be one of {MODALITIES}, or None for both.")
    given = {"image": image, "video": video, "audio": audio, "continue_from": continue_from}
    foreign = {
        "video": {"audio": audio, "reference_audio": reference_audio},
        "audio": {"image": image, "video": video},
    }
    for name, value in foreign.get(only, {}).items():
        if value is not None:
            raise ValueError(
                f"`{name}` was given with `only={only!r}`, but a clip of {only} alone does not read it: leave one of them out."
            )
    for name, other in (
        ("image", "video"),
        ("image", "continue_from"),
        ("video", "continue_from"),
        ("audio", "continue_from"),
    ):
        if given[name] is not None and given[other] is not None:
            raise ValueError(f"`{name}` and `{other}` both set the start of the clip: leave one of them out.")
    for name, value, needed, other in (
        ("video_mask", video_mask, "video", video),
        ("audio_mask", audio_mask, "audio", audio),
        ("continue_seconds", continue_seconds, "continue_from", continue_from),
    ):
        if value is not None and other is None:
            raise ValueError(f"`{name}` was given without `{needed}`: give both or neither.")
    pairs = _pairs(continue_from)
    for name, rate, parts, others in (
        ("video_frame_rate", video_frame_rate, [video, *(pair[0] for pair in pairs)], "`video` and `continue_from`"),
        (
            "audio_sampling_rate",
            audio_sampling_rate,
            [audio, reference_audio, *(pair[1] for pair in pairs)],
            "`audio`, `reference_audio` and `continue_from`",
        ),
    ):
        if rate is not None and not any(_lacks_rate(part) for part in parts):
            raise ValueError(
                f"`{name}` is {rate}, but it is for arrays, tensors and images in {others}, and none was given: leave it out. "
                "Files and clips say their own."
            )
    video_frame_rate = frame_rate if video_frame_rate is None else video_frame_rate
    audio_sampling_rate = sampling_rate if audio_sampling_rate is None else audio_sampling_rate
    for name, rate, (least, most) in (
        ("video_frame_rate", video_frame_rate, FRAME_RATES),
        ("audio_sampling_rate", audio_sampling_rate, SAMPLING_RATES),
    ):
        if isinstance(rate, bool) or not isinstance(rate, Real) or not least <= rate <= most:
            raise ValueError(f"`{name}` is {rate!r}, but must be a number from {least} to {most}.")
    if audio_sampling_rate != int(audio_sampling_rate):
        raise ValueError(f"`audio_sampling_rate` is {audio_sampling_rate}, but must be a whole number.")

    reference = None
    if reference_audio is not None:
        reference = _read_sound("reference_audio", reference_audio, audio_sampling_rate, sampling_rate)
    if continue_from is not None:
        seconds = KEPT_SECONDS if continue_seconds is None else continue_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < seconds < math.inf:
            raise ValueError(f"`continue_seconds` is {seconds!r}, but must be a positive number of seconds.")
        clips = read_clips(continue_from, video_frame_rate, audio_sampling_rate, only, seconds=seconds)
        continuation = _continuation(clips, seconds, frame_rate, sampling_rate, temporal_stride)
        return replace(continuation, reference_audio=reference, only=only)

    given_video = given_audio = duration = None
    if image is not None:
        frames = _stack("image", _read_images(image))[:, None]
        given_video = GivenVideo(frames, frame_rate, ((coordinates.clip_duration(1, frame_rate), math.inf),))
    if audio is not None:
        given_audio = _read_sound("audio", audio, audio_sampling_rate, sampling_rate, audio_mask, max_seconds)
        duration = given_audio.duration
    if video is not None:
        given_video = _read_film(video, video_frame_rate, frame_rate, video_mask, max_seconds)
        duration = given_video.duration
        if given_audio is not None:
            waveform = fit_waveforms(given_audio.waveform, given_audio.sampling_rate, duration, given_video.frame_rate)
            given_audio = replace(given_audio, waveform=waveform)
    given = Given(given_video, given_audio, duration, reference, only)
    if given.keeps_video and given.keeps_audio:
        raise ValueError(
            "`video` and `audio` are both given whole, which leaves nothing to make: leave one of them out, or say with "
            "`video_mask` or `audio_mask` which part to generate."
        )
    if only is not None and (given.keeps_video or given.keeps_audio):
        raise ValueError(
            f"`{only}` is given whole and `only={only!r}`, which leaves nothing to make: leave out `only` for the other modality, "
            f"or say with `{only}_mask` which part to generate."
        )
    return given


def _images(frames: np.ndarray) -> list[PIL.Image.Image]:
    """The frames of a clip as images."""
    pictures = (frame if frame.dtype == np.uint8 else _eight_bits(frame) for frame in frames)
    return [PIL.Image.fromarray(picture) for picture in pictures]


def _eight_bits(frames: np.ndarray) -> np.ndarray:
    return (frames.astype(np.float32) * 255).round().astype(np.uint8)


def _read_film(
    video: GivenFrames, video_frame_rate: float, frame_rate: float, mask: Mask | None, max_seconds: float | None
) -> GivenVideo:
    clips = _read_videos(video, video_frame_rate, max_seconds)
    films, rate = [clip for clip, _ in clips], _same_rate("video", [rate for _, rate in clips])
    _warn_of_conversion("video", rate, frame_rate, "frames per second")
    if any(isinstance(clip, VideoFile) for clip in films):
        _check_alike("video", films)
    else:
        films = _stack("video", films)
    return GivenVideo(films, rate, _read_mask("video_mask", mask, len(films[0]), rate))


def _read_sound(
    name: str,
    audio: GivenSound,
    audio_sampling_rate: int,
    sampling_rate: int,
    mask: Mask | None = None,
    max_seconds: float | None = None,
) -> GivenAudio:
    clips = _read_audios(audio, audio_sampling_rate, name, max_seconds)
    waveform, rate = _stack(name, [clip for clip, _ in clips]), _same_rate(name, [rate for _, rate in clips])
    _warn_of_conversion(name, rate, sampling_rate, "samples per second")
    return GivenAudio(waveform, rate, _read_mask(f"{name}_mask", mask, waveform.shape[2], rate))


def _continuation(
    clips: list[Clip], seconds: float, frame_rate: float, sampling_rate: int, temporal_stride: int
) -> Given:
    """The end of each clip as the start of a new one, both modalities cut at the same instant."""
    num_frames = coordinates.num_frames_nearest(seconds, frame_rate, temporal_stride)
    duration = coordinates.clip_duration(num_frames, frame_rate)
    num_samples = coordinates.num_samples(duration, sampling_rate)
    new = ((duration, math.inf),)
    frames, waveforms = [], []
    for clip in clips:
        if clip.frames is not None and clip.waveform is not None:
            rates = clip.sampling_rate, clip.duration, 1 / clip.frame_rate
            clip = clip._replace(waveform=fit_sound(clip.waveform, *rates, "`continue_from`"))
        if clip.waveform is not None:
            waveform = at_sampling_rate(clip.waveform.mean(axis=0, keepdims=True), clip.sampling_rate, sampling_rate)
            end = waveform.shape[1]
        if clip.frames is not None:
            shown = _shown(clip, frame_rate)
            frames.append(_pictures(clip, shown[-num_frames:], frame_rate))
            end = coordinates.num_samples(coordinates.clip_duration(len(shown), frame_rate), sampling_rate)
        if end < num_samples:
            raise ValueError(
                f"`continue_from` lasts {end / sampling_rate:.4f} seconds, but {duration:.4f} of it are to stay: give a longer "
                "clip or a smaller `continue_seconds`."
            )
        if clip.waveform is not None:
            waveform = np.pad(waveform, ((0, 0), (0, max(end - waveform.shape[1], 0))))
            waveforms.append(waveform[:, end - num_samples : end])
    video = audio = None
    if frames:
        _warn_of_conversion("continue_from", clips[0].frame_rate, frame_rate, "frames per second")
        video = GivenVideo(_stack("continue_from", frames), frame_rate, new)
    if waveforms:
        _warn_of_conversion("continue_from", clips[0].sampling_rate, sampling_rate, "samples per second")
        audio = GivenAudio(_stack("continue_from", waveforms), sampling_rate, new)
    return Given(video, audio, goes_on=True)


def _shown(clip: Clip, frame_rate: float) -> np.ndarray:
    """The numbers of the frames that a clip shows at another rate."""
    if clip.frame_rate == frame_rate:
        return np.arange(len(clip.frames))
    return shown_frames(len(clip.frames), clip.frame_rate, frame_rate)


def _pictures(clip: Clip, numbers: np.ndarray, frame_rate: float) -> np.ndarray:
    """Frames of a clip by their numbers; converted ones are uint8."""
    frames = np.stack(list(pictures_of(clip.frames, numbers)))
    return frames if clip.frame_rate == frame_rate or frames.dtype == np.uint8 else _eight_bits(frames)


def _pairs(clips: Any) -> list[tuple]:
    """The pairs (frames, audio) among the clips to continue; other kinds of clips say their own rates."""
    if isinstance(clips, list):
        return [pair for clip in clips for pair in _pairs(clip)]
    return [clips] if isinstance(clips, tuple) and not isinstance(clips, Clip) and len(clips) == 2 else []


def _lacks_rate(part: Any) -> bool:
    """Whether any part of it needs a rate from the call."""
    if isinstance(part, (list, tuple)):
        return any(_lacks_rate(one) for one in part)
    return isinstance(part, (np.ndarray, torch.Tensor, PIL.Image.Image))


def _read_images(image: Any) -> list[np.ndarray]:
    if isinstance(image, (str, Path)):
        return [read_image(image)]
    if isinstance(image, PIL.Image.Image):
        return [picture_pixels(image, "`image`")]
    if isinstance(image, (list, tuple)) and image:
        return [picture for one in image for picture in _read_images(one)]
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim in (3, 4):
        pictures = channels_last("image", image)
        return list(pictures if pictures.ndim == 4 else pictures[None])
    raise _unreadable(
        "image",
        image,
        "a file, a PIL image, an array (height, width, 3), a tensor (3, height, width), or one for each prompt",
    )


def _read_videos(
    video: Any, frame_rate: float, max_seconds: float | None = None
) -> list[tuple[np.ndarray | VideoFile, float]]:
    if isinstance(video, (str, Path)):
        film = VideoFile(video, max_seconds)
        return [(film, film.frame_rate)]
    if isinstance(video, VideoFile):
        return [(video, video.frame_rate)]
    if isinstance(video, (list, tuple)) and video:
        if all(_is_picture(frame) for frame in video):
            return [(_stack("video", _read_images(video)), frame_rate)]
        return [clip for one in video for clip in _read_videos(one, frame_rate, max_seconds)]
    if isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim in (4, 5):
        clips = channels_last("video", video)
        return [(clip, frame_rate) for clip in (clips if clips.ndim == 5 else clips[None])]
    raise _unreadable(
        "video",
        video,
        "a file, a list of PIL images, arrays (height, width, 3) or tensors (3, height, width), an array (num_frames, height, "
        "width, 3), a tensor (num_frames, 3, height, width), or one for each prompt",
    )


def _is_picture(frame: Any) -> bool:
    return isinstance(frame, PIL.Image.Image) or (isinstance(frame, (np.ndarray, torch.Tensor)) and frame.ndim == 3)


def _read_audios(
    audio: Any, sampling_rate: int, name: str = "audio", max_seconds: float | None = None
) -> list[tuple[np.ndarray, int]]:
    if isinstance(audio, (str, Path)):
        waveform, sampling_rate = read_audio(audio, max_seconds=max_seconds)
        return [(_check_waveform(name, _within_scale(waveform)), sampling_rate)]
    if isinstance(audio, (list, tuple)) and audio:
        return [clip for one in audio for clip in _read_audios(one, sampling_rate, name, max_seconds)]
    if isinstance(audio, (np.ndarray, torch.Tensor)) and audio.ndim in (1, 2, 3):
        is_tensor = isinstance(audio, torch.Tensor)
        if not (audio.is_floating_point() if is_tensor else np.issubdtype(audio.dtype, np.floating)):
            raise ValueError(f"`{name}` is {audio.dtype}, not float: divide integer samples by their full scale.")
        waveforms = audio.float().cpu().numpy() if is_tensor else audio
        waveforms = waveforms.reshape((1,) * (3 - waveforms.ndim) + waveforms.shape).astype(np.float32)
        return [(_check_waveform(name, waveform), sampling_rate) for waveform in waveforms]
    raise _unreadable(
        name,
        audio,
        "a file, an array or tensor (num_samples,) or (num_channels, num_samples), or one for each prompt",
    )


def read_clips(
    clip: Any,
    frame_rate: float,
    sampling_rate: int,
    only: str | None = None,
    name: str = "continue_from",
    seconds: float = math.inf,
) -> list[Clip]:
    """Clips with the modalities that are needed; the other one is `None`. Of a long file, only the last `seconds` and a little more are
    read."""
    if isinstance(clip, list) and clip:
        return [part for one in clip for part in read_clips(one, frame_rate, sampling_rate, only, name, seconds)]
    if isinstance(clip, (str, Path)):
        end = read_end(clip, seconds, only)
        if end.waveform is None:
            return [end]
        return [end._replace(waveform=_check_waveform(name, _within_scale(end.waveform)))]
    if isinstance(clip, Clip):
        pictures, sounds = clip.frames, clip.waveform
        frame_rate, sampling_rate = clip.frame_rate, clip.sampling_rate
    elif isinstance(clip, BatonPipelineOutput):
        parts = [clip.parts(i) for i in range(clip.num_clips)]
        pictures = None if clip.frames is None else [frames for frames, _ in parts]
        sounds = None if clip.audio is None else [waveform for _, waveform in parts]
        frame_rate, sampling_rate = clip.frame_rate, clip.sampling_rate
    elif isinstance(clip, tuple) and len(clip) == 2:
        pictures, sounds = clip
    else:
        raise _unreadable(
            name,
            clip,
            "a file, a `BatonPipelineOutput`, a `media.Clip`, a pair (frames, audio), or a list with one for each prompt",
        )
    for modality, part in (("video", pictures), ("audio", sounds)):
        if part is None and only in (None, modality):
            other = "audio" if modality == "video" else "video"
            way_out = f", or call with `only={other!r}`" if name == "continue_from" else ""
            raise ValueError(f"`{name}` has no {modality}: give a clip that has it{way_out}.")
    if only == "video":
        return [Clip(frames, None, rate, sampling_rate) for frames, rate in _read_videos(pictures, frame_rate)]
    sounds = _read_audios(sounds, sampling_rate, name)
    if only == "audio":
        return [Clip(None, waveform, frame_rate, rate) for waveform, rate in sounds]
    pictures = _read_videos(pictures, frame_rate)
    if len(pictures) != len(sounds):
        raise ValueError(f"`{name}` holds {len(pictures)} pictures and {len(sounds)} sounds: give pairs.")
    return [
        Clip(frames, waveform, frame_rate, sampling_rate)
        for (frames, frame_rate), (waveform, sampling_rate) in zip(pictures, sounds, strict=True)
    ]


def _unreadable(name: str, value: Any, accepted: str) -> ValueError:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, (np.ndarray, torch.Tensor)) else ""
    return ValueError(f"`{name}` is a {type(value).__name__}{shape}, but must be {accepted}.")


def channels_last(name: str, pictures: np.ndarray | torch.Tensor) -> np.ndarray:
    """Arrays as they are, tensors with their channels moved from before height and width to the end; uint8 or floating point."""
    if isinstance(pictures, torch.Tensor) and pictures.is_complex():
        raise ValueError(f"`{name}` is {pictures.dtype}, but must be uint8, or floating point in [0, 1].")
    if isinstance(pictures, torch.Tensor):
        pictures = (pictures if pictures.dtype == torch.uint8 else pictures.float()).movedim(-3, -1).cpu().numpy()
    if pictures.shape[-1] != 3 or not pictures.size:
        raise ValueError(
            f"`{name}` has shape {pictures.shape} with channels last, but must have 3 channels: arrays hold them last, tensors "
            "before height and width."
        )
    if pictures.dtype == np.uint8:
        return pictures
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"`{name}` is {pictures.dtype}, but must be uint8, or floating point in [0, 1].")
    if not (pictures.min() >= 0 and pictures.max() <= 1):
        raise ValueError(
            f"`{name}` has values from {pictures.min():.4g} to {pictures.max():.4g}, but floating point ones must lie in [0, 1]."
        )
    return pictures


def _within_scale(waveform: np.ndarray) -> np.ndarray:
    """What lossy codecs overshoot is cut off, as a player does."""
    return waveform.clip(-1, 1)


def _check_waveform(name: str, waveform: np.ndarray) -> np.ndarray:
    if len(waveform) not in (1, 2) or not waveform.size:
        raise ValueError(
            f"`{name}` has {waveform.shape[0]} channels of {waveform.shape[1]} samples, but must have one or two channels, and "
            "samples: mix more channels down."
        )
    peak = np.abs(waveform).max()
    if not peak <= 1:
        raise ValueError(f"`{name}` peaks at {peak:.4g}, but must be finite and in [-1, 1]: scale it.")
    return waveform


def _stack(name: str, clips: list[np.ndarray]) -> np.ndarray:
    """Clips of one shape as a batch."""
    _check_alike(name, clips)
    return clips[0][None] if len(clips) == 1 else np.stack(clips)  # a film can be of gigabytes


def _check_alike(name: str, clips: Sequence[np.ndarray | VideoFile]) -> None:
    for number, clip in enumerate(clips):
        if clip.shape != clips[0].shape:
            raise ValueError(
                f"`{name}` {number} has shape {clip.shape}, but the first one {clips[0].shape}: the clips of one call must "
                "agree in size and length."
            )


def _same_rate(name: str, rates: list[float]) -> float:
    if len(set(rates)) > 1:
        raise ValueError(
            f"`{name}` has clips of {sorted(set(rates))} per second: the clips of one call must have one rate."
        )
    return rates[0]


def _read_mask(name: str, mask: Any, num_units: int, rate: float) -> Spans:
    """The spans to generate, from a mask with a value for each frame or sample, or from spans in seconds."""
    if mask is None:
        return ()
    try:
        values = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
    except ValueError as error:
        raise ValueError(f"`{name}` has entries of different lengths: give spans (start, end) in seconds.") from error
    duration = num_units / rate
    if values.ndim == 2 and values.shape[1] == 2:
        spans = sorted((float(start), float(end)) for start, end in values)
        for start, end in spans:
            if not 0 <= start < end <= duration + 0.5 / rate:
                raise ValueError(
                    f"`{name}` has the span ({start:g}, {end:g}), but spans (start, end) must lie within the {duration:.4f} "
                    "seconds given."
                )
    elif values.shape == (num_units,) and np.isin(values, (0, 1)).all():
        spans = coordinates.spans_of_units(torch.from_numpy(values.astype(bool)), rate)
    else:
        raise ValueError(
            f"`{name}` has shape {values.shape}, but must hold {num_units} values, 1 where the clip is generated and 0 where it "
            "is kept, or spans (start, end) in seconds to generate."
        )
    if coordinates.units_in_spans(spans, rate, num_units).all():
        raise ValueError(
            f"`{name}` keeps nothing of the given medium: keep more, or leave out both `{name}` and the medium."
        )
    # What is new up to the end stays new where the model's clip is a few frames longer than what is given.
    return tuple((start, math.inf if end > duration - 0.5 / rate else end) for start, end in spans)


# Masks, sizes and rates


def known_latent_frames(
    video: GivenVideo | None, num_frames: int, frame_rate: float, temporal_stride: int
) -> torch.Tensor:
    """Which video latent frames of a clip are known, bool, `(num_latent_frames,)`. A latent frame is known if all its pixel frames are."""
    new = ((0.0, math.inf),) if video is None else video.new
    return ~coordinates.latent_frames_of(coordinates.units_in_spans(new, frame_rate, num_frames), temporal_stride)


def known_audio_latents(
    audio: GivenAudio | None, duration: float, audio_latent_rate: float, min_coverage: float = 0.0
) -> torch.Tensor:
    """Which audio latents of a clip are known, bool, `(num_latents,)`, see `coordinates.num_audio_latents`. A latent is known if all its
    samples within the clip are."""
    new = ((0.0, math.inf),) if audio is None else audio.new
    within = [(start, end) for start, end in new if start < duration]
    num_latents = coordinates.num_audio_latents(duration, audio_latent_rate, min_coverage)
    return ~coordinates.units_in_spans(within, audio_latent_rate, num_latents)


def fit_waveforms(waveforms: np.ndarray, sampling_rate: int, duration: float, frame_rate: float) -> np.ndarray:
    """Sounds `(num_clips, num_channels, num_samples)` cut or padded with silence to the length of their picture."""
    return np.stack([fit_sound(sound, sampling_rate, duration, 1 / frame_rate, "`audio`") for sound in waveforms])


def fit_size(size: tuple[int, int], area: int, multiples: tuple[int, int]) -> tuple[int, int]:
    """Height and width of about `area` pixels in the shape of `size`, each a multiple of what the model takes."""
    scale = math.sqrt(area / math.prod(size))
    return tuple(max(round(side * scale / m), 1) * m for side, m in zip(size, multiples, strict=True))


def at_sampling_rate(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples at a new rate; unchanged if it is their own."""
    return waveform if rate == new_rate else resample(waveform, rate, new_rate)


def _warn_of_conversion(name: str, rate: float, new_rate: float, unit: str) -> None:
    if rate != new_rate:
        logger.warning(f"`{name}` of {rate:g} {unit} is converted to the {new_rate:g} that the model takes.")
