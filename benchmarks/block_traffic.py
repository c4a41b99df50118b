"""Bytes that the elementwise operations of a block move, against Wan's block: seconds on a CPU, no numbers are computed.

    python benchmarks/block_traffic.py                                   # full size, 10 s at 704x1280, bfloat16

Counted are the bytes that each operation reads and writes, on the meta device; matrix products, convolutions and attention are
left out. The comparison is with diffusers' `WanTransformerBlock` of the same width, for the part of our block that Wan's has too:
the video's self-attention, its text and its feed-forward. With a given picture, timesteps differ by latent frame; Wan's block
takes them by token.

The limit is the project's: at most 1.2 times Wan's. The exit status is 1 if it is exceeded.
"""

import argparse
import sys

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baton_diffusers import coordinates
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformerBlock


LIMIT = 1.2
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write, except views, allocations and products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if function.is_view or name.startswith(("empty", "_unsafe_view")) or any(p in name for p in _PRODUCTS):
            return result
        read = [x for x in tree_leaves((args[1:] if name == "copy_" else args, kwargs)) if isinstance(x, torch.Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.bytes += sum(_held(x) for x in (*read, *written))
        return result


def _held(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, a broadcast dimension counted once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return torch.Size(sizes).numel() * tensor.element_size()


class FusedAttention(TorchFunctionMode):
    """Attention by a kernel that holds no scores: the meta device has none of its own."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if "query" in (kwargs or {}) else args[0])
        return function(*args, **(kwargs or {}))


def moved(block: torch.nn.Module, *inputs) -> int:
    """Bytes that one forward of a block moves."""
    with torch.no_grad(), FusedAttention(), Traffic() as traffic:
        block(*inputs)
    return traffic.bytes


def measure(grid: tuple[int, int, int], text_length: int, heads: int, head_dim: int, ffn_dim: int) -> dict[str, tuple]:
    """Bytes of our block and of Wan's, without and with a given picture."""
    dim, (num_frames, height, width) = heads * head_dim, grid
    num_tokens = num_frames * height * width
    with torch.device("meta"):
        ours = DualBranchTransformerBlock(dim, ffn_dim, ffn_dim, heads, 1e-6, 0, False)
        theirs = WanTransformerBlock(dim, ffn_dim, heads, "rms_norm_across_heads", True, 1e-6)
        for block in (ours, theirs):
            block.to(torch.bfloat16)
            for name, parameter in block.named_parameters():
                if any(part in name for part in ("scale_shift_table", "norm1", "norm2", "norm3")):
                    parameter.data = parameter.data.float()
        states = torch.empty(1, num_tokens, dim, dtype=torch.bfloat16)
        text = torch.empty(1, text_length, dim, dtype=torch.bfloat16)
        cos, sin = coordinates.rotary_embedding(torch.empty(num_tokens, 3), coordinates.rotary_axes_dims(head_dim))
        whole = tuple(torch.empty(1, num_tokens, 1, head_dim) for _ in range(2))  # Wan's has each value twice

        def modulation(*rows: int) -> torch.Tensor:
            return torch.empty(1, *rows, 6, dim, dtype=torch.bfloat16)

        def both(rows: int, their_modulation: torch.Tensor) -> tuple[int, int]:
            own = moved(ours, states, None, text, None, modulation(rows), None, (cos, sin), (cos, sin), False, False)
            return own, moved(theirs, states, text, their_modulation, whole)

        return {
            "from text": both(1, modulation()),
            "with a given picture": both(num_frames, modulation(num_tokens)),
        }


def main(arguments: list[str] | None = None) -> bool:
    """Runs the benchmark, prints its table, and returns whether the limit holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=(61, 22, 40), help="video tokens: frames, height, width")
    parser.add_argument("--text-length", type=int, default=512)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--ffn-dim", type=int, default=14336)
    options = parser.parse_args(arguments)

    rows = measure(tuple(options.grid), options.text_length, options.heads, options.head_dim, options.ffn_dim)
    print("| one block | ours, GiB | Wan's, GiB | ours / Wan's |")
    print("|---|---|---|---|")
    for name, (ours, theirs) in rows.items():
        print(f"| {name} | {ours / 2**30:.2f} | {theirs / 2**30:.2f} | {ours / theirs:.2f} |")
    return all(ours <= LIMIT * theirs for ours, theirs in rows.values())


if __name__ == "__main__":
    sys.exit(not main())
