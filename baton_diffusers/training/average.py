"""The moving average of a module's trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """
    The moving average of a module's trained weights. With FSDP, each process averages its own shards.

    Args:
        module: The module; FSDP has sharded it already.
        decay: Decay of the average, warmed up as `(1 + step) / (10 + step)`.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._averages = {name: local(value).clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after a step, counted from 0, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [local(parameter) for parameter in self._parameters.values()]
        torch._foreach_lerp_([*self._averages.values()], weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the module has the averaged weights; afterwards it has its own weights again."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights and the average."""
        weights, averages = [local(value) for value in self._parameters.values()], [*self._averages.values()]
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by the names of the weights; with FSDP, of this process's shards alone."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, averages: dict[str, torch.Tensor]) -> None:
        """Loads the averages that [`WeightAverage.state_dict`] returned."""
        for name, average in self._averages.items():
            average.copy_(averages[name])


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This process's shard of a parameter, without gradient; it shares the parameter's memory."""
    parameter = parameter.detach()
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
