"""Files as one finds them: whole clips of Stage, and the odd ones that any larger collection has."""

import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import soundfile

from baton_diffusers.media import write_clip
from baton_diffusers.stage import render_clip, sample_scene, write_prompt


# What becomes of each odd clip: the reason why it is rejected, or None where it is converted.
ODD_CLIPS = {
    "cut off at the end.mp4": "truncated",
    "cut off, index lost.mp4": "truncated",
    "no sound.mp4": "no audio stream",
    "zero bytes.mp4": "is empty",
    "text in disguise.mp4": "unknown format",
    "no caption.mp4": "no caption",
    "too short.mp4": "too short: 16 frames",
    "one frame per second.mp4": "1 frames per second",
    "sound ends early.mkv": "sound ends 2.06 s before its picture",
    "matroska in disguise.mp4": None,
    "variable frame rate.mp4": None,
    "eight channels.mkv": None,
    "three hours, it says.mp4": None,
    "Ünïcode and spaces, 日本語.mp4": None,
    "wide.mp4": None,
    "silent.mp4": None,
    "static.mp4": None,
}


def write_stage_clips(folder: Path, count: int, first: int = 0) -> None:
    """Stage clips as `clip-NNN.mp4` with their captions beside."""
    for number in range(first, first + count):
        scene = sample_scene(number, "simple")
        clip = render_clip(scene, number)
        path = folder / f"clip-{number:03d}.mp4"
        write_clip(path, clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate)
        path.with_suffix(".txt").write_text(write_prompt(scene, number))


def write_odd_clips(folder: Path) -> None:
    """One file for each of [`ODD_CLIPS`], made by ffmpeg and soundfile, with captions."""
    scene = sample_scene(99, "simple")
    clip = render_clip(scene, 99)
    rates = {"frame_rate": clip.frame_rate, "sampling_rate": clip.sampling_rate}
    whole = write_clip(folder / "Ünïcode and spaces, 日本語.mp4", clip.frames, clip.waveform, **rates)
    data = whole.read_bytes()

    (folder / "cut off at the end.mp4").write_bytes(data[: len(data) * 2 // 3])
    index_last = folder / "index last.mp4"
    ffmpeg("-i", whole, "-c", "copy", index_last)  # without +faststart the index comes last
    data_alone = index_last.read_bytes().partition(b"moov")[0]
    (folder / "cut off, index lost.mp4").write_bytes(data_alone)
    index_last.unlink()
    write_clip(folder / "no sound.mp4", clip.frames, None, clip.frame_rate)
    (folder / "zero bytes.mp4").touch()
    (folder / "text in disguise.mp4").write_text("This is not a film.")
    write_clip(folder / "too short.mp4", clip.frames[:16], clip.waveform[:16000], **rates)
    write_clip(folder / "silent.mp4", clip.frames, 0 * clip.waveform, **rates)
    write_clip(folder / "static.mp4", clip.frames[:1].repeat(49, axis=0), clip.waveform, **rates)
    write_clip(folder / "no caption.mp4", clip.frames, clip.waveform, **rates)
    (folder / "three hours, it says.mp4").write_bytes(with_claimed_duration(data, 3 * 3600))

    pattern = ("-f", "lavfi", "-i", "testsrc=duration=4:size=96x96:rate=")
    sine = ("-f", "lavfi", "-i", "sine=duration=4:sample_rate=44100")
    ffmpeg(*pattern[:-1], pattern[-1] + "1", *sine, folder / "one frame per second.mp4")
    times = "setpts='if(lt(N,30),N/30,1+(N-30)/15)/TB'"  # 30 frames/s in the first second, then 15
    vfr = ("-vf", times, "-fps_mode", "vfr", "-video_track_timescale", "600", "-t", "4")
    ffmpeg(*pattern[:-1], pattern[-1] + "30", *sine, *vfr, folder / "variable frame rate.mp4")
    wide = "testsrc=duration=4:size=160x90:rate=24"
    ffmpeg("-f", "lavfi", "-i", wide, *sine, folder / "wide.mp4")

    rng = np.random.default_rng(0)
    wav = folder / "sound.wav"
    soundfile.write(wav, rng.uniform(-0.3, 0.3, (4 * 48000, 8)), 48000)
    ffmpeg(*pattern[:-1], pattern[-1] + "16", "-i", wav, "-c:a", "copy", folder / "eight channels.mkv")
    soundfile.write(wav, rng.uniform(-0.3, 0.3, (16000, 1)), 16000)
    ffmpeg("-i", whole, "-i", wav, "-map", "0:v", "-map", "1:a", "-c:v", "copy", folder / "sound ends early.mkv")
    wav.unlink()
    ffmpeg("-i", whole, "-c", "copy", folder / "matroska.mkv")
    (folder / "matroska.mkv").rename(folder / "matroska in disguise.mp4")
    for name in ODD_CLIPS:
        if name != "no caption.mp4":
            (folder / name).with_suffix(".txt").write_text(f"{write_prompt(scene, 99)} It is {name}.")


def with_claimed_duration(data: bytes, seconds: int) -> bytes:
    """An mp4 whose headers claim another length than its samples have."""
    patched = bytearray(data)
    for box in (b"mvhd", b"mdhd"):
        start = patched.find(box)
        while start >= 0:
            place = start + 4 + 12  # after name, version and two dates: units per second, duration
            (units,) = struct.unpack(">I", patched[place : place + 4])
            patched[place + 4 : place + 8] = struct.pack(">I", units * seconds)
            start = patched.find(box, start + 4)
    assert bytes(patched) != data
    return bytes(patched)


def ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
