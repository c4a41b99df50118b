"""Training of nano's semantic encoders on Stage: a tiny SigLIP on frames and captions, a tiny EnCodec on sound.

The published encoders are frozen; these exist because nothing published is small enough. Both recipes add a light read-out
of *what happens here* to every token (ours): a contrastive loss alone tells a whole frame from another and leaves patch
features vague, and a spectral loss alone leaves a word's identity tangled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from nano_configs import AudioSemanticConfig, VideoSemanticConfig
from transformers import PreTrainedTokenizerBase, SiglipConfig, SiglipModel
from transformers.audio_utils import mel_filter_bank

from baton_diffusers.models.latents import to_video
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.stage import describe_frame, render_audio, render_video, sample_scene, timeline
from baton_diffusers.stage.render import Pose, poses
from baton_diffusers.stage.scene import (
    COLOURS,
    DIGITS,
    FLOOR,
    FRAME_RATE,
    FRAME_SIZE,
    HALF_WIDTH,
    HOLD,
    NUM_FRAMES,
    NUM_SAMPLES,
    SAMPLING_RATE,
    VOICES,
    Scene,
)
from baton_diffusers.stage.sound import event_sound


SPRITE_HEIGHT = {"ball": 17.0, "box": 15.0, "bell": 20.0, "face": 22.0}  # pixels
LOOKS = ("landed", "flash", "open")
IDENTITIES = tuple((kind, colour) for kind in ("ball", "box", "bell") for colour in COLOURS) + tuple(
    ("face", colour) for colour in VOICES
)
SOUNDS = tuple((kind, colour, None) for kind in ("landing", "flash", "contact") for colour in COLOURS) + tuple(
    ("word", colour, digit) for colour in VOICES for digit in DIGITS
)


# --------------------------------------------------------------------------------------------------------------- video


def patch_labels(scene: Scene, row: list[Pose], grid: tuple[int, int]) -> np.ndarray:
    """What is in each cell of a frame: the share of the cell that the bounding box of each of the 14 possible actors
    covers, then the shares covered by actors that have just landed, flash, or have their mouth open.

    Returns:
        `np.ndarray` of shape `(rows * columns, 17)`, float32, in [0, 1].
    """
    edges_y = np.linspace(0, FRAME_SIZE, grid[0] + 1)
    edges_x = np.linspace(0, FRAME_SIZE, grid[1] + 1)
    labels = np.zeros((*grid, len(IDENTITIES) + len(LOOKS)), dtype=np.float32)
    for actor, pose in zip(scene.actors, row, strict=True):
        bottom, half = FLOOR - pose.y, HALF_WIDTH[actor.kind]
        share_y = _overlap(edges_y, bottom - SPRITE_HEIGHT[actor.kind], bottom)
        share_x = _overlap(edges_x, pose.x - half, pose.x + half)
        covered = share_y[:, None] * share_x[None, :]
        labels[..., IDENTITIES.index((actor.kind, actor.colour))] += covered
        if pose.look in LOOKS:
            labels[..., len(IDENTITIES) + LOOKS.index(pose.look)] += covered
    return labels.reshape(-1, labels.shape[-1]).clip(0, 1)


def _overlap(edges: np.ndarray, start: float, end: float) -> np.ndarray:
    # share of each of the intervals between `edges` that lies in [start, end]
    return np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None) / np.diff(edges)


class FrameDataset:
    """Frames of endless training scenes, with captions and patch labels; an index is a scene."""

    def __init__(self, frames_per_scene: int, grid: tuple[int, int], split: str = "train"):
        self.frames_per_scene = frames_per_scene
        self.grid = grid
        self.split = split

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, rng = sample_scene(index, split=self.split), np.random.default_rng(index)
        held = [
            event.frame + int(rng.integers(HOLD[scene.script[event.action].verb])) for event in timeline(scene, index)
        ]
        frames = [
            int(rng.choice(held)) if number % 2 and held else int(rng.integers(NUM_FRAMES))
            for number in range(self.frames_per_scene)
        ]
        rows = poses(scene, index)
        return {
            "pixel_values": to_video(torch.from_numpy(render_video(scene, index)[frames])[None])[0].transpose(0, 1),
            "captions": [describe_frame(scene, index, frame) for frame in frames],
            "labels": torch.from_numpy(np.stack([patch_labels(scene, rows[frame], self.grid) for frame in frames])),
        }


class FrameCollator:
    """Joins samples of [`FrameDataset`] and tokenises their captions.

    `match` says which captions of the batch are the same text: frames of one caption are no negatives of one another.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        captions = [caption for sample in samples for caption in sample["captions"]]
        ids = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        numbers = torch.tensor([ids[caption] for caption in captions])
        encoded = self.tokenizer(
            captions, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )
        return {
            "input_ids": encoded.input_ids,
            "pixel_values": torch.cat([sample["pixel_values"] for sample in samples]),
            "labels": torch.cat([sample["labels"] for sample in samples]),
            "match": numbers[:, None] == numbers[None, :],
        }


class VideoSemanticTraining(nn.Module):
    """SigLIP and a linear read-out of the pooled penultimate features."""

    def __init__(self, config: VideoSemanticConfig):
        super().__init__()
        self.siglip = SiglipModel(SiglipConfig(vision_config=config.vision_config, text_config=config.text_config))
        nn.init.constant_(self.siglip.logit_scale, np.log(10.0))  # the SigLIP paper's start
        nn.init.constant_(self.siglip.logit_bias, -10.0)
        self.video_grid = config.video_grid
        self.patch_head = nn.Linear(self.siglip.config.vision_config.hidden_size, len(IDENTITIES) + len(LOOKS))
        nn.init.constant_(self.patch_head.bias, -4.0)

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(num_captions, num_images)` of caption and image belonging together, and logits of the patch labels."""
        output = self.siglip(input_ids=input_ids, pixel_values=pixel_values, output_hidden_states=True)
        features = output.vision_model_output.hidden_states[-2]
        grid = round(features.shape[1] ** 0.5)
        features = F.adaptive_avg_pool2d(features.transpose(1, 2).unflatten(2, (grid, grid)), self.video_grid)
        return output.logits_per_text, self.patch_head(features.flatten(2).transpose(1, 2))


class VideoSemanticLoss:
    """SigLIP's sigmoid loss over all pairs of a batch, and cross-entropy of the patch labels."""

    def __init__(self, config: VideoSemanticConfig):
        self.patch_weight = config.patch_weight

    def __call__(self, module: nn.Module, batch: dict, generator: torch.Generator, step: int) -> dict:
        logits, patch_logits = module(batch["input_ids"], batch["pixel_values"])
        sign = 2 * batch["match"].to(logits) - 1
        contrastive = -F.logsigmoid(sign * logits).sum() / len(logits)
        patch = F.binary_cross_entropy_with_logits(patch_logits, batch["labels"])
        # the least that soft labels allow is their entropy: subtract it, so that 0 is perfect
        patch = patch - F.binary_cross_entropy(batch["labels"], batch["labels"])
        return {"loss": contrastive + self.patch_weight * patch, "contrastive": contrastive, "patch": patch}


def export_video_encoder(module: VideoSemanticTraining, config: VideoSemanticConfig) -> VideoSemanticEncoder:
    """The trained vision tower as a [`VideoSemanticEncoder`], with the statistics of its features on validation clips."""
    encoder = VideoSemanticEncoder(config.vision_config, config.video_grid, config.keyframe_rate)
    needed = encoder.vision_model.state_dict().keys()
    weights = module.siglip.vision_model.state_dict()
    encoder.vision_model.load_state_dict({name: weights[name].cpu() for name in needed})
    encoder.eval()
    tokens = [
        encoder.encode(
            to_video(torch.from_numpy(render_video(sample_scene(index, split="validation"), index))[None]), FRAME_RATE
        )
        for index in range(config.statistics_clips)
    ]
    set_statistics(encoder, tokens)
    return encoder


# --------------------------------------------------------------------------------------------------------------- audio


def sound_labels(scene: Scene, seed: int, token_duration: float, num_tokens: int) -> np.ndarray:
    """What is heard in the span of each token: the share of it that each of the 32 possible sounds fills, then whether a
    sound starts in it.

    Returns:
        `np.ndarray` of shape `(num_tokens, 33)`, float32, in [0, 1].
    """
    edges = np.arange(num_tokens + 1) * token_duration
    labels = np.zeros((num_tokens, len(SOUNDS) + 1), dtype=np.float32)
    for event in timeline(scene, seed):
        colour = scene.actors[event.actor].colour
        length = len(event_sound(event.kind, colour, event.word)) / SAMPLING_RATE
        labels[:, SOUNDS.index((event.kind, colour, event.word))] += _overlap(edges, event.time, event.time + length)
        labels[int(event.time / token_duration + 1e-6), -1] = 1
    return labels.clip(0, 1)


class SoundDataset:
    """One chunk of sound from each of endless training scenes, around one of its events if it has any, with labels for every token."""

    def __init__(self, tokens_per_chunk: int, chunk_duration: float, split: str = "train"):
        self.tokens_per_chunk = tokens_per_chunk
        self.chunk_duration = chunk_duration
        self.split = split

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene, rng = sample_scene(index, split=self.split), np.random.default_rng(index)
        token_duration = self.chunk_duration / self.tokens_per_chunk
        chunk_samples = round(self.chunk_duration * SAMPLING_RATE)
        num_tokens = -(-NUM_SAMPLES * self.tokens_per_chunk // chunk_samples)
        labels = sound_labels(scene, index, token_duration, num_tokens)
        times = [event.time for event in timeline(scene, index)] or [rng.uniform(0, NUM_SAMPLES / SAMPLING_RATE)]
        first = int(times[rng.integers(len(times))] / token_duration) - int(rng.integers(self.tokens_per_chunk))
        first = min(max(first, 0), NUM_SAMPLES * self.tokens_per_chunk // chunk_samples - self.tokens_per_chunk)
        start = first * chunk_samples // self.tokens_per_chunk
        return {
            "waveform": torch.from_numpy(render_audio(scene, index)[None, start : start + chunk_samples]),
            "labels": torch.from_numpy(labels[first : first + self.tokens_per_chunk]),
        }


class AudioSemanticTraining(nn.Module):
    """The encoder, and read-outs of its tokens: a small decoder of log-mel spectra, and a linear one of sounds."""

    def __init__(self, config: AudioSemanticConfig):
        super().__init__()
        self.encoder = AudioSemanticEncoder(config.audio_config, config.tokens_per_chunk, config.chunk_duration)
        dim = self.encoder.feature_mean.numel()
        self.sound_head = nn.Linear(dim, len(SOUNDS) + 1)
        nn.init.constant_(self.sound_head.bias, -4.0)
        self.spectrum_head = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, config.mel_bins * config.mel_frames_per_token)
        )

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel spectra `(batch_size, num_tokens, mel_frames_per_token * mel_bins)` and logits of the sound labels."""
        tokens = self.encoder(waveform)
        return self.spectrum_head(tokens), self.sound_head(tokens)


class AudioSemanticLoss:
    """L1 between log-mel spectra, and cross-entropy of the sound labels."""

    def __init__(self, config: AudioSemanticConfig):
        self.config = config
        token_samples = round(config.chunk_duration / config.tokens_per_chunk * SAMPLING_RATE)
        self.hop_length = token_samples // config.mel_frames_per_token
        self.n_fft = 512
        self.filters = mel_filters(self.n_fft, config.mel_bins, SAMPLING_RATE)

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel spectra in the spans of the tokens, roughly of zero mean and unit deviation."""
        window = torch.hann_window(self.n_fft, device=waveform.device)
        padded = F.pad(waveform[:, 0], (0, self.hop_length))
        spectrum = torch.stft(padded, self.n_fft, self.hop_length, window=window, return_complex=True).abs()
        # each spectrum is centred half a hop late, in the middle of what it stands for
        mel = torch.log(self.filters.to(waveform) @ spectrum + 1e-2)
        frames = (mel[..., :-1] + mel[..., 1:])[..., : waveform.shape[-1] // self.hop_length] / 2
        per_token = frames.transpose(1, 2).unflatten(1, (-1, self.config.mel_frames_per_token)).flatten(2)
        return (per_token + 3) / 2

    def __call__(self, module: nn.Module, batch: dict, generator: torch.Generator, step: int) -> dict:
        spectra, logits = module(batch["waveform"])
        spectral = F.l1_loss(spectra, self.log_mel(batch["waveform"]))
        labels = batch["labels"]
        sound = F.binary_cross_entropy_with_logits(logits, labels) - F.binary_cross_entropy(labels, labels)
        return {"loss": spectral + self.config.sound_weight * sound, "spectral": spectral, "sound": sound}


def mel_filters(n_fft: int, mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """Triangular filters on the mel scale, shape `(mel_bins, n_fft // 2 + 1)`, each summing to one."""
    bins = (n_fft // 2 + 1, mel_bins)
    filters = mel_filter_bank(*bins, 0.0, sampling_rate / 2, sampling_rate, mel_scale="htk").T
    return torch.from_numpy(filters / np.maximum(filters.sum(1, keepdims=True), 1e-3)).float()


def export_audio_encoder(module: AudioSemanticTraining, config: AudioSemanticConfig) -> AudioSemanticEncoder:
    """The trained [`AudioSemanticEncoder`], with the statistics of its features on validation clips."""
    encoder = module.encoder.cpu().eval()
    tokens = []
    for index in range(config.statistics_clips):
        waveform = torch.from_numpy(render_audio(sample_scene(index, split="validation"), index))[None, None]
        encoded = encoder.encode(waveform, SAMPLING_RATE)
        tokens.append(encoded[:, : int(NUM_SAMPLES / SAMPLING_RATE / config.chunk_duration * config.tokens_per_chunk)])
    set_statistics(encoder, tokens)
    return encoder


def set_statistics(encoder: VideoSemanticEncoder | AudioSemanticEncoder, tokens: Iterable[torch.Tensor]) -> None:
    """Sets `feature_mean` and `feature_std` so that `tokens`, which the encoder gave, get mean 0 and deviation 1."""
    raw = torch.cat([t.flatten(0, 1) for t in tokens]).double() * encoder.feature_std + encoder.feature_mean
    encoder.feature_mean.copy_(raw.mean(dim=0))
    encoder.feature_std.copy_(raw.std(dim=0).clamp(min=1e-6))
