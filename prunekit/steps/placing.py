"""Moves networks to the GPU, if there is one, while they are measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunekit.graph.forward_pass import Inputs, device_of

__all__ = ["compute_device", "inputs_on", "kept_in_place", "placed"]


def compute_device() -> torch.device:
    """The GPU that this process uses, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs_on(device: torch.device, inputs: Inputs) -> Inputs:
    """Arguments of a forward pass with every tensor on a device."""
    moved: Inputs = tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, inputs)
    return moved


@contextmanager
def kept_in_place(*models: nn.Module) -> Iterator[None]:
    """After the block, also one that raises, every network is back on the device that it was on before."""
    places = [device_of(model) for model in models]
    try:
        yield
    finally:
        for model, place in zip(models, places, strict=True):
            if device_of(model) != place:
                model.to(place)


@contextmanager
def placed(*models: nn.Module) -> Iterator[None]:
    """Within the block the networks are on the GPU, if there is one; afterwards where they were."""
    device = compute_device()
    with kept_in_place(*models):
        for model in models if device.type != "cpu" else ():
            model.to(device)
        yield
