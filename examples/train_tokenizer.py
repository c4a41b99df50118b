"""Trains the tokenizer on Stage's grammar and reports its coverage of prompts that it has not seen.

python examples/train_tokenizer.py --output runs/export/tokenizer
python examples/train_tokenizer.py --output runs/export/planner_tokenizer --timestamps 64   # for a planner that writes cues
"""

import argparse

from baton_diffusers.models.va_planner import add_timestamps
from baton_diffusers.training.tokenizer import stage_texts, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", nargs="+", required=True, help="folders to which the tokenizer is saved")
    parser.add_argument("--scenes", type=int, default=20000, help="training scenes whose texts are read")
    parser.add_argument("--max-length", type=int, default=80, help="tokens to which prompts are padded")
    parser.add_argument("--timestamps", type=int, default=0, help="timestamp tokens to add, from 0 seconds on")
    parser.add_argument("--timestamp-rate", type=float, default=16.0, help="timestamps per second")
    args = parser.parse_args()

    tokenizer = train_tokenizer(stage_texts(args.scenes), args.max_length)
    lengths, unknown = [], 0
    for text in stage_texts(args.scenes, seed=args.scenes):
        ids = tokenizer(text).input_ids
        lengths.append(len(ids))
        unknown += ids.count(tokenizer.unk_token_id)
    print(f"{len(tokenizer)} tokens; unseen texts: {unknown} unknown words, at most {max(lengths)} tokens")
    if args.timestamps:
        first = add_timestamps(tokenizer, args.timestamps, args.timestamp_rate)
        print(f"{args.timestamps} timestamps: `first_timestamp_id` {first}, `vocab_size` {len(tokenizer)}")
    for folder in args.output:
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
