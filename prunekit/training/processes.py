"""The processes of a training: their accelerator, and separate random numbers for each process."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

    Raises:
        InputError: the precision is fp16 on a CPU.
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
def dropout_seeded(seed: int, step: int, process: int, device: torch.device) -> Iterator[None]:
    """Within the block, the global generators, which only dropout uses, are seeded by step and process, not by the batch.

    Args:
        seed: of the training.
        step: number of the train step.
        process: number of this process.
        device: that this process trains on; its own generator is seeded beside the CPU's.
    """
    number = int(json_hash([seed, step, process])[:15], 16)
    with torch.random.fork_rng(devices=[]), _device_seeded(device, number) if device.type != "cpu" else nullcontext():
        torch.default_generator.manual_seed(number)
        yield


@contextmanager
def _device_seeded(device: torch.device, number: int) -> Iterator[None]:
    """Within the block, the generator of this process's current device of a type, which is no CPU, is seeded."""
    own = torch.get_device_module(device)
    state = own.get_rng_state()
    own.manual_seed(number)
    try:
        yield
    finally:
        own.set_rng_state(state)
