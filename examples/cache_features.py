"""Encodes Stage's training clips once: normalised latents and plan features, for `train_transformer.py`.

python examples/cache_features.py --parts runs/export --output runs/features --clips 8192
"""

import argparse
from pathlib import Path

import torch

from baton_diffusers.stage.clips import StageClips
from baton_diffusers.training.data.cache import cache_features, load_feature_models


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=Path("runs/export"), help="folder of the exported components")
    parser.add_argument("--output", type=Path, default=Path("runs/features"))
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0, help="of the Stage stream")
    parser.add_argument(
        "--verb-shares",
        nargs="*",
        default=[],
        metavar="VERB=SHARE",
        help="shares of clips that have an action, as hit=0.3",
    )
    parser.add_argument("--worker", type=int, default=0, help="number of this process")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that share the clips, on one GPU too")
    parser.add_argument("--frame-rate", type=float, default=16.0)
    parser.add_argument("--audio-latent-rate", type=float, default=31.25)
    arguments = parser.parse_args()
    verb_shares = {verb: float(share) for verb, share in (text.split("=") for text in arguments.verb_shares)}
    cache_features(
        arguments.output,
        StageClips("train", arguments.seed, verb_shares=verb_shares),
        arguments.clips,
        **load_feature_models(arguments.parts, torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        frame_rate=arguments.frame_rate,
        audio_latent_rate=arguments.audio_latent_rate,
        worker=arguments.worker,
        num_workers=arguments.num_workers,
    )
