"""Trains the tokenizer on Stage's grammar and reports its coverage of prompts that it has not seen.

python examples/train_tokenizer.py --output runs/export/tokenizer
"""

import argparse

from baton_diffusers.training.tokenizer import stage_texts, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", nargs="+", required=True, help="folders to which the tokenizer is saved")
    parser.add_argument("--scenes", type=int, default=20000, help="training scenes whose texts are read")
    parser.add_argument("--max-length", type=int, default=80, help="tokens to which prompts are padded")
    args = parser.parse_args()

    tokenizer = train_tokenizer(stage_texts(args.scenes), args.max_length)
    lengths, unknown = [], 0
    for text in stage_texts(args.scenes, seed=args.scenes):
        ids = tokenizer(text).input_ids
        lengths.append(len(ids))
        unknown += ids.count(tokenizer.unk_token_id)
    print(f"{len(tokenizer)} tokens; unseen texts: {unknown} unknown words, at most {max(lengths)} tokens")
    for folder in args.output:
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
