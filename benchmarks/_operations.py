"""Counts the multiplications of everything that runs in a block: forward passes, gradients and a repair's linear algebra."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_FLOPS = {
    torch.ops.aten.linalg_cholesky_ex: lambda gram, **_: gram.shape[-1] ** 3 // 3,
    torch.ops.aten.cholesky_solve: lambda wanted, factor, *_, **__: 4 * factor.shape[-1] ** 2 * wanted.shape[-1] // 2,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query.shape, key.shape, value.shape
    ),
}


class Operations(TorchDispatchMode):
    """Multiply-accumulates of products, convolutions, attentions and factorisations; element-wise work is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _FLOPS:
            self.macs += _FLOPS[packet](*args, **(kwargs or {})) // 2
        elif packet in flop_registry:
            self.macs += flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
        return out


@contextmanager
def operations() -> Iterator[Operations]:
    """Count within the block."""
    with Operations() as counted:
        yield counted
