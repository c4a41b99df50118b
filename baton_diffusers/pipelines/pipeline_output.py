"""What `BatonPipeline` returns."""

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from ..media import write_clip
from ..plan import SemanticPlan


@dataclass
class BatonPipelineOutput(BaseOutput):
    """
    Clips with their sound. In a notebook the object plays itself.

    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`):
            Frames of each clip: lists of images, an array of shape `(batch_size, num_frames, height, width, 3)` in [0, 1],
            or a tensor of shape `(batch_size, num_frames, 3, height, width)` in [0, 1]; with `output_type="latent"` the
            video latents.
        audio (`np.ndarray` or `torch.Tensor`):
            Waveforms of shape `(batch_size, num_channels, num_samples)` in [-1, 1]; with `output_type="latent"` the audio
            latents.
        frame_rate (`float`):
            Frames per second.
        sampling_rate (`int`):
            Samples per second.
        plan (`SemanticPlan`, *optional*):
            The plan that the clips follow, or `None` where they follow none.
        cues (`list[str]`, *optional*):
            When the planner had things happen, a cue sheet for each clip; `None` where it knows no timestamps.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
    audio: np.ndarray | torch.Tensor
    frame_rate: float
    sampling_rate: int
    plan: SemanticPlan | None = None
    cues: list[str] | None = None

    def save(self, path: str | Path, index: int = 0, scale: int = 1) -> Path:
        """
        Write one clip to an mp4, see [`~media.write_clip`].

        Args:
            path (`str` or `Path`):
                Where to; the name ends in `.mp4`.
            index (`int`, defaults to `0`):
                Which clip of the batch.
            scale (`int`, defaults to `1`):
                Every pixel becomes `scale` x `scale` pixels.

        Returns:
            `Path`: the path.

        Raises:
            ValueError: there is no such clip, the output holds latents, or `write_clip` refuses.
        """
        return write_clip(path, *self.clip(index), self.frame_rate, self.sampling_rate, scale)

    def clip(self, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """
        One clip as files and Stage's scorer take it.

        Args:
            index (`int`, defaults to `0`):
                Which clip of the batch.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: frames, uint8 of shape `(num_frames, height, width, 3)`, and waveform, float32
            of shape `(num_channels, num_samples)`.

        Raises:
            ValueError: there is no such clip, or the output holds latents.
        """
        if not -len(self.frames) <= index < len(self.frames):
            raise ValueError(f"index {index} of {len(self.frames)} clips: give one from 0 to {len(self.frames) - 1}")
        if self._holds_latents:
            raise ValueError(
                f"frames of shape {tuple(self.frames.shape)} are latents: generate with an `output_type` of 'pil', 'np' or "
                "'pt'"
            )
        frames, audio = self.frames[index], self.audio[index]
        if isinstance(frames, list):
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
        else:
            if isinstance(frames, torch.Tensor):
                frames = frames.float().permute(0, 2, 3, 1).cpu().numpy()
            frames = (frames * 255).round().astype(np.uint8)
        if isinstance(audio, torch.Tensor):
            audio = audio.float().cpu().numpy()
        return frames, audio

    @property
    def _holds_latents(self) -> bool:
        # Waveforms have one or two channels in the place where audio latents have their length.
        return isinstance(self.frames, torch.Tensor) and (self.frames.shape[2] != 3 or self.audio.shape[1] > 2)

    def _repr_html_(self) -> str | None:
        if self._holds_latents:
            return None  # the plain text says what they are
        players = []
        with tempfile.TemporaryDirectory(prefix="baton-") as folder:
            for index in range(len(self.frames)):
                frames, waveform = self.clip(index)
                scale = max(1, 256 // frames.shape[2])
                path = write_clip(
                    Path(folder) / "clip.mp4", frames, waveform, self.frame_rate, self.sampling_rate, scale
                )
                data = base64.b64encode(path.read_bytes()).decode()
                players.append(f'<video controls loop src="data:video/mp4;base64,{data}"></video>')
        return "\n".join(players)
