"""Removes the weakest hidden units from a transformer's feed-forward layers; train it on afterwards.

    python examples/nano/prune_feed_forward.py model_cards/baton-nano/transformer runs/pruned/transformer --width 440

A unit counts as strong as the product of the norms of its weights in and out.
"""

import baton_diffusers.interrupts  # noqa: F401


# isort: split
import argparse
import inspect
from pathlib import Path

import torch

from baton_diffusers import DualBranchTransformer


def strongest(expand: torch.nn.Linear, reduce: torch.nn.Linear, width: int) -> torch.Tensor:
    """Numbers of the hidden units to keep, in order."""
    strength = expand.weight.norm(dim=1) * reduce.weight.norm(dim=0)
    return strength.topk(width).indices.sort().values


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transformer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, required=True, help="hidden units of each layer to keep")
    arguments = parser.parse_args()
    transformer = DualBranchTransformer.from_pretrained(arguments.transformer, torch_dtype=torch.float32)
    config = transformer.config
    if not 0 < arguments.width < min(config.ffn_dim, config.audio_ffn_dim):
        parser.error(f"--width is {arguments.width}, but has to be below {min(config.ffn_dim, config.audio_ffn_dim)}")
    state = transformer.state_dict()
    for name, module in transformer.named_modules():
        if name.endswith(("ffn", "audio_ffn")):
            expand, reduce = module.net[0].proj, module.net[2]
            kept = strongest(expand, reduce, arguments.width)
            state[f"{name}.net.0.proj.weight"] = expand.weight[kept]
            state[f"{name}.net.0.proj.bias"] = expand.bias[kept]
            state[f"{name}.net.2.weight"] = reduce.weight[:, kept]
    known = inspect.signature(DualBranchTransformer.__init__).parameters
    settings = {key: value for key, value in config.items() if key in known}
    pruned = DualBranchTransformer(**{**settings, "ffn_dim": arguments.width, "audio_ffn_dim": arguments.width})
    pruned.load_state_dict(state)
    pruned.save_pretrained(arguments.output)
    print(
        f"{sum(p.numel() for p in transformer.parameters())} -> {sum(p.numel() for p in pruned.parameters())} parameters"
    )


if __name__ == "__main__":
    main()
