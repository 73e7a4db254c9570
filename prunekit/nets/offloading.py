"""Offloading of an expert that is loaded after its experts were offloaded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["offloaded_like"]


def offloaded_like(network: nn.Module, whole: nn.Module) -> nn.Module:
    """Offload a network layer by layer, if that was done to the module that holds it.

    Args:
        network: a network on the CPU.
        whole: the module, maybe with hooks of ``enable_sequential_cpu_offload``.

    Returns:
        The same network.
    """
    device = next(_devices(vars(whole).get("_hf_hook")), None)
    if device is not None:
        from accelerate import cpu_offload  # noqa: PLC0415 - only offloaded models need it

        cpu_offload(network.to("cpu"), device, offload_buffers=bool(network._parameters))
    return network


def _devices(hook: Any) -> Iterator[torch.device]:
    """Where hooks that offload layers run them."""
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False) is True:
            yield torch.device(one.execution_device)
