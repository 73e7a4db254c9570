"""Moves networks to the GPU, if there is one, while they are measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["compute_device", "placed"]


def compute_device() -> torch.device:
    """The GPU that this process uses, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def placed(*models: nn.Module) -> Iterator[None]:
    """Within the block the networks are on the GPU, if there is one; afterwards on the CPU, where files and counts are made."""
    device = compute_device()
    try:
        for model in models if device.type != "cpu" else ():
            model.to(device)
        yield
    finally:
        for model in models if device.type != "cpu" else ():
            model.cpu()
