import re
from pathlib import Path

import pytest

from baton_diffusers.prompt_language import KEY, PromptLanguage
from baton_diffusers.stage import sample_scene, write_prompt
from baton_diffusers.stage.language import sheet_language, stage_language

from .tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def language():
    scenes = [sample_scene(i) for i in range(200)]
    return stage_language([write_prompt(scene, i) for scene in scenes for i in range(30)])


@pytest.mark.parametrize(
    "prompt, remark",
    [
        (
            "A dog barks at the moon.",
            "names nothing that this checkpoint can show (it knows ball, box, bell, face, for example",
        ),
        ("asdf", "names nothing that this checkpoint can show"),
        ("A pink ball bounces, an elephant watches.", "has not learnt pink, elephant, and may misread"),
        ("A red bouncy ball hops twice; then the gong, which is grren, rings 3x!", None),
        ("A ball \U0001f534 bounces.", "has not learnt \U0001f534, and may misread"),
        ("could you please show me a deep-voiced man who says 7", None),
        ("", None),
    ],
)
def test_what_a_checkpoint_cannot_show_is_said_with_an_example(language, prompt, remark):
    said = language.remark(["A red ball.", prompt])
    if remark is None:
        assert said is None
    else:
        assert remark in said and said.endswith(f"A prompt that works: {language.example!r}.")


def test_prompts_of_training_need_no_remark(language):
    prompts = [write_prompt(sample_scene(i), i) for i in range(10_000, 10_100)]
    assert sum(language.remark([prompt]) is not None for prompt in prompts) < 4  # rare synonyms, unseen slips
    assert language.remark([language.example]) is None


def test_the_guide_gives_ten_prompts_that_are_understood(language):
    guide = Path(__file__).parents[1] / "docs" / "language.md"
    prompts = re.findall(r"^\d+\. `([^`]+)`", guide.read_text(), re.MULTILINE)
    assert len(prompts) == 10 and language.remark(prompts) is None


@pytest.mark.parametrize("slip", ["yelow", "yellwo", "yellow", "yelllow", "yellaw"])
def test_a_slip_does_not_make_a_word_unknown(slip):
    language = PromptLanguage("", frozenset({"yellow", "red"}))
    assert language.unknown_words([f"red {slip} 3"]) == []
    assert language.unknown_words([f"rad Mellow {slip} mellow"]) == ["rad", "mellow"]


def test_a_sheet_knows_its_own_words_alone():
    language = sheet_language()
    assert language.unknown_words(["red box middle; orange face right <|0.50|> red box hits orange face"]) == []
    assert language.unknown_words(["green dragon roars"]) == ["dragon", "roars"]


def test_a_tokenizer_carries_the_language(tmp_path):
    tokenizer, language = tiny_tokenizer(), PromptLanguage("A red ball.", frozenset({"a", "red", "ball"}), ("ball",))
    assert PromptLanguage.of(tokenizer) is None
    language.add_to(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert PromptLanguage.of(type(tokenizer).from_pretrained(tmp_path)) == language


@pytest.mark.parametrize(
    "data, message",
    [
        ("a ball", "dict of example, words and subjects, not 'a ball'"),
        ({"example": "a", "words": []}, "dict of example, words and subjects"),
        ({"example": "a", "words": "a ball", "subjects": []}, "`words` of a tokenizer's `prompt_language`"),
        ({"example": 3, "words": [], "subjects": []}, "strings of at most 1000 characters, not 3"),
        ({"example": "a", "words": ["b" * 1001], "subjects": []}, "strings of at most 1000 characters"),
    ],
)
def test_what_is_no_language_is_refused(data, message):
    tokenizer = tiny_tokenizer()
    tokenizer.init_kwargs[KEY] = data
    with pytest.raises(ValueError, match=message):
        PromptLanguage.of(tokenizer)
