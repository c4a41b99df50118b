"""examples/nano/newcomers.py: prompts of people who know no grammar, and what is right for them."""

import pytest

from baton_diffusers.stage import render_clip, write_cues
from tests.scripts import load_script


PROMPTS = """
[[prompt]]
text = "BALL BOUNCES. BELL RINGS."
cast = ["ball", "bell"]
steps = ["ball bounces 1-3", "bell rings 1-3"]

[[prompt]]
text = "purple head: 6 6 1"
cast = ["purple face"]
steps = ["purple face says six six one"]

[[prompt]]
text = "Crate (blue) bumps ball (yellow); ball hops twice."
cast = ["blue box", "yellow ball"]
steps = ["blue box hits yellow ball", "yellow ball bounces 2"]

[[prompt]]
text = "A toy block shoves a bell, and the bell goes off twice."
cast = ["box", "bell"]
steps = ["box hits bell", "bell rings 2"]
"""


@pytest.fixture(scope="module")
def newcomers():
    return load_script("examples/nano/newcomers.py")


@pytest.fixture(scope="module")
def rights(newcomers, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "mine.toml"
    path.write_text(PROMPTS)
    return dict(newcomers.read_prompts(path))


def test_there_is_a_scene_for_each_of_two_dozen_prompts(newcomers):
    rights = dict(newcomers.read_prompts())
    assert len(rights) == 24
    assert all(len(right.places) == len(right.scene.actors) for found in rights.values() for right in found)


def test_what_a_prompt_leaves_open_may_be_anything(newcomers, rights):
    found = rights["BALL BOUNCES. BELL RINGS."]
    assert len(found) == 9 and not any((*found[0].places, *found[0].colours))
    clip = render_clip(found[5].scene, 1)
    assert newcomers.best_score((clip.frames, clip.waveform[None]), found).strict
    assert not newcomers.best_score((clip.frames, clip.waveform[None]), found[:1]).strict


@pytest.mark.parametrize("text", ["purple head: 6 6 1", "Crate (blue) bumps ball (yellow); ball hops twice."])
def test_the_scene_itself_is_right(newcomers, rights, text):
    clip = render_clip(rights[text][0].scene, 0)
    assert newcomers.best_score((clip.frames, clip.waveform[None]), rights[text]).strict


def test_a_sheet_is_right_that_tells_the_scene(newcomers, rights):
    (right,) = rights["Crate (blue) bumps ball (yellow); ball hops twice."]
    sheet = write_cues(right.scene, 0)
    assert newcomers.is_right(sheet, right)
    assert newcomers.is_right("yellow ball left; blue box right" + sheet[sheet.index(" <") :], right)
    for wrong in (sheet.replace("yellow", "green"), sheet[: sheet.rindex(" <")], sheet.replace("box", "bell"), ""):
        assert not newcomers.is_right(wrong, right)
    bells = rights["A toy block shoves a bell, and the bell goes off twice."][0]
    assert newcomers.is_right(write_cues(bells.scene, 0).replace("red", "yellow"), bells)


def test_a_prompt_that_stage_cannot_show_is_refused(newcomers, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('[[prompt]]\ntext = "both"\ncast = ["red box left", "red ball left"]\nsteps = []\n')
    with pytest.raises(ValueError, match="no scene of Stage is as the entry of 'both' says"):
        newcomers.read_prompts(path)
