"""The vocoder's objective: what it is given, where segments lie, the STFT loss written out, and that it learns."""

import pytest
import torch
from autoencoders import pad_waveform
from diffusers import MMAudioVocoder
from torch.utils.data import default_collate
from vocoder import VocoderConfig, VocoderObjective, build_vocoder, check_vocoder, stft_loss

from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.trainer import Trainer
from tests import stage_parts


SMALL = {
    "num_mels": 16,
    "upsample_initial_channel": 32,
    "upsample_rates": (16, 16),
    "upsample_kernel_sizes": (32, 32),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1,),),
}


def make_vocoder(**kwargs):
    torch.manual_seed(0)
    return MMAudioVocoder(**SMALL | kwargs)


def make_objective(**kwargs):
    return VocoderObjective(VocoderConfig(**kwargs), stage_parts.codecs()[1])


def test_it_learns_and_leaves_the_autoencoder(tmp_path):
    objective = make_objective(segment_frames=16)
    weights = {name: value.clone() for name, value in objective.audio_vae.state_dict().items()}
    vocoder, clips = make_vocoder(), StageClips()
    batch = default_collate([clips[10**6 + index] for index in range(4)])
    settings = TrainerConfig(
        run_dir=str(tmp_path), steps=80, batch_size=2, learning_rate=3e-3, warmup_steps=5, ema_decay=None
    )
    trainer = Trainer(settings, vocoder, objective, clips)
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(objective(vocoder, batch, torch.Generator().manual_seed(0), 0))
        trainer.fit()
    before, after = losses
    assert after["mel"] < 0.6 * before["mel"] and after["magnitude"] < 0.7 * before["magnitude"]
    assert all(torch.equal(value, weights[name]) for name, value in objective.audio_vae.state_dict().items())


def test_the_first_convolution_begins_as_if_spectrograms_were_normalised():
    log_mels = 2 * torch.randn(3, 16, 50, generator=torch.Generator().manual_seed(0)) - 10 + torch.arange(16)[:, None]
    plain = make_vocoder()
    torch.manual_seed(0)  # the weights of `make_vocoder`
    ours = build_vocoder(log_mels, **SMALL)
    mean, std = (x[None, :, None] for x in (log_mels.mean(dim=(0, 2)), log_mels.std(dim=(0, 2))))
    # Inside: at the ends the convolution is padded with zeros, which do not mean silence in either form.
    inside = slice(3, -3)
    torch.testing.assert_close(
        ours.conv_pre(log_mels)[..., inside],
        plain.conv_pre((log_mels - mean) / std)[..., inside],
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_is_given_true_and_decoded_spectrograms(share):
    objective = make_objective(decoded_share=share, latent_noise=0.0)
    vae = objective.audio_vae
    waveform = pad_waveform(vae, torch.stack([StageClips()[index]["waveform"] for index in range(12)]))
    true, given = objective.spectrograms(vae, waveform, torch.Generator().manual_seed(0))
    decoded = vae.decode(vae.encode(waveform).latent_dist.mean).sample
    is_true = (given == true).flatten(1).all(dim=1)
    torch.testing.assert_close(given[~is_true], decoded[~is_true])
    assert is_true.float().mean() == pytest.approx(1 - share, abs=0.35 if share == 0.5 else 0)


def test_segments_begin_shortly_before_what_is_heard():
    objective = make_objective(segment_frames=8, quiet_share=0.0)
    mel = torch.full((2, 16, 40), -11.0)
    mel[0, 3, 20] = mel[1, 5, 39] = -2.0
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([objective.segments(mel, generator)[:, 0] for _ in range(200)])
    assert starts[:, 0].unique().tolist() == [17, 18, 19, 20]
    # The last segment of the second clip reaches its end; what is heard there is in its second half.
    segments = objective.segments(mel, generator)
    assert segments.shape == (2, 8) and segments.max() < 40
    assert (segments.diff(dim=1) == 1).all()
    anywhere = make_objective(segment_frames=8, quiet_share=1.0)
    starts = torch.stack([anywhere.segments(mel, generator)[:, 0] for _ in range(400)])
    assert starts[:, 0].min() < 3 and starts[:, 0].max() > 29


def test_a_clip_shorter_than_a_segment_is_taken_whole():
    objective = make_objective(segment_frames=64)
    assert objective.segments(torch.zeros(1, 16, 10), torch.Generator()).tolist() == [list(range(10))]


def test_stft_loss_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 3, 2048, generator=generator)
    convergences, magnitudes = [], []
    for size in (256, 512):
        ours, theirs = (
            torch.stft(x, size, size // 4, window=torch.hann_window(size), return_complex=True).abs()
            for x in (output, target)
        )
        convergences.append(torch.sqrt(((theirs - ours) ** 2).sum()) / torch.sqrt((theirs**2).sum()))
        magnitudes.append((torch.log(theirs) - torch.log(ours)).abs().mean())
    convergence, magnitude = stft_loss(output, target, (256, 512, 4096), 1e-3)  # the last is longer than the segment
    torch.testing.assert_close(convergence, sum(convergences) / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(magnitude, sum(magnitudes) / 2, atol=2e-3, rtol=0)  # but for the 1e-3 that is added
    assert stft_loss(target, target, (256,), 1e-3) == (0, 0)
    with pytest.raises(ValueError, match="longer than the segment of 2048 samples"):
        stft_loss(output, target, (4096,), 1e-3)


def test_a_tone_that_is_missing_is_asked_for():
    time = torch.arange(4096) / 16000
    target = 0.5 * torch.sin(2 * torch.pi * 2000 * time)[None]
    output = (1e-5 * torch.sin(2 * torch.pi * 2000 * time)[None]).requires_grad_()  # far below the floor
    for loss in stft_loss(output, target, (1024,), 0.3):
        (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
        assert (gradient * target).sum() < 0  # it grows


def test_a_partial_of_a_few_bins_counts_as_much_as_the_rest():
    time = torch.arange(4096) / 16000
    tone, partial = (torch.sin(2 * torch.pi * frequency * time)[None] for frequency in (1000, 4900))
    target = 0.5 * tone + 0.2 * partial
    lacks, noisy = 0.5 * tone, target + 1e-3 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    worse = []
    for weight in (0.0, 50.0):
        worse.append([stft_loss(output, target, (1024,), 0.3, weight)[1] for output in (lacks, noisy)])
    assert worse[1][0] / worse[1][1] > 3 * worse[0][0] / worse[0][1]


def test_silence_gives_finite_gradients():
    vocoder, objective = make_vocoder(), make_objective(segment_frames=16)
    loss = objective(vocoder, {"waveform": torch.zeros(2, 49000)}, torch.Generator().manual_seed(0), 0)["loss"]
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in vocoder.parameters())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_mels": 80}, "`mel_bins` 16, but the vocoder takes 80: change `num_mels`"),
        (
            {"upsample_rates": (16, 8), "upsample_kernel_sizes": (32, 16)},
            "`hop_length` 256, but the vocoder takes 128",
        ),
    ],
)
def test_a_vocoder_of_other_spectrograms_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_vocoder(make_vocoder(**kwargs), stage_parts.codecs()[1])
