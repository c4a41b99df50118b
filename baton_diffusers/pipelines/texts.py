"""The texts of a call: prompts in the form of the checkpoint, negative prompts, and their embeddings.

Ovi's text is one for both branches: speech stands between `<S>` and `<E>`, and a description of the sound ends the
prompt, in the form that the checkpoint was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from ..prompt_language import PromptLanguage
from .checks import check_finite, check_tensor, check_texts
from .components import PipelineParts


logger = logging.get_logger(__name__)

# By name: how a description `{}` of the sound is written, and what marks it in a text.
PROMPT_FORMS = {
    "audcap": ("<AUDCAP>{}<ENDAUDCAP>", re.compile("<AUDCAP>|<ENDAUDCAP>")),
    "audio": ("Audio: {}", re.compile(r"\bAudio:")),
}


class TextEmbeddings(NamedTuple):
    """Embeddings of shape `(num_clips, max_sequence_length, text_dim)`, zero where there is no text.

    Args:
        prompt: of the prompts.
        negative: of the negative prompts; `None` without guidance by the text.
        audio_negative: of the sound's negative prompts; `None` if it reads the picture's.
    """

    prompt: torch.Tensor
    negative: torch.Tensor | None
    audio_negative: torch.Tensor | None

    def for_clips(
        self, num_videos_per_prompt: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> TextEmbeddings:
        """Embeddings of `length` tokens, each repeated in a row for the videos per prompt; one negative prompt serves all."""
        batch_size = len(self.prompt)

        def expand(embeds: torch.Tensor | None) -> torch.Tensor | None:
            if embeds is None:
                return None
            if len(embeds) != batch_size:
                embeds = embeds.expand(batch_size, -1, -1)
            embeds = F.pad(embeds.to(device=device, dtype=dtype), (0, 0, 0, length - embeds.shape[1]))
            return embeds.repeat_interleave(num_videos_per_prompt, dim=0)

        return TextEmbeddings(*map(expand, self))


@dataclass(frozen=True)
class Texts:
    """The texts of a call, or their embeddings. `BatonPipeline.__call__` describes them; prompts are in the checkpoint's form."""

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    audio_negative_prompt: str | list[str] | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    audio_negative_prompt_embeds: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of prompts."""
        if self.prompt is None:
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def prompts(self) -> list[str] | None:
        """The prompts as a list, or `None` if only their embeddings are given."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def check(self, pipe: PipelineParts) -> None:
        """Refuses texts and embeddings that do not fit the pipeline or one another.

        Raises:
            ValueError: naming the argument, its value and the remedy.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            given = "neither" if self.prompt is None else "both"
            raise ValueError(f"give either `prompt` or `prompt_embeds`; {given} of them was given.")
        if self.prompt is not None:
            check_texts("prompt", self.prompt)
            if pipe.text_encoder is None or pipe.tokenizer is None:
                raise ValueError(
                    "`prompt` needs `text_encoder` and `tokenizer`, which this pipeline lacks: load it with them, or give "
                    "`prompt_embeds`."
                )
        for name in ("prompt", "negative_prompt", "audio_negative_prompt"):
            texts, embeds = getattr(self, name), getattr(self, f"{name}_embeds")
            if embeds is not None:
                self._check_embeds(f"{name}_embeds", embeds, pipe)
            if texts is None or name == "prompt":
                continue
            if embeds is not None:
                raise ValueError(f"give either `{name}` or `{name}_embeds`; both of them were given.")
            check_texts(name, texts)
            if isinstance(texts, list) and len(texts) != self.batch_size:
                raise ValueError(
                    f"`{name}` lists {len(texts)} texts for {self.batch_size} prompts: give one for each, or one string for "
                    "all."
                )

    def _check_embeds(self, name: str, embeds: torch.Tensor, pipe: PipelineParts) -> None:
        check_tensor(name, embeds)
        length = pipe.config.max_sequence_length
        text_dim = embeds.shape[-1] if pipe.transformer is None else pipe.transformer.config.text_dim
        if embeds.ndim != 3 or embeds.shape[2] != text_dim or embeds.shape[1] > length or not len(embeds):
            raise ValueError(
                f"`{name}` has shape {tuple(embeds.shape)}, but this model takes (batch_size, text_length of at most {length}, "
                f"{text_dim})."
            )
        if len(embeds) not in (1, self.batch_size):
            raise ValueError(
                f"`{name}` holds {len(embeds)} texts for {self.batch_size} prompts: give one for each, or one for all."
            )

    def check_negative(self, pipe: PipelineParts) -> None:
        """Refuses guidance that drops the text, if there is neither a negative prompt's embedding nor an encoder to make it.

        Raises:
            ValueError: naming the embeddings that are missing.
        """
        needed = {"negative_prompt_embeds": self.negative_prompt_embeds}
        if self.audio_negative_prompt is not None or pipe.config.audio_negative_prompt is not None:
            needed["audio_negative_prompt_embeds"] = self.audio_negative_prompt_embeds
        lacking = [name for name, embeds in needed.items() if embeds is None]
        if lacking and (pipe.text_encoder is None or pipe.tokenizer is None):
            raise ValueError(
                f"the guiders drop the text, which takes `{lacking[0]}`, or `text_encoder` and `tokenizer` to make it: give one "
                "or the other, or guiders of scale 1."
            )

    def encode(
        self,
        pipe: PipelineParts,
        needs_negative: bool,
        num_videos_per_prompt: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TextEmbeddings:
        """Embeds the texts, each repeated in a row for the videos per prompt.

        Args:
            pipe: with `text_encoder` and `tokenizer`, unless all embeddings are given.
            needs_negative (`bool`): whether to embed negative prompts.
            num_videos_per_prompt (`int`): clips for each prompt.
            device, dtype: of the embeddings.

        Raises:
            ValueError: if the text encoder returns NaN.
        """

        def embed(name: str) -> torch.Tensor | None:
            texts, embeds = getattr(self, name), getattr(self, f"{name}_embeds")
            if embeds is None and texts is None and name != "prompt":
                texts = pipe.config[name]
            if embeds is not None or texts is None:
                return embeds
            return embed_texts(pipe, [texts] if isinstance(texts, str) else texts, device)

        if self.prompts is not None and (language := PromptLanguage.of(pipe.tokenizer)) is not None:
            if remark := language.remark(self.prompts):
                logger.warning(remark)
        embeds = TextEmbeddings(
            embed("prompt"),
            embed("negative_prompt") if needs_negative else None,
            embed("audio_negative_prompt") if needs_negative else None,
        )
        check_finite(
            tuple(embeds),
            "the embeddings of the prompts hold",
            "usually the weights of `text_encoder` are damaged, or overflow in float16; load the checkpoint again, in bfloat16 or "
            "float32",
        )
        return embeds.for_clips(num_videos_per_prompt, pipe.config.max_sequence_length, device, dtype)


def embed_texts(pipe: PipelineParts, texts: list[str], device: torch.device) -> torch.Tensor:
    """Embeddings `(len(texts), max_sequence_length, text_dim)`, zero where there is no text. Warns of words that are not read."""
    length, tokenizer = pipe.config.max_sequence_length, pipe.tokenizer
    for text, ids in zip(texts, tokenizer(texts, verbose=False).input_ids, strict=True):
        if len(ids) > length:
            lost = _beyond(tokenizer, text, length)
            logger.warning(f"The text encoder reads {length} tokens; this part of the text was cut off: {lost!r}.")
    if unknown := _unread(tokenizer, texts):
        logger.warning(f"The text encoder does not know these words, which are left out: {', '.join(unknown)}.")
    return read_texts(pipe, texts, device)


def read_texts(pipe: PipelineParts, texts: list[str], device: torch.device) -> torch.Tensor:
    """As [`embed_texts`], without warnings."""
    length, tokenizer = pipe.config.max_sequence_length, pipe.tokenizer
    inputs = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = inputs.attention_mask.to(device)
    embeds = pipe.text_encoder(inputs.input_ids.to(device), attention_mask=mask).last_hidden_state
    return embeds * mask[..., None].to(embeds.dtype)


def _beyond(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> str:
    """The end of a text that a tokenizer cuts off at `length` tokens."""
    kept = length - tokenizer.num_special_tokens_to_add()
    if not tokenizer.is_fast:
        return tokenizer.decode(tokenizer(text, add_special_tokens=False, verbose=False).input_ids[kept:])
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    return text[offsets[kept][0] :].strip()


def format_prompts(
    prompt: str | list[str] | None, audio_prompt: str | list[str] | None, form: str | None
) -> str | list[str] | None:
    r"""
    Prompts with what is heard, in the form of a checkpoint; see `BatonPipeline.format_prompt`.

    Args:
        prompt (`str` or `list[str]`, *optional*): what happens in each clip.
        audio_prompt (`str` or `list[str]`, *optional*): what is heard, one for all prompts or one for each.
        form (`str`, *optional*): a key of `PROMPT_FORMS`.

    Raises:
        ValueError: as `write_prompt`, or if the numbers of texts differ.
    """
    if prompt is None:
        if audio_prompt is not None:
            raise ValueError(
                "`audio_prompt` ends a `prompt`, and none was given: give it, or put both into `prompt_embeds`."
            )
        return None
    check_texts("prompt", prompt)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if audio_prompt is not None:
        check_texts("audio_prompt", audio_prompt)
    if not isinstance(audio_prompt, list):
        audio_prompt = [audio_prompt] * len(prompts)
    if len(audio_prompt) != len(prompts):
        raise ValueError(
            f"`audio_prompt` lists {len(audio_prompt)} texts for {len(prompts)} prompts: give one for each, or one string "
            "for all."
        )
    texts = [write_prompt(text, sound, form) for text, sound in zip(prompts, audio_prompt, strict=True)]
    return texts[0] if isinstance(prompt, str) else texts


def write_prompt(prompt: str, audio_prompt: str | None, form: str | None) -> str:
    r"""
    The text that a checkpoint reads. A warning names tags that the checkpoint does not know.

    Args:
        prompt (`str`): what happens in the clip, words that are said between `<S>` and `<E>`.
        audio_prompt (`str`, *optional*): what is heard in it; by default the prompt describes it, or leaves it open.
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
    The words of the texts that a model has not learnt, each once, in their order.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's; a [`PromptLanguage`] that it carries says which words are known, and
            otherwise its vocabulary.
        texts (`Sequence[str]`): what it is to read.
    """
    language = PromptLanguage.of(tokenizer)
    return _unread(tokenizer, texts) if language is None else language.unknown_words(texts)


def _unread(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The parts of the texts that a tokenizer's vocabulary lacks; only fast tokenizers know them."""
    if not texts or not tokenizer.is_fast or tokenizer.unk_token_id is None:
        return []
    tokens = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    unknown = {
        text[start:end]: None
        for text, ids, offsets in zip(texts, tokens.input_ids, tokens.offset_mapping, strict=True)
        for token, (start, end) in zip(ids, offsets, strict=True)
        if token == tokenizer.unk_token_id
    }
    return list(unknown)
