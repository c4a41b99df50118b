"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), for tensors of any number of dimensions."""

from collections.abc import Callable
from typing import Any

import torch


# Iterating this quintic brings singular values in (0, 1] to between 0.7 and 1.2 (Jordan et al.).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 6
UPDATE_RMS = 0.2  # as AdamW's updates, so that the same learning rates fit (Liu et al. 2025, arXiv:2502.16982)


class Muon(torch.optim.AdamW):
    """
    AdamW for vectors, and Muon for tensors of two or more dimensions. Muon makes the momentum orthogonal, so that a matrix
    moves equally far in all directions, although its gradient has few. A tensor of more than two dimensions counts as a matrix
    of its first dimension by all others. `torch.optim.Muon` takes neither such tensors nor vectors.

    Matrices of one shape are made orthogonal together: a few large kernels instead of many small ones.

    Args:
        momentum: Share of the former gradients in the matrices' momentum (with Nesterov's step ahead).
        kwargs: As for `torch.optim.AdamW`; `lr` and `weight_decay` mean the same for matrices, `betas` and `eps` hold for vectors.
    """

    def __init__(self, params: Any, momentum: float = 0.95, **kwargs: Any):
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {momentum}.")
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group.setdefault("momentum", momentum)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves all parameters that have a gradient, and drops the gradients of matrices. Returns the result of `closure`, which
        computes the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.ndim >= 2 and p.grad is not None]
            if not matrices:
                continue
            for matrix in matrices:
                if not self.state[matrix]:  # `step`, since AdamW looks for it when it loads a state
                    self.state[matrix].update(step=torch.tensor(0.0), momentum=torch.zeros_like(matrix))
                self.state[matrix]["step"] += 1
            gradients, momenta = [p.grad for p in matrices], [self.state[p]["momentum"] for p in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_lerp_(gradients, momenta, group["momentum"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            alike: dict[tuple, list[torch.Tensor]] = {}
            for matrix in matrices:
                shape = matrix.flatten(1).shape
                alike.setdefault((shape, matrix.dtype, matrix.device), []).append(matrix)
            for (shape, _, _), members in alike.items():
                directions = orthogonal(torch.stack([p.grad.flatten(1) for p in members]))
                scale = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                updates = [direction.reshape(p.shape) for direction, p in zip(directions, members, strict=True)]
                torch._foreach_add_(members, updates, alpha=-scale)
            for matrix in matrices:
                matrix.grad = None
        super().step()
        return loss


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices `(..., rows, columns)` with the singular vectors of `matrices` and singular values near 1, by Newton-Schulz
    iterations: on a GPU in bfloat16, as Jordan et al. do, and in float32 on a CPU."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonal(matrices.mT).mT
    wide = matrices.float()
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if matrices.device.type == "cuda":
        wide = wide.bfloat16()
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.to(matrices.dtype)
