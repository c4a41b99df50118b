import numpy as np
import pytest

from baton_diffusers.stage import render_clip, sample_scene, timeline, write_prompt
from baton_diffusers.stage.hearing import hear
from baton_diffusers.stage.show import HEAT, MARGIN, TILE_WIDTH, contact_sheet, film_sheet
from baton_diffusers.stage.sight import watch


def test_a_sheet_shows_the_strip_and_the_sound():
    scene = sample_scene(3)
    clip = render_clip(scene, 0)
    plain = np.asarray(contact_sheet(clip.frames, clip.waveform))
    assert plain.shape[1] == 16 * TILE_WIDTH + 2 * MARGIN
    tile = plain[MARGIN : MARGIN + TILE_WIDTH, MARGIN + 1 : MARGIN + TILE_WIDTH - 1]
    assert np.abs(tile[40:44].mean(axis=(0, 1)) - clip.frames[1][26:30].mean(axis=(0, 1))).max() < 3
    silent = np.asarray(contact_sheet(clip.frames, np.zeros_like(clip.waveform)))
    assert (silent[MARGIN + TILE_WIDTH + 100, MARGIN:-MARGIN] == HEAT[0]).all()
    assert (plain != silent).any()


def test_a_sheet_takes_instants_of_every_sort_and_a_long_prompt():
    scene = sample_scene(3, tier="complex")
    clip = render_clip(scene, 0)
    for events in (timeline(scene, 0), watch(clip.frames).sights, hear(clip.waveform)):
        sheet = contact_sheet(clip.frames, clip.waveform, events, " ".join([write_prompt(scene, 0)] * 3))
        assert sheet.height > contact_sheet(clip.frames, clip.waveform, events).height


def test_wrong_arrays_are_named():
    clip = render_clip(sample_scene(0), 0)
    with pytest.raises(ValueError, match="`frames`"):
        contact_sheet(clip.frames / 255, clip.waveform)
    with pytest.raises(ValueError, match="`waveform`"):
        contact_sheet(clip.frames, clip.waveform[None])


def test_a_films_sheet_has_a_strip_for_some_shots_each():
    scene = sample_scene(3)
    clip = render_clip(scene, 0)
    events = hear(clip.waveform)
    frames, waveform = np.concatenate([clip.frames[:48]] * 3), np.concatenate([clip.waveform[:48000]] * 3)
    sheet = np.asarray(film_sheet(frames, waveform, events, ["one", "two", "three"], 3.0))
    alone = [
        np.asarray(contact_sheet(frames[:96], waveform[:96000], events, "0 s: one   |   two")),
        np.asarray(contact_sheet(frames[96:], waveform[96000:], [], "6 s: three")),
    ]
    assert (sheet == np.concatenate(alone)).all()
