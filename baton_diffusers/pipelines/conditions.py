"""Conditions on the model's grid: given media become clean latents, and stay fixed while the rest is denoised.

Every direction of generation is one mechanism: known latents are clean and lie at timestep 0. [`KnownLatents`] holds them through
the denoising loop. The functions take a pipeline, or another object with its components, see [`~components.PipelineParts`].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from .. import coordinates
from ..guiders import GuidancePass
from ..media import pictures_of, shown_frames
from ..models.latents import decode_spectrograms, denormalise_latents, encode_waveforms, normalise_latents
from .checks import check_finite, check_generator, check_tensor
from .components import ClipSize, PipelineParts
from .given import Given, GivenAudio, GivenVideo, Spans, at_sampling_rate


logger = logging.get_logger(__name__)

_FRAMES_AT_ONCE = 8
_ROWS_AT_ONCE = 256
_DAMAGED = (
    "usually the weights of {} are damaged, or overflow in float16; load the checkpoint again, in bfloat16 or float32"
)


@dataclass(frozen=True)
class KnownLatents:
    """The known part of one modality of the clips, as latents on the model's grid.

    Args:
        latents (`torch.Tensor`): clean latents, float32, in the shape of the loop's latents; zero where nothing is known.
        mask (`torch.Tensor`): bool, `True` where a latent frame or audio latent is known; broadcasts over `latents`.
        any (`bool`): whether anything is known.
        all (`bool`): whether everything is known, which leaves nothing to denoise.
    """

    latents: torch.Tensor
    mask: torch.Tensor
    any: bool
    all: bool

    @classmethod
    def place(cls, latents: torch.Tensor, mask: torch.Tensor, dim: int) -> KnownLatents:
        """
        Known latents on the device of `latents`.

        Args:
            latents (`torch.Tensor`): clean latents, with any values where nothing is known.
            mask (`torch.Tensor` of shape `(latents.shape[dim],)`): bool, on the CPU, `True` where a latent is known.
            dim (`int`): the time axis of `latents`.
        """
        shape = [-1 if axis == dim else 1 for axis in range(latents.ndim)]
        placed = mask.view(shape).to(latents.device)
        return cls(latents * placed, placed, bool(mask.any()), bool(mask.all()))

    @classmethod
    def nothing(
        cls, pipe: PipelineParts, given: Given, size: ClipSize, device: torch.device
    ) -> tuple[KnownLatents, KnownLatents]:
        """Both modalities of clips with nothing known; with `only`, all of the other modality counts as known."""
        shapes, masks = pipe.latent_shapes(1, size), given.settled_masks(pipe, size.num_frames)
        return tuple(
            cls.place(torch.zeros(shape, device=device), mask, dim)
            for shape, mask, dim in zip(shapes, masks, (2, 1), strict=True)
        )

    def for_clips(self, num_clips: int) -> KnownLatents:
        """The known latents, each clip repeated in a row to make `num_clips`."""
        return replace(self, latents=repeated(self.latents, num_clips))

    def keep(self, latents: torch.Tensor) -> torch.Tensor:
        """`latents` with the clean ones where they are known."""
        return torch.where(self.mask, self.latents, latents) if self.any else latents

    def without_velocity(self, velocity: torch.Tensor) -> torch.Tensor:
        """`velocity`, zero where latents are known: known latents do not move, and guiders ignore them."""
        return velocity.masked_fill(self.mask, 0.0) if self.any else velocity

    def timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        """The transformer's timestep, 0 where latents are known: `(num_clips,)`, or, if they are known in part, one for each
        latent frame or audio latent."""
        num_clips = len(self.latents)
        if self.any and not self.all:
            return torch.where(self.mask.flatten(), 0.0, timestep).expand(num_clips, -1)
        return (timestep * 0 if self.all else timestep).expand(num_clips)


def repeated(latents: torch.Tensor | None, num_clips: int) -> torch.Tensor | None:
    """Latents with each clip repeated in a row to make `num_clips`; `None` stays `None`."""
    return None if latents is None else latents.repeat_interleave(num_clips // len(latents), dim=0)


# The autoencoders


@torch.no_grad()
def encode_video(pipe: PipelineParts, frames: torch.Tensor) -> torch.Tensor:
    """Normalised latents of frames, see `BatonPipeline.encode_video`."""
    return normalise_latents(pipe.vae, pipe.vae.encode(frames.to(pipe.vae.dtype)).latent_dist.mode())


@torch.no_grad()
def encode_audio(pipe: PipelineParts, waveform: torch.Tensor) -> torch.Tensor:
    """Scaled latents of sound, see `BatonPipeline.encode_audio`."""
    return encode_waveforms(pipe.audio_vae, waveform.float())


@torch.no_grad()
def decode_video(
    pipe: PipelineParts, latents: torch.Tensor, num_frames: int, output_type: str, duration: float | None = None
) -> Any:
    """
    Frames of finished video latents.

    Args:
        pipe: with `vae`.
        latents (`torch.Tensor` of shape `(num_clips, num_channels, num_latent_frames, latent_height, latent_width)`).
        num_frames (`int`): frames of the clips.
        output_type (`str`): `"pil"`, `"np"` or `"pt"`.
        duration (`float`, *optional*): seconds to which they are cut; by default what `num_frames` last.

    Raises:
        ValueError: if the VAE returns NaN.
    """
    check_tensor("latents", latents)
    video = pipe.vae.decode(denormalise_latents(pipe.vae, latents).to(pipe.vae.dtype), return_dict=False)[0]
    video = video[:, :, : coordinates.num_frames_within(_duration(pipe, num_frames, duration), pipe.frame_rate)]
    return _as_output(video, output_type, VideoProcessor(vae_scale_factor=pipe.vae.config.scale_factor_spatial))


def _as_output(video: torch.Tensor, output_type: str, processor: VideoProcessor) -> Any:
    """Decoded frames `(num_clips, 3, num_frames, height, width)` in [-1, 1], in the form of the output. They are converted a
    few at a time, since a long video in float32 is large. Only "pt" stays on the device.

    Raises:
        ValueError: if they hold NaN.
    """
    num_clips, channels, num_frames, height, width = video.shape
    shapes = {
        "pt": (num_clips, num_frames, channels, height, width),
        "np": (num_clips, num_frames, height, width, channels),
    }
    output: Any = [[] for _ in range(num_clips)]
    if output_type == "pt":
        output = torch.empty(shapes["pt"], dtype=torch.float32, device=video.device)
    elif output_type == "np":
        output = np.empty(shapes["np"], dtype=np.float32)
    is_finite = torch.ones((), dtype=torch.bool, device=video.device)
    for clip in range(num_clips):
        for start in range(0, num_frames, _FRAMES_AT_ONCE):
            frames = video[clip, :, start : start + _FRAMES_AT_ONCE].transpose(0, 1).float()
            is_finite &= frames.isfinite().all()
            frames = processor.postprocess(frames.nan_to_num(), output_type=output_type)
            if output_type == "pil":
                output[clip] += frames
            else:
                output[clip, start : start + _FRAMES_AT_ONCE] = frames
    if not is_finite:
        raise ValueError(f"the decoded frames hold NaN or infinite values: {_DAMAGED.format('`vae`')}.")
    return output


@torch.no_grad()
def decode_audio(
    pipe: PipelineParts,
    audio_latents: torch.Tensor,
    num_frames: int,
    output_type: str,
    duration: float | None = None,
) -> np.ndarray | torch.Tensor:
    """
    Waveforms of finished audio latents, `(num_clips, 1, num_samples)` in [-1, 1], float32.

    Args:
        pipe: with `audio_vae` and `vocoder`.
        audio_latents (`torch.Tensor` of shape `(num_clips, audio_length, audio_channels)`).
        num_frames, output_type, duration: as for `decode_video`.

    Raises:
        ValueError: if the audio VAE or the vocoder returns NaN.
    """
    check_tensor("audio_latents", audio_latents)
    mel = decode_spectrograms(pipe.audio_vae, audio_latents)
    waveform = pipe.vocoder(mel.to(pipe.vocoder.dtype), return_dict=False)[0].float().clamp(-1, 1)
    check_finite(waveform, "the decoded sound holds", _DAMAGED.format("`audio_vae` or `vocoder`"))
    num_samples = coordinates.num_samples(_duration(pipe, num_frames, duration), pipe.sampling_rate)
    # Latents may end a little before the clip (`audio_latent_min_coverage`): silence follows.
    waveform = F.pad(waveform, (0, max(num_samples - waveform.shape[-1], 0)))[..., :num_samples]
    return waveform if output_type == "pt" else waveform.cpu().numpy()


def finished_video(
    pipe: PipelineParts, given: Given, latents: torch.Tensor, num_frames: int, output_type: str
) -> tuple[Any, float]:
    """Frames of finished latents as the call returns them, `None` for clips of sound alone, and their rate. A picture that is given
    whole is returned as it is."""
    if given.only == "audio":
        return None, pipe.frame_rate
    if output_type == "latent":
        return latents, pipe.frame_rate
    if given.keeps_video:
        return given.video.output(len(latents), output_type), given.video.frame_rate
    return decode_video(pipe, latents, num_frames, output_type, given.duration), pipe.frame_rate


def finished_audio(
    pipe: PipelineParts, given: Given, audio_latents: torch.Tensor, num_frames: int, output_type: str
) -> tuple[Any, int]:
    """Waveforms of finished latents, and their rate; as `finished_video`."""
    if given.only == "video":
        return None, pipe.sampling_rate
    if output_type == "latent":
        return audio_latents, pipe.sampling_rate
    if given.keeps_audio:
        return given.audio.output(len(audio_latents), output_type), given.audio.sampling_rate
    return decode_audio(pipe, audio_latents, num_frames, output_type, given.duration), pipe.sampling_rate


def _duration(pipe: PipelineParts, num_frames: int, duration: float | None) -> float:
    clip_duration = pipe.clip_duration(num_frames)
    return clip_duration if duration is None else min(duration, clip_duration)


# What is known


@torch.no_grad()
def encode_given_video(
    pipe: PipelineParts, given: Given, num_clips: int, size: ClipSize, device: torch.device
) -> KnownLatents:
    """The known video latents; with `only="audio"` all of them count as known, and are never read.

    Args:
        pipe: with `vae`.
        given ([`Given`]): one video for all clips, or one for each prompt, repeated in a row.
        num_clips (`int`): prompts times videos per prompt.
        size ([`ClipSize`]): of the clips.
        device (`torch.device`): where the latents go.
    """
    (mask, _), (shape, _) = given.known_masks(pipe, size.num_frames), pipe.latent_shapes(num_clips, size)
    latents = torch.zeros(shape, device=device)
    if mask.any():
        if given.video.size != (size.height, size.width):
            logger.warning(
                f"the given picture of {given.video.size[0]} x {given.video.size[1]} pixels (height x width) is resized to "
                f"{size.height} x {size.width}, which this model takes."
            )
        length = int(mask.nonzero().max()) + 1  # latent frames depend on earlier pixel frames alone
        num_given = (length - 1) * pipe.latent_format["temporal_stride"] + 1
        frames = model_frames(given.video, num_given, pipe.frame_rate, size.height, size.width)
        encoded = encode_video(pipe, frames.to(device))
        check_finite(encoded, "the latents of the given picture hold", _DAMAGED.format("`vae`"))
        latents[:, :, :length] = repeated(encoded, num_clips)
    return KnownLatents.place(latents, given.settled_masks(pipe, size.num_frames)[0], dim=2)


@torch.no_grad()
def encode_given_audio(
    pipe: PipelineParts, given: Given, num_clips: int, size: ClipSize, device: torch.device
) -> KnownLatents:
    """The known audio latents; with `only="video"` all of them count as known, and are never read. Arguments as for
    `encode_given_video`, with `audio_vae` as the component."""
    _, mask = given.known_masks(pipe, size.num_frames)
    latents = torch.zeros(pipe.latent_shapes(num_clips, size)[1], device=device)
    if mask.any():
        length = int(mask.nonzero().max()) + 1
        num_samples = length * pipe.audio_vae.latent_hop_length
        encoded = encode_audio(pipe, model_waveform(given.audio, num_samples, pipe.sampling_rate).to(device))
        check_finite(encoded, "the latents of the given sound hold", _DAMAGED.format("`audio_vae`"))
        latents[:, :length] = repeated(encoded, num_clips)
    return KnownLatents.place(latents, given.settled_masks(pipe, size.num_frames)[1], dim=1)


@torch.no_grad()
def reference_latents(pipe: PipelineParts, given: Given, num_clips: int, device: torch.device) -> torch.Tensor | None:
    """The reference audio as clean latents `(num_clips, reference_length, audio_channels)`, the last one filled with silence;
    `None` if no reference is given."""
    reference = given.reference_audio
    if reference is None:
        return None
    length = coordinates.num_audio_latents(reference.duration, pipe.latent_format["audio_latent_rate"])
    waveform = model_waveform(reference, length * pipe.audio_vae.latent_hop_length, pipe.sampling_rate)
    latents = encode_audio(pipe, waveform.to(device))
    check_finite(latents, "the latents of the reference audio hold", _DAMAGED.format("`audio_vae`"))
    return repeated(latents, num_clips)


def stand_ins(
    pipe: PipelineParts,
    passes: Iterable[GuidancePass],
    given: Given,
    num_clips: int,
    size: ClipSize,
    device: torch.device,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Clean latents of a still picture and of silence, if a guidance pass replaces a modality by them."""
    anchors = {guidance_pass.anchor for guidance_pass in passes}
    still = silence = None
    if any(anchor.static for anchor in anchors):
        still = still_latents(pipe, given, num_clips, size, device)
    if any(anchor.mute for anchor in anchors):
        silence = silence_latents(pipe, num_clips, size.num_frames, device)
    return still, silence


@torch.no_grad()
def still_latents(
    pipe: PipelineParts, given: Given, num_clips: int, size: ClipSize, device: torch.device
) -> torch.Tensor:
    """Clean video latents of a still picture, for guidance by a static clip (Harmony): the given clip's first frame, or mid-grey
    where none is given (ours)."""
    frame = torch.zeros(1, 3, 1, size.height, size.width)
    if given.known_masks(pipe, size.num_frames)[0][0]:
        frame = model_frames(given.video, 1, pipe.frame_rate, size.height, size.width)
    still = encode_video(pipe, frame.expand(-1, -1, size.num_frames, -1, -1).to(device))
    return repeated(still, num_clips)


@torch.no_grad()
def silence_latents(pipe: PipelineParts, num_clips: int, num_frames: int, device: torch.device) -> torch.Tensor:
    """Clean audio latents of silence, for guidance by a mute clip (Harmony)."""
    silence = torch.zeros(1, pipe.audio_length(num_frames) * pipe.audio_vae.latent_hop_length, device=device)
    return encode_audio(pipe, silence).expand(num_clips, -1, -1)


# Noise


@dataclass(frozen=True)
class Noise:
    """Where the noise of a call comes from. `BatonPipeline.__call__` describes the arguments."""

    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None

    def check(self, pipe: PipelineParts, num_clips: int, size: ClipSize, only: str | None) -> None:
        """Refuses generators and latents of a wrong type, number or shape.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        check_generator(self.generator, num_clips)
        names = ("latents", "audio_latents")
        for name, shape in zip(names, pipe.latent_shapes(num_clips, size), strict=True):
            value = getattr(self, name)
            if value is None:
                continue
            if only == ("audio" if name == "latents" else "video"):
                raise ValueError(f"`{name}` was given with `only={only!r}`, which has none: leave out one of them.")
            check_tensor(name, value)
            if tuple(value.shape) != shape:
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, but this clip needs {shape}.")

    def draw(
        self, pipe: PipelineParts, num_clips: int, size: ClipSize, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise for both modalities in float32, drawn video first."""
        shapes = pipe.latent_shapes(num_clips, size)
        return tuple(
            (
                randn_tensor(shape, generator=self.generator, device=device, dtype=torch.float32)
                if given is None
                else given
            ).to(device, torch.float32)
            for given, shape in zip((self.latents, self.audio_latents), shapes, strict=True)
        )


# Pictures and sounds at the model's size and rate


def model_frames(video: GivenVideo, num_frames: int, frame_rate: float, height: int, width: int) -> torch.Tensor:
    r"""
    The given frames as the video autoencoder takes them: at the model's rate and size, in [-1, 1].

    Frames to be generated are not read: the last known frame before them takes their place, or else the first known one. The same
    holds beyond the end of what is given.

    Args:
        video ([`GivenVideo`]): what is given.
        num_frames (`int`): pixel frames to return, the first of the clip.
        frame_rate (`float`): the model's frames per second.
        height, width (`int`): the model's size in pixels.

    Returns:
        `torch.Tensor` of shape `(num_clips, 3, num_frames, height, width)`.
    """
    # A video at its own size can take gigabytes: its frames are chosen by index, and resized one by one.
    source = _standing_in(video.new, video.frame_rate, video.num_frames)
    if frame_rate != video.frame_rate:
        source = source[shown_frames(len(source), video.frame_rate, frame_rate)]
    source = source[_standing_in(video.new, frame_rate, num_frames).clip(max=len(source) - 1)]
    pictures = (picture for clip in video.frames for picture in pictures_of(clip, source))
    frames = torch.stack([_picture(picture, height, width) for picture in pictures])
    return frames.unflatten(0, (len(video.frames), num_frames)).transpose(1, 2) * 2 - 1


def _standing_in(new: Spans, frame_rate: float, num_frames: int) -> np.ndarray:
    """For each frame, the number of the frame that is shown: itself, or for a new frame the last known one before it."""
    known = (~coordinates.units_in_spans(new, frame_rate, num_frames)).nonzero().flatten().numpy()
    before = np.searchsorted(known, np.arange(num_frames), side="right") - 1
    return known[before.clip(0)]


def _picture(frame: np.ndarray, height: int, width: int) -> torch.Tensor:
    """One frame in [0, 1], resized: `(3, height, width)`. All frames of a video at its own size could fill the memory."""
    if frame.shape[:2] == (height, width):
        return _floats(frame)
    # First the width, some rows at a time: a photo in float32 would take 12 bytes a pixel.
    rows = [
        F.interpolate(_floats(band)[None], (len(band), width), mode="bicubic", antialias=True)
        for band in np.split(frame, range(_ROWS_AT_ONCE, len(frame), _ROWS_AT_ONCE))
    ]
    return F.interpolate(torch.cat(rows, dim=2), (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _floats(frame: np.ndarray) -> torch.Tensor:
    """Channels last in any range to channels first in [0, 1], float32."""
    picture = torch.from_numpy(frame.copy()).movedim(-1, 0)
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()


def model_waveform(audio: GivenAudio, num_samples: int, sampling_rate: int) -> torch.Tensor:
    r"""
    The given sound as the audio autoencoder takes it: one channel at the model's rate.

    Samples to be generated are not read: silence takes their place, and follows the end of the given sound.

    Args:
        audio ([`GivenAudio`]): what is given.
        num_samples (`int`): samples to return, the first of the clip.
        sampling_rate (`int`): the model's samples per second.

    Returns:
        `torch.Tensor` of shape `(num_clips, num_samples)`.
    """
    new = coordinates.units_in_spans(audio.new, audio.sampling_rate, audio.waveform.shape[2]).numpy()
    heard = np.where(new, np.float32(0), audio.waveform.mean(axis=1, keepdims=True))
    clips = [at_sampling_rate(clip, audio.sampling_rate, sampling_rate) for clip in heard]
    waveform = torch.from_numpy(np.concatenate(clips))[:, :num_samples]
    waveform = F.pad(waveform, (0, num_samples - waveform.shape[1]))
    return waveform.masked_fill(coordinates.units_in_spans(audio.new, sampling_rate, num_samples), 0.0)
