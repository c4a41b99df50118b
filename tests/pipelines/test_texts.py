"""How prompts are written for a checkpoint: `baton_diffusers/pipelines/texts.py`, and the pipeline over it."""

import logging

import pytest

from baton_diffusers import BatonPipeline
from baton_diffusers.pipelines.texts import PROMPT_FORMS, write_prompt

from ..tiny import tiny_pipeline
from .calls import PROMPT, assert_same, differ, forbid, make, quiet, seeds


SPEECH = "a face says <S>one two<E>"


@pytest.fixture(autouse=True)
def warnings(caplog):
    """What is warned of, through the loggers of diffusers, which do not propagate."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    "form, text", [("audcap", f"{SPEECH} <AUDCAP>rain, a door<ENDAUDCAP>"), ("audio", f"{SPEECH} Audio: rain, a door")]
)
def test_the_sound_ends_the_prompt_in_the_form_of_the_checkpoint(form, text, warnings):
    assert write_prompt(f"{SPEECH} ", " rain, a door\n", form) == text
    assert write_prompt(text, None, form) == text
    assert write_prompt(SPEECH, None, form) == SPEECH
    assert not warnings.records


@pytest.mark.parametrize("form, other", [("audcap", "Audio: rain"), ("audio", "<AUDCAP>rain<ENDAUDCAP>")])
def test_the_tags_of_another_form_are_left_as_they_are_and_told(form, other, warnings):
    prompt = f"{SPEECH}. {other}"
    assert write_prompt(prompt, None, form) == prompt
    (message,) = (record.getMessage() for record in warnings.records)
    theirs, ours = (PROMPT_FORMS[name][0].format("...") for name in (({*PROMPT_FORMS} - {form}).pop(), form))
    assert f"as `{theirs}`, but this checkpoint was trained with `{ours}`: write that" in message
    assert "as `audio_prompt`" in message


@pytest.mark.parametrize("prompt", ["says <S>one", "says <S>one</S>", "says one<E>", "<S>one<E> <S>two"])
def test_speech_that_does_not_end_is_told(prompt, warnings):
    assert write_prompt(prompt, None, "audio") == prompt
    assert "this checkpoint was trained with speech as `<S>words<E>`" in warnings.text


def test_without_a_form_a_text_is_read_as_it_is(warnings):
    text = "Audio: <S>a <AUDCAP>"
    assert write_prompt(text, None, None) == text and not warnings.records


@pytest.mark.parametrize(
    "prompt, audio_prompt, form, message",
    [
        (
            "a",
            "rain",
            None,
            "`audio_prompt` is 'rain', but this checkpoint has no form for it.*describe .* in `prompt`",
        ),
        ("a Audio: rain", "rain", "audio", "in `audio_prompt` and, as `Audio: ...`, in `prompt` too: leave out one"),
        ("a <AUDCAP>rain<ENDAUDCAP>", "rain", "audio", "as `<AUDCAP>...<ENDAUDCAP>`, in `prompt` too"),
        ("a", "Audio: rain", "audcap", "`audio_prompt` is 'Audio: rain': give the description alone"),
        ("a", "<AUDCAP>rain<ENDAUDCAP>", "audcap", "give the description alone, without tags"),
    ],
)
def test_a_sound_without_a_place_is_refused(prompt, audio_prompt, form, message):
    with pytest.raises(ValueError, match=message):
        write_prompt(prompt, audio_prompt, form)


# In the pipeline


@pytest.fixture(scope="module")
def ovis():
    return tiny_pipeline(prompt_form="audio")


def test_planner_and_text_encoder_read_the_whole_text(ovis):
    whole = make(ovis, f"{PROMPT} Audio: one two")
    assert_same(make(ovis, PROMPT, audio_prompt="one two"), whole)
    assert differ(make(ovis), whole)
    assert make(ovis, PROMPT, audio_prompt="one two").plan.video_tokens.equal(whole.plan.video_tokens)


def test_each_prompt_has_its_sound_or_all_have_one(ovis):
    assert ovis.format_prompt("a", "one") == "a Audio: one"
    assert ovis.format_prompt(["a", "red"], "one") == ["a Audio: one", "red Audio: one"]
    assert ovis.format_prompt(["a", "red"], ["one", "two"]) == ["a Audio: one", "red Audio: two"]
    assert ovis.format_prompt(["a"]) == ["a"]
    together = make(ovis, [PROMPT, "a star"], audio_prompt=["one", "two"], generator=seeds(0, 1))
    alone = make(ovis, ["a star", PROMPT], audio_prompt=["two", "one"], generator=seeds(1, 0))
    for index in range(2):
        assert (together.frames[index] - alone.frames[1 - index]).abs().max() < 1e-5


def test_the_form_is_saved_with_the_checkpoint(ovis, tmp_path):
    ovis.save_pretrained(tmp_path)
    loaded = quiet(BatonPipeline.from_pretrained(tmp_path))
    assert loaded.config.prompt_form == "audio"
    assert_same(make(loaded, PROMPT, audio_prompt="one"), make(ovis, PROMPT, audio_prompt="one"))
    assert (
        BatonPipeline.from_pretrained(tmp_path, prompt_form="audcap").format_prompt("a", "b").endswith("<ENDAUDCAP>")
    )


def test_what_cannot_be_written_is_refused_before_any_model_runs():
    pipe = forbid(tiny_pipeline(prompt_form="audcap"))
    for kwargs, message in (
        (
            {"prompt": ["a", "a"], "audio_prompt": ["one"]},
            "`audio_prompt` lists 1 texts for 2 prompts: give one for each",
        ),
        ({"prompt": "a", "audio_prompt": 3}, "`audio_prompt` is 3, but must be a string or a list"),
        ({"prompt": "a <AUDCAP>b<ENDAUDCAP>", "audio_prompt": "c"}, "in `prompt` too"),
        ({"audio_prompt": "c"}, "`audio_prompt` ends a `prompt`, and none was given"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**kwargs)
    with pytest.raises(ValueError, match="`prompt_form` is 'tags', but must be one of audcap, audio, or None"):
        tiny_pipeline(prompt_form="tags")
