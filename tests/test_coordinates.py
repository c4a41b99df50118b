"""The shared space-time frame against values computed by hand."""

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from baton_diffusers import coordinates
from baton_diffusers.models.attention_dual_branch import PlanAttention

from .tiny import random_plan, seeded


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("num_frames, latents", [(1, 1), (5, 2), (49, 13), (121, 31)])
def test_latent_frames_of_a_causal_autoencoder(num_frames, latents):
    assert coordinates.num_latent_frames(num_frames, 4) == latents


@pytest.mark.parametrize(
    "num_frames, neighbours", [(48, "45 or 49"), (50, "49 or 53"), (2, "1 or 5"), (0, "1 or 5"), (-3, "1 or 5")]
)
def test_a_wrong_frame_count_is_refused_with_both_neighbours(num_frames, neighbours):
    with pytest.raises(ValueError, match=rf"`num_frames` is {num_frames},.*4 \* k \+ 1.*use {neighbours}\."):
        coordinates.num_latent_frames(num_frames, 4)


def test_the_length_of_nanos_clip():
    duration = coordinates.clip_duration(49, 16.0)
    assert duration == 3.0625
    assert coordinates.num_samples(duration, 16000) == 49000
    assert coordinates.num_audio_latents(duration, 31.25) == 96  # 95.7: the last one reaches beyond the end
    assert coordinates.num_audio_latents(121 / 24, 31.25) == 158
    assert coordinates.num_audio_latents(0.96 * 3, 31.25) == 90  # 90.00000000000001 in floating point


def test_a_last_audio_latent_counts_by_its_share_within_the_clip():
    # 157.55 and 313.80 latents at 31.25 per second: Ovi makes 157 and 314
    assert [coordinates.num_audio_latents(frames / 24, 31.25, 0.75) for frames in (121, 241)] == [157, 314]
    assert coordinates.num_audio_latents(2.75 / 31.25, 31.25, 0.75) == 2
    assert coordinates.num_audio_latents(3 / 31.25, 31.25, 0.75) == 3
    assert coordinates.num_audio_latents(0.1 / 31.25, 31.25, 0.75) == 1  # a clip has sound, however short it is
    for frames in range(1, 200):
        duration = frames / 24
        count = coordinates.num_audio_latents(duration, 31.25, 0.75)
        assert -0.25 / 31.25 - 1e-6 <= duration - count / 31.25 <= 0.75 / 31.25 + 1e-6 or count == 1


def test_latent_time_passes_through_the_centres_of_what_latents_cover():
    # latent 0: frame 0, latent 1: frames 1-4, latent 2: frames 5-8, latent 3: frames 9-12
    frames = tensor(0, 2.5, 6.5, 10.5)
    torch.testing.assert_close(coordinates.latent_time(frames, 4), tensor(0, 1, 2, 3))
    torch.testing.assert_close(coordinates.latent_time(tensor(1.25, 4.5, -1.25), 4), tensor(0.5, 1.5, -0.5))
    torch.testing.assert_close(coordinates.latent_time(tensor(-0.5, 0, 7.25), 1), tensor(-0.5, 0, 7.25))


def test_latent_time_is_continuous_and_rises():
    times = coordinates.latent_time(torch.linspace(-2, 20, 2201), 4)
    steps = times.diff()
    assert steps.min() > 0 and steps.max() < 0.01 * 0.5


def test_video_tokens_are_counted_row_by_row():
    expected = [(t, y, x) for t in range(2) for y in range(3) for x in range(4)]
    assert coordinates.video_latent_coordinates(2, 3, 4).tolist() == [list(map(float, place)) for place in expected]


def test_video_plan_coordinates():
    times, centres = tensor(0, 1 / 6, 1), torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 0.25]])
    found = coordinates.video_plan_coordinates(times, centres, 24.0, 4, height=4, width=8)
    # frames 0, 4 and 24: latents 0, 1 + 1.5 / 4 and 1 + 21.5 / 4
    torch.testing.assert_close(found, torch.tensor([[0, -0.5, -0.5], [1.375, 1.5, 3.5], [6.375, 3.5, 1.5]]))


def test_a_plan_on_the_latents_own_grid_lies_on_the_latents():
    centres = coordinates.patch_centres(3, 5)
    found = coordinates.video_plan_coordinates(torch.zeros(15), centres, 16.0, 4, height=3, width=5)
    torch.testing.assert_close(found, coordinates.video_latent_coordinates(1, 3, 5))


def test_audio_lies_where_the_frame_on_screen_lies():
    # the middle of frame f, (f + 1/2) / 16 s, lies where frame f lies; half a frame earlier is its first instant
    frames = tensor(0, 2.5, 6.5, 40)
    found = coordinates.audio_coordinates((frames + 0.5) / 16, 31.25, None, 16.0, 4)
    torch.testing.assert_close(found[:, 0], coordinates.latent_time(frames, 4))
    assert not found[:, 1:].any()
    assert coordinates.audio_coordinates(tensor(0), 31.25, None, 16.0, 4)[0, 0] == -0.2  # -0.5 frames of 2.5


def test_audio_latents_under_the_exact_map():
    times = coordinates.audio_latent_times(3, 31.25)
    torch.testing.assert_close(times, tensor(0.016, 0.048, 0.080))
    found = coordinates.audio_coordinates(times, 31.25, None, 16.0, 4)[:, 0]
    # frames 0.256 - 0.5, 0.768 - 0.5, 1.28 - 0.5, over the 2.5 frames up to latent 1
    torch.testing.assert_close(found, tensor(-0.0976, 0.1072, 0.312))


def test_reference_audio_ends_where_the_clip_begins():
    times = coordinates.reference_audio_times(3, 31.25)
    torch.testing.assert_close(times, tensor(-0.080, -0.048, -0.016))
    found = coordinates.audio_coordinates(times, 31.25, None, 16.0, 4)[:, 0]
    torch.testing.assert_close(found, tensor(-0.712, -0.5072, -0.3024))  # frames -1.28 - 0.5, ..., over 2.5 frames
    linear = coordinates.audio_coordinates(times, 31.25, 0.19676, 24.0, 4)[:, 0]
    torch.testing.assert_close(linear, 0.19676 * tensor(-3, -2, -1))


def test_audio_latents_under_ovis_linear_map_lie_at_multiples_of_its_scale():
    times = coordinates.audio_latent_times(157, 31.25)
    found = coordinates.audio_coordinates(times, 31.25, 0.19676, 24.0, 4)[:, 0]
    torch.testing.assert_close(found, 0.19676 * torch.arange(157), rtol=0, atol=1e-5)
    # a plan token at tau: (tau * rate - 1/2) * scale
    torch.testing.assert_close(
        coordinates.audio_coordinates(tensor(1.0), 31.25, 0.19676, 24.0, 4)[:, 0], tensor(30.75 * 0.19676)
    )


def test_spans_of_latent_frames_are_causal():
    spans = coordinates.video_latent_spans(4, 16.0, 4)
    assert spans == [(0, 1 / 16), (1 / 16, 5 / 16), (5 / 16, 9 / 16), (9 / 16, 13 / 16)]
    assert coordinates.video_latent_spans(31, 24.0, 4)[-1] == (117 / 24, 121 / 24)


def test_windows_of_audio_at_nanos_rates():
    windows = coordinates.audio_windows(13, 96, 3, 16.0, 4, 31.25)
    assert len(windows) == 13
    # 0.75 s around 0.03125 s: until 12.7 latents, in which the middle of latent 12 lies, and that of 13 does not
    assert windows[0] == (0, 13)
    assert windows[1] == (0, 18)  # around 0.1875 s: until 17.58 latents
    assert windows[2] == (2, 25)  # around 0.4375 s: 1.95 to 25.4 latents
    assert windows[12] == (80, 96)  # around 2.9375 s: from 80.08 latents to the end


def test_windows_of_audio_at_ovis_rates():
    """31 latent frames against 157 latents: a window of 0.5 s around (4 i - 1) / 48 s."""
    windows = coordinates.audio_windows(31, 157, 3, 24.0, 4, 31.25)
    assert windows[:3] == [(0, 8), (0, 12), (1, 17)]  # until 8.46 and 11.72 latents, and from 1.30 to 16.93
    assert windows[15] == (69, 85)  # 69.01 to 84.64 latents
    assert windows[29:] == [(142, 157), (147, 157)]
    narrow = coordinates.audio_windows(31, 157, 1, 24.0, 4, 31.25)
    assert narrow[0] == (
        0,
        3,
    )  # a whole latent frame around the middle of pixel frame 0: until 2.5 / 24 s or 3.26 latents
    assert [(end, first) for (_, end), (first, _) in zip(narrow[1:-1], narrow[2:], strict=True)] == [
        (end, end) for _, end in narrow[1:-1]
    ]  # beyond frame 0, windows of one frame are the spans: nothing is read twice and nothing is left out


def test_windows_of_audio_hold_the_instant_at_which_they_begin():
    # latents of 2 pixel frames, their middles on the edges of the windows
    assert coordinates.audio_windows(4, 7, 1, 24.0, 4, 12.0) == [(0, 1), (0, 2), (2, 4), (4, 6)]


def test_windows_of_audio_are_never_empty():
    coarse = coordinates.audio_windows(13, 4, 1, 16.0, 4, 1.0)  # middles at 0.5, 1.5, 2.5, 3.5 s
    assert (
        coarse[0] == (0, 1) and coarse[8] == (1, 2) and coarse[12] == (2, 3)
    )  # the middles nearest to 1.94 and 2.94 s
    assert coordinates.audio_windows(13, 3, 3, 16.0, 4, 31.25)[-1] == (2, 3)  # the sound ends after 0.1 s


def test_windows_of_video_are_the_frames_on_screen():
    windows = coordinates.video_windows(157, 31, 1, 24.0, 4, 31.25)
    assert len(windows) == 157
    # middles at pixel frames 0.38, 1.15, 4.99, 5.76 and 120.2: in latent frames 0, 1, 1, 2 and 30
    assert [windows[j] for j in (0, 1, 6, 7, 156)] == [(0, 1), (1, 2), (1, 2), (2, 3), (30, 31)]
    wide = coordinates.video_windows(157, 31, 3, 24.0, 4, 31.25)
    assert [wide[j] for j in (0, 7, 156)] == [(0, 2), (1, 4), (29, 31)]
    assert coordinates.video_windows(200, 31, 1, 24.0, 4, 31.25)[-1] == (30, 31)  # sound beyond the video's end
    assert coordinates.video_windows(3, 3, 1, 24.0, 4, 12.0) == [(1, 2), (1, 2), (2, 3)]  # instants 1, 3 and 5 frames


def test_windows_of_both_modalities_cover_the_same_instants():
    """Beyond frame 0, a frame's window of length one holds the audio that reads that frame."""
    for frame, (first, end) in enumerate(coordinates.audio_windows(31, 157, 1, 24.0, 4, 31.25)):
        reading = [
            j for j, window in enumerate(coordinates.video_windows(157, 31, 1, 24.0, 4, 31.25)) if window[0] == frame
        ]
        assert frame == 0 or reading == list(range(first, end))


@pytest.mark.parametrize(
    "duration, rate, count", [(3.0625, 6.0, 19), (3.0, 6.0, 18), (0.1 * 3, 10.0, 3), (0.01, 6.0, 1)]
)
def test_keyframes_lie_within_the_clip(duration, rate, count):
    times = coordinates.keyframe_times(duration, rate)
    torch.testing.assert_close(times, torch.arange(count) / rate)
    assert times[-1] < duration


def test_patch_centres():
    assert coordinates.patch_centres(2, 2).tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert coordinates.patch_centres(1, 4)[:, 1].tolist() == [0.125, 0.375, 0.625, 0.875]


def test_audio_plan_times_fill_whole_chunks():
    times = coordinates.audio_plan_times(3.0625, 4)
    torch.testing.assert_close(times, torch.arange(16) / 4 + 0.125)
    torch.testing.assert_close(coordinates.audio_plan_times(0.9, 2, 0.5), tensor(0.125, 0.375, 0.625, 0.875))
    assert len(coordinates.audio_plan_times(3.0, 25)) == 75
    assert len(coordinates.audio_plan_times(0.1 * 30, 25)) == 75  # 3.0000000000000004 seconds


@pytest.mark.parametrize(
    "head_dim, dims", [(128, (44, 42, 42)), (12, (4, 4, 4)), (32, (12, 10, 10)), (64, (24, 20, 20))]
)
def test_rotary_axes_are_wans(head_dim, dims):
    assert coordinates.rotary_axes_dims(head_dim) == dims
    assert sum(dims) == head_dim


def test_rotary_embedding_is_diffusers():
    positions = tensor(0, 1, 2.5, 30)
    places = torch.stack([positions, 2 * positions, -positions], dim=-1)
    cos, sin = coordinates.rotary_embedding(places, (8, 4, 4))
    assert cos.shape == sin.shape == (1, 4, 1, 8)
    expected = [
        get_1d_rotary_pos_embed(dim, axis, use_real=True, repeat_interleave_real=True, freqs_dtype=torch.float64)
        for axis, dim in zip(places.double().unbind(-1), (8, 4, 4), strict=True)
    ]
    for found, index in ((cos, 0), (sin, 1)):
        wanted = torch.cat([axis[index][:, ::2] for axis in expected], dim=-1)
        torch.testing.assert_close(found[0, :, 0].double(), wanted.double(), rtol=0, atol=1e-5)


@pytest.fixture
def attention():
    """Video latents reading a plan: the layer, latents, their places, plan tokens, their places."""
    layer = seeded(PlanAttention, dim=24, heads=2, eps=1e-6)
    plan = random_plan(2)
    generator = torch.Generator().manual_seed(1)
    latents = coordinates.video_latent_coordinates(3, 2, 2)
    tokens = coordinates.video_plan_coordinates(plan.video_times, plan.video_centres, 8.0, 4, 2, 2)
    return (
        layer,
        torch.randn(2, len(latents), 24, generator=generator),
        latents,
        torch.randn(2, len(tokens), 24, generator=generator),
        tokens,
    )


def attend(layer, hidden_states, latents, plan_states, tokens):
    axes_dims = coordinates.rotary_axes_dims(24 // layer.heads)
    with torch.no_grad():
        return layer(
            hidden_states,
            plan_states,
            coordinates.rotary_embedding(latents, axes_dims),
            coordinates.rotary_embedding(tokens, axes_dims),
        )


@pytest.mark.parametrize("shift", [(5.0, 0.0, 0.0), (0.0, -3.0, 0.0), (0.0, 0.0, 2.5), (1.25, -0.5, 7.0)])
def test_plan_attention_depends_on_offsets_in_the_shared_frame_only(attention, shift):
    layer, hidden_states, latents, plan_states, tokens = attention
    shift = torch.tensor(shift)
    before = attend(layer, hidden_states, latents, plan_states, tokens)
    together = attend(layer, hidden_states, latents + shift, plan_states, tokens + shift)
    alone = attend(layer, hidden_states, latents, plan_states, tokens + shift)
    assert (together - before).abs().max() < 1e-5
    assert (alone - before).abs().max() > 1e-3


def test_the_frame_nearest_to_a_keyframe():
    frames = coordinates.nearest_frames(coordinates.keyframe_times(49 / 16, 6.0), num_frames=49, frame_rate=16.0)
    assert frames[:5].tolist() == [0, 3, 5, 8, 11]  # 0, 2.67, 5.33, 8, 10.67
    assert coordinates.nearest_frames(torch.tensor([9.0]), 49, 16.0).tolist() == [48]


def test_a_rotation_by_a_quarter_turn():
    states = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    cos, sin = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    rotated = coordinates.apply_rotary_embedding(states, (cos, sin))
    assert rotated.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    assert coordinates.timestamp_coordinates(torch.tensor([0.5, 2.0]), 24.0).tolist() == [[12.0], [48.0]]


def test_timestamps_lie_on_their_grid_and_before_the_end():
    assert coordinates.nearest_timestamp(0.31, 16.0) == 0.3125 and coordinates.nearest_timestamp(0.0, 16.0) == 0.0
    assert [coordinates.num_timestamps_within(duration, 16.0) for duration in (1 / 16, 0.1, 49 / 16)] == [1, 2, 49]
