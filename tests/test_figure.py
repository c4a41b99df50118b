"""A clip on one picture: what is drawn where on the axis of time."""

import numpy as np
import pytest

from baton_diffusers.cues import Turn
from baton_diffusers.figure import LANES, MARGIN, NAMES, SOUND, WIDTH, draw_clip, html_picture


LEFT = MARGIN + NAMES
TURNS = [Turn("red ball", ("bounces",), 0.5, 0.25, (0.5,)), Turn("gong", ("rings",), 1.5, 0.5, (1.5,))]


def columns(image, colour):
    """Seconds, of a clip of two, at which pixels have a colour."""
    found = np.flatnonzero((np.asarray(image) == colour).all(axis=-1).any(axis=0))
    return (found - LEFT) / WIDTH * 2


def test_who_acts_when_stands_at_its_seconds_in_a_lane_of_its_own():
    image = draw_clip(2.0, TURNS, ["red ball", "blue bell"])
    ball, gong = columns(image, (217, 0, 0)), columns(image, LANES[2])  # one's name tells its colour
    assert 0.49 < ball.min() < 0.51 and 1.49 < gong.min() < 1.51 and len(columns(image, LANES[0])) == 0
    assert draw_clip(2.0, TURNS[:1]).height < image.height


def test_the_strip_shows_the_frames_in_their_order_and_at_what_begins():
    frames = np.zeros((20, 30, 40, 3), dtype=np.uint8)
    frames[..., 0] = 10 * np.arange(20)[:, None, None]
    plain, told = (
        np.asarray(draw_clip(2.0, turns, frames=frames)) for turns in ([], [Turn("x", ("y",), 0.05, 0.1), *TURNS])
    )
    strip = plain[MARGIN + 5, LEFT + 40 :: WIDTH // 12, 0][:12].astype(int)
    assert (np.diff(strip) > 0).all() and strip[0] < 20 and strip[-1] > 180
    assert told[MARGIN + 5, LEFT + 40, 0] == 0  # the frame at 0.05 s in place of the middle one
    high = draw_clip(2.0, frames=frames.transpose(0, 2, 1, 3)[:, ::1, :10])
    assert high.height < 260


def test_sound_is_as_high_as_it_is_loud():
    waveform = np.zeros((1, 2000), dtype=np.float32)
    waveform[:, 500:600] = 0.9
    image = np.asarray(draw_clip(2.0, waveform=waveform))
    heights = (image == SOUND).all(axis=-1).sum(axis=0)[LEFT : LEFT + WIDTH]
    assert heights[260] > 20 > 3 > heights[600] and len(image) > len(np.asarray(draw_clip(2.0)))


def test_speech_that_is_open_in_time_is_listed_below():
    spoken = [Turn("He says", ('"Good day"',), None, 0.8)] * 2
    assert draw_clip(2.0, spoken).height - draw_clip(2.0).height == 40
    assert draw_clip(2.0, prompt="word " * 200).height > 100


@pytest.mark.parametrize("duration", [0.05, 3.0625, 10.0, 400.0])
def test_any_length_has_an_axis(duration):
    assert draw_clip(duration).width == LEFT + WIDTH + MARGIN


def test_a_page_holds_the_picture():
    assert html_picture(draw_clip(1.0)).startswith('<img src="data:image/png;base64,iVBOR')
