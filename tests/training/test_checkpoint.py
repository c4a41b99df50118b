"""Checkpoints: the newest whole one counts, and one training at a time writes them."""

import pytest
import torch
import yaml
from torch import nn

from baton_diffusers.training.checkpoint import checkpoints, load_checkpoint, run_lock
from tests.training.test_trainer import make_trainer, rows


def test_keeps_two_checkpoints_and_loads_the_newest(tmp_path):
    trainer = make_trainer(tmp_path, checkpoint_every=5)
    trainer.fit()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000010.pt", "step_00000012.pt"]
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 4))
    assert load_checkpoint(tmp_path, module) == 12
    torch.testing.assert_close(module.state_dict(), trainer.module.state_dict(), rtol=0, atol=0)
    load_checkpoint(tmp_path, module, ema=False)
    torch.testing.assert_close(module.state_dict(), torch.load(checkpoints(tmp_path)[-1])["module"], rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="No checkpoint"):
        load_checkpoint(tmp_path / "elsewhere", module)


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    make_trainer(tmp_path, checkpoint_every=2, keep_checkpoints=3).fit()
    assert [path.stem for path in checkpoints(tmp_path)] == ["step_00000008", "step_00000010", "step_00000012"]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    make_trainer(tmp_path, steps=4).fit()
    half = tmp_path / "checkpoints" / "step_00000006.tmp"
    half.write_bytes(b"half")
    with open(tmp_path / "log.csv", "a") as file:
        file.write("2")
    trainer = make_trainer(tmp_path, steps=8)
    trainer.fit()
    assert trainer.step == 8 and not half.exists()
    assert [int(row["step"]) for row in rows(tmp_path)] == [4, 8]


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(ValueError, match="another training is running in .*another `trainer.run_dir`"),
    ):
        make_trainer(tmp_path).fit()
    assert not (tmp_path / "log.csv").exists()
    make_trainer(tmp_path).fit()


@pytest.mark.parametrize("damage", ["cut", "blank", "empty"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, damage):
    make_trainer(tmp_path, checkpoint_every=5).fit()
    whole = rows(tmp_path)[-1]["loss"]
    older, newest = checkpoints(tmp_path)
    content = bytearray(newest.read_bytes())
    half = len(content) // 2
    newest.write_bytes(
        {"cut": content[:half], "blank": content[:half] + bytes(64) + content[half + 64 :], "empty": b""}[damage]
    )
    with pytest.warns(UserWarning, match=r"step_00000012.pt is damaged .*step_00000012.pt.damaged"):
        trainer = make_trainer(tmp_path, checkpoint_every=5)
        assert trainer.resume() and trainer.step == 10
    make_trainer(tmp_path, checkpoint_every=5).fit()
    assert rows(tmp_path)[-1]["loss"] == whole
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all checkpoints in .* are damaged"), pytest.warns(UserWarning):
        make_trainer(tmp_path).fit()


@pytest.mark.parametrize("name, text", [("config.yaml", ""), ("log.csv", "step,sam")])
def test_half_written_files_beside_whole_checkpoints_stop_nothing(tmp_path, name, text):
    make_trainer(tmp_path, steps=4).fit()
    (tmp_path / name).write_text(text)
    trainer = make_trainer(tmp_path, steps=8)
    trainer.fit()
    assert trainer.step == 8 and [row["step"] for row in rows(tmp_path)][-1] == "8"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["steps"] == 8
