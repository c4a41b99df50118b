"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), for tensors of any number of dimensions."""

from collections.abc import Callable
from typing import Any

import torch


# A quintic whose iterations take singular values between 0 and 1 to between 0.7 and 1.2, the smallest the fastest (Jordan et al.).
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 6
UPDATE_RMS = 0.2  # what AdamW's updates have too, so that its learning rates serve (Liu et al. 2025, arXiv:2502.16982)


class Muon(torch.optim.AdamW):
    """
    AdamW, but for tensors of two or more dimensions, which move by the nearest orthogonal matrix to their momentum: in all
    directions equally far, where a gradient lies in few. A tensor of more dimensions is the matrix of its first dimension by
    all others. `torch.optim.Muon` takes neither those nor vectors, and computes in bfloat16.

    Args:
        momentum: Share of the former gradients in what the matrices move by (with Nesterov's step ahead).
        kwargs: As for `torch.optim.AdamW`; `lr` and `weight_decay` mean the same for matrices, `betas` and `eps` are of the rest.
    """

    def __init__(self, params: Any, momentum: float = 0.95, **kwargs: Any):
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {momentum}.")
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            group.setdefault("momentum", momentum)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves all parameters that have a gradient; the gradients of matrices are used up. Returns what `closure`, which makes
        the gradients anew, has returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2 or parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:  # `step`, since AdamW looks for it when it loads a state
                    state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(parameter))
                state["step"] += 1
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                matrix = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                scale = group["lr"] * UPDATE_RMS * max(matrix.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(scale * orthogonal(matrix).view_as(parameter))
                parameter.grad = None
        super().step()
        return loss


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the singular vectors of `matrix` and singular values near 1, by Newton-Schulz iterations."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    wide = matrix.float() / (matrix.float().norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide.to(matrix.dtype)
