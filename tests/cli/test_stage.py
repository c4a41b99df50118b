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
