"""Forward passes of two networks in turn: seconds, peak memory, and the time of compiling."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _timing import in_turns, on
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.choices import TimedPrecision

from .jobs import Row
from .machine import emptied, peak

LEAST, MOST, BUDGET, CALLS = 5, 31, 3.0, 10  # rounds, seconds of rounds, and calls between two events of a GPU
TINY_ROUNDS = 2


@dataclass(frozen=True)
class Way:
    """How a network runs.

    Args:
        batch: samples in a forward pass.
        dtype: type of weights and activations.
        compiled: whether by ``torch.compile``.
    """

    batch: int
    dtype: TimedPrecision = "float32"
    compiled: bool = False


def of_batch(inputs: Mapping[str, Tensor], way: Way, device: torch.device) -> dict[str, Tensor]:
    """Arguments of one sample, repeated on the device; real numbers get the way's type."""
    wanted = getattr(torch, way.dtype)
    return {
        name: value.to(device, wanted if value.is_floating_point() else None).repeat_interleave(way.batch, 0)
        for name, value in inputs.items()
    }


def ready(
    model: nn.Module, inputs: Mapping[str, Tensor], way: Way, device: torch.device, tiny: bool
) -> tuple[Any, Row]:
    """A forward pass to time, with its peak memory alone on the device and the seconds of its first call.

    The network stays on the device.
    """
    placed: Any = nn.Module.to(model, device, getattr(torch, way.dtype)).eval()  # diffusers' own warns
    if way.compiled:
        placed = torch.compile(placed, dynamic=False, backend="eager" if tiny else "inductor")
    run = partial(placed, **of_batch(inputs, way, device))
    started = time.perf_counter()
    with torch.inference_mode():
        run()
        peak(device)  # waits for the device
        first = time.perf_counter() - started
        emptied(device)
        run()
    return run, {"first_seconds": first, "peak": peak(device)}


def compared(
    base: nn.Module, slim: nn.Module, inputs: Mapping[str, Tensor], way: Way, device: torch.device, tiny: bool
) -> Row:
    """Two networks in turn; memory is measured of the slim one alone, then of the base beside the slim one's weights."""
    torch.compiler.reset()
    emptied(device)
    slim_run, of_slim = ready(slim, inputs, way, device, tiny)
    beside = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    base_run, of_base = ready(base, inputs, way, device, tiny)
    if of_base["peak"] is not None:
        of_base["peak"] -= beside
    rounds = (TINY_ROUNDS,) if tiny else (LEAST, MOST, BUDGET)
    seconds = in_turns([base_run, slim_run], on(device, CALLS), *rounds)
    return {"base": of_base | middle(seconds[:, 0]), "slim": of_slim | middle(seconds[:, 1]), **ratios(seconds)}


def middle(seconds: FloatArray) -> Row:
    """Median seconds of a network."""
    return {"seconds": float(np.median(seconds))}


def ratios(seconds: FloatArray) -> Row:
    """Speed-up of the second network over the first, as median and quartiles of the rounds, shape (rounds, 2)."""
    low, half, high = np.quantile(seconds[:, 0] / seconds[:, 1], (0.25, 0.5, 0.75))
    return {"speedup": float(half), "quartiles": [float(low), float(high)], "rounds": len(seconds)}
