"""What single module classes need beyond their tensors' shapes: attention heads, and attributes that surgery leaves stale.

A handler is looked up by class name along a module's bases, so no network library is imported here.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Attention", "attentions", "handler_of", "refresh"]


class Handler(Protocol):
    """Mends one kind of module after its children changed shape."""

    def refresh(self, module: Any) -> None:
        """Set the attributes that copy a child's size."""
        ...


class _Resampler:
    """diffusers' ``Upsample2D`` and ``Downsample2D`` assert on a copy of their convolution's width."""

    def refresh(self, module: Any) -> None:
        conv = module.conv
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            module.channels = conv.in_channels
            module.out_channels = conv.out_channels


class _ResnetBlock:
    """diffusers' ``ResnetBlock2D``: its up- or downsampling has no layer of its own and asserts on the block's input width."""

    def refresh(self, module: Any) -> None:
        module.in_channels = module.conv1.in_channels
        module.out_channels = module.conv2.out_channels
        for resample in (module.upsample, module.downsample):
            if isinstance(handler_of(resample), _Resampler) and isinstance(resample.conv, nn.AvgPool2d | None):
                resample.channels = resample.out_channels = module.in_channels


class Attention:
    """diffusers' ``Attention``: projections ``to_q``, ``to_k``, ``to_v``, and ``to_out.0``; heads are equal slices."""

    projections = ("to_q", "to_k", "to_v")

    def refresh(self, module: Any) -> None:
        """Derive heads and widths from ``to_q``; the width of a head never changes unless there is just one."""
        old_inner, new_inner = int(module.inner_dim), int(module.to_q.out_features)
        if old_inner != new_inner and module.heads > 1:
            module.heads = new_inner // (old_inner // module.heads)
            module.sliceable_head_dim = module.heads
        elif old_inner != new_inner and module.scale != 1.0:  # read by processors that do not call the fused attention
            module.scale = new_inner**-0.5
        module.inner_dim = module.inner_kv_dim = new_inner
        module.query_dim = int(module.to_q.in_features)
        module.out_dim = int(module.to_out[0].out_features)
        if module.to_k is not None and not module.is_cross_attention:
            module.cross_attention_dim = int(module.to_k.in_features)

    def rescale(self, name: str, heads: int, widths: tuple[int, int]) -> dict[str, float]:
        """Factors on tensors that keep q·k/√d exact when a single head shrinks from ``widths[0]`` to ``widths[1]``.

        Attention divides by the root of the width that it sees, so the query is scaled by √(new/old).
        """
        old, new = widths
        if heads > 1 or old == new:
            return {}
        factor = math.sqrt(new / old)
        return {f"{name}.to_q.weight": factor, f"{name}.to_q.bias": factor}


_HANDLERS: Mapping[str, Handler] = {
    "Attention": Attention(),
    "Upsample2D": _Resampler(),
    "Downsample2D": _Resampler(),
    "ResnetBlock2D": _ResnetBlock(),
}


def handler_of(module: Any) -> Handler | None:
    """The handler of a module's class, or of the nearest base that has one."""
    for base in type(module).__mro__:
        if base.__name__ in _HANDLERS and base.__module__.startswith("diffusers."):
            return _HANDLERS[base.__name__]
    return None


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every attention whose heads are known."""
    for name, module in model.named_modules():
        if isinstance(handler_of(module), Attention):
            yield name, module


def refresh(model: nn.Module) -> None:
    """Mend every known stale attribute of a model whose layers have their final shapes."""
    for module in model.modules():
        handler = handler_of(module)
        if handler is not None:
            handler.refresh(module)


def rescaled(name: str, module: Any, state: dict[str, Tensor]) -> None:
    """Apply :meth:`Attention.rescale` to a sliced state in place of the tensors' entries."""
    widths = (int(module.to_q.out_features), int(state[f"{name}.to_q.weight"].shape[0]))
    for key, factor in Attention().rescale(name, int(module.heads), widths).items():
        if key in state:
            state[key] = state[key] * factor
