import numpy as np
import pytest

from baton_diffusers.cli import loading
from baton_diffusers.media import read_clip, write_clip
from baton_diffusers.stage import render_clip, sample_scene
from tests.cli.commands import PROMPT, loaded_in_vain, run


@pytest.fixture
def film(tmp_path):
    clip = render_clip(sample_scene(0), 0)
    write_clip(tmp_path / "film.mp4", clip.frames, clip.waveform, clip.frame_rate, clip.sampling_rate, scale=2)
    return tmp_path / "film.mp4"


def test_a_part_of_a_film_is_rendered_anew(film, tmp_path, nano, capsys):
    new, cues = tmp_path / "new.mp4", "red ball left <|1.50|> red ball bounces"
    options = ("-o", new, "--prompt", PROMPT, "--cues", cues, "--steps", 1, "--start", 1, "--end", 2)
    assert run("retake", film, *options) == 0
    assert f"1 to 2 s of 3.062 s rendered anew\ncues: {cues}" in capsys.readouterr().out
    before, after = read_clip(film), read_clip(new)
    changed = np.abs(after.frames - 1.0 * before.frames).mean(axis=(1, 2, 3))
    assert after.frames.shape == before.frames.shape and changed[:16].max() < 4 < changed[17:31].max()
    assert changed[32:].max() < 4
    assert run("retake", film, *options, "--only", "audio") == 0
    assert np.abs(read_clip(new).frames - 1.0 * before.frames).mean() < 4


@pytest.mark.parametrize(
    "options, message",
    [
        (("--prompt", PROMPT, "-o", "new.wav"), "new.wav"),
        (("-o", "new.mp4"), "give --prompt, or the --plan"),
        (("-o", "new.mp4", "--plan", "nowhere"), "there is no plan at nowhere"),
    ],
)
def test_what_cannot_be_retaken_is_refused_before_weights_are_loaded(film, options, message, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    monkeypatch.chdir(film.parent)
    assert run("retake", film, *options) == 2
    assert message in capsys.readouterr().err and not (film.parent / "new.mp4").exists()
    assert run("retake", "nowhere.mp4", "-o", "new.mp4", "--prompt", PROMPT) == 2
    assert "nowhere.mp4 is not a file" in capsys.readouterr().err
