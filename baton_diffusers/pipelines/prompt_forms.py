"""How the prompts of a checkpoint are written: where in the text its sound is described, and what is said.

Ovi's text is one for both branches: speech stands between `<S>` and `<E>`, and a description of the sound ends the
prompt, in the form that the checkpoint was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase


logger = logging.get_logger(__name__)

# By name: how a description `{}` of the sound is written, and what tells that a text has one in this form.
PROMPT_FORMS = {
    "audcap": ("<AUDCAP>{}<ENDAUDCAP>", re.compile("<AUDCAP>|<ENDAUDCAP>")),
    "audio": ("Audio: {}", re.compile(r"\bAudio:")),
}


def write_prompt(prompt: str, audio_prompt: str | None, form: str | None) -> str:
    r"""
    The text that a checkpoint reads. A warning tells of tags that it does not know.

    Args:
        prompt (`str`): what happens in the clip, words that are said between `<S>` and `<E>`.
        audio_prompt (`str`, *optional*): what is heard in it; by default the prompt says that itself, or leaves it open.
        form (`str`, *optional*): a key of `PROMPT_FORMS`; without one a text is read as it is.

    Raises:
        ValueError: if there is an `audio_prompt` but no form for it, or the sound is described twice.
    """
    if form is None:
        if audio_prompt is not None:
            raise ValueError(
                f"`audio_prompt` is {audio_prompt!r}, but this checkpoint has no form for it (`pipe.config.prompt_form`): "
                "describe the sound in `prompt`."
            )
        return prompt
    template, _ = PROMPT_FORMS[form]
    for name, (other, pattern) in PROMPT_FORMS.items():
        if audio_prompt is not None and pattern.search(audio_prompt):
            raise ValueError(f"`audio_prompt` is {audio_prompt!r}: give the description alone, without tags.")
        if not pattern.search(prompt):
            continue
        if audio_prompt is not None:
            raise ValueError(
                f"the sound is described in `audio_prompt` and, as `{other.format('...')}`, in `prompt` too: leave out one."
            )
        if name != form:
            logger.warning(
                f"the prompt describes its sound as `{other.format('...')}`, but this checkpoint was trained with "
                f"`{template.format('...')}`: write that at the prompt's end, or give the description as `audio_prompt`."
            )
    opened, closed = prompt.count("<S>"), prompt.count("<E>")
    if opened != closed or "</S>" in prompt:
        logger.warning(
            f"the prompt has {opened} `<S>` and {closed} `<E>`: this checkpoint was trained with speech as `<S>words<E>`."
        )
    return prompt if audio_prompt is None else f"{prompt.rstrip()} {template.format(audio_prompt.strip())}"


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """
    The parts of the texts that the vocabulary of a tokenizer lacks, each once, in their order.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): one that tells where its tokens stand in a text; of others nothing is known.
        texts (`Sequence[str]`): what it is to read.
    """
    if not texts or not tokenizer.is_fast or tokenizer.unk_token_id is None:
        return []
    tokens = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    unknown = {
        text[start:end]: None
        for text, ids, offsets in zip(texts, tokens.input_ids, tokens.offset_mapping, strict=True)
        for token, (start, end) in zip(ids, offsets, strict=True)
        if token == tokenizer.unk_token_id
    }
    return list(unknown)
