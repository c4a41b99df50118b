"""A file that ends within a unit of its container was cut short; one that ends behind a unit is whole."""

import io

import pytest

from baton_diffusers import ffmpeg
from baton_diffusers.containers import ends_within_a_unit
from tests.test_ffmpeg import make, pattern, sine


PICTURE, SOUND = pattern(1, rate=25), sine(1)
CONTAINERS = {
    "fragments.mp4": (*PICTURE, *SOUND, "-g", 8, "-movflags", "+frag_keyframe+empty_moov"),
    "film.avi": (*PICTURE, *SOUND, "-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "film.wmv": (*PICTURE, *SOUND),
    "film.ts": (*PICTURE, *SOUND),
    "film.mts": (*PICTURE, *SOUND, "-f", "mpegts", "-mpegts_m2ts_mode", 1),
    "film.y4m": PICTURE,
    "ten bits.y4m": (*PICTURE, "-pix_fmt", "yuv422p10le", "-strict", -1),
    "grey.y4m": (*PICTURE, "-pix_fmt", "gray"),
    "film.dv": ("-f", "lavfi", "-i", "color=size=720x576:rate=25:duration=0.2", "-pix_fmt", "yuv420p"),
    "constant.mp3": (*SOUND, "-write_xing", 0),
    "tagged.mp3": (*SOUND, "-q:a", 4, "-write_xing", 0, "-metadata", "title=T", "-write_id3v1", 1),
    "half rate.mp2": (*SOUND, "-ar", 22050),
    "sound.ac3": SOUND,
    "sound.eac3": SOUND,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_was_cut_is_refused_and_a_whole_one_is_read(tmp_path, name):
    path, arguments = tmp_path / name, CONTAINERS[name]
    make(*arguments, path)
    reads = [] if arguments[:4] == SOUND else [lambda: ffmpeg.decode_frames(path, 25, "scale=64:48", 48, 64)]
    reads += [lambda: ffmpeg.decode_samples(path)] if SOUND[-1] in arguments else []
    for read in reads:
        read()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10 + 1])
    for read in reads:
        with pytest.raises(ffmpeg.Unreadable, match="truncated"):
            read()


@pytest.mark.parametrize(
    "container, data, cut",
    [
        ("avi", b"RIFF" + (4).to_bytes(4, "little") + b"AVI ", False),
        ("avi", b"RIFF" + (400).to_bytes(4, "little") + b"AVI ", True),
        ("avi", b"RIFF\0\0\0\0AVI " + bytes(90), False),  # a recorder was stopped: it states no length
        ("avi", b"RIFF\xff\xff\xff\xffAVI " + bytes(90), False),
        ("mov", b"\0\0\0\x08free\0\0\0\0mdat" + bytes(90), False),  # a length of zero goes to the end
        ("mov", b"\0\0\0\x08free" + b"a text behind the last box", False),
        ("mov", b"\0\0\0\x01mdat" + (99).to_bytes(8, "big") + bytes(80), True),
        ("mpegts", 3 * (b"G" + bytes(187)), False),
        ("mpegts", bytes(50) + 3 * (b"G" + bytes(187)), False),  # a recording that begins within a packet
        ("mpegts", bytes(50) + 3 * (b"G" + bytes(187)) + b"G", True),
        ("yuv4mpegpipe", b"YUV4MPEG2 W3 H3 C420jpeg\nFRAME\n" + bytes(17), False),
        ("yuv4mpegpipe", b"YUV4MPEG2 W3 H3 C420jpeg\nFRAME\n" + bytes(16), True),
        ("yuv4mpegpipe", b"YUV4MPEG2 W3 H3 Codd\nFRAME\n" + bytes(16), False),
        ("yuv4mpegpipe", b"YUV4MPEG2 W3 H3\nFRAME Ip\n" + bytes(16), False),
        ("mp3", b"noise", False),
        ("matroska,webm", b"anything", False),
    ],
)
@pytest.mark.parametrize("before", [b"", b"another member"])
def test_only_what_the_container_states_counts(container, data, cut, before):
    file = io.BytesIO(before + data + before)
    assert ends_within_a_unit(file, len(before), len(before) + len(data), container) == cut
