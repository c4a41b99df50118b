"""Objective of the vocoder, diffusers' `MMAudioVocoder` (BigVGAN), on the spectrograms of a trained `MMAudioVAE`.

It is trained without a discriminator (ours): the mel term of BigVGAN's generator (Lee et al. 2023, arXiv:2206.04658) and the
multi-resolution STFT loss (Yamamoto et al. 2020, arXiv:1910.11480). Stage's sounds are few, and a regression hits them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from autoencoders import pad_waveform
from diffusers import MMAudioVAE, MMAudioVocoder
from nano_configs import VocoderConfig
from torch import nn


def build_vocoder(log_mels: torch.Tensor, **config: Any) -> MMAudioVocoder:
    """
    An `MMAudioVocoder` ready to be trained: its first convolution begins as if it were given spectrograms of zero mean and unit
    deviation. The class does not normalise them, and where all is silent they are far from zero.

    Args:
        log_mels: `(num_clips, mel_bins, num_mel_frames)`, from which the mean and deviation of each mel bin are taken.
        config: Arguments of `MMAudioVocoder`.
    """
    vocoder = MMAudioVocoder(**config)
    with torch.no_grad():
        first = vocoder.conv_pre
        first.weight /= log_mels.std(dim=(0, 2))[None, :, None]
        first.bias -= (first.weight * log_mels.mean(dim=(0, 2))[None, :, None]).sum(dim=(1, 2))
    return vocoder


def check_vocoder(vocoder: MMAudioVocoder, audio_vae: MMAudioVAE) -> None:
    """
    Raises:
        ValueError: If `vocoder` does not take the spectrograms of `audio_vae`: as many mel bins, as many samples for a frame.
    """
    samples_per_frame = 1
    for rate in vocoder.config.upsample_rates:
        samples_per_frame *= rate
    theirs = {"mel_bins": vocoder.config.num_mels, "hop_length": samples_per_frame}
    for name, value in theirs.items():
        if audio_vae.config[name] != value:
            raise ValueError(
                f"The audio autoencoder has `{name}` {audio_vae.config[name]}, but the vocoder takes {value}: change "
                f"`{'num_mels' if name == 'mel_bins' else 'upsample_rates'}` of the vocoder."
            )


class VocoderObjective:
    """
    The loss of an `MMAudioVocoder` on batches with a `waveform` `(batch_size, num_samples)`: distance of log-mel spectrograms,
    and of magnitudes at several resolutions, between a segment and what the vocoder makes of its spectrogram.

    Args:
        config: Objective.
        audio_vae: Trained autoencoder, which gives the spectrograms; it is left as it is.
    """

    def __init__(self, config: VocoderConfig, audio_vae: MMAudioVAE):
        self.config = config
        self.audio_vae = audio_vae.requires_grad_(False).eval()

    def to(self, device: torch.device) -> None:
        """Moves the autoencoder to where the vocoder is trained."""
        self.audio_vae.to(device)

    def __call__(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator, step: int
    ) -> dict[str, torch.Tensor]:
        config = self.config
        vae = self.audio_vae
        waveform = pad_waveform(vae, batch["waveform"])
        true, given = self.spectrograms(vae, waveform, generator)
        frames = self.segments(true, generator)
        clips = torch.arange(len(waveform), device=waveform.device)[:, None]
        given = given.transpose(1, 2)[clips, frames].transpose(1, 2)
        target = waveform.unflatten(1, (-1, vae.config.hop_length))[clips, frames].flatten(1)

        output = module(given, return_dict=False)[0].squeeze(1).float()
        floor = torch.tensor(config.mel_floor, device=output.device)
        ours, theirs = (torch.logaddexp(vae.mel_converter(x), floor) for x in (output, target))
        mel = _mean_error(ours, theirs, floor, config.heard_weight)
        convergence, magnitude = stft_loss(output, target, config.fft_sizes, config.stft_floor, config.heard_weight)
        loss = mel + config.stft_weight * (convergence + magnitude)
        return {"loss": loss, "mel": mel, "convergence": convergence, "magnitude": magnitude}

    @torch.no_grad()
    def spectrograms(
        self, vae: MMAudioVAE, waveform: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The true log-mel spectrograms `(batch_size, mel_bins, num_frames)`, and those that the vocoder is given."""
        true = vae.mel_converter(waveform)
        mean = vae.vae.encode(true)[:, : vae.config.latent_channels]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = vae.vae.decode(mean + self.config.latent_noise * noise)
        chosen = torch.rand(len(true), generator=generator, device=true.device) < self.config.decoded_share
        return true, torch.where(chosen[:, None, None], decoded, true)

    def segments(self, mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Indices of the mel frames of each clip's segment, `(batch_size, segment_frames)`."""
        config = self.config
        length = min(config.segment_frames, mel.shape[2])
        heard = (mel.amax(dim=1) > config.loud_threshold).float()
        # A start counts if something is heard in the segment's first half: an onset has its beginning before it.
        after = F.max_pool1d(F.pad(heard, (0, length)), max(length // 2, 1), stride=1)[:, : mel.shape[2] - length + 1]
        share = after / after.sum(dim=1, keepdim=True).clamp(min=1)
        share = (1 - config.quiet_share) * share + config.quiet_share / after.shape[1] + 1e-6
        starts = torch.multinomial(share, 1, generator=generator)
        return starts + torch.arange(length, device=mel.device)


def _mean_error(ours: torch.Tensor, theirs: torch.Tensor, floor: torch.Tensor, heard_weight: float) -> torch.Tensor:
    """The mean distance of logarithms of magnitudes to which `exp(floor)` was added, with more weight on what is heard."""
    weight = 1 + heard_weight * (theirs > floor + math.log(4))
    return (weight * (ours - theirs).abs()).sum() / weight.sum()


def stft_loss(
    output: torch.Tensor, target: torch.Tensor, fft_sizes: tuple[int, ...], floor: float, heard_weight: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The multi-resolution STFT loss of arXiv:1910.11480, equations 4 to 6: spectral convergence, and the distance of the
    logarithms of magnitudes, each the mean over resolutions.

    Args:
        output: Waveform of the vocoder, `(batch_size, num_samples)`.
        target: True waveform, likewise.
        fft_sizes: Lengths of the windows in samples; those longer than the segment are left out.
        floor: Magnitude that is added to all, so that those below it count as equal (ours).
        heard_weight: Weight added to the true magnitudes above three times the floor (ours).

    Raises:
        ValueError: If all windows are longer than the segment.
    """
    fft_sizes = tuple(size for size in fft_sizes if size <= output.shape[1])
    if not fft_sizes:
        raise ValueError(f"Every window of `fft_sizes` is longer than the segment of {output.shape[1]} samples.")
    convergences, magnitudes = [], []
    for size in fft_sizes:
        window = torch.hann_window(size, device=output.device)
        ours, theirs = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs() + floor for x in (output, target)
        )
        # Over the whole batch: a silent segment has no energy to be measured by.
        convergences.append((theirs - ours).norm() / theirs.norm())
        magnitudes.append(_mean_error(ours.log(), theirs.log(), torch.tensor(floor).log().to(ours), heard_weight))
    return torch.stack(convergences).mean(), torch.stack(magnitudes).mean()
