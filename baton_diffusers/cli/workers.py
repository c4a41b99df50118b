"""Work that is shared among processes, which `accelerate launch`, `torchrun` or anything else that sets RANK and WORLD_SIZE starts.

Each takes its share by its rank. They need not know of each other: the folder that they write to shows what is done.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple


class Worker(NamedTuple):
    """This process: its `number`, and how many there are in `total`."""

    number: int
    total: int

    @classmethod
    def this(cls) -> "Worker":
        """The worker that the environment names; without these variables, the only one. On GPUs, each takes its own.

        Raises:
            ValueError: the environment says what cannot be.
        """
        if "LOCAL_RANK" in os.environ:
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        number, total = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
            raise ValueError(
                f"the environment says RANK={number} and WORLD_SIZE={total}: RANK counts from 0 to WORLD_SIZE - 1; unset both, or start "
                "the processes by `accelerate launch` or `torchrun`"
            )
        return cls(int(number), int(total))

    def share(self, costs: Sequence[float]) -> list[int]:
        """The numbers of the tasks that are this worker's, the costliest first. All workers come to the same shares."""
        loads = [0.0] * self.total
        mine = []
        for task in sorted(range(len(costs)), key=lambda task: (-costs[task], task)):
            worker = loads.index(min(loads))
            loads[worker] += costs[task]
            if worker == self.number:
                mine.append(task)
        return mine
