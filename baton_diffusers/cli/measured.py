"""How long a command works, and how much memory it takes."""

import sys


class Measured:
    """Wall time of a block, and the peak memory of the process up to its end."""

    def __enter__(self) -> "Measured":
        import time

        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        import resource
        import time

        import torch

        self.seconds = time.perf_counter() - self.start
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        self.peaks = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        if torch.cuda.is_available():
            self.peaks["GPU memory"] = torch.cuda.max_memory_allocated()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, " + ", ".join(f"peak {k} {v / 2**30:.2f} GiB" for k, v in self.peaks.items())
