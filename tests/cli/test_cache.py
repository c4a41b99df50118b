"""`baton cache`: from a folder of clips to features for training."""

import json

import pytest

from baton_diffusers.training.data.dataset import CachedFeatures
from tests.cli.commands import run
from tests.odd_clips import write_stage_clips


def test_a_folder_of_clips_becomes_features(tmp_path, capsys):
    clips, output = tmp_path / "my clips", tmp_path / "features"
    clips.mkdir()
    write_stage_clips(clips, 2)
    (clips / "broken.mp4").write_text("no film")
    (clips / "broken.txt").write_text("A caption.")
    assert run("cache", clips, "--output", output) == 0
    printed = capsys.readouterr().out
    assert "2 clips (2 of 49x64x64) in 1 shards" in printed and "0 silent or static, 1 rejected" in printed
    assert "rejected: broken.mp4: cannot be read as video (moov atom not found): it is truncated" in printed
    features = CachedFeatures(output)
    assert features.num_clips == 2 and features[0]["prompt"]
    assert json.loads((output / "manifest.json").read_text())["recipe"]["audio_latent_rate"] == 31.25


def test_workers_share_the_shards(tmp_path, capsys, monkeypatch):
    command = ("cache", "stage", "--clips", 3, "--clips-per-shard", 2, "--output", tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(*command) == 0 and capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.glob("*.tar")] == ["features-00001.tar"]
    monkeypatch.setenv("RANK", "0")
    assert run(*command) == 0 and "3 clips (3 of 49x64x64) in 2 shards" in capsys.readouterr().out


def test_what_is_rare_on_stage_can_be_cached_more_often(tmp_path):
    command = ("cache", "stage", "--model", "baton-nano", "--clips", 2, "--output", tmp_path)
    assert run(*command, "--verb-shares", "hit=0.75", "--verb-shares", "bounce=0.25") == 0
    source = json.loads((tmp_path / "recipe.json").read_text())["source"]
    assert source["verb_shares"] == {"hit": 0.75, "bounce": 0.25}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere",), "nowhere is neither a folder of clips, nor a tar file, nor `stage`"),
        ((".", "--bucket", "49x64"), "FRAMESxHEIGHTxWIDTH"),
        (("stage", "--model", "nowhere"), "nowhere is not a folder"),
        (
            ("stage", "--model", "tests"),
            "tests does not say what its `frame_rate` is, as pipelines do in transformer/config.json: give --frame-rate 16, "
            "Stage's, or a pipeline's folder",
        ),
        ((".", "--model", "tests"), "give --frame-rate and --bucket or a pipeline's folder"),
        ((".", "--model", "tests", "--frame-rate", "16"), "`num_frames` is, as pipelines do in model_index.json"),
        (
            ("stage", "--model", "tests", "--frame-rate", "16", "--text"),
            "`max_sequence_length` is, as pipelines do in model_index.json: give a pipeline's folder",
        ),
        (("stage", "--verb-shares", "hit"), "--verb-shares hit is not of the form VERB=SHARE, as hit=0.4"),
        (("stage", "--verb-shares", "fly=0.4"), "`verb_shares` has ['fly']; the verbs are"),
        ((".", "--verb-shares", "hit=0.4"), "--verb-shares hit=0.4 is for stage"),
        (("stage", "--model", "tests", "--frame-rate", "16"), "tests has no vae, audio_vae"),
    ],
)
def test_wrong_input_is_named(tmp_path, capsys, arguments, message):
    assert run("cache", *arguments, "--output", tmp_path / "features") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "features").exists()
