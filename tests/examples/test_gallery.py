"""examples/nano/gallery.py: what it refuses, before a clip is made."""

from pathlib import Path

import pytest

from baton_diffusers.shipped import default_checkpoint
from tests.scripts import load_script


NANO = default_checkpoint()  # has a transformer and its text encoder, as an export


@pytest.fixture(scope="module")
def gallery():
    return load_script("examples/nano/gallery.py")


def test_stages_are_named_and_lie_in_folders(gallery):
    assert gallery.parse_stage(f"lr=0.1, 4,793 steps={NANO}") == ("lr=0.1, 4,793 steps", NANO)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--textual", "nowhere"), "nowhere has no transformer and no text_encoder: give an export of"),
        (("--textual", NANO / "vae"), "vae has no transformer and no text_encoder"),
        (("--over-training", f"a={NANO}", "b=nowhere"), "nowhere has no transformer and no text_encoder"),
        (("--over-training", str(NANO)), "is not of the form NAME=FOLDER"),
        (("--over-training", f"a={NANO}", "--failures", 2), "leave --textual and --failures out"),
        (("--output", "gallery.gif"), "gallery.gif ends in '.gif'"),
        (("--output", Path("no/folder/gallery.jpg")), "no/folder is not a folder"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_generated(
    gallery, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["--model", "nothing to load", "--output", "gallery.jpg", *map(str, arguments)])
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
