"""Given media: files, arrays and tensors become arrays and spans to generate."""

import math
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import torch

from baton_diffusers.media import Clip, write_audio, write_clip
from baton_diffusers.pipelines.conditions import model_frames
from baton_diffusers.pipelines.given import (
    GivenAudio,
    GivenVideo,
    fit_size,
    known_audio_latents,
    known_latent_frames,
    read_given,
)
from baton_diffusers.pipelines.pipeline_output import BatonPipelineOutput

from ..tiny import FRAME_RATE, NUM_FRAMES, SAMPLING_RATE, random_clip


STRIDE, LATENT_RATE = 4, 31.25
FRAMES, WAVEFORM = random_clip()
TENSOR = torch.from_numpy(FRAMES).movedim(-1, 1)
CLIP = Clip(FRAMES, WAVEFORM[None], FRAME_RATE, SAMPLING_RATE)


def read(**given):
    return read_given(FRAME_RATE, SAMPLING_RATE, STRIDE, **given)


def pictures(frames=FRAMES):
    return [PIL.Image.fromarray(frame) for frame in frames]


# Kinds of what is given


@pytest.mark.parametrize(
    "video",
    [
        FRAMES,
        pictures(),
        list(FRAMES),
        list(TENSOR),
        TENSOR,
        FRAMES / 255,
        TENSOR.double() / 255,
        FRAMES[None],
        [FRAMES],
        [pictures()],
        TENSOR[None],
    ],
    ids=[
        "array",
        "images",
        "arrays",
        "tensors",
        "tensor",
        "floats",
        "double tensor",
        "batch",
        "list",
        "list of images",
        "tensor batch",
    ],
)
def test_pictures_of_every_kind_are_the_same_clip(video):
    given = read(video=video)
    frames = given.video.frames
    frames = frames if frames.dtype == np.uint8 else frames * 255
    assert frames.shape == (1, *FRAMES.shape) and np.abs(frames - FRAMES).max() < 1e-4
    assert given.keeps_video and not given.keeps_audio and given.duration == NUM_FRAMES / FRAME_RATE


@pytest.mark.parametrize(
    "audio",
    [WAVEFORM, WAVEFORM[None], WAVEFORM[None, None], torch.from_numpy(WAVEFORM).double(), [WAVEFORM[None]]],
    ids=["samples", "channels", "batch", "tensor", "list"],
)
def test_sounds_of_every_kind_are_the_same_clip(audio):
    given = read(audio=audio)
    assert np.array_equal(given.audio.waveform, WAVEFORM[None, None]) and given.audio.waveform.dtype == np.float32
    assert given.keeps_audio and not given.keeps_video and given.duration == len(WAVEFORM) / SAMPLING_RATE


@pytest.mark.parametrize(
    "image",
    [FRAMES[0], pictures()[0], TENSOR[0], [FRAMES[0]], FRAMES[:1], pictures()[:1]],
    ids=["array", "image", "tensor", "list", "batch", "list of one image"],
)
def test_an_image_is_the_first_frame_and_the_rest_is_new(image):
    given = read(image=image)
    assert np.array_equal(given.video.frames, FRAMES[None, :1])
    assert given.video.new == ((1 / FRAME_RATE, math.inf),) and given.audio is None and given.duration is None


def test_files_say_their_own_rates(tmp_path):
    smooth = np.full((20, 64, 48, 3), 90, np.uint8)
    tone = 0.5 * np.sin(np.arange(8000) * 0.1).astype(np.float32)
    write_clip(tmp_path / "clip.mp4", smooth, np.stack([tone, tone]), 20, 8000)
    write_audio(tmp_path / "sound.wav", tone, 8000)
    PIL.Image.fromarray(smooth[0]).save(tmp_path / "picture.png")
    video = read(video=tmp_path / "clip.mp4").video
    assert np.stack([film.array() for film in video.frames]).shape == (1, *smooth.shape) and video.frame_rate == 20
    for name, channels in (("clip.mp4", 2), ("sound.wav", 1)):
        audio = read(audio=str(tmp_path / name)).audio
        assert audio.waveform.shape == (1, channels, 8000) and audio.sampling_rate == 8000
    assert np.array_equal(read(image=tmp_path / "picture.png").video.frames, smooth[None, :1])
    clip = read(continue_from=tmp_path / "clip.mp4", continue_seconds=0.6)
    assert clip.video.frames.shape == (1, 5, 64, 48, 3) and clip.audio.waveform.shape == (1, 1, 2500)


def test_of_a_film_in_a_file_no_more_than_a_few_frames_are_in_memory(tmp_path):
    frames = np.zeros((40, 480, 640, 3), np.uint8)  # 37 MB
    frames[:] = np.arange(0, 240, 6, dtype=np.uint8)[:, None, None, None]
    path = write_clip(tmp_path / "film.mp4", frames, np.zeros(40_000, np.float32), 8, 8000)
    for given in ({"video": path}, {"continue_from": path, "continue_seconds": 0.6}):
        tracemalloc.start()
        video = read(**given).video
        seen = model_frames(video, video.num_frames, FRAME_RATE, 32, 32)
        output = video.output(1, "pil")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        last = frames[-video.num_frames :]
        assert np.abs((seen[0, 0, :, 16, 16].numpy() + 1) * 127.5 - last[:, 0, 0, 0]).max() < 4
        assert np.abs(np.asarray(output[0][-1]).astype(int) - 234).max() < 4 and peak < 12e6


def test_rates_are_for_what_says_none(tmp_path):
    film = write_clip(tmp_path / "film.mp4", FRAMES, None, 8)
    assert read(video=[FRAMES, film], video_frame_rate=8.0).video.frame_rate == 8
    given = read(video=film, reference_audio=WAVEFORM, audio_sampling_rate=8000)
    assert given.reference_audio.sampling_rate == 8000
    pair = ([pictures()], [torch.from_numpy(WAVEFORM)])
    given = read(continue_from=[pair], continue_seconds=0.5, video_frame_rate=8.0, audio_sampling_rate=4000)
    assert given.video.frames.shape[1] == 5 and given.audio.waveform.shape[2] == 2500


def test_pictures_are_seen_as_they_are_shown():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = PIL.Image.new("RGBA", (8, 4), (200, 0, 0, 0))
    turned.info["exif"] = exif.tobytes()
    assert read(image=turned).video.frames.shape == (1, 1, 8, 4, 3)
    assert (read(image=turned).video.frames == 255).all(), "what is transparent is on white"


@pytest.mark.parametrize("num_samples, change", [(3000, "padded with silence"), (6000, "cut")])
def test_a_sound_that_ends_a_little_apart_from_its_picture_is_fitted(caplog, num_samples, change):
    """Cutting tools and phones end streams some hundredths of a second apart."""
    sound = np.resize(WAVEFORM, num_samples)
    for given in (
        {"video": FRAMES, "audio": sound, "video_mask": [(0.5, 1.0)]},
        {"continue_from": (FRAMES, sound), "continue_seconds": 1.1},
    ):
        given = read(**given).audio
        assert given.waveform.shape == (1, 1, 4500) and given.waveform[0, 0, :3000].tolist() == sound[:3000].tolist()
        assert f"the sound is {change}" in caplog.text
        caplog.clear()
    assert not given.waveform[..., num_samples:].any()


def test_one_for_each_prompt():
    other, sound = random_clip(1)
    assert np.array_equal(read(video=[FRAMES, pictures(other)]).video.frames, np.stack([FRAMES, other]))
    assert np.array_equal(read(audio=np.stack([WAVEFORM, sound])[:, None]).audio.waveform[:, 0], [WAVEFORM, sound])
    assert np.array_equal(read(image=[FRAMES[0], pictures(other)[0]]).video.frames[:, 0], [FRAMES[0], other[0]])
    clips = [(FRAMES, WAVEFORM), (other, sound)]
    assert np.array_equal(read(continue_from=clips).video.frames, np.stack([FRAMES, other]))


def test_a_clip_goes_on_from_its_last_frames_and_the_sound_of_these():
    kept = 5  # 0.6 seconds are 4.8 frames; 5 are one latent frame and four more
    output = BatonPipelineOutput(torch.from_numpy(FRAMES / 255).movedim(-1, 1)[None], WAVEFORM[None, None], 8.0, 4000)
    for clip in ((FRAMES, WAVEFORM), Clip(FRAMES, WAVEFORM[None], 8.0, 4000), output):
        given = read(continue_from=clip, continue_seconds=0.6)
        assert np.array_equal(given.video.frames, FRAMES[None, -kept:])
        assert np.array_equal(given.audio.waveform, WAVEFORM[None, None, -2500:])
        assert given.video.new == given.audio.new == ((kept / FRAME_RATE, math.inf),)
        assert not (given.keeps_video or given.keeps_audio) and given.duration is None
    assert read(continue_from=(FRAMES, WAVEFORM)).video.frames.shape[1] == NUM_FRAMES  # a second is 8 frames


def test_a_clip_of_other_rates_is_converted_before_its_end_is_taken(caplog):
    red = np.arange(0, 180, 10)  # 18 frames at 16 per second: the last of every two at 8 per second
    frames = np.broadcast_to(red[:, None, None, None], (18, 8, 8, 3)).astype(np.uint8)
    ramp = np.linspace(-0.5, 0.5, 9000, dtype=np.float32)
    given = read(continue_from=Clip(frames, np.stack([ramp, -ramp / 2]), 16.0, 8000), continue_seconds=0.5)
    assert given.video.frames.shape == (1, 5, 8, 8, 3) and given.audio.waveform.shape == (1, 1, 2500)
    assert np.abs(given.video.frames[0, :, 0, 0, 0] - np.array([80, 100, 120, 140, 160])).max() <= 10
    expected = ramp[4000::2] / 4  # the mean of both channels
    assert np.abs(given.audio.waveform[0, 0] - expected)[50:-50].max() < 1e-3
    assert "16 frames per second is converted to the 8" in caplog.text
    assert "8000 samples per second is converted to the 4000" in caplog.text


# Masks


def test_a_mask_and_its_spans_in_seconds_are_the_same():
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0])
    spans = ((2 / 8, 4 / 8), (6 / 8, 7 / 8))
    for video_mask in (mask, mask.astype(bool), torch.from_numpy(mask), list(mask), spans, np.array(spans)):
        assert read(video=FRAMES, video_mask=video_mask).video.new == spans
    audio_mask = np.zeros(4500)
    audio_mask[100:200] = 1
    assert read(video=FRAMES, audio=WAVEFORM, audio_mask=audio_mask).audio.new == ((0.025, 0.05),)
    assert read(video=FRAMES, video_mask=[*[0] * 7, 1, 1]).video.new == ((7 / 8, math.inf),)


@pytest.mark.parametrize(
    "new, known",
    [
        ([], [1, 1, 1]),
        ([0], [0, 1, 1]),
        ([1], [1, 0, 1]),
        ([4], [1, 0, 1]),
        ([5], [1, 1, 0]),
        ([4, 5], [1, 0, 0]),
        (range(9), [0, 0, 0]),
    ],
)
def test_a_latent_frame_is_known_if_all_its_frames_are(new, known):
    video = GivenVideo(FRAMES[None], FRAME_RATE, tuple((i / FRAME_RATE, (i + 1) / FRAME_RATE) for i in new))
    assert known_latent_frames(video, NUM_FRAMES, FRAME_RATE, STRIDE).int().tolist() == known
    assert not known_latent_frames(None, NUM_FRAMES, FRAME_RATE, STRIDE).any()


def test_an_audio_latent_is_known_if_all_its_samples_are():
    for first, end, unknown in ((0, 1, [0]), (127, 129, [0, 1]), (128, 256, [1]), (4480, 4500, [35])):
        new = read(video=FRAMES, audio=WAVEFORM, audio_mask=[(first / 4000, end / 4000)]).audio.new
        known = known_audio_latents(GivenAudio(WAVEFORM[None, None], 4000, new), 1.125, LATENT_RATE)
        assert (~known).nonzero().flatten().tolist() == unknown
    assert known_audio_latents(None, 1.125, LATENT_RATE).tolist() == [False] * 36
    # The last latent reaches beyond the clip, where nothing is asked of it.
    assert known_audio_latents(GivenAudio(WAVEFORM[None, None], 4000, ((1.125, math.inf),)), 1.125, LATENT_RATE).all()


def test_frames_of_another_rate_are_known_if_nothing_within_them_is_new():
    video = GivenVideo(
        FRAMES[None].repeat(3, 1), 24.0, ((4 / 24, 5 / 24),)
    )  # frame 4 of 24 a second is in frame 1 of 8
    assert known_latent_frames(video, NUM_FRAMES, FRAME_RATE, STRIDE).tolist() == [True, False, True]


# Sizes


@pytest.mark.parametrize(
    "size, expected",
    [
        ((64, 64), (64, 64)),
        ((500, 500), (64, 64)),
        ((1080, 1920), (48, 80)),
        ((300, 100), (112, 32)),
        ((1, 999), (16, 2016)),
    ],
)
def test_a_size_keeps_its_shape_and_takes_the_models_area(size, expected):
    assert fit_size(size, 64 * 64, (16, 16)) == expected


# Refusals


@pytest.mark.parametrize(
    "given, message",
    [
        ({"image": FRAMES[0], "video": FRAMES}, "`image` and `video` both set the start"),
        ({"image": FRAMES[0], "continue_from": (FRAMES, WAVEFORM)}, "`image` and `continue_from` both"),
        ({"video": FRAMES, "continue_from": (FRAMES, WAVEFORM)}, "`video` and `continue_from` both"),
        ({"audio": WAVEFORM, "continue_from": (FRAMES, WAVEFORM)}, "`audio` and `continue_from` both"),
        ({"video_mask": [0] * 9}, "`video_mask` was given without `video`"),
        ({"video": FRAMES, "audio_mask": [0] * 9}, "`audio_mask` was given without `audio`"),
        ({"continue_seconds": 1.0}, "`continue_seconds` was given without `continue_from`"),
        ({"video_frame_rate": 8.0}, "`video_frame_rate` is 8.0, but it is for .* in `video` and `continue_from`"),
        ({"image": FRAMES[0], "video_frame_rate": 8.0}, "`video_frame_rate` is 8.0, .* none was given: leave it out"),
        (
            {"video": "film.mp4", "video_frame_rate": 8.0},
            "`video_frame_rate` is 8.0, .* Files and clips say their own",
        ),
        ({"video": ["film.mp4"], "audio_sampling_rate": 8000}, "`audio_sampling_rate` is 8000, .* `reference_audio`"),
        (
            {"continue_from": ("film.mp4", WAVEFORM), "video_frame_rate": 8.0},
            "`video_frame_rate` is 8.0, but it is for",
        ),
        ({"continue_from": [CLIP], "audio_sampling_rate": 8000}, "`audio_sampling_rate` is 8000, but it is for"),
        ({"video": FRAMES, "audio": WAVEFORM}, "both given whole, which leaves nothing to make"),
        ({"video": FRAMES, "video_mask": [0] * 9, "audio": WAVEFORM}, "both given whole"),
        (
            {"video": FRAMES[:4], "audio": WAVEFORM, "audio_mask": [(0, 0.1)]},
            "`audio` has 0.500 s of picture and 1.125 s of sound: cut or pad one of them",
        ),
        ({"video": 3}, "`video` is a int, but must be a file, a list of PIL images"),
        ({"video": []}, "`video` is a list, but must be"),
        ({"video": FRAMES[0]}, r"`video` is a ndarray of shape \(32, 32, 3\), but must be"),
        ({"image": FRAMES[None]}, r"`image` is a ndarray of shape \(1, 9, 32, 32, 3\), but must be"),
        ({"audio": WAVEFORM[None, None, None]}, r"`audio` is a ndarray of shape \(1, 1, 1, 4500\)"),
        (
            {"continue_from": FRAMES},
            r"`continue_from` is a ndarray of shape \(9, 32, 32, 3\), but must be a file, a `Baton",
        ),
        ({"video": "missing.mp4"}, "missing.mp4 is not a file"),
        ({"image": "missing.png"}, "missing.png cannot be read as a picture"),
        ({"audio": "missing.wav"}, "missing.wav is not a file"),
        ({"video": FRAMES.astype(np.float32)}, r"`video` has values from 0 to 255, but .* \[0, 1\]"),
        ({"video": FRAMES / 255 * np.nan}, "`video` has values from nan to nan"),
        ({"video": FRAMES.astype(np.int32)}, "`video` is int32, but must be uint8"),
        ({"video": TENSOR.numpy()}, r"`video` has shape \(9, 3, 32, 32\) with channels last"),
        ({"image": torch.from_numpy(FRAMES[0])}, r"`image` has shape \(32, 3, 32\) with channels last"),
        ({"audio": (WAVEFORM * 32767).astype(np.int16)}, "`audio` is int16, not float"),
        ({"audio": WAVEFORM * 4}, r"`audio` peaks at 2, but must be finite and in \[-1, 1\]"),
        ({"audio": WAVEFORM * np.nan}, "`audio` peaks at nan"),
        ({"audio": WAVEFORM[:, None]}, "`audio` has 4500 channels of 1 samples, but must have one or two"),
        ({"video": [FRAMES, FRAMES[:5]]}, r"`video` 1 has shape \(5, 32, 32, 3\), but the first one \(9, 32, 32, 3\)"),
        ({"audio": [WAVEFORM, WAVEFORM[:9]]}, "`audio` 1 has shape"),
        ({"video": FRAMES, "video_frame_rate": 0}, "`video_frame_rate` is 0, but must be a number from 1 to 1000"),
        (
            {"video": FRAMES, "video_frame_rate": 1e12},
            "`video_frame_rate` is 1000000000000.0, but must be a number from 1",
        ),
        ({"video": FRAMES, "video_frame_rate": "16"}, "`video_frame_rate` is '16', but must be a number"),
        (
            {"audio": WAVEFORM, "audio_sampling_rate": 10**9},
            "`audio_sampling_rate` is 1000000000, but must be a number",
        ),
        ({"image": PIL.Image.new("RGB", (0, 0))}, "`image` has 0x0 pixels"),
        ({"audio": WAVEFORM, "audio_sampling_rate": 4000.5}, "`audio_sampling_rate` is 4000.5, .* whole number"),
        ({"video": FRAMES, "video_mask": [1] * 9}, "`video_mask` keeps nothing of the given medium"),
        ({"audio": WAVEFORM, "audio_mask": [(0, 1.125)]}, "`audio_mask` keeps nothing of the given medium"),
        ({"video": FRAMES, "video_mask": [0] * 8}, r"`video_mask` has shape \(8,\), but must hold 9 values"),
        (
            {"video": FRAMES, "video_mask": [0.5] * 9},
            r"`video_mask` has shape \(9,\), but must hold 9 values, 1 where",
        ),
        ({"video": FRAMES, "video_mask": [(0.5, 2.0)]}, r"span \(0.5, 2\), but .* within the 1.1250 seconds"),
        ({"video": FRAMES, "video_mask": [(0.0, 0.5), (0.7,)]}, "`video_mask` has entries of different lengths"),
        ({"audio": torch.zeros(4500, dtype=torch.complex64)}, "`audio` is torch.complex64, not float"),
        ({"image": torch.zeros(3, 32, 32, dtype=torch.complex64)}, "`image` is torch.complex64, but must be uint8"),
        ({"video": FRAMES, "video_mask": [(0.5, 0.5)]}, r"span \(0.5, 0.5\)"),
        (
            {"continue_from": (FRAMES, WAVEFORM), "continue_seconds": -1},
            "`continue_seconds` is -1, but must be a positive",
        ),
        (
            {"continue_from": (FRAMES, WAVEFORM), "continue_seconds": 2.0},
            "lasts 1.1250 seconds, but 2.1250 of it are to stay",
        ),
        ({"continue_from": (FRAMES, WAVEFORM[:2000])}, "`continue_from` has 1.125 s of picture and 0.500 s of sound"),
        ({"continue_from": ([FRAMES, FRAMES], WAVEFORM)}, "2 pictures and 1 sounds"),
        (
            {"continue_from": (FRAMES, None)},
            "`continue_from` has no audio: give a clip that has it, or .*`only='video'`",
        ),
        ({"continue_from": (FRAMES, None), "only": "audio"}, "`continue_from` has no audio"),
        ({"continue_from": (None, WAVEFORM)}, "`continue_from` has no video: .*`only='audio'`"),
        (
            {"continue_from": (None, WAVEFORM[:2000]), "only": "audio"},
            "`continue_from` lasts 0.5000 seconds, but 1.1250 of it are to stay",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read(**given)


def test_clips_of_one_call_have_one_rate(tmp_path):
    for rate in (8, 16):
        write_clip(tmp_path / f"{rate}.mp4", FRAMES, None, rate)
    with pytest.raises(ValueError, match=r"`video` has clips of \[8.0, 16.0\] per second"):
        read(video=[tmp_path / "8.mp4", tmp_path / "16.mp4"])


def test_a_file_that_fills_the_memory_is_no_array(tmp_path, monkeypatch):
    video = read(video=write_clip(tmp_path / "video.mp4", FRAMES, None, FRAME_RATE)).video
    monkeypatch.setattr("baton_diffusers.pipelines.given.MAX_BYTES", FRAMES.nbytes - 1)
    for output_type in ("np", "pt"):
        with pytest.raises(
            ValueError, match=f"`output_type` is '{output_type}', which holds all frames .* choose 'pil'"
        ):
            video.check_output(output_type)
    assert len(video.output(1, "pil")[0]) == NUM_FRAMES
