"""Convert the encoder of a published WavTokenizer to an `AudioSemanticEncoder`, which is built on transformers' EnCodec.

    python conversion_scripts/convert_wavtokenizer_to_transformers.py \\
        --wavtokenizer wavtokenizer_large_speech_320_v2.ckpt --output baton-11b/audio_semantic_encoder

Features come from the encoder before quantisation: at 24 kHz with strides of 8, 5, 4 and 2, 75 per second of width 512,
averaged by three to 25 plan tokens per second. They are not standardised.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import sys
from pathlib import Path

from baton_diffusers.models import conversion
from baton_diffusers.models.component_files import PublishedWeights, check_keys, new_folder
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder


PREFIX = "feature_extractor.encodec.encoder."


def convert(file: Path) -> AudioSemanticEncoder:
    """The encoder of a WavTokenizer checkpoint; its quantiser and decoder are not read.

    Raises:
        ValueError: if the file is truncated or corrupt, or naming the first key that is missing, unexpected or misshapen.
    """
    published = PublishedWeights(file, PREFIX, entry="state_dict")
    model = AudioSemanticEncoder(conversion.wavtokenizer_config(published.shapes, published.name))
    state = model.encoder.state_dict()
    keys = {name: conversion.published_wavtokenizer_key(name) for name in state}
    check_keys(published.shapes, {keys[name]: state[name].shape for name in state}, f"{file} under {PREFIX!r}")
    published.check_finite()
    tensors = published.read(list(keys.values()))
    model.encoder.load_state_dict({name: tensors[key] for name, key in keys.items()})
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Run the command; ends in `SystemExit` with a message if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--wavtokenizer", type=Path, required=True, metavar="FILE", help="a .ckpt with 75 or 40 tokens/s"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to make")
    parsed = parser.parse_args(arguments)
    try:
        model = convert(parsed.wavtokenizer)
        with new_folder(parsed.output, sum(tensor.nbytes for tensor in model.state_dict().values())) as folder:
            model.save_pretrained(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")
    print(parsed.output)


if __name__ == "__main__":
    main()
