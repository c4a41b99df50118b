"""A byte-level tokenizer for Stage's language, read by nano's text encoder, planner and semantic encoders alike."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from baton_diffusers.cues import parse_sheet
from baton_diffusers.stage import describe_frame, sample_scene, write_cues, write_prompt


SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def stage_texts(num_scenes: int, seed: int = 0) -> Iterable[str]:
    """Two prompts, the cue sheet without its times, and a frame's caption of each of `num_scenes` training scenes."""
    for index in range(seed, seed + num_scenes):
        scene = sample_scene(index, split="train")
        yield write_prompt(scene, index)
        yield write_prompt(scene, index + num_scenes)
        cast, cues = parse_sheet(write_cues(scene, index))
        yield "; ".join(" ".join(member) for member in cast)
        yield from (cue.text for cue in cues)
        yield describe_frame(scene, index, index % 49)


def train_tokenizer(texts: Iterable[str], max_length: int, vocab_size: int = 960) -> PreTrainedTokenizerFast:
    """
    A tokenizer that reads any text: common words are single tokens, others are pieces of words, down to bytes.

    Texts are read in lower case and in NFC, and end with `</s>`. Words, digits and punctuation marks are apart before they are
    cut, and each begins with a space, so that a word is the same tokens wherever it stands.

    Args:
        texts (`Iterable[str]`): texts of the language. Their order does not matter.
        max_length (`int`): tokens to which the text encoder's input is padded, `</s>` included.
        vocab_size (`int`, defaults to 960): tokens, if the texts are enough for as many; 259 of them are bytes and special ones.
    """
    pad_token, eos_token, unk_token = SPECIAL_TOKENS
    tokenizer = Tokenizer(BPE(unk_token=unk_token))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos_token}", special_tokens=[(eos_token, tokenizer.token_to_id(eos_token))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        eos_token=eos_token,
        unk_token=unk_token,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
