"""`baton plan`: a plan made, shown, corrected, read off a clip and compared."""

import PIL.Image
import pytest

from baton_diffusers.cli import loading
from baton_diffusers.media import read_clip, write_clip
from baton_diffusers.plan import SemanticPlan
from tests.cli.commands import loaded_in_vain, run
from tests.pipelines.test_previews import audio_decoder, video_decoder
from tests.tiny import FRAME_RATE, SAMPLING_RATE, random_clip, random_plan, tiny_cue_parts, tiny_pipeline


PROMPT, CUES = "a red circle jumps", "red circle left <|0.25|> red circle jumps"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(
        **tiny_cue_parts(), video_plan_decoder=video_decoder(), audio_plan_decoder=audio_decoder(), num_frames=9
    )


@pytest.fixture
def tiny(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pipe)
    monkeypatch.chdir(tmp_path)
    return pipe


def test_a_plan_is_made_shown_corrected_and_compared(tiny, capsys):
    drawn = ("--figure", "a.png", "--preview", "a.mp4")
    assert run("plan", "make", PROMPT, "-o", "a.safetensors", "--cues", CUES, *drawn) == 0
    told = capsys.readouterr().out
    assert f"cues: {CUES!r}" in told and told.splitlines()[3:5] == [
        "who         what   when    how long",
        "red circle  jumps  0.25 s  0.50 s",
    ]
    assert told.splitlines()[5:] == ["a.safetensors", "a.png", "a.mp4"]
    assert PIL.Image.open("a.png").width > 500 and read_clip("a.mp4").frames.shape == (9, 256, 256, 3)

    assert run("plan", "show", "a.safetensors") == 0
    assert capsys.readouterr().out == "\n".join(told.splitlines()[:5]) + "\n"

    assert run("plan", "edit", "a.safetensors", "move 0 0.5", "swap", "-o", "b.safetensors") == 2
    assert "'swap' is not of the form" in capsys.readouterr().err
    assert run("plan", "edit", "a.safetensors", "move 0 0.5", "-o", "b.safetensors") == 0
    assert "red circle  jumps  0.75 s" in capsys.readouterr().out

    assert run("plan", "diff", "a.safetensors", "b.safetensors") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "- <|0.25|> red circle jumps",
        "+ <|0.75|> red circle jumps",
        "tokens differ by (root mean square):",
    ]
    assert [line.split()[:3] for line in lines[4:]] == [
        ["0.00", "-", "0.50"],
        ["0.50", "-", "1.00"],
        ["1.00", "-", "1.12"],
    ]
    assert run("plan", "diff", "a.safetensors", "a.safetensors") == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_plan_is_read_off_a_clip_and_a_sheet_is_fitted_to_it(tiny, tmp_path, capsys):
    frames, waveform = random_clip()
    write_clip(tmp_path / "clip.mp4", frames, waveform.repeat(2), FRAME_RATE, 2 * SAMPLING_RATE)
    assert run("plan", "extract", "clip.mp4", "-o", "a.safetensors") == 0
    assert SemanticPlan.load("a.safetensors").sheets is None and "no cue sheet" in capsys.readouterr().out
    assert run("plan", "extract", "clip.mp4", "--prompt", PROMPT, "-o", "b.safetensors") == 0
    assert SemanticPlan.load("b.safetensors").prompts == (PROMPT,)
    assert len(SemanticPlan.load("b.safetensors").sheets) == 1


def test_a_figure_needs_no_decoders(tiny, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: tiny_pipeline())
    random_plan().save("a.safetensors")
    assert run("plan", "show", "a.safetensors", "--figure", "a.png") == 0
    assert "a.png, without pictures: the checkpoint has no plan decoders" in capsys.readouterr().out
    assert run("plan", "show", "a.safetensors", "--preview", "a.mp4") == 2
    assert "this pipeline has neither" in capsys.readouterr().err


def test_plans_of_other_layouts_are_compared_as_far_as_they_can_be(tiny, capsys):
    random_plan().save("a.safetensors")
    random_plan(duration=2.0).save("b.safetensors")
    random_plan(2).save("c.safetensors")
    assert run("plan", "diff", "a.safetensors", "b.safetensors") == 0
    told = "- 1.1250 s\n+ 2.0000 s\nthe video tokens lie at other times: they are not compared\n"
    assert capsys.readouterr().out == told
    assert run("plan", "diff", "a.safetensors", "c.safetensors") == 0
    assert capsys.readouterr().out == "- 1 clips\n+ 2 clips\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("make", PROMPT, "-o", "plan.mp4"), "plan.mp4"),
        (("show", "nowhere.safetensors"), "there is no plan at nowhere.safetensors"),
        (("show", "plan.safetensors", "--figure", "a.jpg"), "a.jpg"),
        (("extract", "nowhere.mp4", "-o", "a.safetensors"), "nowhere.mp4 is not a file"),
        (("edit", "plan.safetensors", "move 0 1", "-o", "a.safetensors"), "has no cue sheet"),
        (("diff", "plan.safetensors", "nowhere"), "there is no plan at nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_before_weights_are_loaded(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "load_pipeline", loaded_in_vain)
    monkeypatch.chdir(tmp_path)
    random_plan().save("plan.safetensors")
    assert run("plan", *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.safetensors"]
