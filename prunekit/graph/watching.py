"""What modules say of themselves while a network runs: when they start, where they work, which sizes they keep."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._types import Args, IntArray, Kwargs
from prunekit.graph.flow import Flow
from prunekit.graph.layers import ENTERING, LEAVING, axis_size, layer_kind

__all__ = ["Seen", "watched"]


@dataclass(frozen=True)
class Seen:
    """What was noted.

    Args:
        order: rank of every module that ran, by its name.
        resolutions: of every layer that has weights, the root of the number of positions that it works at.
        sizes: module, attribute and ids of the axis that the attribute is the size of.
    """

    order: dict[str, int] = field(default_factory=dict)
    resolutions: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[str, str, IntArray]] = field(default_factory=list)


@contextmanager
def watched(model: nn.Module, flow: Flow) -> Iterator[Seen]:
    """Within the block, note when each module starts, at what resolution it works, and which sizes it keeps beside tensors."""
    seen = Seen()
    stack = [""]
    handles = []

    @partial(_unheard, flow)
    def enter(module: nn.Module, args: Args, kwargs: Kwargs, name: str) -> None:
        seen.order.setdefault(name, len(seen.order))
        stack.append(name)
        flow.module = name
        if layer_kind(module) is None or getattr(module, "weight", None) is None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            seen.sizes.extend(_kept_sizes(flow, name, module, ENTERING, tensors[:1]))

    @partial(_unheard, flow)
    def leave(module: nn.Module, args: Any, output: Any, name: str) -> None:
        stack.pop()
        flow.module = stack[-1]
        if layer_kind(module) is None:
            seen.sizes.extend(_kept_sizes(flow, name, module, LEAVING, [output]))
        elif isinstance(output, Tensor) and getattr(module, "weight", None) is not None:
            positions = output.numel() // axis_size(module, "out")
            seen.resolutions[name] = max(seen.resolutions.get(name, 1), math.isqrt(max(positions - 1, 0)) + 1)

    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, a, k, name=name: enter(m, a, k, name), with_kwargs=True)
        )
        handles.append(module.register_forward_hook(lambda m, a, out, name=name: leave(m, a, out, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _unheard(flow: Flow, function: Callable[..., None]) -> Callable[..., None]:
    """What a function asks of tensors is no call of the network's: nobody who listens to these hears it.

    To ask for a parametrized weight computes it, and its products would be counted once more.
    """

    def quietly(*args: object, **kwargs: object) -> None:
        with torch._C.DisableTorchFunction(), flow.paused():
            function(*args, **kwargs)

    return quietly


def _kept_sizes(
    flow: Flow, name: str, module: nn.Module, names: Iterable[str], tensors: Iterable[Any]
) -> Iterator[tuple[str, str, IntArray]]:
    """Attributes of a module that equal the number of channels of a tensor."""
    kept = {key: value for key, value in vars(module).items() if key in names}
    for tensor in tensors:
        for grid in flow.of(tensor).grids if kept else ():
            for key, value in kept.items():
                if len(grid.dims) == 1 and not grid.hidden and value in (len(grid.ids), (len(grid.ids),)):
                    yield name, key, grid.ids
