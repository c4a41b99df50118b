import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest

from baton_diffusers import ffmpeg
from baton_diffusers.media import (
    SYNTHETIC_COMMENT,
    Clip,
    VideoFile,
    check_kept,
    convert_frame_rate,
    picture_pixels,
    read_audio,
    read_clip,
    read_end,
    read_image,
    read_video,
    resample,
    write_audio,
    write_clip,
)


FRAME_RATE, SAMPLING_RATE, NUM_FRAMES, NUM_SAMPLES = 16, 16000, 49, 49000


def clicks(sampling_rate=SAMPLING_RATE, num_samples=NUM_SAMPLES):
    """Short decaying tones every half second: their place in time can be read off exactly."""
    time = np.arange(num_samples) / sampling_rate
    since = time % 0.5
    return (0.8 * np.exp(-since / 0.02) * np.sin(2 * np.pi * 700 * since)).astype(np.float32)


def moving_square():
    """A coloured 12-pixel square which moves one pixel with every frame."""
    frames = np.full((NUM_FRAMES, 64, 64, 3), 90, np.uint8)
    for index, frame in enumerate(frames):
        frame[40:52, index : index + 12] = (220, 40, 40)
    return frames


def lag(waveform, reference):
    """Samples by which `waveform` is late against `reference`."""
    spectrum = np.fft.rfft(waveform, 1 << 17) * np.fft.rfft(reference, 1 << 17).conj()
    correlation = np.fft.irfft(spectrum)
    peak = int(correlation.argmax())
    return peak if peak < len(correlation) // 2 else peak - len(correlation)


@pytest.fixture
def clip_path(tmp_path):
    return write_clip(tmp_path / "clip.mp4", moving_square(), clicks(), FRAME_RATE, SAMPLING_RATE)


def comment(path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(line.removeprefix("comment=") for line in lines if line.startswith("comment="))


def test_a_written_clip_reads_back_aligned(clip_path):
    clip = read_clip(clip_path)
    assert clip.frames.shape == (NUM_FRAMES, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (1, NUM_SAMPLES) and clip.waveform.dtype == np.float32
    assert (clip.frame_rate, clip.sampling_rate, clip.duration) == (FRAME_RATE, SAMPLING_RATE, 3.0625)
    assert lag(clip.waveform[0], clicks()) == 0
    assert np.abs(clip.waveform[0] - clicks()).max() < 0.05
    error = np.abs(clip.frames.astype(int) - moving_square())
    middle = error[np.arange(NUM_FRAMES), 46, np.arange(NUM_FRAMES) + 6]
    assert error.mean() < 2 and middle.max() < 16


def test_a_clip_lasts_as_long_as_its_picture_or_else_its_sound():
    frames, waveform = moving_square()[:8], clicks()[None]
    assert Clip(frames, waveform, FRAME_RATE, SAMPLING_RATE).duration == 0.5
    assert Clip(frames / 255, None, FRAME_RATE, SAMPLING_RATE).duration == 0.5
    assert Clip(None, waveform, FRAME_RATE, SAMPLING_RATE).duration == NUM_SAMPLES / SAMPLING_RATE
    assert str(Clip(frames, waveform, FRAME_RATE, SAMPLING_RATE)).splitlines() == [
        "Clip of 0.5000 s",
        "frames: (8, 64, 64, 3) uint8, 16 per second",
        "waveform: (1, 49000) float32, 16000 per second",
    ]


def test_the_file_says_that_it_is_synthetic(clip_path, tmp_path):
    assert comment(clip_path) == SYNTHETIC_COMMENT
    for suffix in (".wav", ".flac"):
        assert comment(write_audio(tmp_path / f"sound{suffix}", clicks(), SAMPLING_RATE)) == SYNTHETIC_COMMENT


def test_the_index_comes_first(clip_path):
    data = clip_path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_scale_repeats_pixels(tmp_path):
    path = write_clip(tmp_path / "large.mp4", moving_square(), clicks(), FRAME_RATE, SAMPLING_RATE, scale=4)
    frames = read_clip(path).frames
    assert frames.shape == (NUM_FRAMES, 256, 256, 3)
    assert np.abs(frames[:, ::4, ::4].astype(int) - moving_square()).mean() < 2


def test_reading_converts_rates_and_keeps_the_time_axis(clip_path):
    clip = read_clip(clip_path, frame_rate=8, sampling_rate=48000)
    assert clip.frame_rate == 8 and clip.sampling_rate == 48000
    assert abs(len(clip.frames) - NUM_FRAMES / 2) <= 1 and abs(clip.waveform.shape[1] - 3 * NUM_SAMPLES) <= 3
    assert abs(lag(clip.waveform[0], clicks(48000, 3 * NUM_SAMPLES))) <= 2
    # Frame i of the slower clip shows the square where frame 2 i (or a neighbour) has it.
    left = (clip.frames[:, 46, :, 0] > 150).argmax(-1)
    assert np.abs(left - 2 * np.arange(len(left))).max() <= 1


def test_frames_in_memory_change_their_rate_and_keep_the_time_axis():
    frames = moving_square()
    slower, faster = convert_frame_rate(frames, 16, 8), convert_frame_rate(frames, 16, 24000 / 1001)
    assert abs(len(slower) - 24.5) <= 1 and abs(len(faster) - NUM_FRAMES * 1.5) <= 1
    for converted, rate in ((slower, 8), (faster, 24000 / 1001)):
        left = (converted[:, 46, :, 0] > 150).argmax(-1)
        assert np.abs(left - np.arange(len(left)) * 16 / rate).max() <= 1
    assert np.array_equal(convert_frame_rate(frames, 16, 16), frames)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_samples_in_memory_are_resampled_without_delay(rate):
    stereo = np.stack([clicks(), 0.5 * clicks()])
    converted = resample(stereo, SAMPLING_RATE, rate)
    assert converted.dtype == np.float32 and abs(converted.shape[1] - NUM_SAMPLES * rate / SAMPLING_RATE) <= 1
    expected = clicks(rate, converted.shape[1])
    assert lag(converted[0], expected) == 0 and np.abs(converted[0] - expected).mean() < 0.005
    assert np.abs(converted[1] - 0.5 * converted[0]).max() < 1e-6


@pytest.mark.parametrize(
    "convert, arguments, message",
    [
        (convert_frame_rate, (moving_square()[0], 16, 8), r"shape \(64, 64, 3\)"),
        (convert_frame_rate, (moving_square() / 255, 16, 8), "float64, not uint8"),
        (convert_frame_rate, (moving_square(), 16, 0), "frame_rate is 0"),
        (convert_frame_rate, (moving_square(), 1e-12, 8), "frame_rate is 1e-12"),
        (convert_frame_rate, (moving_square(), 16, 1e12), "frame_rate is 1000000000000.0"),
        (convert_frame_rate, (moving_square(), "16", 8), "frame_rate is '16'"),
        (resample, (clicks()[None], 16000, 10**9), "sampling_rate is 1000000000"),
        (resample, (np.broadcast_to(np.float32(0), (1, 2**24)), 1000, 768_000), "needs 48.0 GiB: cut it"),
        (convert_frame_rate, (np.broadcast_to(np.uint8(0), (60, 512, 512, 3)), 1, 1000), "needs 43.9 GiB: cut it"),
        (resample, (clicks()[None], 0, 8000), "sampling_rate is 0"),
        (resample, (clicks()[None], 16000, 0.5), "sampling_rate is 0.5"),
    ],
)
def test_wrong_conversions_are_refused(convert, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(*arguments)


def test_a_picture_is_read_the_right_way_up(tmp_path):
    picture = moving_square()[5, :, :48]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a camera held sideways: turn by 90 degrees
    PIL.Image.fromarray(np.rot90(picture)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), picture)
    data = (tmp_path / "turned.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(data[: len(data) // 2])
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            read_image(tmp_path / name)


def test_what_is_transparent_is_on_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 0], pixels[0, :, 3] = 200, [0, 128, 255]
    PIL.Image.fromarray(pixels, "RGBA").save(tmp_path / "logo.png")
    assert read_image(tmp_path / "logo.png")[0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png")[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize(
    "dtype, suffix", [(np.uint16, "png"), (np.uint16, "tiff"), (np.int32, "tiff"), (np.float32, "tiff")]
)
def test_grey_of_other_depths_keeps_its_range(tmp_path, dtype, suffix):
    full = 1 if dtype == np.float32 else 65535
    grey = np.linspace(0, full, 4096).reshape(64, 64).astype(dtype)
    PIL.Image.fromarray(grey).save(tmp_path / f"grey.{suffix}")
    pixels = read_image(tmp_path / f"grey.{suffix}")
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[..., 0] - grey * (255 / full)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    "image, message",
    [
        (PIL.Image.new("RGB", (0, 0)), "image has 0x0 pixels"),
        (PIL.Image.new("1", (20_000, 20_000)), "image has 20000x20000 pixels: from one to 134 million are read"),
        (PIL.Image.fromarray(np.full((2, 2), 2, np.float32)), r"values from 2 to 2: scale them into \[0, 1\]"),
        (PIL.Image.fromarray(np.full((2, 2), np.nan, np.float32)), "values from nan to nan"),
        (PIL.Image.fromarray(np.full((2, 2), -1, np.int32)), "values from -1 to -1"),
    ],
)
def test_pictures_that_cannot_be_shown_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        picture_pixels(image)


@pytest.mark.parametrize(
    "name, message",
    [
        *((name, "cannot be read as a picture") for name in ("program.eps", "text.png", "folder")),
        ("huge.pgm", "has more than the 134 million pixels that are read: scale it down"),
    ],
)
def test_files_that_are_no_pictures_are_refused(tmp_path, name, message):
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n")
    (tmp_path / "huge.pgm").write_text("P5 20000 20000 255\n")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_image(tmp_path / name)


def test_a_late_audio_stream_stays_late(clip_path, tmp_path):
    late = tmp_path / "late.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(clip_path), "-itsoffset", "0.25"]
    command += ["-i", str(clip_path), "-map", "0:v", "-map", "1:a", "-c", "copy", str(late)]
    subprocess.run(command, check=True)
    assert abs(lag(read_clip(late).waveform[0], clicks()) - SAMPLING_RATE // 4) <= 1


def make(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)], check=True)


def test_pixels_that_are_not_square_are_seen_as_they_are_shown(clip_path, tmp_path):
    wide = tmp_path / "wide.mp4"
    make("-i", clip_path, "-vf", "setsar=3/2", wide)
    frames, _ = read_video(wide)
    assert frames.shape == (NUM_FRAMES, 64, 96, 3)
    square = frames[0, 46, :, 0] > 150
    assert square[:18].all() and not square[20:].any(), "12 pixels are 18 wide"
    check_kept(wide, None)


def test_a_film_is_turned_as_its_camera_was(clip_path, tmp_path):
    turned = tmp_path / "turned.mp4"
    make("-i", clip_path, "-vf", "scale=64:32", tmp_path / "flat.mp4")
    make("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", turned)
    assert read_video(turned)[0].shape == (NUM_FRAMES, 64, 32, 3)


def test_a_film_is_read_at_the_size_that_is_asked(clip_path):
    frames, rate = read_video(clip_path, 8, size=(32, 48))
    assert frames.shape == (25, 32, 48, 3) and rate == 8


@pytest.mark.parametrize("difference", [-0.4, -0.06, 0.06, 0.4])
def test_sound_is_fitted_to_its_picture_with_a_warning(clip_path, tmp_path, caplog, difference):
    path = tmp_path / "cut.mkv"
    sound = write_audio(
        tmp_path / "sound.wav",
        np.resize(clicks(), round((NUM_SAMPLES / SAMPLING_RATE + difference) * SAMPLING_RATE)),
        SAMPLING_RATE,
    )
    make("-i", clip_path, "-i", sound, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "flac", path)
    clip = read_clip(path)
    if abs(difference) > 1 / FRAME_RATE:
        assert clip.waveform.shape == (1, NUM_SAMPLES)
        assert f"the sound is {'cut' if difference > 0 else 'padded with silence'}" in caplog.text
        assert "cut.mkv has 3.062 s of picture" in caplog.text
    else:
        assert not caplog.text, "a frame is no difference"


def test_sound_of_another_length_is_not_fitted(clip_path, tmp_path):
    path = tmp_path / "other.mkv"
    make("-i", clip_path, "-t", "2", "-i", clip_path, "-map", "0:v", "-map", "1:a", "-c", "copy", path)
    with pytest.raises(
        ValueError, match="other.mkv has 3.062 s of picture and 2.* s of sound: cut or pad one of them"
    ):
        read_clip(path)


def test_what_is_too_long_or_too_large_is_refused_by_its_header(clip_path, tmp_path, monkeypatch):
    assert read_clip(clip_path, max_seconds=3.1).duration == 3.0625
    decoded = []
    monkeypatch.setattr(ffmpeg, "decode_frames", lambda *arguments: decoded.append(arguments))
    with pytest.raises(ValueError, match=r"clip.mp4 lasts 3.06 s, and 2.00 s are the most here: cut it"):
        read_video(clip_path, max_seconds=2)
    monkeypatch.setattr(ffmpeg, "MAX_BYTES", 500_000)
    with pytest.raises(
        ValueError, match=r"clip.mp4 has 3.06 s of 64x64 pixels at 16 frames per second, which need .* GiB"
    ):
        read_video(clip_path)
    assert not decoded


def test_what_the_header_conceals_is_refused_at_the_limit(clip_path, tmp_path, monkeypatch):
    stream = tmp_path / "stream.flv"  # whose header says nothing when it is written to a pipe
    with open(stream, "wb") as file:
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-i",
            clip_path,
            "-c:v",
            "flv",
            "-c:a",
            "aac",
            "-ar",
            "44100",
        ]
        subprocess.run(
            [*command, "-f", "flv", "-flvflags", "no_duration_filesize+no_metadata", "-"], stdout=file, check=True
        )
    with pytest.raises(ValueError, match="stream.flv lasts longer than the 2.00 s|lasts 3"):
        read_video(stream, max_seconds=2)
    with pytest.raises(ValueError, match="lasts longer than 2.00 s"):
        read_audio(clip_path, max_seconds=2)
    monkeypatch.setattr(ffmpeg, "MAX_BYTES", 200_000)
    with pytest.raises(ValueError, match="stream.flv has .* which need"):
        read_video(stream)


def test_a_film_is_the_frames_of_its_file_one_by_one(clip_path, tmp_path):
    frames, rate = read_video(clip_path)
    film = VideoFile(clip_path)
    assert (film.shape, film.frame_rate, len(film)) == (frames.shape, rate, NUM_FRAMES)
    assert np.array_equal(film.array(), frames)
    assert all(np.array_equal(shown, frame) for shown, frame in zip(film, frames, strict=True))
    for index in (0, -1, slice(3, 20, 4), slice(9, 2, -3), slice(5, 5)):
        assert np.array_equal(np.asarray(film[index]), np.asarray(list(frames[index])))
    assert [picture.tobytes() for picture in film.pictures([1, 1, 5])] == [frames[n].tobytes() for n in (1, 1, 5)]
    copies = write_clip(tmp_path / "a.mp4", film, None, rate), write_clip(tmp_path / "b.mp4", frames, None, rate)
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_a_film_that_is_changed_or_removed_is_refused_when_it_is_read(clip_path):
    film = VideoFile(clip_path)
    write_clip(clip_path, 255 - moving_square(), None, FRAME_RATE)
    with pytest.raises(ValueError, match="clip.mp4 was changed or removed after it was given: keep it"):
        film[0]
    clip_path.unlink()
    with pytest.raises(ValueError, match="clip.mp4 was changed or removed"):
        film.array()


@pytest.mark.slow
def test_a_minute_of_full_hd_needs_little_memory(tmp_path):
    """The header of a minute at 1080p refuses it; four seconds of it take about what their frames take."""
    path = tmp_path / "minute.mp4"
    make("-f", "lavfi", "-i", "color=black:s=1920x1080:r=16:d=60", "-preset", "ultrafast", "-crf", "40", path)
    make("-i", path, "-t", "4", "-c", "copy", tmp_path / "short.mp4")
    code = (
        "import resource, sys; from baton_diffusers.media import read_video\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "before = peak()\n"
        "try: print(len(read_video(sys.argv[1])[0]))\n"
        "except ValueError as error: print(error)\n"
        "print(peak() - before)"
    )
    for name, said in (("minute.mp4", "at most 2 GiB are read"), ("short.mp4", "64")):
        run = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, check=True)
        message, peak = run.stdout.splitlines()
        assert said in message and float(peak) < 0.7


def test_fractional_frame_rates_are_exact(tmp_path):
    path = write_clip(tmp_path / "film.mp4", moving_square(), None, frame_rate=24000 / 1001)
    frames, frame_rate = read_video(path)
    assert len(frames) == NUM_FRAMES and frame_rate == pytest.approx(24000 / 1001, abs=1e-9)


def test_one_stream_alone_and_two_channels(tmp_path):
    stereo = np.stack([clicks(), 0.5 * clicks()])
    path = write_clip(tmp_path / "sound.mp4", None, stereo, sampling_rate=SAMPLING_RATE)
    waveform, sampling_rate = read_audio(path)
    assert waveform.shape == (2, NUM_SAMPLES) and sampling_rate == SAMPLING_RATE
    with pytest.raises(ValueError, match="sound.mp4 has no video stream"):
        read_clip(path)
    path = write_clip(tmp_path / "silent.mp4", moving_square(), None, FRAME_RATE)
    with pytest.raises(ValueError, match="silent.mp4 has no audio stream"):
        read_clip(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_audio_round_trip(tmp_path, suffix):
    path = write_audio(tmp_path / f"sound{suffix}", clicks(), SAMPLING_RATE)
    waveform, sampling_rate = read_audio(path)
    assert sampling_rate == SAMPLING_RATE and np.abs(waveform[0] - clicks()).max() <= 2**-23
    assert read_audio(path, 8000)[0].shape == (1, NUM_SAMPLES // 2)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.98])
def test_truncated_files_are_refused(clip_path, share):
    data = clip_path.read_bytes()
    clip_path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="clip.mp4"):
        read_clip(clip_path)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing.mp4 is not a file"):
        read_clip(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("no clip at all")
    with pytest.raises(ValueError, match="text.mp4 cannot be read"):
        read_clip(tmp_path / "text.mp4")
    for rates in ({"frame_rate": 0}, {"sampling_rate": -1}, {"frame_rate": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(rates))):
            read_clip(tmp_path / "text.mp4", **rates)


def test_failure_leaves_the_old_file_and_nothing_else(clip_path, monkeypatch):
    before = clip_path.read_bytes()

    def interrupted(arguments, frames, path):
        path.write_bytes(b"half a clip")
        raise KeyboardInterrupt

    monkeypatch.setattr(ffmpeg, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_clip(clip_path, moving_square(), clicks(), FRAME_RATE, SAMPLING_RATE)
    assert list(clip_path.parent.iterdir()) == [clip_path] and clip_path.read_bytes() == before


def test_what_cannot_be_kept_is_refused_before_the_work(clip_path, tmp_path):
    check_kept(clip_path, clip_path)
    sound = write_audio(tmp_path / "sound.wav", clicks(), 192_000)
    check_kept(None, sound)  # a rate that AAC has not is converted when the clip is saved
    with pytest.raises(ValueError, match="sound.wav has no video stream"):
        check_kept(sound, None)
    odd = tmp_path / "odd.gif"
    PIL.Image.fromarray(moving_square()[0, :63]).save(odd)
    check_kept(odd, None, scale=2)
    with pytest.raises(ValueError, match="odd.gif of 189x192 pixels: .* even height and width"):
        check_kept(odd, None, scale=3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": moving_square().astype(np.float32)}, "float32, not uint8"),
        ({"frames": moving_square()[0]}, "shape"),
        ({"frames": moving_square()[:, :63]}, "63x64.*even"),
        ({"waveform": clicks()[:-2000]}, "3.0625 s.*2.9375 s"),
        ({"waveform": np.full(NUM_SAMPLES, np.nan)}, "NaN"),
        ({"waveform": 2 * clicks()}, "peaks at"),
        ({"waveform": clicks()[:, None]}, "shape"),
        ({"waveform": np.zeros(NUM_SAMPLES, np.int16)}, "int16, not float"),
        ({"sampling_rate": 0}, "sampling_rate is 0"),
        ({"sampling_rate": 16001}, "waveform has the sampling_rate 16001, which AAC does not support"),
        ({"sampling_rate": None}, "sampling_rate is None"),
        ({"frame_rate": -16}, "frame_rate is -16"),
        ({"frames": None, "waveform": None}, "both None"),
        ({"scale": 1.5}, "scale is 1.5"),
        ({"scale": 1000}, "64000x64000 pixels: H.264 takes up to 16384 a side"),
        ({"path": "clip.gif"}, "ends in '.gif'.*.mp4"),
        ({"path": "no/such/clip.mp4"}, "no/such is not a folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "path": "clip.mp4",
        "frames": moving_square(),
        "waveform": clicks(),
        "frame_rate": FRAME_RATE,
        "sampling_rate": SAMPLING_RATE,
    }
    with pytest.raises(ValueError, match=message):
        write_clip(**(arguments | change))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name, rate", [("film.mp4", "16"), ("film.mkv", "24000/1001"), ("film.mts", "25")])
def test_the_end_of_a_long_film_is_the_end_of_the_whole(tmp_path, monkeypatch, name, rate):
    path = tmp_path / name
    streams = (
        "-f",
        "lavfi",
        "-i",
        f"testsrc2=size=64x48:rate={rate}:duration=6",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=6",
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *streams, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    whole = read_clip(path)
    assert len(read_end(path, 2.0).frames) == len(whole.frames)  # it is small
    monkeypatch.setattr("baton_diffusers.ffmpeg._SMALL_BYTES", 0)
    end, picture, sound = (read_end(path, 2.0, only) for only in (None, "video", "audio"))
    assert (
        len(whole.frames) / 2 < 2 * len(end.frames) < 1.1 * len(whole.frames)
        and picture.waveform is sound.frames is None
    )
    last = round(2 * whole.frame_rate)
    assert np.array_equal(end.frames[-last:], whole.frames[-last:]) and np.array_equal(end.frames, picture.frames)
    assert np.abs(end.waveform[:, -88200:] - whole.waveform[:, -88200:]).max() < 1e-3
