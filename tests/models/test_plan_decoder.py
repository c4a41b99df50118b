"""Plan decoders: shapes, what they look at, and what they refuse."""

import pytest
import torch

from baton_diffusers.coordinates import plan_layout
from baton_diffusers.models.plan_decoder import AudioPlanDecoder, VideoPlanDecoder
from tests.tiny import seeded


LAYOUT = plan_layout(2.0, 6.0, (2, 4), 8)


@pytest.fixture(scope="module")
def video():
    return seeded(VideoPlanDecoder, 6, (2, 4), 6.0, 32, 64, hidden_dim=16, channels=(8, 8, 8))


@pytest.fixture(scope="module")
def audio():
    return seeded(AudioPlanDecoder, 4, 8.0, 4000, 64, 16, hidden_dim=16)


def video_tokens(seed=0):
    return torch.randn(2, len(LAYOUT.video_times), 6, generator=torch.Generator().manual_seed(seed))


def audio_tokens(seed=0):
    return torch.randn(2, len(LAYOUT.audio_times), 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_pictures_at_any_instants(video):
    times = torch.tensor([0.0, 0.7, 1.99])
    pictures = video(video_tokens(), LAYOUT.video_times, times)
    assert pictures.shape == (2, 3, 3, 32, 64)
    alone = video(video_tokens()[1:], LAYOUT.video_times, times[1:2])
    torch.testing.assert_close(pictures[1:, :, 1:2], alone, rtol=0, atol=1e-5)
    assert (
        pictures[:, :, 0] - video(video_tokens(), LAYOUT.video_times, torch.tensor([0.1]))[:, :, 0]
    ).abs().max() > 1e-3


@torch.no_grad()
def test_a_picture_depends_on_the_keyframes_around_it_alone_and_on_where_their_tokens_stand(video):
    tokens = video_tokens()[:1]
    expected = video(tokens, LAYOUT.video_times, torch.tensor([1.0, 1.05]))
    far = tokens.clone()
    far[:, : 8 * 5], far[:, 8 * 9 :] = 9.0, 9.0  # keyframe 6 is at 1 s; 5 to 8 are around it
    torch.testing.assert_close(video(far, LAYOUT.video_times, torch.tensor([1.0, 1.05])), expected)
    near = tokens.clone()
    near[:, 8 * 6] = 9.0  # the token on top at the left
    change = (video(near, LAYOUT.video_times, torch.tensor([1.0])) - expected[:, :, :1]).abs()[0].amax(dim=(0, 1))
    assert change[:8, :8].max() > 10 * change[24:, 48:].max()


@torch.no_grad()
def test_spectrograms_cover_the_samples_and_follow_the_tokens_in_time(audio):
    mel = audio(audio_tokens(), LAYOUT.audio_times, 8000)
    assert mel.shape == (2, 16, 125) and audio(audio_tokens(), LAYOUT.audio_times, 8001).shape[2] == 126
    times = torch.cat([LAYOUT.audio_times, LAYOUT.audio_times + 2])
    twice = audio(audio_tokens().repeat(1, 2, 1), times, 16_000)  # two seconds are 125 frames
    torch.testing.assert_close(twice[..., 20:105], mel[..., 20:105], rtol=0, atol=1e-4)
    torch.testing.assert_close(twice[..., 145:230], mel[..., 20:105], rtol=0, atol=1e-4)


@torch.no_grad()
def test_bins_have_their_mean_and_deviation(audio):
    plain = audio(audio_tokens(), LAYOUT.audio_times, 4000)
    moved = seeded(AudioPlanDecoder, 4, 8.0, 4000, 64, 16, hidden_dim=16)
    moved.mel_mean.fill_(-5.0)
    moved.mel_std.fill_(2.0)
    torch.testing.assert_close(moved(audio_tokens(), LAYOUT.audio_times, 4000), 2 * plain - 5)


def test_they_are_saved_and_loaded(video, audio, tmp_path):
    for model, tokens, times, where in (
        (video, video_tokens(), LAYOUT.video_times, torch.tensor([0.5])),
        (audio, audio_tokens(), LAYOUT.audio_times, 4000),
    ):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(again(tokens, times, where), model(tokens, times, where))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: VideoPlanDecoder(6, (2, 4), 6.0, 40, 64),
            "`height` and `width` are 40 and 64, but must be multiples of 16 and 32",
        ),
        (lambda: VideoPlanDecoder(6, (2, 4), 6.0, num_neighbours=3), "`num_neighbours` is 3, but must be even"),
        (lambda: AudioPlanDecoder(4, 8.0, num_neighbours=0), "`num_neighbours` is 0"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tokens_that_are_no_whole_keyframes_are_refused(video):
    with pytest.raises(ValueError, match="a plan of 95 video tokens, but a keyframe has 8"):
        video(video_tokens()[:, :-1], LAYOUT.video_times[:-1], torch.tensor([0.5]))
