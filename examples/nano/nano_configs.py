"""Configurations of the trainings of nano's parts. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baton_diffusers.training.config import TrainerConfig


@dataclass
class AudioCodecConfig:
    """
    Objective of the audio autoencoder.

    Args:
        latent_noise: Standard deviation of the noise on the latents, themselves of unit variance.
        moments_weight: Weight of the latents' distance from zero mean and unit variance.
        log_variance_weight: Weight that keeps the posterior's log-variance at `2 * log(latent_noise)`.
        loud_weight: Weight of a mel cell that can be heard, added to the 1 that every cell has. Most of a clip is silence.
        loud_threshold: Log-mel magnitude from which a cell is taken to be heard.
        train_encoder: False keeps the encoder, and so the latents, as they are.
    """

    latent_noise: float = 0.1
    moments_weight: float = 0.1
    log_variance_weight: float = 0.01
    loud_weight: float = 4.0
    loud_threshold: float = -7.0
    train_encoder: bool = True


@dataclass
class VideoCodecConfig:
    """
    Objective of the video autoencoder.

    Args:
        latent_noise: Standard deviation of the noise on the latents, themselves of unit variance.
        moments_weight: Weight of the latents' distance from zero mean and unit variance.
        foreground_weight: Weight of a pixel of an actor, added to the 1 that every pixel has.
        motion_weight: Weight of a pixel that differs from the frame before or after, likewise.
        windows: Curriculum, `[first step, frames in a window, windows from each clip]` in the order of the steps. It has
            to end on whole clips: an autoencoder trained on short windows drifts on long ones.
        train_encoder: False keeps the encoder, and so the latents, as they are.
    """

    latent_noise: float = 0.15
    moments_weight: float = 0.1
    foreground_weight: float = 4.0
    motion_weight: float = 8.0
    windows: tuple[tuple[int, int, int], ...] = ((0, 1, 8), (1000, 9, 4), (2000, 49, 1))
    train_encoder: bool = True

    def __post_init__(self):
        steps = [start for start, _, _ in self.windows]
        if not steps or steps[0] != 0 or steps != sorted(steps):
            raise ValueError(f"`windows` must start at step 0 and be in the order of the steps, got {self.windows}.")
        for _, num_frames, _ in self.windows:
            if num_frames % 4 != 1:
                raise ValueError(f"A window has 1 + 4 * n frames, got {num_frames} in `windows`.")


@dataclass
class VocoderConfig:
    """
    Objective of the vocoder.

    Args:
        segment_frames: Mel frames of the segment that is cut from each clip.
        quiet_share: Share of the segments that may begin anywhere. The others begin where something is heard: most of a clip
            is silence.
        loud_threshold: Log-mel magnitude from which a frame is taken to be heard.
        decoded_share: Share of the clips whose spectrogram is the autoencoder's reconstruction, from latents with noise, as
            they are when a clip is generated. The others have the true one.
        latent_noise: Standard deviation of that noise.
        mel_floor: Magnitude that is added to every mel cell, given as its logarithm. `stft_floor` is added to the STFT's
            magnitudes. Both are some 55 dB below the loudest, so that softer sounds count as equal: otherwise the logarithms of
            inaudible sounds would outweigh the audible ones. With a lower bound in place of the sum, a tone that is still missing
            would have no gradient.
        heard_weight: Weight added to what stands out in the true sound: mel cells and bins of the STFT above three times the floor. A
            bell's partial is three bins of five hundred.
        fft_sizes: Lengths of the windows of the STFT loss, in samples; hops are a quarter.
        stft_weight: Weight of the STFT loss, beside 1 for the mel term.
    """

    segment_frames: int = 32
    quiet_share: float = 0.25
    loud_threshold: float = -7.0
    decoded_share: float = 0.5
    latent_noise: float = 0.1
    mel_floor: float = -5.0
    stft_floor: float = 0.3
    heard_weight: float = 0.0
    fft_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    stft_weight: float = 1.0

    def __post_init__(self):
        if self.segment_frames < 1:
            raise ValueError(f"`segment_frames` must be at least 1, got {self.segment_frames}.")


@dataclass(kw_only=True)
class _ModelTraining:
    trainer: TrainerConfig
    model: dict[str, Any]
    export: str  # folder of the trained model
    verb_shares: dict[str, float] | None = None
    initial: str | None = None  # folder of a model to start from


@dataclass(kw_only=True)
class AudioConfig(_ModelTraining):
    objective: AudioCodecConfig = field(default_factory=AudioCodecConfig)


@dataclass(kw_only=True)
class VideoConfig(_ModelTraining):
    objective: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    tier_weights: dict[str, float] | None = None


@dataclass(kw_only=True)
class SoundConfig(_ModelTraining):
    audio_vae: str  # folder of the autoencoder whose spectrograms it takes
    objective: VocoderConfig = field(default_factory=VocoderConfig)


@dataclass
class VideoSemanticConfig:
    """
    Training of nano's [`VideoSemanticEncoder`].

    Args:
        trainer: The run; a sample is one scene.
        tokenizer: Folder of the tokenizer that reads captions.
        output: Folder to which the encoder is saved.
        vision_config: SigLIP vision tower, all of its layers counted.
        text_config: SigLIP text tower, used in training only.
        video_grid: Rows and columns of tokens per keyframe.
        keyframe_rate: Keyframes per second.
        frames_per_scene: Frames drawn from each scene, every other one of them at an event.
        patch_weight: Weight of the read-out of every patch, beside the contrastive loss.
        statistics_clips: Validation clips over which the features' mean and deviation are taken.
    """

    trainer: TrainerConfig
    tokenizer: str
    output: str
    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    video_grid: tuple[int, int] = (4, 4)
    keyframe_rate: float = 6.0
    frames_per_scene: int = 4
    patch_weight: float = 50.0
    statistics_clips: int = 300


@dataclass
class AudioSemanticConfig:
    """
    Training of nano's [`AudioSemanticEncoder`].

    Args:
        trainer: The run; a sample is one chunk of a clip.
        output: Folder to which the encoder is saved.
        audio_config: EnCodec's configuration.
        tokens_per_chunk: Tokens per chunk.
        chunk_duration: Seconds per chunk.
        mel_bins: Bands of the spectrum that a token's read-out reconstructs.
        mel_frames_per_token: Spectra within one token's span.
        sound_weight: Weight of the read-out of sounds, beside the spectral loss.
        statistics_clips: Validation clips over which the features' mean and deviation are taken.
    """

    trainer: TrainerConfig
    output: str
    audio_config: dict[str, Any]
    tokens_per_chunk: int = 16
    chunk_duration: float = 1.0
    mel_bins: int = 40
    mel_frames_per_token: int = 4
    sound_weight: float = 30.0
    statistics_clips: int = 300
