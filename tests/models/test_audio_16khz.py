import torch

from baton_diffusers.models.audio_16khz import MMAudioVAE16kHz, MMAudioVocoder16kHz


def test_the_published_sizes_are_the_defaults():
    # MMAudio's: 31.25 latents per second of 20 channels, 80 mel bins; a vocoder of 112 million parameters.
    with torch.device("meta"):
        vae, vocoder = MMAudioVAE16kHz(), MMAudioVocoder16kHz()
    assert vae.config.sample_rate / vae.latent_hop_length == 31.25
    assert (vae.config.latent_channels, vae.config.mel_bins, vae.config.hidden_channels) == (20, 80, 384)
    assert 111e6 < sum(parameter.numel() for parameter in vocoder.parameters()) < 113e6


def test_both_stay_in_float32_whatever_they_are_loaded_in(tmp_path):
    vae = MMAudioVAE16kHz(hidden_channels=8)
    vocoder = MMAudioVocoder16kHz(upsample_initial_channel=64)
    for model in (vae, vocoder):
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {loaded.dtype} == {torch.float32}


def test_the_waveform_is_bounded_without_being_clipped():
    torch.manual_seed(0)
    vocoder = MMAudioVocoder16kHz(upsample_initial_channel=64).eval()
    torch.nn.init.constant_(vocoder.conv_post.bias, 2.0)
    torch.nn.init.normal_(vocoder.conv_post.weight, std=1e-3)
    with torch.no_grad():
        waveform = vocoder(torch.zeros(1, 80, 2)).sample
    assert waveform.shape == (1, 1, 512) and waveform.max() < 1 and waveform.min() > 0.9
