"""Convert published decoders of semantic features to plan decoders, with which `pipe.preview` shows a plan before it is
rendered.

    python conversion_scripts/convert_plan_decoders_to_diffusers.py --output baton-11b \\
        --rae RAE-siglip2-base-p16-i256-ViTXL-n08 --wavtokenizer wavtokenizer_large_speech_320_v2.ckpt \\
        --video-semantic-encoder baton-11b/video_semantic_encoder --audio-semantic-encoder baton-11b/audio_semantic_encoder

`--rae` is the folder of a diffusers `AutoencoderRAE` of SigLIP2, and becomes `video_plan_decoder`; the decoder of `--wavtokenizer`
becomes `audio_plan_decoder`. Give one of them, or both. The semantic encoders standardise and average plan tokens; if you give
their folders, the decoders undo this. The decoder of pictures fits planners of the features that it was trained on: features of
the last layer of SigLIP2's tower, of the same width.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import sys
from pathlib import Path

from baton_diffusers.files import read_json
from baton_diffusers.models import conversion
from baton_diffusers.models.component_files import PublishedWeights, check_keys, load_component, new_folder
from baton_diffusers.models.published_plan_decoders import RAEPlanDecoder, WavTokenizerPlanDecoder
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder


def convert_rae(folder: Path, encoder: VideoSemanticEncoder | None) -> RAEPlanDecoder:
    """The decoder of an `AutoencoderRAE`; its encoder is not read.

    Raises:
        ValueError: if the folder holds no such autoencoder, or its tokens are not those of the semantic `encoder`.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise ValueError(f"{folder} holds no AutoencoderRAE: give a folder with config.json and its safetensors.")
    config = conversion.rae_decoder_config(read_json(folder / "config.json"))
    if encoder is not None:
        config["video_grid"] = tuple(encoder.config.video_grid)
    decoder = RAEPlanDecoder(**config)
    published = PublishedWeights(files)
    ours = {f"decoder.{name}": value.shape for name, value in decoder.decoder.state_dict().items()}
    theirs = {key: shape for key, shape in published.shapes.items() if key.startswith("decoder.")}
    theirs.pop("decoder.decoder_pos_embed", None)  # it follows from the configuration
    check_keys(theirs, ours, str(folder))
    published.check_finite()
    tensors = published.read([*ours, "encoder_mean", "encoder_std"])
    decoder.decoder.load_state_dict({name.removeprefix("decoder."): tensors[name] for name in ours})
    decoder.image_mean.copy_(tensors["encoder_mean"].flatten())
    decoder.image_std.copy_(tensors["encoder_std"].flatten())
    return _standardised_by(decoder, encoder, config["video_dim"])


def convert_wavtokenizer(file: Path, encoder: AudioSemanticEncoder | None) -> WavTokenizerPlanDecoder:
    """The decoder of a WavTokenizer checkpoint; its encoder and quantiser are not read.

    Raises:
        ValueError: if the file is truncated or corrupt, or naming the first key that is missing or misshapen.
    """
    published = PublishedWeights(file, entry="state_dict")
    config = conversion.wavtokenizer_decoder_config(published.shapes, published.name)
    if encoder is not None:
        config["audio_rate"] = encoder.config.tokens_per_chunk / encoder.config.chunk_duration
    decoder = WavTokenizerPlanDecoder(**config)
    state = {name: value for name, value in decoder.state_dict().items() if not name.startswith("feature_")}
    keys = {name: conversion.published_wavtokenizer_decoder_key(name) for name in state}
    shapes = {key: shape for key, shape in published.shapes.items() if key.startswith(("backbone.", "head."))}
    scaled = {key for key in shapes if key.endswith(("norm.scale.weight", "norm.shift.weight"))}
    shapes = {key: shape[1:] if key in scaled else shape for key, shape in shapes.items()}
    check_keys(shapes, {keys[name]: value.shape for name, value in state.items()}, str(file))
    published.check_finite()
    tensors = published.read(list(keys.values()))
    # Every bandwidth has a row of its own; published models are used with the first.
    loaded = {name: tensors[key][0] if key in scaled else tensors[key] for name, key in keys.items()}
    decoder.load_state_dict(loaded, strict=False)
    return _standardised_by(decoder, encoder, config["audio_dim"])


def _standardised_by(decoder, encoder, width: int):
    if encoder is not None:
        if len(encoder.feature_mean) != width:
            raise ValueError(
                f"the decoder reads features of width {width}, but the semantic encoder has {len(encoder.feature_mean)}: they do not "
                "fit together."
            )
        decoder.feature_mean.copy_(encoder.feature_mean)
        decoder.feature_std.copy_(encoder.feature_std)
    return decoder.eval()


def main(arguments: list[str] | None = None) -> None:
    """Run the command; ends in `SystemExit` with a message if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rae", type=Path, metavar="DIR", help="an AutoencoderRAE of SigLIP2")
    parser.add_argument("--wavtokenizer", type=Path, metavar="FILE", help="a .ckpt with 75 tokens/s")
    parser.add_argument("--video-semantic-encoder", type=Path, metavar="DIR", help="whose tokens are decoded")
    parser.add_argument("--audio-semantic-encoder", type=Path, metavar="DIR", help="whose tokens are decoded")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder of a pipeline, or a new one"
    )
    parsed = parser.parse_args(arguments)
    if parsed.rae is None and parsed.wavtokenizer is None:
        parser.error("give --rae, --wavtokenizer, or both")
    try:
        encoders = (
            None if folder is None else load_component(folder, model_class)
            for folder, model_class in (
                (parsed.video_semantic_encoder, VideoSemanticEncoder),
                (parsed.audio_semantic_encoder, AudioSemanticEncoder),
            )
        )
        video_encoder, audio_encoder = encoders
        made = {}
        if parsed.rae is not None:
            made["video_plan_decoder"] = convert_rae(parsed.rae, video_encoder)
        if parsed.wavtokenizer is not None:
            made["audio_plan_decoder"] = convert_wavtokenizer(parsed.wavtokenizer, audio_encoder)
        for name, decoder in made.items():
            size = sum(tensor.nbytes for tensor in decoder.state_dict().values())
            with new_folder(parsed.output / name, size) as folder:
                decoder.save_pretrained(folder)
            print(parsed.output / name)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")


if __name__ == "__main__":
    main()
