"""Trains the tokenizer on Stage's language and reports how long texts are that it has not seen.

python examples/nano/train_tokenizer.py --output runs/export/tokenizer --planner-output runs/export/planner_tokenizer
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse

import numpy as np
from stage_tokenizer import stage_texts, train_tokenizer

from baton_diffusers.models.va_planner import add_timestamps
from baton_diffusers.stage import sample_scene, write_prompt
from baton_diffusers.stage.language import sheet_language, stage_language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder to which the text encoder's tokenizer is saved")
    parser.add_argument(
        "--planner-output", help="folder to which it is saved with timestamps, for a planner that writes cues"
    )
    parser.add_argument("--scenes", type=int, default=20000, help="training scenes whose texts are read")
    parser.add_argument("--vocab-size", type=int, default=960, help="tokens without timestamps")
    parser.add_argument("--max-length", type=int, default=128, help="tokens to which prompts are padded")
    parser.add_argument(
        "--timestamps", type=int, default=64, help="timestamp tokens of the planner, from 0 seconds on"
    )
    parser.add_argument("--timestamp-rate", type=float, default=16.0, help="timestamps per second")
    args = parser.parse_args()

    texts = list(stage_texts(args.scenes))
    tokenizer = train_tokenizer(texts, args.max_length, args.vocab_size)
    language = stage_language(texts)
    language.add_to(tokenizer)
    print(f"{len(tokenizer)} tokens; {len(language.words)} words are known")
    for wordings in ("train", "held-out"):
        numbers = range(args.scenes, args.scenes + args.scenes // 10)
        prompts = [write_prompt(sample_scene(number, split="train"), number, wordings) for number in numbers]
        lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
        print(f"unseen prompts, {wordings} wordings: {np.mean(lengths):.1f} tokens, at most {max(lengths)}")
    tokenizer.save_pretrained(args.output)
    if args.planner_output:
        first = add_timestamps(tokenizer, args.timestamps, args.timestamp_rate)
        print(f"{args.timestamps} timestamps: `first_timestamp_id` {first}, `vocab_size` {len(tokenizer)}")
        sheet_language().add_to(tokenizer)
        tokenizer.save_pretrained(args.planner_output)


if __name__ == "__main__":
    main()
