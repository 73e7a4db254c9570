"""Times of several networks on one device, measured in turn so that the machine's noise affects all of them equally."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from prunekit._types import FloatArray
from prunekit.cost.clocks import seconds_of

Run = Callable[[], object]


def on(device: torch.device, calls: int = 1) -> Callable[[Run], float]:
    """A clock of a device: processor seconds of a CPU with one thread, seconds between two events of a GPU."""
    return lambda run: seconds_of(run, device, calls)


@torch.inference_mode()
def in_turns(
    runs: Sequence[Run],
    clock: Callable[[Run], float],
    least: int,
    most: int | None = None,
    budget: float = 0.0,
) -> FloatArray:
    """Seconds of each run, shape (rounds, runs); every other round runs in the opposite order, and the first is not counted.

    Args:
        runs: what to time.
        clock: seconds of one run.
        least: rounds in any case.
        most: rounds at most, as far as the budget goes; ``least`` if missing.
        budget: seconds after which no round begins that goes beyond ``least``.
    """
    for run in runs:
        clock(run)
    started = time.perf_counter()
    measured: list[list[float]] = []
    while len(measured) < (most or least) and (len(measured) < least or time.perf_counter() - started < budget):
        order = range(len(runs)) if len(measured) % 2 == 0 else reversed(range(len(runs)))
        seconds = {place: clock(runs[place]) for place in order}
        measured.append([seconds[place] for place in range(len(runs))])
    return np.array(measured)
