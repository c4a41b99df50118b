from baton_diffusers.media import read_clip
from tests.cli.commands import run


def test_stage_shows_scenes(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert run("stage", "--output", folder, "--tier", "complex", "--count", 2, "--seed", 5, "--scale", 2) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("complex-5.mp4", "complex-5.png", "complex-6.mp4", "complex-6.png")
    ]
    assert read_clip(folder / "complex-5.mp4").frames.shape == (49, 128, 128, 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(".mp4: " in line for line in lines)


def test_stage_shows_films(tmp_path, capsys):
    assert run("stage", "--output", tmp_path, "--tier", "film", "--count", 1, "--seconds", 6, "--scale", 1) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film-0.mp4", "film-0.png"]
    clip = read_clip(tmp_path / "film-0.mp4")
    assert len(clip.frames) == 97 and abs(clip.waveform.shape[1] / clip.sampling_rate - 97 / 16) < 0.1
    first, *shots = capsys.readouterr().out.splitlines()
    assert first.endswith("film-0.mp4") and [line.split(" s")[0].strip() for line in shots] == ["0", "3"]
    assert run("stage", "--output", tmp_path / "none", "--tier", "film", "--seconds", 4) == 2
    assert "`seconds` is 4.0" in capsys.readouterr().err and not (tmp_path / "none").exists()
