"""The processes of a training: their accelerator, and separate random numbers for each process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from prunekit._files import json_hash
from prunekit.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["dropout_seeded", "make_accelerator"]


def make_accelerator(mixed_precision: str, routes_samples: bool) -> "Accelerator":
    """An accelerator with this precision; accelerate itself allows one precision per process, but a run can have two.

    If some batches do not use all parameters, the exchange of gradients must not wait for the unused ones.
    """
    from accelerate import Accelerator  # noqa: PLC0415 - nothing but a training needs it
    from accelerate.state import AcceleratorState  # noqa: PLC0415
    from accelerate.utils import DistributedDataParallelKwargs  # noqa: PLC0415

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    exchange = DistributedDataParallelKwargs(find_unused_parameters=routes_samples)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[exchange])
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("Got mixed precision fp16 on a CPU, which accelerate would leave out; expected bf16 or no.")
    return accelerator


@contextmanager
def dropout_seeded(seed: int, step: int, process: int) -> Iterator[None]:
    """Within the block, the global generator, which only dropout uses, is seeded by step and process, not by the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(json_hash([seed, step, process])[:15], 16))
        yield
