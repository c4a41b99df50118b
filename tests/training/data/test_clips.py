"""Clips of one's own: what is converted, what is rejected and why, and that folders and shards give the same."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset

from baton_diffusers.media import read_clip
from baton_diffusers.training.data.clips import (
    Bucket,
    ClipFolder,
    ClipFormat,
    ClipRejected,
    ClipShards,
    open_clips,
    read_training_clip,
)
from tests.odd_clips import ODD_CLIPS, write_odd_clips, write_stage_clips


FORMAT = ClipFormat((Bucket(49, 64, 64), Bucket(33, 64, 64), Bucket(33, 48, 80)), frame_rate=16.0, sampling_rate=16000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips of one's own")
    write_stage_clips(folder, 2)
    write_odd_clips(folder)
    return folder


def samples_and_rejects(clips):
    samples, rejects = {}, {}
    for number, name in enumerate(clips.names):
        try:
            samples[name] = clips[number]
        except ClipRejected as error:
            rejects[name] = str(error)
    return samples, rejects


def test_odd_clips_are_converted_or_rejected_with_their_reason(folder):
    samples, rejects = samples_and_rejects(ClipFolder(folder, FORMAT))
    assert set(rejects) == {name for name, reason in ODD_CLIPS.items() if reason is not None}
    for name, message in rejects.items():
        assert ODD_CLIPS[name] in message, (name, message)
        assert str(folder) not in message and "0x" not in message, "a reason is the same in every run"
    assert len(samples) == 2 + sum(reason is None for reason in ODD_CLIPS.values())
    for name, sample in samples.items():
        shape = (33, 48, 80, 3) if name == "wide.mp4" else (49, 64, 64, 3)
        assert sample["frames"].shape == shape, name
        assert sample["waveform"].shape == (shape[0] * 1000,) and sample["waveform"].abs().max() <= 1
        assert sample["prompt"]
        assert sample["silent"] == (name == "silent.mp4") and sample["static"] == (name == "static.mp4"), name
    claimed, whole = samples["three hours, it says.mp4"], samples["Ünïcode and spaces, 日本語.mp4"]
    assert (claimed["frames"] == whole["frames"]).all() and (claimed["waveform"] == whole["waveform"]).all()


def test_a_clip_of_the_right_form_is_read_as_it_is(folder):
    clip = read_clip(folder / "clip-000.mp4", 16.0, 16000)
    sample = read_training_clip(folder / "clip-000.mp4", FORMAT)
    np.testing.assert_array_equal(sample["frames"].numpy(), clip.frames)
    np.testing.assert_allclose(sample["waveform"].numpy(), clip.waveform[0, :49000], atol=1e-6)


def test_a_variable_frame_rate_keeps_its_time_axis(folder):
    frames = read_training_clip(folder / "variable frame rate.mp4", FORMAT)["frames"].float()
    changes = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
    # its 30 frames/s of the first second, halved, move twice as far in a frame as its 15 frames/s afterwards
    assert changes[:14].median() > 1.3 * changes[18:].median()


def test_shards_give_the_samples_of_the_folder(folder, tmp_path):
    names = [name for name in sorted(ODD_CLIPS) if name != "no caption.mp4"]
    with webdataset.TarWriter(str(tmp_path / "clips-000000.tar")) as shard:
        for number, name in enumerate(names):
            path = folder / name
            caption = {"txt": path.with_suffix(".txt").read_bytes()}
            if number % 2:
                caption = {"json": json.dumps({"text": caption["txt"].decode()}).encode()}
            shard.write({"__key__": f"{number:06d}", path.suffix[1:]: path.read_bytes(), **caption})
        shard.write({"__key__": "uncaptioned", "mp4": b"x"})
    clips = open_clips(tmp_path, FORMAT)
    assert isinstance(clips, ClipShards) and len(clips) == len(names) + 1
    samples, rejects = samples_and_rejects(clips)
    expected, expected_rejects = samples_and_rejects(ClipFolder(folder, FORMAT))
    assert rejects.pop("clips-000000.tar/uncaptioned") == "no caption"
    for number, name in enumerate(names):
        key = f"clips-000000.tar/{number:06d}"
        if name in expected:
            assert (samples[key]["frames"] == expected[name]["frames"]).all()
            assert (samples[key]["waveform"] == expected[name]["waveform"]).all()
            assert samples[key]["prompt"] == expected[name]["prompt"]
        else:
            assert ODD_CLIPS[name] in rejects[key] and ODD_CLIPS[name] in expected_rejects[name]


def test_captions_come_from_metadata_too(tmp_path):
    write_stage_clips(tmp_path, 1)
    rows = [{"file_name": "clip-000.mp4", "text": " A  new caption. "}, {"file_name": "lost.mp4", "text": "x"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    clips = ClipFolder(tmp_path, FORMAT)
    assert clips[0]["prompt"] == "A new caption." and clips[0]["name"] == "clip-000.mp4"
    with pytest.raises(ClipRejected, match="not a file"):
        clips[1]
    for line in ('{"name": 1}', "{", "[1]", "[" * 100_000):
        (tmp_path / "metadata.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match="line 1.*file_name"):
            ClipFolder(tmp_path, FORMAT)


CLIP = b"film"  # what is told about a clip is read before the clip


@pytest.fixture
def strange(tmp_path):
    """A folder of clips beside one that is private."""
    private, folder = tmp_path / "private", tmp_path / "clips"
    for place in (private, folder):
        place.mkdir()
        (place / "clip.mp4").write_bytes(CLIP)
    (private / "clip.txt").write_text("A private caption.")
    return folder


def reasons(clips):
    """The reason of each clip that is not even found."""
    found = {}
    for number, name in enumerate(clips.names):
        try:
            clips[number]
        except ClipRejected as error:
            if "cannot be read as video" not in str(error):
                found[name] = str(error)
        json.dumps({name: found.get(name)}, ensure_ascii=False).encode()  # it can be written
        assert clips.digest(number)
    return found


@pytest.mark.parametrize(
    "name", ["/{}/private/clip.mp4", "../private/clip.mp4", "a/../../private/clip.mp4", "link.mp4", "links/clip.mp4"]
)
def test_nothing_outside_of_the_folder_is_read(strange, name):
    (strange / "link.mp4").symlink_to(strange.parent / "private/clip.mp4")
    (strange / "links").symlink_to(strange.parent / "private")
    (strange / "clip.txt").symlink_to(strange.parent / "private/clip.txt")
    row = {"file_name": name.format(strange.parent), "text": "x"}
    (strange / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    found = reasons(ClipFolder(strange, FORMAT))
    assert "clip.txt leads out of the folder" in found["clip.mp4"]
    assert "a linked folder" in found["links"] and "leads out of the folder" in found["link.mp4"]
    where = name if name.startswith("link") else "metadata.jsonl, line 1"
    assert "leads out of the folder" in found[where]


def test_links_within_the_folder_are_read(strange):
    (strange / "again.mp4").symlink_to("clip.mp4")
    (strange / "again.txt").write_text("x")
    (strange / "clip.txt").symlink_to("again.txt")
    assert not reasons(ClipFolder(strange, FORMAT))
    (strange / "metadata.jsonl").symlink_to(strange.parent / "private/metadata.jsonl")
    (strange.parent / "private/metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="metadata.jsonl leads out of the folder"):
        ClipFolder(strange, FORMAT)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"file_name": 5, "text": "x"}, "its file_name is 5, not the name of a file"),
        ({"file_name": None, "text": "x"}, "its file_name is None"),
        ({"file_name": "a\0.mp4", "text": "x"}, "not the name of a file"),
        ({"file_name": ".", "text": "x"}, "not the name of a file"),
        ({"file_name": "n" * 300 + ".mp4", "text": "x"}, "cannot be opened (File name too long)"),
        ({"file_name": "lost.mp4", "text": "x"}, "is not a file"),
        ({"file_name": "clip.mp4", "text": "a \ud800 b"}, "its caption holds '\\ud800', which is no character"),
        ({"file_name": "clip.mp4", "text": "x", "cues": "\ud800"}, "its cues holds '\\ud800'"),
        ({"file_name": "clip.mp4", "text": 5}, "no caption"),
        ({"file_name": "clip.mp4", "text": "x", "cues": 5}, "its cues: "),
        ({"file_name": "\ud800.mp4", "text": "x"}, "not the name of a file"),
    ],
)
def test_a_bad_line_rejects_one_clip_alone(strange, row, reason):
    (strange / "good.mp4").write_bytes(CLIP)
    rows = [row, {"file_name": "good.mp4", "text": "Good.\u2028Still the same caption."}]
    lines = "\n".join(json.dumps(row, ensure_ascii="ud800" in repr(row)) for row in rows)
    (strange / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    found = reasons(ClipFolder(strange, FORMAT))
    bad = [text for name, text in found.items() if any(part in text for part in reason.split("|"))]
    assert len(bad) == 1 and "good.mp4" not in found


def test_odd_names_and_captions_are_read_or_listed(strange):
    names = [
        b"caf\xe9.mp4",
        "line\u2028break.mts".encode(),
        b"clip.v1.3gp",
        b"UPPER.MOV",
        b"._clip.mp4",
        b".hidden.webm",
        b".baton-1.mp4",
    ]
    for name in names:
        (strange / os.fsdecode(name)).write_bytes(CLIP)
        (strange / os.fsdecode(name)).with_suffix(".txt").write_bytes(b"\xef\xbb\xbfA caption.")
    (strange / "clip.txt").write_bytes("Von Windows.".encode("utf-16"))
    (strange / "latin.mp4").write_bytes(CLIP)
    (strange / "latin.txt").write_bytes(b"caf\xe9")
    (strange / "long.mp4").write_bytes(CLIP)
    (strange / "long.txt").write_bytes(b"x" * (2**20 + 1))
    clips = ClipFolder(strange, FORMAT)
    assert set(clips.names) == {
        *("caf\\udce9.mp4", "line\u2028break.mts", "clip.v1.3gp", "UPPER.MOV", "._clip.mp4", ".hidden.webm"),
        *("clip.mp4", "latin.mp4", "long.mp4"),
    }
    assert reasons(clips) == {
        "._clip.mp4": "what a Mac keeps beside a file, and no clip",
        ".hidden.webm": "a hidden file: a clip's name begins without a dot",
        "latin.mp4": "latin.txt is not UTF-8",
        "long.mp4": "long.txt has 1048577 bytes, which is no caption",
    }
    assert clips.find(clips.names.index("clip.mp4"))[1]["text"] == "Von Windows."


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "members, expected",
    [
        (
            {"._a.mp4": b"\0", "a.mp4": CLIP, "a.txt": b"x"},
            {"a": None, "._a": "what a Mac keeps beside a file, and no clip"},
        ),
        ({".DS_Store": b"x", "a.mp4": CLIP, "a.txt": b"x"}, {"a": None}),
        ({"c.v1.mp4": CLIP, "c.v1.txt": b"x", "c.v2.mp4": CLIP, "c.txt": b"x"}, {"c.v1": None, "c.v2": None}),
        ({"a.video.mp4": CLIP, "a.txt": b"x"}, {"a.video": None}),
        ({"a.mp4": CLIP, "a.webm": CLIP, "a.json": b'{"text": "x"}'}, {"a.mp4": None, "a.webm": None}),
        ({"b/a.3GP": CLIP, "b/a.txt": b"\xef\xbb\xbfx"}, {"b/a": None}),
        (
            {"a.mp4": CLIP, "a.json": b"[" * 100_000},
            {"a": "its caption cannot be read: KEY.json needs a `text`, in UTF-8"},
        ),
        ({"a.mp4": CLIP, "a.txt": b"\xff"}, {"a": "a.txt is not UTF-8"}),
        ({"a.mp4": b"", "a.txt": b"x"}, {"a": "is empty: download or export it again"}),
    ],
)
def test_members_of_shards_are_read_or_listed(tmp_path, members, expected):
    clips = open_clips(shard(tmp_path / "s.tar", members), FORMAT)
    assert set(clips.names) == {f"s.tar/{name}" for name in expected}
    assert reasons(clips) == {f"s.tar/{name}": reason for name, reason in expected.items() if reason}


def test_a_playlist_in_a_shard_or_folder_is_rejected(tmp_path):
    write_stage_clips(tmp_path, 1)
    (tmp_path / "private").mkdir()
    (tmp_path / "clip-000.mp4").rename(tmp_path / "private/film.mp4")
    playlist = b"ffconcat version 1.0\nfile 'private/film.mp4'\n"
    (tmp_path / "clip-000.mp4").write_bytes(playlist)
    archive = shard(tmp_path / "private/s.tar", {"a.mp4": playlist, "a.txt": b"x"})
    for clips in (ClipFolder(tmp_path, FORMAT), open_clips(archive, FORMAT)):
        with pytest.raises(ClipRejected, match="is a playlist"):
            clips[0]


def test_damaged_shards_are_named(tmp_path):
    whole = shard(tmp_path / "whole.tar", {"a.mp4": CLIP, "b.mp4": CLIP, "c.mp4": CLIP}).read_bytes()
    for number, data in enumerate((b"no tar" * 200, whole[:1500], whole[:1024] + b"\xff" * 512 + whole[1536:], b"")):
        path = tmp_path / f"damaged-{number}.tar"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as a tar file"):
            open_clips(path, FORMAT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link.tar").symlink_to(tmp_path / "whole.tar")
    with pytest.raises(ValueError, match="link.tar leads out of its folder"):
        open_clips(tmp_path / "elsewhere", FORMAT)


def test_a_digest_tells_the_content(strange):
    (strange / "clip.txt").write_text("A caption.")
    digests = [ClipFolder(strange, FORMAT).digest(0)]
    for name, content in (("clip.txt", "Another."), ("clip.mp4", "another"), ("clip.cues", "<|0.50|> x")):
        (strange / name).write_text(content)
        digests.append(ClipFolder(strange, FORMAT).digest(0))
    assert len(set(digests)) == 4
    (strange.parent / "private/clip.txt").write_text("Another.")
    archive = shard(strange / "s.tar", {"a.mp4": b"another", "a.txt": b"Another.", "a.cues": b"<|0.50|> x"})
    assert open_clips(archive, FORMAT).digest(0) == digests[3]


def test_cues_are_told_beside_the_caption(tmp_path):
    write_stage_clips(tmp_path, 3)
    (tmp_path / "clip-000.cues").write_text("<|0.50|> a bang\n<|1.25|> a cry\n")
    (tmp_path / "clip-001.cues").write_text("bang")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "clip-002.mp4", "text": "x", "cues": "<|2.00|> a bang"}\n')
    clips = ClipFolder(tmp_path, FORMAT)
    assert clips[0]["cues"] == "<|0.50|> a bang <|1.25|> a cry"
    assert clips[2]["cues"] == "<|2.00|> a bang" and clips[2]["prompt"] == "x"
    with pytest.raises(ClipRejected, match="its cues: 'bang' in a sheet's cast needs a name and a place"):
        clips[1]
    (tmp_path / "clip-001.cues").unlink()
    assert clips[1]["cues"] == ""

    shards = tmp_path / "shards"
    shards.mkdir()
    clip = (tmp_path / "clip-000.mp4").read_bytes()
    with webdataset.TarWriter(str(shards / "clips.tar")) as shard:
        shard.write({"__key__": "0", "mp4": clip, "txt": b"x", "cues": b"<|0.50|> a bang"})
        shard.write({"__key__": "1", "mp4": clip, "json": json.dumps({"text": "x", "cues": "<|1.00|> b"}).encode()})
        shard.write({"__key__": "2", "mp4": clip, "txt": b"x"})
    assert [clip["cues"] for clip in open_clips(shards, FORMAT)] == ["<|0.50|> a bang", "<|1.00|> b", ""]


def test_a_clip_goes_into_the_longest_bucket_of_its_aspect_that_it_fills():
    assert FORMAT.choose(None, 1.0) == Bucket(49, 64, 64)
    assert FORMAT.choose(48, 1.0) == Bucket(33, 64, 64)
    assert FORMAT.choose(100, 16 / 9) == Bucket(33, 48, 80)
    with pytest.raises(ClipRejected, match="too short: 20 frames"):
        FORMAT.choose(20, 1.0)


def test_wrong_settings_are_named(tmp_path):
    assert Bucket.parse("49x64x80") == Bucket(49, 64, 80) and str(Bucket(49, 64, 80)) == "49x64x80"
    for text in ("49x64", "axbxc", "0x64x64"):
        with pytest.raises(ValueError, match=text):
            Bucket.parse(text)
    with pytest.raises(ValueError, match="buckets"):
        ClipFormat((), 16.0, 16000)
    with pytest.raises(ValueError, match="frame_rate.*-1"):
        ClipFormat((Bucket(1, 1, 1),), -1.0, 16000)
    with pytest.raises(ValueError, match="not a folder"):
        ClipFolder(tmp_path / "nowhere", FORMAT)
    with pytest.raises(ValueError, match="no clips"):
        ClipFolder(tmp_path, FORMAT)
