"""The codecs' objectives: latents, and that they learn."""

import math

import pytest
import torch
from autoencoders import (
    AudioCodec,
    AudioCodecObjective,
    VideoCodec,
    VideoCodecObjective,
    build_audio_vae,
    build_video_vae,
    latent_statistics,
    moments_loss,
    pad_waveform,
)
from nano_configs import AudioCodecConfig, VideoCodecConfig
from torch.utils.data import default_collate

from baton_diffusers.models.wan_clip import encode_clip
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.config import TrainerConfig
from baton_diffusers.training.trainer import Trainer
from tests.stage_parts import VIDEO_VAE


AUDIO = {
    "mel_bins": 16,
    "latent_channels": 4,
    "hidden_channels": 16,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "sample_rate": 16000,
    "n_fft": 1024,
    "hop_length": 256,
    "scaling_factor": 1.0,
}


@torch.no_grad()
def test_built_video_autoencoder_sees_single_frames_and_has_a_fixed_posterior():
    torch.manual_seed(0)
    vae = build_video_vae(0.1, **VIDEO_VAE)
    frame = torch.rand(1, 3, 1, 32, 32)
    posterior = vae.encode(frame.expand(-1, -1, 9, -1, -1)).latent_dist
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.1))
    assert len(vae.config.latents_mean) == len(vae.config.latents_std) == VIDEO_VAE["z_dim"]
    assert encode_clip(vae, frame).shape == (1, 12, 1, 2, 2)


@torch.no_grad()
def test_built_audio_autoencoder_keeps_magnitudes():
    torch.manual_seed(0)
    log_mels = torch.randn(8, 16, 192) * 3 - 9
    vae = build_audio_vae(log_mels, 0.1, **AUDIO)
    codec = AudioCodec(vae)
    waveform = pad_waveform(vae, torch.randn(8, 49000) * 0.1)
    assert waveform.shape == (8, 49152)
    mel, reconstruction, mean, log_variance = codec(waveform, torch.zeros(8, 4, 96))
    assert mel.shape == reconstruction.shape == (8, 16, 192)
    assert 0.3 < mean.std() < 3
    assert abs(log_variance.mean() - 2 * math.log(0.1)) < 1.5
    torch.testing.assert_close(vae.vae.data_mean.flatten(), log_mels.mean(dim=(0, 2)))


def test_moments_of_latents():
    latents = torch.randn(64, 3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 0.5])[:, None]
    latents[:, 1] += 3
    mean, std = latent_statistics(latents.split(16))
    assert mean == pytest.approx([0, 3, 0], abs=0.1) and std == pytest.approx([1, 2, 0.5], rel=0.05)
    expected = (0 + 9 + 0) / 3 + (0 + 1 + 0.25) / 3
    assert moments_loss(latents).item() == pytest.approx(expected, rel=0.05)


def train(tmp_path, codec, objective, dataset, **kwargs):
    settings = {"steps": 40, "batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 5, "ema_decay": None} | kwargs
    trainer = Trainer(TrainerConfig(run_dir=str(tmp_path), **settings), codec, objective, dataset)
    batch = default_collate([dataset[10**6 + index] for index in range(4)])
    losses = []
    for _ in range(2):
        with torch.no_grad():
            losses.append(objective(codec, batch, torch.Generator().manual_seed(0), 0))
        trainer.fit()
    return losses


def test_video_codec_learns_through_its_curriculum(tmp_path):
    torch.manual_seed(0)
    vae = build_video_vae(0.1, **VIDEO_VAE)
    config = VideoCodecConfig(latent_noise=0.1, windows=((0, 1, 4), (30, 9, 1)))
    before, after = train(tmp_path, VideoCodec(vae), VideoCodecObjective(config, vae), StageClips(foreground=True))
    assert after["squared"] < 0.5 * before["squared"]
    assert after["foreground_squared"] < 0.8 * before["foreground_squared"]


def test_decoder_alone_leaves_the_latents(tmp_path):
    torch.manual_seed(0)
    vae = build_video_vae(0.1, **VIDEO_VAE)
    encoder = {name: value.clone() for name, value in vae.state_dict().items() if name.startswith(("enc", "quant"))}
    config = VideoCodecConfig(windows=((0, 5, 1),), train_encoder=False)
    codec = VideoCodec(vae, config.train_encoder)
    before, after = train(
        tmp_path, codec, VideoCodecObjective(config, vae), StageClips(foreground=True), steps=10, weight_decay=0.1
    )
    assert after["loss"] < before["loss"]
    for name, value in encoder.items():
        torch.testing.assert_close(vae.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("windows", [(), ((5, 1, 1),), ((0, 1, 1), (20, 9, 1), (10, 17, 1)), ((0, 8, 1),)])
def test_wrong_curricula_are_refused(windows):
    with pytest.raises(ValueError, match="windows"):
        VideoCodecConfig(windows=windows)


def audio_vae_for(clips):
    torch.manual_seed(0)
    probe = build_audio_vae(torch.randn(1, 16, 8), 0.1, **AUDIO)
    waveforms = default_collate([clips[index]["waveform"] for index in range(8)])
    return build_audio_vae(probe.mel_converter(pad_waveform(probe, waveforms)), 0.1, **AUDIO)


def test_audio_codec_learns(tmp_path):
    clips = StageClips()
    vae = audio_vae_for(clips)
    config = AudioCodecConfig()
    before, after = train(tmp_path, AudioCodec(vae), AudioCodecObjective(config, vae), clips)
    assert after["mel_squared"] < 0.6 * before["mel_squared"]
    assert after["log_variance"] < before["log_variance"] + 0.1


def test_audio_decoder_alone_leaves_the_latents(tmp_path):
    clips = StageClips(verb_shares={"bounce": 0.5})
    vae = audio_vae_for(clips)
    encoder = {name: value.clone() for name, value in vae.vae.encoder.state_dict().items()}
    config = AudioCodecConfig(train_encoder=False)
    codec = AudioCodec(vae, config.train_encoder)
    before, after = train(tmp_path, codec, AudioCodecObjective(config, vae), clips, steps=10, weight_decay=0.1)
    assert after["loss"] < before["loss"]
    for name, value in encoder.items():
        torch.testing.assert_close(vae.vae.encoder.state_dict()[name], value, rtol=0, atol=0)
