"""Clips of one's own: what is converted, what is rejected and why, and that folders and shards give the same."""

import json

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
    (tmp_path / "metadata.jsonl").write_text('{"name": 1}\n')
    with pytest.raises(ValueError, match="line 1.*file_name"):
        ClipFolder(tmp_path, FORMAT)


def test_cues_are_told_beside_the_caption(tmp_path):
    write_stage_clips(tmp_path, 3)
    (tmp_path / "clip-000.cues").write_text("<|0.50|> a bang\n<|1.25|> a cry\n")
    (tmp_path / "clip-001.cues").write_text("a bang, then a cry")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "clip-002.mp4", "text": "x", "cues": "<|2.00|> a bang"}\n')
    clips = ClipFolder(tmp_path, FORMAT)
    assert clips[0]["cues"] == "<|0.50|> a bang <|1.25|> a cry"
    assert clips[2]["cues"] == "<|2.00|> a bang" and clips[2]["prompt"] == "x"
    with pytest.raises(ClipRejected, match="its cues: a cue sheet begins with a timestamp"):
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
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="broken.tar cannot be read"):
        open_clips(tmp_path, FORMAT)
