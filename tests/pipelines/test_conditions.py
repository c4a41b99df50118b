"""Conditions on the model's grid: frames and samples as the autoencoders take them, and known latents."""

import math

import numpy as np
import pytest
import torch

from baton_diffusers.pipelines.conditions import KnownLatents, model_frames, model_waveform
from baton_diffusers.pipelines.given import GivenAudio, GivenVideo

from ..tiny import FRAME_RATE, NUM_FRAMES, SAMPLING_RATE, SIZE, random_clip


FRAMES, WAVEFORM = random_clip()


# Frames and samples


def test_what_is_made_anew_is_not_looked_at():
    video = GivenVideo(FRAMES[None], FRAME_RATE, ((0, 1 / 8), (3 / 8, 5 / 8)))
    frames = model_frames(video, NUM_FRAMES, FRAME_RATE, SIZE, SIZE)
    expected = torch.from_numpy(FRAMES[[1, 1, 2, 2, 2, 5, 6, 7, 8]]).movedim(-1, 0)[None] / 127.5 - 1
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-6)
    audio = GivenAudio(WAVEFORM[None, None], SAMPLING_RATE, ((0.1, 0.2), (1.0, math.inf)))
    heard = model_waveform(audio, 4500, SAMPLING_RATE)[0].numpy()
    assert np.array_equal(heard[:400], WAVEFORM[:400]) and np.array_equal(heard[800:4000], WAVEFORM[800:4000])
    assert not heard[400:800].any() and not heard[4000:].any()


@pytest.mark.parametrize("rate", [5.0, 8.0, 12.0, 24.0])
def test_what_is_made_anew_is_not_looked_at_at_another_rate_either(rate):
    rng = np.random.default_rng(0)
    for first, end in ((0, 3), (4, 5), (6, 9)):
        other_frames, other_sound = FRAMES.copy(), WAVEFORM.copy()
        other_frames[first:end] = 255 - FRAMES[first:end]
        samples = slice(first * 500, end * 500)
        other_sound[samples] = rng.uniform(-1, 1, (end - first) * 500)
        new = ((first / rate, end / rate),)
        pair = [
            model_frames(GivenVideo(f[None], rate, new), NUM_FRAMES, 8.0, SIZE, SIZE) for f in (FRAMES, other_frames)
        ]
        assert torch.equal(*pair)
        sampling_rate = int(500 * rate)
        pair = [
            model_waveform(GivenAudio(w[None, None], sampling_rate, new), 3000, 4000) for w in (WAVEFORM, other_sound)
        ]
        assert torch.equal(*pair)


def test_beyond_the_end_the_picture_stands_and_the_sound_is_silent():
    frames = model_frames(GivenVideo(FRAMES[None, :6], FRAME_RATE), NUM_FRAMES, FRAME_RATE, SIZE, SIZE)
    assert torch.equal(frames[:, :, 6:], frames[:, :, 5:6].expand(-1, -1, 3, -1, -1))
    heard = model_waveform(GivenAudio(WAVEFORM[None, None], SAMPLING_RATE), 4608, SAMPLING_RATE)
    assert np.array_equal(heard[0, :4500], WAVEFORM) and not heard[0, 4500:].any()


def test_pictures_are_resized_without_aliasing():
    stripes = np.zeros((1, 1, 64, 64, 3), np.uint8)
    stripes[:, :, :, ::2] = 255  # finer than the smaller picture can show
    frames = model_frames(GivenVideo(stripes, FRAME_RATE), 1, FRAME_RATE, 16, 32)
    assert frames.shape == (1, 3, 1, 16, 32) and frames[..., 4:-4].abs().max() < 0.05
    frames = model_frames(GivenVideo(stripes / np.float32(255), FRAME_RATE), 1, FRAME_RATE, 16, 32)
    assert -1 <= frames.min() and frames.max() <= 1


def test_channels_are_averaged_and_rates_converted():
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(9000) / 8000).astype(np.float32)
    heard = model_waveform(GivenAudio(np.stack([tone, 0 * tone])[None], 8000), 4500, SAMPLING_RATE)[0]
    expected = 0.25 * np.sin(2 * np.pi * 200 * np.arange(4500) / 4000)
    assert np.abs(heard.numpy() - expected)[50:-50].max() < 1e-3


# Known latents


def test_known_latents_lie_at_timestep_0_and_stay():
    mask = torch.tensor([True, False, True])
    clean, noise, t = torch.ones(2, 4, 3, 2, 2), torch.full((2, 4, 3, 2, 2), 5.0), torch.tensor(750.0)
    known = KnownLatents.place(clean, mask, dim=2)
    assert known.keep(noise)[0, 0, :, 0, 0].tolist() == [1, 5, 1]
    assert known.without_velocity(noise)[1, 3, :, 1, 1].tolist() == [0, 5, 0]
    assert known.timestep(t).tolist() == [[0, 750, 0]] * 2
    nothing, everything = (KnownLatents.place(clean, m, dim=2) for m in (mask & False, mask | True))
    assert nothing.keep(noise) is noise and nothing.timestep(t).tolist() == [750, 750]
    assert torch.equal(everything.keep(noise), clean) and everything.timestep(t).tolist() == [0, 0]
