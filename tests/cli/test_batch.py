import json

import PIL.Image
import pytest

from baton_diffusers.cli import loading
from baton_diffusers.cli.batch import read_rows
from baton_diffusers.cli.workers import Worker
from baton_diffusers.media import read_clip
from tests.cli.commands import PROMPT, loaded_in_vain, run


SMALL = ("--steps", 1, "--no-plan", "--guidance", "none", "--num-frames", 5)


def test_many_clips_are_made_and_what_is_there_is_left(tmp_path, nano, capsys):
    rows = [
        {"prompt": PROMPT, "name": "ball", "seed": 1},
        {"prompt": PROMPT, "num_frames": 6},
        {"prompt": "A bell rings.", "num_frames": 9},
    ]
    file, folder = tmp_path / "prompts.jsonl", tmp_path / "clips"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert run("generate", "--prompts", file, "-o", folder, *SMALL) == 1
    printed = capsys.readouterr()
    assert "line 2: `num_frames` is 6" in printed.err and "of the lines 2" in printed.err
    bell, ball = sorted(folder.iterdir())
    assert ball.name == "ball.mp4" and bell.name.startswith("a-bell-rings-")
    assert [len(read_clip(path).frames) for path in (bell, ball)] == [9, 5]

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    rows[1]["num_frames"] = 5
    file.write_text("\n".join(map(json.dumps, rows)))
    assert run("generate", "--prompts", file, "-o", folder, *SMALL) == 0
    assert "1 clips made, 2 were there, 0 failed" in capsys.readouterr().out
    assert before.items() <= {path: path.stat().st_mtime_ns for path in folder.iterdir()}.items()

    assert run("generate", "--prompts", file, "-o", folder, *SMALL, "--seed", 5) == 0
    assert (
        "2 clips made, 1 were there" in capsys.readouterr().out
    )  # another seed, so other clips; `ball` has its own name


def test_a_clip_of_another_file_or_guidance_is_made_anew(tmp_path, nano, capsys):
    for colour, guidance, there in (("red", "none", 0), ("red", "none", 1), ("blue", "none", 0), ("blue", "text", 0)):
        PIL.Image.new("RGB", (64, 64), colour).save(tmp_path / "first.png")
        (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": PROMPT, "image": "first.png"}), "utf-8-sig")
        small = ("--steps", 1, "--no-plan", "--guidance", guidance, "--num-frames", 5)
        assert run("generate", "--prompts", tmp_path / "p.jsonl", "-o", tmp_path / "clips", *small) == 0
        assert f"{1 - there} clips made, {there} were there" in capsys.readouterr().out


@pytest.mark.parametrize("rank, total", [("2", "2"), ("-1", "2"), ("0", "0"), ("a", "2")])
def test_a_worker_that_cannot_be_is_refused(monkeypatch, rank, total):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", total)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={total}: RANK counts from 0"):
        Worker.this()


def test_two_processes_make_the_clips_of_one(tmp_path, nano, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text(f"# a comment\n{PROMPT}\nA bell rings.\nA blue box.\n")
    assert run("generate", "--prompts", file, "-o", tmp_path / "one", *SMALL) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run("generate", "--prompts", file, "-o", tmp_path / "two", *SMALL) == 0
    clips = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert len(clips[0]) == 3 and clips[0] == clips[1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "a"}', "line 2: the key 'promt' is unknown"),
        ("p.jsonl", '{"prompt": "a"', "line 1: it is no JSON"),
        ("p.jsonl", '["a"]', r"line 1: it is \['a'\], but must be an object"),
        ("p.jsonl", '{"seed": 1}', "line 1: `prompt` is None"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "line 1: `seed` is -1"),
        ("p.jsonl", '{"prompt": "a", "name": "../a"}', "line 1: `name` is '../a'"),
        ("p.jsonl", '{"prompt": "a", "name": "a"}\n{"prompt": "b", "name": "a"}', "line 2: the name 'a' is there"),
        ("p.jsonl", '{"prompt": "a", "image": "missing.png"}', "line 1: missing.png is not a file"),
        ("p.jsonl", '{"prompt": "a", "image": "/etc/hostname"}', "line 1: /etc/hostname is not within"),
        ("p.jsonl", f'{{"prompt": "a", "name": "{"ä" * 150}"}}', "must be at most 200 bytes"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: it is no JSON .the key 'prompt' is there twice"),
        ("p.jsonl", f'{{"prompt": "a", "image": "{"a" * 300}"}}', "line 1: .* is no name of a file .File name too"),
        ("p.jsonl", '{"prompt": "a", "image": "a\\u0000b"}', "line 1: .* is no name of a file"),
        ("p.txt", "# nothing\n\n", "holds no prompt"),
    ],
)
def test_a_malformed_file_is_refused_as_a_whole(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one PROMPT"),
        ([PROMPT, "--prompts", "p.txt"], "give one PROMPT"),
        (["--prompts", "p.txt", "--cues", "ball left"], "--cues ball left is for one clip"),
        (["--prompts", "missing.txt"], "missing.txt cannot be read"),
    ],
)
def test_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    (tmp_path / "p.txt").write_text("a ball\n")
    assert run("generate", "-o", tmp_path / "clips.mp4", *arguments) == 2
    assert message in capsys.readouterr().err


def test_workers_share_tasks_by_their_cost():
    costs = [5.0, 1.0, 1.0, 2.0, 4.0]
    shares = [Worker(number, 2).share(costs) for number in (0, 1)]
    assert shares == [[0, 1, 2], [4, 3]]
