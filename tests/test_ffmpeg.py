"""The decoder opens one file and nothing else, and refuses what is too large before it decodes it."""

import subprocess
import sys
import tarfile
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest

from baton_diffusers import ffmpeg
from baton_diffusers.ffmpeg import Source, Unreadable


def make(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)], check=True)


def pattern(seconds, size="64x48", rate=16):
    return "-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"


def sine(seconds):
    return "-f", "lavfi", "-i", f"sine=duration={seconds}:sample_rate=44100"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make(*pattern(2), *sine(2), "-pix_fmt", "yuv420p", "-shortest", path)
    return path


def test_the_header_says_size_rate_and_length(film):
    picture = ffmpeg.read_picture(film)
    assert picture[:3] == (48, 64, Fraction(16)) and picture.square
    assert picture.seconds == pytest.approx(2, abs=0.05) and ffmpeg.sound_rate(film) == 44100


def test_a_part_of_a_file_is_read_where_it_lies(film, tmp_path):
    with tarfile.open(tmp_path / "a shard, with commas.tar", "w") as archive:
        archive.add(film, "film.mp4")
        member = archive.getmembers()[0]
    with tarfile.open(tmp_path / "a shard, with commas.tar") as archive:
        member = archive.getmember("film.mp4")
    part = Source(tmp_path / "a shard, with commas.tar", member.offset_data, member.size)
    frames, more = ffmpeg.decode_frames(film, 16, "", 48, 64)
    assert np.array_equal(ffmpeg.decode_frames(part, 16, "", 48, 64)[0], frames) and len(frames) == 32 and not more
    assert np.array_equal(ffmpeg.decode_samples(part)[0], ffmpeg.decode_samples(film)[0])


def write_playlists(folder, film):
    """Files that name another one, of a private folder; and the transport stream that they name."""
    stream = folder / "private.ts"
    make("-i", film, "-c", "copy", "-f", "mpegts", stream)
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{stream}\n#EXT-X-ENDLIST\n"
    (folder / "list.m3u8").write_text(hls)
    (folder / "list.mp4").write_text(hls)
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{stream.name}'\n")
    (folder / "session.sdp").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    )
    (folder / "list.mpd").write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet><Representation id="0">'
        f"<BaseURL>{stream}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    for number in range(3):
        PIL.Image.new("RGB", (64, 48)).save(folder / f"im{number:03d}.png")
    PIL.Image.new("RGB", (64, 48)).save(folder / "im%03d.png")


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "concat.mp4", "session.sdp", "list.mpd", "im%03d.png"])
def test_what_names_other_files_is_refused(film, tmp_path, name):
    write_playlists(tmp_path, film)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / name, name)
    with tarfile.open(tmp_path / "shard.tar") as archive:
        member = archive.getmember(name)
    for source in (tmp_path / name, Source(tmp_path / "shard.tar", member.offset_data, member.size)):
        for read in (ffmpeg.read_picture, ffmpeg.decode_samples, ffmpeg.sound_rate):
            with pytest.raises(Unreadable, match="playlist|cannot be read"):
                read(source)


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.mp4", "is not a file"),
        (".", "is not a file"),
        ("n" * 300, "cannot be opened .*too long"),
        ("a\0b", "is not a file|cannot be opened"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be read as video"),
    ],
)
def test_what_is_no_film_is_refused(tmp_path, name, message):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(Unreadable, match=message):
        ffmpeg.read_picture(tmp_path / name)


@pytest.mark.parametrize("container", ["flac", "mp3", "aiff", "au", "caf", "w64", "wav", "m4a", "aac", "ogg", "oga"])
def test_sound_that_is_cut_short_is_refused(tmp_path, container):
    path = tmp_path / f"sound.{container}"
    make(*sine(3), path)
    assert ffmpeg.decode_samples(path)[0].shape[1] / 44100 == pytest.approx(3, abs=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(Unreadable, match="truncated"):
        ffmpeg.decode_samples(path)


@pytest.mark.parametrize("container", ["flv", "mkv", "mov", "mxf", "nut", "ogv", "webm"])
def test_a_film_that_is_cut_short_is_refused(tmp_path, container):
    path = tmp_path / f"film.{container}"
    make(*pattern(3, rate=25), *sine(3), "-ar", 48000 if container in ("mxf", "webm") else 44100, path)
    for read in (lambda: ffmpeg.decode_frames(path, 25, "", 48, 64), lambda: ffmpeg.decode_samples(path)):
        read()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    for read in (lambda: ffmpeg.decode_frames(path, 25, "", 48, 64), lambda: ffmpeg.decode_samples(path)):
        with pytest.raises(Unreadable, match="truncated"):
            read()


def test_a_stream_that_ends_before_the_other_is_whole(tmp_path):
    path = tmp_path / "film.mkv"
    make(*pattern(1), *sine(3), path)
    assert len(ffmpeg.decode_frames(path, 16, "", 48, 64)[0]) == 16
    assert ffmpeg.decode_samples(path)[0].shape[1] == pytest.approx(3 * 44100, rel=0.01)


@pytest.mark.parametrize("container", ["mkv", "webm", "avi", "flv", "3gp", "wmv", "mpg", "mts", "ogv"])
def test_containers_of_cameras_and_browsers_are_read(tmp_path, container):
    path = tmp_path / f"film.{container}"
    sizes = {
        "3gp": ("128x96", 25, "-ar", 8000, "-ac", 1, "-c:v", "h263", "-c:a", "aac"),
        "mpg": ("64x48", 25),
        "mts": ("64x48", 25, "-f", "mpegts"),
    }
    size, rate, *options = sizes.get(container, ("64x48", 16))
    make(*pattern(1, size, rate), *sine(1), *options, path)
    picture = ffmpeg.read_picture(path)
    assert f"{picture.width}x{picture.height}" == size and picture.frame_rate == rate
    frames, _ = ffmpeg.decode_frames(path, rate, "", picture.height, picture.width)
    assert abs(len(frames) - rate) <= 1
    waveform, sampling_rate, _ = ffmpeg.decode_samples(path)
    assert waveform.shape[1] / sampling_rate == pytest.approx(1, abs=0.15)


def test_no_more_is_decoded_than_asked(film, monkeypatch):
    frames, more = ffmpeg.decode_frames(film, 16, "", 48, 64, max_frames=5)
    assert frames.shape == (5, 48, 64, 3) and more
    waveform, rate, more = ffmpeg.decode_samples(film, 8000, mono=True, max_seconds=0.5)
    assert waveform.shape == (1, 4000) and rate == 8000 and more
    monkeypatch.setattr(ffmpeg, "MAX_BYTES", 48 * 64 * 3 * 4 + 10)
    frames, more = ffmpeg.decode_frames(film, 16, "", 48, 64)
    assert len(frames) == 4 and more
    waveform, _, more = ffmpeg.decode_samples(film)
    assert waveform.shape[1] < 20_000 and more


def test_a_film_that_takes_too_long_is_given_up(film, monkeypatch):
    monkeypatch.setattr(ffmpeg, "TIMEOUT", 0.0)
    with pytest.raises(Unreadable, match="takes ffmpeg more than"):
        ffmpeg.read_picture(film)


def test_a_frame_of_too_many_pixels_is_refused(film, monkeypatch):
    monkeypatch.setattr(ffmpeg, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(Unreadable, match="cannot be read as video"):
        ffmpeg.read_picture(film)


def test_a_rate_that_the_header_overstates_is_measured(tmp_path):
    # As browsers record it: times in milliseconds that jitter, and no rate.
    path = tmp_path / "browser.webm"
    jitter = "setpts='(N/30+0.004*sin(N*7))/TB',settb=1/1000"
    make(
        *pattern(2, rate=30),
        "-vf",
        jitter,
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "1/1000",
        "-c:v",
        "vp8",
        path,
    )
    assert ffmpeg.read_picture(path).frame_rate == 30


def test_a_stranger_gets_no_more_of_ffmpeg_than_a_decoder():
    assert not {"concat", "hls", "dash", "image2", "lavfi", "sdp", "rtsp", "webm_dash_manifest"} & set(ffmpeg.FORMATS)


def test_an_interrupted_run_leaves_no_process():
    code = (
        "import os, signal, threading, time; from baton_diffusers import ffmpeg\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also below a `nohup`
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: ffmpeg._run(['-re', '-f', 'lavfi', '-i', 'testsrc2=duration=60', '-f', 'null', '-'], None, None)\n"
        "except KeyboardInterrupt: print('threads left:', threading.active_count() - 1)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert run.stdout == "threads left: 0\n", run.stderr
