"""Encodes Stage's training clips once: normalised latents and plan features, for `train_transformer.py`.

python examples/cache_features.py --parts runs/export --output runs/features --clips 8192

Several processes share the shards, also on one GPU: `--worker 0 --num-workers 8` and so on.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
from pathlib import Path

import torch

from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.cache import cache_features, load_feature_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=Path("runs/export"), help="folder of the exported components")
    parser.add_argument("--output", type=Path, default=Path("runs/features"))
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--clips-per-shard", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the Stage stream")
    parser.add_argument(
        "--verb-shares",
        nargs="*",
        default=[],
        metavar="VERB=SHARE",
        help="shares of clips that have an action, as hit=0.3",
    )
    parser.add_argument("--frame-rate", type=float, default=16.0)
    parser.add_argument("--audio-latent-rate", type=float, default=31.25)
    parser.add_argument("--worker", type=int, default=0, help="number of this process")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--device", help="default: a GPU, if there is one")
    arguments = parser.parse_args()
    try:
        cache_features(
            arguments.output,
            StageClips("train", arguments.seed, verb_shares=dict(map(verb_share, arguments.verb_shares))),
            arguments.clips,
            **load_feature_models(
                arguments.parts, torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            ),
            frame_rate=arguments.frame_rate,
            audio_latent_rate=arguments.audio_latent_rate,
            clips_per_shard=arguments.clips_per_shard,
            worker=arguments.worker,
            num_workers=arguments.num_workers,
        )
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def verb_share(text: str) -> tuple[str, float]:
    """A verb and its share, of a text like "hit=0.3".

    Raises:
        ValueError: If it is not of that form.
    """
    verb, _, share = text.partition("=")
    try:
        return verb, float(share)
    except ValueError:
        raise ValueError(f"--verb-shares {text} is not of the form VERB=SHARE, as hit=0.3") from None


if __name__ == "__main__":
    main()
