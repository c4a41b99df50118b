"""Gives nano's planner and text encoder new tokenizers; tokens that were words before keep their embeddings.

    python examples/nano/warm_start.py --parts model_cards/baton-nano --tokenizer runs/export/tokenizer \\
      --planner-tokenizer runs/export/planner_tokenizer --output runs/warm

New tokens start fresh, at the scale of the old ones. What is written is the `initial` of planner.yaml and reading.yaml.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from baton_diffusers import VAPlannerModel


def renamed_rows(embeddings: torch.Tensor, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> torch.Tensor:
    """Embeddings of the new tokenizer's tokens, `(number of its tokens, width)`: of the same words where the old one knew them."""
    rows = embeddings.std() * torch.randn(len(new), embeddings.shape[1])
    known = {new.decode([number]).strip().lower(): number for number in reversed(range(len(new)))}
    # a word inside of a text has a space before it, which its token keeps
    known |= {
        new.convert_ids_to_tokens(number)[1:].lower(): number
        for number in range(len(new))
        if new.decode([number])[:1] == " "
    }
    copied = 0
    for word, number in old.get_vocab().items():
        special = new.get_vocab().get(word)
        target = special if special is not None else known.get(word.lower())
        if target is not None:
            rows[target] = embeddings[number]
            copied += 1
    print(f"{copied} of {len(old)} tokens keep their embeddings; the new tokenizer has {len(new)}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--planner-tokenizer", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    old, new = (AutoTokenizer.from_pretrained(path) for path in (arguments.parts / "tokenizer", arguments.tokenizer))
    encoder = UMT5EncoderModel.from_pretrained(arguments.parts / "text_encoder", dtype=torch.float32)
    config = UMT5Config(**{**encoder.config.to_dict(), "vocab_size": len(new), "dtype": "float32"})
    state = encoder.state_dict()
    rows = renamed_rows(encoder.get_input_embeddings().weight.data, old, new)
    renamed = UMT5EncoderModel(config)
    renamed.load_state_dict(
        {
            name: rows if value.shape[0] == len(old) and "embed" in name or name == "shared.weight" else value
            for name, value in state.items()
        }
    )
    renamed.save_pretrained(arguments.output / "text_encoder")

    old = AutoTokenizer.from_pretrained(arguments.parts / "planner_tokenizer")
    new = AutoTokenizer.from_pretrained(arguments.planner_tokenizer)
    planner = VAPlannerModel.from_pretrained(arguments.parts / "planner", torch_dtype=torch.float32)
    config = {key: value for key, value in planner.config.items() if not key.startswith("_")}
    number = planner.config.num_timestamps
    config["language_model_config"] = {**config["language_model_config"], "vocab_size": len(new)}
    config |= {
        "first_timestamp_id": len(new) - number,
        "cast_separator_id": new(" a; b", add_special_tokens=False).input_ids[1],
    }
    state = planner.state_dict()
    name = "language_model.embed_tokens.weight"
    state[name] = renamed_rows(state[name], old, new)
    renamed = VAPlannerModel(**config)
    renamed.load_state_dict(state)
    renamed.save_pretrained(arguments.output / "planner")
    print(f"first_timestamp_id {config['first_timestamp_id']}, cast_separator_id {config['cast_separator_id']}")


if __name__ == "__main__":
    main()
