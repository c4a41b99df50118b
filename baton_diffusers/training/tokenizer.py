"""A word-level tokenizer for Stage's grammar, read by nano's text encoder, planner and semantic encoders alike."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ..stage import describe_frame, sample_scene, write_prompt


SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def stage_texts(num_scenes: int, seed: int = 0) -> Iterable[str]:
    """A prompt and a frame's caption of each of `num_scenes` training scenes."""
    for index in range(seed, seed + num_scenes):
        scene = sample_scene(index, split="train")
        yield write_prompt(scene, index)
        yield describe_frame(scene, index, index % 49)


def train_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """
    A tokenizer with one token for each word and each punctuation mark of `texts`, in lower case.

    Texts end with `</s>`; what was never seen becomes `<unk>`. The vocabulary is in alphabetical order, so that it does
    not depend on the order of the texts.

    Args:
        texts (`Iterable[str]`): texts that cover the language.
        max_length (`int`): tokens to which the text encoder's input is padded, `</s>` included.
    """
    normalizer, pre_tokenizer = Lowercase(), Whitespace()
    words = sorted(
        {word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))}
    )
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    pad_token, eos_token, unk_token = SPECIAL_TOKENS
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unk_token))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos_token}", special_tokens=[(eos_token, vocabulary[eos_token])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        eos_token=eos_token,
        unk_token=unk_token,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
