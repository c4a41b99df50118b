"""Cached features: shards whole and checked, resumable at any moment, with the latents and plans that the pipeline would make."""

import json
import os
import shutil
from collections import Counter

import pytest
import torch
import webdataset
from safetensors.torch import load

from baton_diffusers.models.latents import encode_audio_latents
from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.clips import Bucket, ClipFolder, ClipFormat
from baton_diffusers.training.data.dataset import CachedFeatures, collate_features
from tests import stage_parts
from tests.odd_clips import ODD_CLIPS, write_odd_clips, write_stage_clips
from tests.tiny import tiny_text_encoder, tiny_tokenizer

from .conftest import cache, contents


def test_audio_is_cut_where_the_transformers_latents_end():
    _, audio_vae = stage_parts.codecs()
    waveform = torch.randn(1, 49000, generator=torch.Generator().manual_seed(0))
    whole, cut = (encode_audio_latents(audio_vae, waveform, 49 / 16, 31.25, share) for share in (0.0, 0.75))
    assert whole.shape[1] == 96 and cut.shape[1] == 95  # of the last one 0.7 lies within the clip
    torch.testing.assert_close(cut[:, :80], whole[:, :80], atol=1e-2, rtol=1e-2)


def test_webdataset_reads_the_shards(folder):
    urls = [str(folder / "features-00000.tar"), str(folder / "features-00001.tar")]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [row["__key__"] for row in rows] == [f"{number:08d}" for number in range(4)]
    assert rows[2]["txt"].decode() == StageClips("train").prompt(2)
    assert json.loads(rows[0]["json"])["bucket"] == "49x64x64"
    assert load(rows[0]["safetensors"])["latents"].dtype == torch.float16


def test_an_interrupted_cache_goes_on_with_the_missing_shard(folder):
    before = contents(folder)
    first, second = folder / "features-00000.tar", folder / "features-00001.tar"
    stamp = first.stat().st_mtime_ns
    second.with_suffix(".index.json").unlink()  # killed between shard and index
    (folder / ".baton-0.tar").write_bytes(b"half")
    assert cache(folder) and contents(folder) == before
    assert first.stat().st_mtime_ns == stamp
    second.unlink()
    with pytest.raises(ValueError, match="features-00001.tar is missing.*baton cache"):
        CachedFeatures(folder)
    assert cache(folder) and contents(folder) == before


def test_a_damaged_shard_is_found_by_its_checksum(folder):
    before, first = contents(folder), folder / "features-00000.tar"
    data = bytearray(first.read_bytes())
    data[2000] ^= 1
    first.write_bytes(data)
    assert cache(folder, verify=True) and contents(folder) == before
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    assert [shard["num_clips"] for shard in shards] == [2, 2]


@pytest.fixture
def own(tmp_path):
    """Four clips of one's own and a function that caches them two in a shard."""
    clips, folder = tmp_path / "clips", tmp_path / "features"
    clips.mkdir()
    write_stage_clips(clips, 4)

    def run(**options):
        source = ClipFolder(clips, ClipFormat((Bucket(49, 64, 64),), 16.0, 16000))
        return cache(folder, len(source), source, **options)

    assert run()
    return clips, folder, run


def test_a_clip_that_was_replaced_is_cached_anew(own, tmp_path):
    clips, folder, run = own
    before, stamps = contents(folder), {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert run() and contents(folder) == before
    times = (clips / "clip-000.mp4").stat()
    (clips / "clip-000.mp4").write_bytes((clips / "clip-003.mp4").read_bytes())
    os.utime(clips / "clip-000.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))  # content decides, no date
    (clips / "clip-001.txt").write_text("Something else entirely.")
    assert run()
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} == {
        *("features-00000.tar", "features-00000.index.json", "manifest.json")
    }
    assert (folder / "features-00001.tar").stat().st_mtime_ns == stamps["features-00001.tar"]
    samples = {
        sample["prompt"]: sample for sample in map(CachedFeatures(folder, include_flagged=True).__getitem__, range(4))
    }
    assert "Something else entirely." in samples
    first, last = ((clips / f"clip-00{number}.txt").read_text() for number in (0, 3))
    assert torch.equal(samples[first]["latents"], samples[last]["latents"])
    assert run() and contents(folder) == after


def test_while_a_shard_is_made_anew_the_cache_is_not_finished(own, monkeypatch):
    clips, folder, run = own
    (clips / "clip-003.txt").write_text("Something else entirely.")
    assert not run(worker=1, num_workers=3) or (folder / "manifest.json").is_file()
    monkeypatch.setattr("baton_diffusers.training.data.cache._write_manifest", lambda *_: False)
    (clips / "clip-003.txt").write_text("And another thing.")
    run()
    with pytest.raises(ValueError, match="not finished"):
        CachedFeatures(folder)


def test_one_bad_clip_stops_no_other(own):
    clips, folder, run = own
    (clips / "clip-000.mp4").rename(clips / os.fsdecode(b"caf\xe9.mp4"))
    (clips / "clip-000.txt").rename(clips / os.fsdecode(b"caf\xe9.txt"))
    rows = [{"file_name": "clip-001.mp4", "text": "x \ud800 y"}, {"file_name": "n" * 300 + ".mp4"}, {"file_name": 5}]
    (clips / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.rmtree(folder)
    assert run()
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert {row["clip"] for row in rejects} == {"clip-001.mp4", "n" * 300 + ".mp4", "metadata.jsonl, line 3"}
    assert CachedFeatures(folder, include_flagged=True).num_clips == 3


def test_workers_share_the_shards(folder, tmp_path):
    assert not cache(tmp_path, worker=1, num_workers=2)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["features-00001.tar"]
    with pytest.raises(ValueError, match="not finished"):
        CachedFeatures(tmp_path)
    assert cache(tmp_path, worker=0, num_workers=2)
    assert contents(tmp_path) == contents(folder)


def test_clips_of_ones_own_with_odd_ones_among_them(tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "features"
    clips.mkdir()
    write_stage_clips(clips, 2)
    write_odd_clips(clips)
    form = ClipFormat((Bucket(49, 64, 64), Bucket(33, 64, 80)), 16.0, 16000)
    source = ClipFolder(clips, form)
    text = {"text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer(), "max_sequence_length": 20}
    assert cache(folder, len(source), source, clips_per_shard=8, **text)

    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert {row["clip"] for row in rejects} == {name for name, reason in ODD_CLIPS.items() if reason}
    assert all(ODD_CLIPS[row["clip"]] in row["reason"] for row in rejects)
    manifest = json.loads((folder / "manifest.json").read_text())
    usable = 2 + sum(reason is None for reason in ODD_CLIPS.values())
    assert manifest["num_clips"] == usable and manifest["num_rejected"] == len(rejects)
    assert manifest["num_flagged"] == 2 and manifest["buckets"] == {"33x64x80": 1, "49x64x64": usable - 1}

    with pytest.raises(ValueError, match="2 shapes.*batch_size"):
        CachedFeatures(folder)
    features = CachedFeatures(folder, batch_size=3)
    assert features.num_clips == usable - 2
    assert CachedFeatures(folder, batch_size=3, include_flagged=True).num_clips == usable
    seen = Counter()
    for start in range(0, 30, 3):
        batch = collate_features([features[index] for index in range(start, start + 3)])  # of one shape
        assert features.plan(batch["video_tokens"], batch["audio_tokens"]).duration in (49 / 16, 33 / 16)
        assert batch["prompt_embeds"].shape == (3, 20, 16) and not batch["silent"].any()
        seen.update(batch["prompt"])
    assert len(seen) == usable - 2, "every clip comes up"
    counts = [count for prompt, count in seen.items() if "wide.mp4" not in prompt]  # which is alone in its bucket
    assert max(counts) - min(counts) <= 1, "none comes up twice before all have come up once"
    for prompt, embeds in [
        *zip(batch["prompt"], batch["prompt_embeds"], strict=True),
        ("", features.empty_prompt_embeds),
    ]:
        tokens = text["tokenizer"](prompt, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
        with torch.no_grad():
            expected = text["text_encoder"](**tokens).last_hidden_state * tokens.attention_mask[..., None]
        torch.testing.assert_close(embeds, expected[0], rtol=2e-3, atol=2e-3)
        assert (embeds[tokens.attention_mask[0].sum() :] == 0).all(), "and zeros after it, as the pipeline pads"
    stage_too = CachedFeatures(folder, StageClips("train"), batch_size=3)
    assert stage_too[4]["prompt"] == features[4]["prompt"], "own prompts are not Stage's to paraphrase"
    with pytest.raises(ValueError, match="several durations"):
        _ = features.plan_layout


def test_wrong_input_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="`num_clips` is 0"):
        cache(tmp_path, num_clips=0)
    with pytest.raises(ValueError, match="`worker` is 2"):
        cache(tmp_path, worker=2, num_workers=2)
    with pytest.raises(ValueError, match="text_encoder.*tokenizer"):
        cache(tmp_path, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="another recipe: `source`.*'seed': 0.*'seed': 1"):
        cache(folder, clips=StageClips("train", seed=1))
