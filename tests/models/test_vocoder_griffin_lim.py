"""The vocoder without weights: what it inverts, how precisely, and how it is saved."""

import math
from itertools import islice

import pytest
import torch
from diffusers import MMAudioVAE

from baton_diffusers.models.vocoder_griffin_lim import GriffinLimVocoder
from baton_diffusers.stage import render_audio, sample_scene


@pytest.fixture(scope="module")
def mel_converter():
    return MMAudioVAE(
        mel_bins=64, hidden_channels=8, channel_multipliers=(1, 2), sample_rate=16000, n_fft=1024, hop_length=256
    ).mel_converter


def sounds():
    """The first 1.024 seconds of three of Stage's clips that are heard by then."""
    waveforms = (torch.from_numpy(render_audio(sample_scene(seed), seed)[:16384]) for seed in range(100))
    return torch.stack(list(islice((waveform for waveform in waveforms if waveform.square().mean() > 1e-3), 3)))


def test_the_spectrogram_of_the_waveform_is_the_spectrogram(mel_converter):
    mel = mel_converter(sounds())
    waveform = GriffinLimVocoder()(mel).sample
    assert waveform.shape == (3, 1, 16384) and waveform.abs().max() <= 1
    error = mel_converter(waveform[:, 0]).exp() - mel.exp()
    relative = error.flatten(1).norm(dim=1) / mel.exp().flatten(1).norm(dim=1)
    assert (relative < 0.2).all(), relative


def test_momentum_and_iterations_help(mel_converter):
    mel = mel_converter(sounds())

    def error(**kwargs):
        return (mel_converter(GriffinLimVocoder(**kwargs)(mel).sample[:, 0]).exp() - mel.exp()).norm()

    fast = error(num_iterations=32)
    assert fast < error(num_iterations=32, momentum=0.0) < error(num_iterations=2, momentum=0.0)


def test_onsets_stay_in_place(mel_converter):
    waveform = torch.zeros(1, 16384)
    waveform[0, 8000:8800] = torch.sin(2 * math.pi * 700 * torch.arange(800) / 16000)
    envelope = GriffinLimVocoder()(mel_converter(waveform)).sample[0, 0].abs()
    loud = (envelope > 0.3 * envelope.max()).nonzero()
    assert abs(loud.min() - 8000) < 320 and abs(loud.max() - 8800) < 320  # 20 ms


def test_silence_is_silent():
    mel = torch.full((1, 64, 32), math.log(1e-5))
    assert GriffinLimVocoder()(mel).sample.abs().max() < 1e-3


def test_is_deterministic_and_independent_of_the_batch(mel_converter):
    mel = mel_converter(sounds())
    vocoder = GriffinLimVocoder(num_iterations=8)
    together = vocoder(mel).sample
    assert torch.equal(together, vocoder(mel, return_dict=False)[0])
    assert (together[:1] - vocoder(mel[:1]).sample).norm() < 0.01 * together[:1].norm()


def test_works_in_float32_whatever_the_dtype(mel_converter):
    mel = mel_converter(sounds())
    vocoder = GriffinLimVocoder(num_iterations=8).to(torch.bfloat16)
    waveform = vocoder(mel.to(torch.bfloat16)).sample
    assert vocoder.dtype == waveform.dtype == torch.bfloat16 and waveform.isfinite().all()


def test_save_and_load(tmp_path, mel_converter):
    vocoder = GriffinLimVocoder(num_iterations=4, momentum=0.5)
    vocoder.save_pretrained(tmp_path)
    loaded = GriffinLimVocoder.from_pretrained(tmp_path)
    assert loaded.config.num_iterations == 4 and loaded.config.momentum == 0.5
    assert loaded.device == torch.device("cpu") and loaded.dtype == torch.float32
    mel = mel_converter(sounds())
    assert torch.equal(loaded(mel).sample, vocoder(mel).sample)
    half = GriffinLimVocoder.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.dtype == torch.float32, "the filters stay precise in a pipeline loaded in half precision"
    assert torch.equal(half(mel).sample, vocoder(mel).sample)


def test_refuses_what_it_cannot_invert():
    with pytest.raises(ValueError, match="multiple of `hop_length`"):
        GriffinLimVocoder(n_fft=1000, hop_length=256)
    with pytest.raises(ValueError, match="at least 1"):
        GriffinLimVocoder(num_iterations=0)
    with pytest.raises(ValueError, match="64, num_mel_frames"):
        GriffinLimVocoder()(torch.zeros(1, 80, 10))
