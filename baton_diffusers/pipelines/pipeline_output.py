"""What `BatonPipeline` returns."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from ..cues import PlanCandidate
from ..figure import draw_clip, html_picture, png
from ..files import check_target
from ..media import AUDIO_SUFFIXES, VideoFile, to_aac_rate, write_audio, write_clip
from ..plan import SemanticPlan


@dataclass
class BatonPipelineOutput(BaseOutput):
    """
    Clips with their sound. In a notebook the object shows and plays itself.

    With `output_type="pt"`, generated frames and samples are on the pipeline's device. Media that were given whole are on the
    CPU, where they were read: a video at its own size could fill a GPU's memory.

    Args:
        frames (`list[Sequence[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`):
            Frames of each clip: lists of images (a file that was given whole is a [`~media.VideoFile`], which decodes them when they
            are read); an array of shape `(batch_size, num_frames, height, width, 3)` in [0, 1]; or a tensor of shape `(batch_size,
            num_frames, 3, height, width)` in [0, 1]; with `output_type="latent"` the video latents. `None` for clips of sound alone.
        audio (`np.ndarray` or `torch.Tensor`):
            Waveforms of shape `(batch_size, num_channels, num_samples)` in [-1, 1]; with `output_type="latent"` the audio
            latents. `None` for clips of picture alone.
        frame_rate (`float`):
            Frames per second.
        sampling_rate (`int`):
            Samples per second.
        plan (`SemanticPlan`, *optional*):
            The plan that the clips follow, or `None` for clips without a plan.
        output_type (`str`, *optional*):
            The call's. `"latent"` means that frames and audio are latents; otherwise the type of `frames` tells.
    """

    frames: list[Sequence[PIL.Image.Image]] | np.ndarray | torch.Tensor | None
    audio: np.ndarray | torch.Tensor | None
    frame_rate: float
    sampling_rate: int
    plan: SemanticPlan | None = None
    output_type: str | None = None

    @property
    def cues(self) -> list[str] | None:
        """The plan's cue sheets, one for each clip; `None` for a plan without sheets."""
        return None if self.plan is None or self.plan.sheets is None else list(self.plan.sheets)

    @property
    def plan_candidates(self) -> list[tuple[PlanCandidate, ...]] | None:
        """The cue sheets among which each clip's was chosen, with their scores, the best first."""
        return None if self.plan is None or self.plan.candidates is None else list(self.plan.candidates)

    @property
    def num_clips(self) -> int:
        """How many clips there are."""
        return len(self.audio if self.frames is None else self.frames)

    def save(self, path: str | Path, index: int = 0, scale: int = 1) -> Path:
        """
        Write one clip to an mp4, see [`~media.write_clip`], or sound alone to a wav or flac file, see [`~media.write_audio`]. In
        an mp4, a sampling rate that AAC does not have is converted to the next one that it has.

        Args:
            path (`str` or `Path`):
                Where to; the name ends in `.mp4`, or, for sound alone, in `.wav` or `.flac`.
            index (`int`, defaults to `0`):
                Which clip of the batch.
            scale (`int`, defaults to `1`):
                Every pixel becomes `scale` x `scale` pixels.

        Returns:
            `Path`: the path.

        Raises:
            ValueError: there is no such clip, the output holds latents or values that are not finite, or the path or what
                is written does not fit.
        """
        frames, waveform = self.parts(index)
        path = check_target(path, (".mp4",) if frames is not None else (".mp4", *AUDIO_SUFFIXES))
        if path.suffix.lower() in AUDIO_SUFFIXES:
            return write_audio(path, waveform, self.sampling_rate)
        rate = self.sampling_rate
        if waveform is not None:
            waveform, rate = to_aac_rate(waveform, rate)
        return write_clip(path, frames, waveform, self.frame_rate, rate, scale)

    def clip(self, index: int = 0) -> tuple[np.ndarray | None, np.ndarray | None]:
        """
        One clip in the form that files and Stage's scorer need.

        Args:
            index (`int`, defaults to `0`):
                Which clip of the batch.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: frames, uint8 of shape `(num_frames, height, width, 3)`, and waveform, float32
            of shape `(num_channels, num_samples)`; `None` for a modality that was not made.

        Raises:
            ValueError: there is no such clip, or the output holds latents or values that are not finite.
        """
        frames, waveform = self.parts(index)
        return frames.array() if isinstance(frames, VideoFile) else frames, waveform

    def parts(self, index: int = 0) -> tuple[np.ndarray | VideoFile | None, np.ndarray | None]:
        """As `clip`, but a [`~media.VideoFile`] stays in its file."""
        if not isinstance(index, int) or not -self.num_clips <= index < self.num_clips:
            raise ValueError(f"index {index} of {self.num_clips} clips: give one from 0 to {self.num_clips - 1}")
        if self.output_type == "latent":
            name, part = ("audio", self.audio) if self.frames is None else ("frames", self.frames)
            raise ValueError(
                f"{name} of shape {tuple(part.shape)} are latents: generate with an `output_type` of 'pil', 'np' or 'pt'"
            )
        frames, audio = (None if part is None else part[index] for part in (self.frames, self.audio))
        if isinstance(frames, list | tuple):
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
        elif isinstance(frames, (np.ndarray, torch.Tensor)):
            if isinstance(frames, torch.Tensor):
                frames = frames.float().permute(0, 2, 3, 1).cpu().numpy()
            _check_finite("frames", frames)
            if frames.min() < -1e-3 or frames.max() > 1 + 1e-3:
                raise ValueError(
                    f"frames have values from {frames.min():g} to {frames.max():g}: scale them into [0, 1]"
                )
            frames = frames.clip(0, 1)
            frames = (frames * 255).round().astype(np.uint8)
        if isinstance(audio, torch.Tensor):
            audio = audio.float().cpu().numpy()
        if audio is not None:
            _check_finite("audio", audio)
        return frames, audio

    def figure(self, index: int = 0) -> PIL.Image.Image:
        """
        One clip on a picture: its frames in a strip, who acts when by the plan's sheet, and the waveform, on one axis of time.

        Raises:
            ValueError: as `clip`.
        """
        frames, waveform = self.parts(index)
        if self.plan is not None:
            return self.plan.figure(index, frames, waveform)
        duration = waveform.shape[-1] / self.sampling_rate if frames is None else len(frames) / self.frame_rate
        return draw_clip(duration, frames=frames, waveform=waveform)

    def __repr__(self) -> str:
        lines = [f"BatonPipelineOutput of {self.num_clips} clip{'' if self.num_clips == 1 else 's'}"]
        if self.output_type == "latent":
            lines[0] += " as latents"
        for name, part, rate in (("frames", self.frames, self.frame_rate), ("audio", self.audio, self.sampling_rate)):
            if isinstance(part, list):
                lines.append(f"{name}: {len(part[0])} images each, {rate:g} per second")
            elif part is not None:
                lines.append(f"{name}: {tuple(part.shape)}, {rate:g} per second")
        if self.plan is not None:
            lines[0] += f", planned for {self.plan.duration:.4g} s"
        if self.cues is not None:
            lines[0] += f", cues: {self.cues[0]!r}" if self.num_clips == 1 else f", {len(self.cues)} cue sheets"
        return "\n".join(lines)

    __str__ = __repr__

    def _repr_png_(self) -> bytes | None:
        if self.output_type == "latent":
            return None
        return png([self.figure(index) for index in range(self.num_clips)])

    def _repr_html_(self) -> str | None:
        if self.output_type == "latent":
            return None  # the plain text says what they are
        parts = []
        with tempfile.TemporaryDirectory(prefix="baton-") as folder:
            for index in range(self.num_clips):
                frames, waveform = self.parts(index)
                parts.append(html_picture(self.figure(index)))
                if frames is None:
                    kind, element = "audio/wav", "audio controls"
                    path = write_audio(Path(folder) / "clip.wav", waveform, self.sampling_rate)
                else:
                    kind, element = "video/mp4", "video controls loop"
                    height, width = frames.shape[1:3]
                    scale = max(1, 256 // width)
                    scale += scale % 2 * (height % 2 or width % 2)  # H.264 takes even sizes alone
                    rate = self.sampling_rate
                    if waveform is not None:
                        waveform, rate = to_aac_rate(waveform, rate)
                    path = write_clip(Path(folder) / "clip.mp4", frames, waveform, self.frame_rate, rate, scale)
                data = base64.b64encode(path.read_bytes()).decode()
                parts.append(f'<{element} src="data:{kind};base64,{data}"></{element.split()[0]}>')
        return "\n".join(parts)


def _check_finite(name: str, values: np.ndarray) -> None:
    """Refuses values that are not finite: the clip would be black, or noise."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} hold NaN or infinite values, as weights, latents or a plan did before: try float32, or another checkpoint"
        )
