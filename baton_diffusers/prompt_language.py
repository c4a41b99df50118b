"""What prompts a checkpoint can understand: the words that it learnt, and an example.

A tokenizer of subwords reads any text, and a model makes a clip of it without a warning. A checkpoint of a small world
therefore stores its language in its tokenizer's configuration, as `prompt_language`, and the pipeline warns of prompts that it
will not understand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


KEY = "prompt_language"  # of a tokenizer's configuration
MAX_WORDS = 100_000
MAX_CHARACTERS = 1000
_WORD = re.compile(r"[^\W\d_]+|[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")  # words and emoji
_LEAST_LETTERS = 5  # of a word that may have a slip


@dataclass(frozen=True)
class PromptLanguage:
    """
    The words that a checkpoint knows, in lower case.

    Args:
        example (`str`): a prompt that it understands.
        words (`frozenset[str]`): all words that it learnt or may ignore. Digits are always known.
        subjects (`tuple[str, ...]`): words for what it can show, the plainest first. A prompt needs one of them; without any,
            none is asked for.
    """

    example: str
    words: frozenset[str]
    subjects: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> PromptLanguage | None:
        """
        The language that a tokenizer carries, if any.

        Raises:
            ValueError: if it is not a prompt language.
        """
        data = tokenizer.init_kwargs.get(KEY)
        if data is None:
            return None
        if not isinstance(data, dict) or data.keys() != {"example", "words", "subjects"}:
            raise ValueError(
                f"`{KEY}` of a tokenizer has to be a dict of example, words and subjects, not {data!r:.80}."
            )
        texts = [data["example"]]
        for name in ("words", "subjects"):
            if not isinstance(data[name], (list, tuple)) or len(data[name]) > MAX_WORDS:
                raise ValueError(f"`{name}` of a tokenizer's `{KEY}` has to be a list of at most {MAX_WORDS} words.")
            texts += data[name]
        for text in texts:
            if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
                raise ValueError(
                    f"a tokenizer's `{KEY}` has to be of strings of at most {MAX_CHARACTERS} characters, not {text!r:.80}."
                )
        return cls(data["example"], frozenset(data["words"]), tuple(data["subjects"]))

    def add_to(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Lets a tokenizer carry the language; it is saved and loaded with it."""
        tokenizer.init_kwargs[KEY] = {
            "example": self.example,
            "words": sorted(self.words),
            "subjects": list(self.subjects),
        }

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """The words of texts that are not known, each once, in their order. One slip in a long word does not matter."""
        found = {word: None for text in texts for word in words_of(text) if word not in self.words}
        return [word for word in found if not any(_is_slip(word, known) for known in self.words)]

    def remark(self, prompts: Sequence[str]) -> str | None:
        """
        A sentence on the prompts that will not be understood, with an example of what works; `None` if all are understood.

        Args:
            prompts (`Sequence[str]`): what clips are to show. Empty prompts are fine.
        """
        subjects = frozenset(self.subjects)
        for prompt in prompts:
            words = set(words_of(prompt))
            if not prompt.strip() or not subjects or subjects & words:
                continue
            if not any(_is_slip(word, subject) for word in words for subject in subjects):
                return (
                    f"the prompt {prompt!r:.200} names nothing that this checkpoint can show (it knows "
                    f"{', '.join(self.subjects[:4])}, for example). A prompt that works: {self.example!r}."
                )
        if unknown := self.unknown_words(prompts):
            return (
                f"this checkpoint has not learnt {', '.join(unknown)}, and may misread the prompt. A prompt that works: "
                f"{self.example!r}."
            )
        return None


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without digits and marks."""
    return _WORD.findall(text.lower())


def _is_slip(word: str, known: str) -> bool:
    """Whether a long word is a known one with a letter lost, doubled or wrong, or two neighbours exchanged."""
    if min(len(word), len(known)) < _LEAST_LETTERS - 1 or max(len(word), len(known)) < _LEAST_LETTERS:
        return False
    if abs(len(word) - len(known)) > 1 or word[0] != known[0]:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, known, strict=False)) if a != b), min(len(word), len(known)))
    if len(word) < len(known):
        return word[start:] == known[start + 1 :]
    if len(word) > len(known):
        return word[start + 1 :] == known[start:]
    rest, known_rest = word[start:], known[start:]
    return rest[1:] == known_rest[1:] or (rest[:2] == known_rest[1::-1] and rest[2:] == known_rest[2:])
