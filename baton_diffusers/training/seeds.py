"""Seeds of the random draws at each step of a run."""

import numpy as np


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of a generator: a hash of the run's seed, the step's number and the part of the step."""
    return int(np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0])
