import numpy as np
import pytest

from baton_diffusers.stage import Action, Actor, Scene, render_audio, render_clip, render_video, sample_scene, timeline
from baton_diffusers.stage.render import BLACK, RGB, poses
from baton_diffusers.stage.scene import COLOURS, DIGITS, GAP, SAMPLING_RATE, VOICES
from baton_diffusers.stage.sound import event_sound, pitch
from baton_diffusers.stage.words import WORDS_FILE, load_words, word_frames


SOUNDS = [(kind, colour, None) for kind in ("landing", "flash", "contact") for colour in COLOURS]
SOUNDS += [("word", colour, digit) for colour in VOICES for digit in DIGITS]


def test_a_clip_has_the_agreed_form_and_is_deterministic():
    scene = sample_scene(4)
    clip, again = render_clip(scene, 2), render_clip(scene, 2)
    assert clip.frames.shape == (49, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (49000,) and clip.waveform.dtype == np.float32
    assert (clip.frame_rate, clip.sampling_rate) == (16, 16000)
    assert np.array_equal(clip.frames, again.frames) and np.array_equal(clip.waveform, again.waveform)
    assert not np.array_equal(clip.frames, render_video(scene, 3))


def test_sound_never_clips_and_fades_at_both_ends():
    for seed in range(40):
        assert np.abs(render_audio(sample_scene(seed), 0)).max() <= 1
    for sound in SOUNDS:
        wave = event_sound(*sound)
        assert abs(wave[0]) < 0.01 and abs(wave[-1]) < 0.01, sound
        assert np.abs(np.diff(wave[:8])).max() < 0.25 * np.abs(wave).max(), sound
        assert len(wave) < GAP * SAMPLING_RATE / 16, sound


def test_picture_and_sound_set_in_at_the_instant():
    for seed in range(30):
        scene = sample_scene(seed)
        audio = render_audio(scene, 0)
        for event in timeline(scene, 0):
            onset = round(event.time * SAMPLING_RATE)
            assert not audio[onset - 100 : onset].any()
            assert audio[onset : onset + 100].any()


def test_the_picture_shows_the_instants():
    scene = Scene(
        (Actor("ball", "red", "left"), Actor("bell", "green", "middle"), Actor("face", "purple", "right")),
        (Action("bounce", 0, 2), Action("ring", 1), Action("say", 2, 1, ("three",))),
    )
    first, second, flash, word = (event.frame for event in timeline(scene, 1))
    ball, bell, face = zip(*poses(scene, 1), strict=True)
    assert [frame for frame, pose in enumerate(ball) if pose.look == "landed"] == [first, second]
    assert ball[first - 1].y > 10 and ball[first].y == 0 and ball[second - 3].y == 26
    assert [frame for frame, pose in enumerate(bell) if pose.look == "flash"] == [flash, flash + 1, flash + 2]
    frames = word_frames("high", "three")
    assert [frame for frame, pose in enumerate(face) if pose.look == "open"] == [*range(word, word + frames)]
    video = render_video(scene, 1)
    mouth = video[:, 47:53, 49:57]
    assert (mouth[word] == BLACK).all(axis=-1).mean() > 0.75
    assert (mouth[word - 1] == RGB["purple"]).all(axis=-1).mean() > 0.5


def test_a_box_slides_until_it_touches_and_stays():
    scene = Scene((Actor("box", "red", "left"), Actor("bell", "blue", "right")), (Action("hit", 0, target=1),))
    contact = timeline(scene, 0)[0].frame
    box, bell = zip(*poses(scene, 0), strict=True)
    assert box[contact - 1].x < box[contact].x == box[-1].x == 53 - 8.5 - 7
    assert [pose.x - 53 for pose in bell[contact - 1 : contact + 4]] == [0, 3, 2, 1, 0]


def test_colours_are_a_fourth_apart_in_pitch():
    for kind in ("landing", "flash", "contact"):
        pitches = [pitch(kind, colour) for colour in COLOURS]
        assert np.allclose(np.divide(pitches[1:], pitches[:-1]), 4 / 3)
        for colour in COLOURS:
            spectrum = np.abs(np.fft.rfft(event_sound(kind, colour), 16000))
            assert abs(np.log2(spectrum.argmax() / pitch(kind, colour))) < 0.15


@pytest.mark.parametrize(("voice", "fundamental"), [("low", 110), ("high", 220)])
def test_voices_have_their_pitch_and_words_fit(voice, fundamental):
    periods = []
    for digit in DIGITS:
        wave = load_words()[voice, digit]
        assert len(wave) <= 5000 and 3 <= word_frames(voice, digit) <= 5
        for start in range(0, len(wave) - 800, 400):
            piece = wave[start : start + 800]
            echo = np.correlate(piece, piece, "full")[799:]
            lag = 53 + echo[53:229].argmax()  # 300 to 70 Hz
            if echo[lag] > 0.5 * echo[0] > 1:
                periods.append(16000 / lag)
    assert abs(np.median(periods) / fundamental - 1) < 0.1
    assert WORDS_FILE.stat().st_size < 1_000_000
