"""The processes of `accelerate launch`: each measures its share of the candidates, and all reach the same decision."""

import os
from typing import TypeVar

import torch
from torch import distributed

__all__ = ["gather", "join", "place", "same"]

_Value = TypeVar("_Value")


def join() -> None:
    """Join the other processes if `accelerate launch` (or torchrun) started several; otherwise do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState  # noqa: PLC0415 - one process needs none of it

        PartialState()


def place() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) if there is only one."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


def same(value: _Value) -> _Value:
    """Rank 0's value on every rank."""
    if place()[1] == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: float) -> list[float]:
    """Every rank's value in float64, in the order of the ranks."""
    size = place()[1]
    if size == 1:
        return [value]
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    mine = torch.tensor([value], dtype=torch.float64, device=device)
    found = [torch.zeros_like(mine) for _ in range(size)]
    distributed.all_gather(found, mine)
    return [float(each) for each in found]
