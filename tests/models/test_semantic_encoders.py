import pytest
import torch
import torch.nn.functional as F
from transformers import EncodecConfig, EncodecModel, SiglipVisionConfig, SiglipVisionModel

from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder, read_plan


VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
AUDIO = {
    "sampling_rate": 1600,
    "hidden_size": 12,
    "num_filters": 4,
    "upsampling_ratios": [5, 10],
    "num_lstm_layers": 1,
    "codebook_size": 16,
    "target_bandwidths": [1.0],
}


@pytest.fixture
def video_encoder():
    torch.manual_seed(0)
    return VideoSemanticEncoder(VISION, video_grid=(2, 2)).eval()


@pytest.fixture
def audio_encoder():
    torch.manual_seed(0)
    return AudioSemanticEncoder(AUDIO, tokens_per_chunk=16).eval()


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_video_features_are_those_of_the_penultimate_layer_averaged_over_the_grid(video_encoder):
    reference = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    missing, unexpected = reference.load_state_dict(video_encoder.vision_model.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("encoder.layers.2.", "post_layernorm", "head")) for name in missing)
    images = noise(2, 3, 32, 32)
    patches = reference(images, output_hidden_states=True).hidden_states[-2].unflatten(1, (2, 2, 2, 2))
    torch.testing.assert_close(video_encoder(images), patches.mean(dim=(2, 4)).flatten(1, 2), atol=1e-6, rtol=1e-5)


def test_keyframes_are_read_off_the_nearest_frames(video_encoder):
    video = noise(2, 3, 49, 32, 32)
    tokens = video_encoder.encode(video, 16)
    assert tokens.shape == (2, 19 * 4, 16)
    # tau * 16 = 0, 2.67, 5.33, 8, 10.67 ... 45.33, 48
    for keyframe, frame in {0: 0, 1: 3, 2: 5, 3: 8, 4: 11, 17: 45, 18: 48}.items():
        expected = video_encoder(video[:, :, frame])
        torch.testing.assert_close(tokens[:, 4 * keyframe : 4 * keyframe + 4], expected, atol=1e-6, rtol=1e-5)


def test_frames_of_another_size_are_resized(video_encoder):
    video = noise(1, 3, 5, 32, 32)
    large = F.interpolate(video.transpose(1, 2)[0], scale_factor=2, mode="nearest").transpose(0, 1)[None]
    assert video_encoder.encode(large, 16).shape == video_encoder.encode(video, 16).shape


def test_audio_features_are_encodecs_averaged_in_time(audio_encoder):
    reference = EncodecModel(EncodecConfig(**AUDIO)).eval()
    reference.encoder.load_state_dict(audio_encoder.encoder.state_dict())
    waveform = noise(2, 1, 3200)
    features = reference.encoder(waveform).transpose(1, 2)
    assert features.shape == (2, 64, 12)
    expected = features.unflatten(1, (32, 2)).mean(dim=2)
    torch.testing.assert_close(audio_encoder.encode(waveform, 1600), expected, atol=1e-6, rtol=1e-5)


def test_the_last_chunk_is_filled_with_silence_and_ends_in_zeros(audio_encoder):
    waveform = noise(1, 1, 1700)
    tokens = audio_encoder.encode(waveform, 1600)
    assert tokens.shape == (1, 32, 12)
    full = audio_encoder(F.pad(waveform, (0, 1500)))
    torch.testing.assert_close(
        tokens[:, :17], full[:, :17]
    )  # 1.0625 s: token 16 lies at 1.03125 s, token 17 at 1.09375 s
    assert not tokens[:, 17:].any()


def test_standardisation_is_per_channel_and_saved(video_encoder, audio_encoder, tmp_path):
    inputs = {video_encoder: (noise(1, 3, 9, 32, 32), 16), audio_encoder: (noise(1, 1, 1600), 1600)}
    for encoder, arguments in inputs.items():
        raw = encoder.encode(*arguments)
        encoder.feature_mean.copy_(torch.linspace(-1, 1, raw.shape[-1]))
        encoder.feature_std.copy_(torch.linspace(1, 2, raw.shape[-1]))
        expected = (raw - encoder.feature_mean) / encoder.feature_std
        torch.testing.assert_close(encoder.encode(*arguments), expected, atol=1e-6, rtol=1e-5)
        encoder.save_pretrained(tmp_path / type(encoder).__name__)
        loaded = type(encoder).from_pretrained(tmp_path / type(encoder).__name__)
        assert torch.equal(loaded.encode(*arguments), encoder.encode(*arguments))


def test_a_plan_read_off_a_clip_has_the_clips_times_and_places(video_encoder, audio_encoder):
    plan = read_plan(video_encoder, audio_encoder, noise(2, 3, 17, 32, 32), 16, noise(2, 1, 1700), 1600)
    assert plan.duration == 17 / 16
    assert plan.video_tokens.shape == (2, 7 * 4, 16) and plan.audio_tokens.shape == (2, 32, 12)
    torch.testing.assert_close(plan.video_times, torch.tensor([i / 6 for i in range(7) for _ in range(4)]))
    quarter, three = 0.25, 0.75
    centres = [[quarter, quarter], [quarter, three], [three, quarter], [three, three]]
    torch.testing.assert_close(plan.video_centres, torch.tensor(centres * 7))
    torch.testing.assert_close(plan.audio_times[:2], torch.tensor([1 / 32, 3 / 32]))
    assert plan.audio_times[16].item() == 1 + 1 / 32
    assert plan.audio_mask.tolist() == [[True] * 17 + [False] * 15] * 2


def test_sound_a_little_shorter_or_longer_than_the_picture_is_fitted_to_it(video_encoder, audio_encoder):
    video, waveform = noise(1, 3, 17, 32, 32), noise(1, 1, 1700)
    plans = [
        read_plan(video_encoder, audio_encoder, video, 16, sound, 1600)
        for sound in (waveform, F.pad(waveform, (0, 90), value=0.5))
    ]
    assert torch.equal(plans[0].audio_tokens, plans[1].audio_tokens)
    with pytest.raises(ValueError, match=r"`video` lasts 1.0625 seconds and `waveform` 1.2500"):
        read_plan(video_encoder, audio_encoder, video, 16, noise(1, 1, 2000), 1600)


def test_wrong_input_is_refused(video_encoder, audio_encoder):
    with pytest.raises(ValueError, match="`sampling_rate` is 44100 Hz, but the encoder takes 1600 Hz"):
        audio_encoder.encode(noise(1, 1, 1600), 44100)
    with pytest.raises(ValueError, match=r"`waveform` has shape \(1, 2, 1600\)"):
        audio_encoder.encode(noise(1, 2, 1600), 1600)
    with pytest.raises(ValueError, match=r"`video` has shape \(3, 5, 32, 32\)"):
        video_encoder.encode(noise(3, 5, 32, 32), 16)
    with pytest.raises(ValueError, match="`frame_rate` is 0"):
        video_encoder.encode(noise(1, 3, 5, 32, 32), 0)
    with pytest.raises(ValueError, match="`video` holds 1 clips and `waveform` 2"):
        read_plan(video_encoder, audio_encoder, noise(1, 3, 17, 32, 32), 16, noise(2, 1, 1700), 1600)
    with pytest.raises(ValueError, match="has 1 layers"):
        VideoSemanticEncoder(VISION | {"num_hidden_layers": 1})
