"""Trains nano's autoencoders, and its semantic encoder of sound, on corrupted clips, while latents and tokens stay the same.

    python examples/nano/coded_clips.py runs/pool --clips 256          # real AAC and H.264 of Stage's clips
    python examples/nano/robust_codecs.py audio examples/nano/robust_audio.yaml [key=value ...]
    python examples/nano/robust_codecs.py video examples/nano/robust_video.yaml [key=value ...]
    python examples/nano/robust_codecs.py semantics examples/nano/robust_semantics.yaml [key=value ...]

Audio: only the encoder is trained. From corrupted sound (noise, AAC, other phases, nano's own output once and twice) it learns
to give the latents that the old encoder gives for the clean sound. Video: encoder and decoder learn together. They learn on
whole clips (H.264, scaling, nano's own output), whose latents stay the old encoder's, and on clips that begin anywhere, so that
a first frame may be in mid-motion. Semantics: from nano's own sound and from other corrupted sound, the encoder of plan tokens
learns to give the old encoder's tokens of the clean sound. Planner and transformer need no new training.
"""

from __future__ import annotations

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from autoencoders import VideoCodec, build_audio_vae, pad_waveform
from diffusers import AutoencoderKLWan, MMAudioVAE, MMAudioVocoder, ModelMixin
from torch import nn

from baton_diffusers.models.latents import to_video
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder
from baton_diffusers.models.wan_clip import decode_clip, encode_clip
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.stage.scene import SAMPLING_RATE
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.script import run_one_of
from baton_diffusers.training.trainer import Trainer


POOL_SEED = 977  # of the clips that `coded_clips.py` encodes


@dataclass
class RobustAudio:
    """
    Training of the audio encoder on corrupted sound.

    Args:
        trainer: The run.
        audio_vae: Folder of the autoencoder; its encoder is trained, and is the teacher as it was.
        vocoder: Folder of the vocoder, for nano's own output.
        export: Folder to which the autoencoder is saved.
        pool: Folder of coded clips (`coded_clips.py`); None leaves real AAC out.
        model: Arguments of a fresh `MMAudioVAE`, smaller than the teacher, that learns all from it; its decoder too.
        train_decoder: Whether the decoder learns as well, from the teacher's latents, which have noise as a generated clip's do.
        latent_weight: Weight of the distance of the latents, beside the decoder's error.
        latent_noise, loud_weight, loud_threshold: As in `AudioCodecConfig`.
        verb_shares: See `StageClips`.
    """

    trainer: TrainerConfig
    audio_vae: str
    vocoder: str
    export: str
    pool: str | None = None
    model: dict[str, Any] | None = None
    train_decoder: bool = False
    latent_weight: float = 10.0
    latent_noise: float = 0.1
    loud_weight: float = 6.0
    loud_threshold: float = -5.5
    verb_shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model is not None and not self.train_decoder:
            raise ValueError(
                "`model` is a fresh autoencoder, whose decoder has to learn: set `train_decoder` to true."
            )


@dataclass
class RobustVideo:
    """
    Training of the video autoencoder on corrupted pictures and on clips that begin anywhere.

    Args:
        trainer: The run.
        vae: Folder of the autoencoder, the teacher as it was.
        export: Folder to which it is saved.
        pool: Folder of coded clips (`coded_clips.py`); None leaves real H.264 out.
        latent_weight: Weight of the distance of whole clips' latents from the teacher's.
        latent_noise, foreground_weight, motion_weight: As in `VideoCodecConfig`.
        cut_share: Share of the steps' clips that begin anywhere.
        verb_shares: See `StageClips`.
    """

    trainer: TrainerConfig
    vae: str
    export: str
    pool: str | None = None
    latent_weight: float = 10.0
    latent_noise: float = 0.15
    foreground_weight: float = 4.0
    motion_weight: float = 8.0
    cut_share: float = 0.5
    verb_shares: dict[str, float] = field(default_factory=dict)


@dataclass
class RobustSemantics:
    """
    Training of the semantic encoder of sound on corrupted sound, above all on nano's own.

    Args:
        trainer: The run.
        audio_semantic_encoder: Folder of the encoder, the teacher as it was.
        audio_vae, vocoder: Folders, for nano's own output.
        export: Folder to which the encoder is saved.
        initial: Folder of an encoder that this training goes on from; None starts from the teacher.
        pool: Folder of coded clips (`coded_clips.py`); None leaves real AAC out.
        latent_noise: Of nano's own output, as a generated clip has it.
        verb_shares: See `StageClips`.
    """

    trainer: TrainerConfig
    audio_semantic_encoder: str
    audio_vae: str
    vocoder: str
    export: str
    initial: str | None = None
    pool: str | None = None
    latent_noise: float = 0.15
    verb_shares: dict[str, float] = field(default_factory=dict)


class CodedClips:
    """Stage's clips, some of them with what a real codec makes of them: `clips[index]` has also `coded` and `is_coded`.

    Args:
        clips: The stream.
        pool: Folder that `coded_clips.py` wrote, or None.
        key: "waveform" or "frames": what is trained.
        share: Share of the samples that come from the pool.
    """

    def __init__(self, clips: StageClips, pool: str | None, key: str, share: float = 0.3) -> None:
        self.clips, self.key, self.share = clips, key, share
        self.coded = None if pool is None else np.load(Path(pool) / f"{key}.npz")["coded"]
        self.indices = None if pool is None else np.load(Path(pool) / f"{key}.npz")["indices"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([index, 7])
        if self.coded is None or rng.random() >= self.share:
            sample = self.clips[index]
            return {**sample, "coded": sample[self.key], "is_coded": torch.tensor(False)}
        row = rng.integers(len(self.coded))
        sample = StageClips("train", POOL_SEED, foreground=self.clips.foreground, frames=self.clips.frames)[
            int(self.indices[row])
        ]
        coded = torch.from_numpy(self.coded[row])
        if self.key == "waveform":
            coded = coded.float() / 32767
        return {**sample, "coded": coded, "is_coded": torch.tensor(True)}


class RobustAudioCodec(nn.Module):
    """The trained form of an `MMAudioVAE`: `forward(waveform, latents)` gives the posterior's mean of the sound and the standardised
    log-mel spectrogram of the latents."""

    def __init__(self, vae: MMAudioVAE, train_decoder: bool) -> None:
        super().__init__()
        self.vae = vae
        vae.requires_grad_(False)
        vae.vae.encoder.requires_grad_(True)
        vae.vae.decoder.requires_grad_(train_decoder)

    def forward(
        self, waveform: torch.Tensor, latents: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        inner = self.vae.vae
        mean = inner.encoder(standardised_mel(self.vae, waveform)).chunk(2, dim=1)[0]
        return mean, None if latents is None else inner.decoder(latents)


def standardised_mel(vae: MMAudioVAE, waveform: torch.Tensor) -> torch.Tensor:
    return (vae.mel_converter(waveform) - vae.vae.data_mean) / vae.vae.data_std


class RobustAudioObjective:
    """The squared distance of the latents of corrupted sound from the teacher's latents of the clean sound, and, if the decoder
    learns, its error on the teacher's latents."""

    def __init__(self, config: RobustAudio, teacher: MMAudioVAE, vocoder: MMAudioVocoder) -> None:
        self.config = config
        self.teacher = teacher.eval().requires_grad_(False)
        self.vocoder = vocoder.eval().requires_grad_(False)

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        device = batch["waveform"].device
        self.teacher.to(device), self.vocoder.to(device)
        clean, coded = batch["waveform"], batch["coded"]

        def draw(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        with torch.no_grad():
            clean, coded = (pad_waveform(self.teacher, x) for x in placed(clean, coded, generator))
            target = encode(self.teacher, clean)
            kind = draw(len(clean), 1)
            own = self._own(target)
            twice = self._own(encode(self.teacher, own))
            heard = torch.where(kind < 0.2, own, torch.where(kind < 0.35, twice, coded))
            heard = torch.where((kind >= 0.35) & (kind < 0.5), other_phases(coded, generator), heard)
            level = 10 ** (-5 + 3.3 * draw(len(clean), 1))
            noisy = draw(len(clean), 1) < 0.5
            heard = heard + noisy * level * torch.randn(heard.shape, generator=generator, device=device)
        config, train_decoder = self.config, self.config.train_decoder
        noise = config.latent_noise * torch.randn(target.shape, generator=generator, device=device)
        mean, reconstruction = module(heard, target + noise if train_decoder else None)
        errors = (mean - target).square().mean(dim=(1, 2))
        plain = (kind[:, 0] >= 0.5) & ~noisy[:, 0] & ~batch["is_coded"]
        losses = {"latents": errors.mean(), "clean": (errors * plain).sum() / plain.sum().clamp(min=1)}
        if not train_decoder:
            return {"loss": losses["latents"], **losses}
        mel, inner = standardised_mel(self.teacher, clean), self.teacher.vae
        error = reconstruction - mel
        loud = mel * inner.data_std + inner.data_mean > config.loud_threshold
        weight = 1 + config.loud_weight * loud
        losses["mel"] = (weight / weight.mean() * (error.square() + error.abs())).mean()
        losses["loud"] = (error.abs() * inner.data_std * loud).sum() / loud.sum().clamp(min=1)  # nepers
        return {"loss": losses["mel"] + config.latent_weight * losses["latents"], **losses}

    def _own(self, latents: torch.Tensor) -> torch.Tensor:
        return own_sound(self.teacher, self.vocoder, latents)


def placed(clean: torch.Tensor, coded: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sounds that are louder or softer, begin later, and are cut in their middle, both alike: the target's changes too."""
    device = clean.device

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    gain = (10 ** ((draw(len(clean), 1) - 0.5) * 4 / 20)).where(draw(len(clean), 1) < 0.5, 1.0)
    shift = int(draw(1) * 512)
    clean, coded = (F.pad(x, (shift, 0))[:, : x.shape[1]] * gain for x in (clean, coded))
    start = (draw(len(clean), 1) * 0.6 * clean.shape[1]) * (draw(len(clean), 1) < 0.25)
    heard = torch.arange(clean.shape[1], device=device) >= start
    return clean * heard, coded * heard


def encode(vae: MMAudioVAE, waveform: torch.Tensor) -> torch.Tensor:
    """The posterior's mean of a sound."""
    return vae.vae.encoder(standardised_mel(vae, waveform)).chunk(2, dim=1)[0]


def own_sound(vae: MMAudioVAE, vocoder: MMAudioVocoder, latents: torch.Tensor) -> torch.Tensor:
    """What nano makes of the latents: decoded, and through the vocoder."""
    waveform = vocoder(vae.decode(latents, return_dict=False)[0], return_dict=False)[0]
    return waveform.reshape(len(latents), -1)


def other_phases(waveform: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same magnitudes with a phase that turns slowly over frequency, another one for each sound."""
    size = 512
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True)
    knots = torch.randn(len(waveform), 1, 12, generator=generator, device=waveform.device)
    phase = F.interpolate(2 * torch.pi * knots, size=spectrum.shape[1], mode="linear")[:, 0, :, None]
    return torch.istft(
        spectrum * torch.polar(torch.ones_like(phase), phase),
        size,
        size // 4,
        window=window,
        length=waveform.shape[1],
    )


class RobustSemanticsObjective:
    """The squared distance of the tokens of corrupted sound from the teacher's tokens of the clean sound. Of each batch, three eighths are
    nano's own sound, two have other phases, one went through AAC, and two are clean; half of all have noise."""

    def __init__(
        self, config: RobustSemantics, teacher: AudioSemanticEncoder, vae: MMAudioVAE, vocoder: MMAudioVocoder
    ) -> None:
        self.config = config
        self.teacher, self.vae, self.vocoder = (part.eval().requires_grad_(False) for part in (teacher, vae, vocoder))

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        device = batch["waveform"].device
        for part in (self.teacher, self.vae, self.vocoder):
            part.to(device)
        with torch.no_grad():
            clean, coded = placed(batch["waveform"], batch["coded"], generator)
            target = self._tokens(self.teacher, clean)
            own, phases, aac = (round(len(clean) * share) for share in (3 / 8, 5 / 8, 6 / 8))
            latents = encode(self.vae, pad_waveform(self.vae, clean[:own]))
            noise = torch.randn(latents.shape, generator=generator, device=device)
            made = own_sound(self.vae, self.vocoder, latents + self.config.latent_noise * noise)[:, : clean.shape[1]]
            made = F.pad(made, (0, clean.shape[1] - made.shape[1]))
            heard = torch.cat([made, other_phases(clean[own:phases], generator), coded[phases:aac], clean[aac:]])
            level = 10 ** (-5 + 2.5 * torch.rand(len(heard), 1, generator=generator, device=device))
            noisy = torch.rand(len(heard), 1, generator=generator, device=device) < 0.5
            heard = heard + noisy * level * torch.randn(heard.shape, generator=generator, device=device)
        errors = (self._tokens(module, heard) - target).square().mean(dim=(1, 2))
        return {"loss": errors.mean(), "own": errors[:own].mean(), "clean": errors[aac:].mean()}

    @staticmethod
    def _tokens(encoder: nn.Module, waveform: torch.Tensor) -> torch.Tensor:
        """Tokens of whole seconds, `(batch_size, num_tokens, audio_dim)`."""
        return encoder(F.pad(waveform, (0, -waveform.shape[1] % SAMPLING_RATE))[:, None])


class RobustVideoObjective:
    """
    Whole clips, corrupted: the error of the reconstruction, and the distance of the latents from the teacher's of the clean clip.
    Clips that begin anywhere: the error of the reconstruction alone.
    """

    def __init__(self, config: RobustVideo, vae: AutoencoderKLWan) -> None:
        self.config = config
        self.teacher = copy.deepcopy(vae).eval().requires_grad_(False)

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        config, device = self.config, batch["frames"].device
        self.teacher.to(device)
        video, coded = to_video(batch["frames"]), to_video(batch["coded"])
        changes = (video[:, :, 1:] != video[:, :, :-1]).any(dim=1)
        moving = F.pad(changes, (0, 0, 0, 0, 1, 0)) | F.pad(changes, (0, 0, 0, 0, 0, 1))
        weight = (1 + config.foreground_weight * batch["foreground"] + config.motion_weight * moving)[:, None]
        foreground = batch["foreground"][:, None].float()
        num_cut = round(config.cut_share * len(video))
        with torch.no_grad():
            target = encode_clip(self.teacher, video).chunk(2, dim=1)[0]
            seen = self._corrupted(video, coded, target, generator)

        start, end = self._cut(video.shape[2], generator)
        losses = {}
        for name, rows, frames in (
            ("whole", slice(num_cut, None), slice(None)),
            ("cut", slice(num_cut), slice(start, end)),
        ):
            if len(video[rows]) == 0:
                continue
            shape = list(target[rows].shape)
            shape[2] = (len(range(*frames.indices(video.shape[2]))) + 3) // 4
            noise = config.latent_noise * torch.randn(shape, generator=generator, device=device)
            reconstruction, mean = module(seen[rows, :, frames], noise)
            scale = weight[rows, :, frames].clone()
            scale[:, :, 0] *= 4  # the first latent frame holds one frame, the others four
            error = reconstruction - video[rows, :, frames]
            actors = foreground[rows, :, frames]
            losses[name] = (scale / scale.mean() * (error.square() + error.abs())).mean()
            losses[f"{name}_actors"] = (error.square().mean(dim=1, keepdim=True) * actors).sum() / actors.sum().clamp(
                min=1
            )
            if name == "whole":
                losses["latents"] = (mean - target[rows]).square().mean()
        loss = losses["whole"] + losses.get("cut", 0.0) + config.latent_weight * losses["latents"]
        return {"loss": loss, **losses}

    @staticmethod
    def _cut(num_frames: int, generator: torch.Generator) -> tuple[int, int]:
        """The frames of a clip that begins anywhere: 1 + 4 * n of them."""
        start = int(torch.randint(1, num_frames - 8, (), generator=generator, device=generator.device))
        length = 1 + 4 * ((num_frames - start - 1) // 4)
        return start, start + length

    def _corrupted(
        self, video: torch.Tensor, coded: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        device = video.device

        def draw() -> torch.Tensor:
            return torch.rand(len(video), 1, 1, 1, 1, generator=generator, device=device)

        noise = torch.randn(latents.shape, generator=generator, device=device)
        own = decode_clip(self.teacher, latents + 0.3 * draw() * noise).clamp(-1, 1)
        frames = coded.transpose(1, 2).flatten(0, 1)
        size = int(torch.randint(36, 150, (), generator=generator, device=device))
        scaled = F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        scaled = F.interpolate(scaled, size=frames.shape[2:], mode="bicubic", antialias=True, align_corners=False)
        scaled = scaled.unflatten(0, (len(video), -1)).transpose(1, 2).clamp(-1, 1)
        kind = draw()
        seen = torch.where(kind < 0.2, own, torch.where(kind < 0.4, scaled, coded))
        grain = torch.randn(seen.shape, generator=generator, device=device)
        seen = seen + 0.06 * draw() * (draw() < 0.3) * grain
        return (((seen.clamp(-1, 1) + 1) * 127.5).round() / 127.5) - 1


def train_audio(config: RobustAudio) -> None:
    teacher = MMAudioVAE.from_pretrained(config.audio_vae)
    vocoder = MMAudioVocoder.from_pretrained(config.vocoder)
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    if config.model is None:
        vae = copy.deepcopy(teacher)
    else:
        waveforms = torch.stack([clips[10**9 + i]["waveform"] for i in range(16)])
        log_mels = teacher.mel_converter(pad_waveform(teacher, waveforms))
        vae = build_audio_vae(log_mels, config.latent_noise, **config.model)
        vae.vae.data_mean.copy_(teacher.vae.data_mean)
        vae.vae.data_std.copy_(teacher.vae.data_std)
    dataset = CodedClips(clips, config.pool, "waveform")
    objective = RobustAudioObjective(config, teacher, vocoder)
    module = RobustAudioCodec(vae, config.train_decoder)
    trainer = Trainer(config.trainer, module, objective, dataset, settings=config)
    save(trainer.fit().vae, config.export)


def train_video(config: RobustVideo) -> None:
    vae = AutoencoderKLWan.from_pretrained(config.vae)
    clips = StageClips("train", config.trainer.seed, foreground=True, verb_shares=config.verb_shares)
    dataset = CodedClips(clips, config.pool, "frames")
    objective = RobustVideoObjective(config, vae)
    trainer = Trainer(config.trainer, VideoCodec(vae), objective, dataset, settings=config)
    save(trainer.fit().vae, config.export)


def train_semantics(config: RobustSemantics) -> None:
    teacher = AudioSemanticEncoder.from_pretrained(config.audio_semantic_encoder)
    encoder = copy.deepcopy(teacher)
    if config.initial is not None:
        encoder = AudioSemanticEncoder.from_pretrained(config.initial)
    vae, vocoder = MMAudioVAE.from_pretrained(config.audio_vae), MMAudioVocoder.from_pretrained(config.vocoder)
    clips = StageClips("train", config.trainer.seed, verb_shares=config.verb_shares, frames=False)
    dataset = CodedClips(clips, config.pool, "waveform")
    objective = RobustSemanticsObjective(config, teacher, vae, vocoder)
    trainer = Trainer(config.trainer, encoder, objective, dataset, settings=config)
    save(trainer.fit(), config.export)


def save(model: ModelMixin, folder: str) -> None:
    """Saves a model without the trace of the folder that it was started from."""
    model.register_to_config(_name_or_path="")
    model.save_pretrained(folder)


if __name__ == "__main__":
    run_one_of(
        {
            "audio": (train_audio, RobustAudio),
            "video": (train_video, RobustVideo),
            "semantics": (train_semantics, RobustSemantics),
        },
        __doc__,
    )
