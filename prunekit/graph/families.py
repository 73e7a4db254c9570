"""What single module classes need beyond what one forward pass shows: numbers that code keeps beside its tensors.

A family knows classes by name, so no network library is imported here. Most networks need none: sizes that the pass can see
(``channels``, ``heads``, ``num_groups`` …) are followed by :mod:`prunekit.graph.trace` itself.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

__all__ = ["FAMILIES", "Family", "queries_of", "refresh", "ties_of"]

TensorDim = tuple[str, int]
"""A tensor of a module, by its name from the module on, and one of its dimensions."""


class Family(Protocol):
    """Knowledge of one kind of module."""

    def refresh(self, module: Any) -> None:
        """Set what the module remembers of its children's sizes, after they changed."""
        ...

    def ties(self, module: Any) -> Iterator[tuple[TensorDim, TensorDim]]:
        """Axes of equal length that the module's code takes to stay equal, though no tensor operation says so."""
        ...

    def queries(self, module: Any) -> Iterator[str]:
        """Names of layers whose outputs are divided by the root of their width per head."""
        ...


class _Plain:
    """A family that needs one thing only."""

    def refresh(self, module: Any) -> None:
        """Nothing is remembered."""

    def ties(self, module: Any) -> Iterator[tuple[TensorDim, TensorDim]]:
        """Nothing is tied."""
        return iter(())

    def queries(self, module: Any) -> Iterator[str]:
        """There are none."""
        return iter(())


class _Attention(_Plain):
    """diffusers' ``Attention``: projections ``to_q``, ``to_k``, ``to_v`` and ``to_out.0``; heads are equal slices.

    Joint attentions that are ``pre_only`` have no ``to_out``.
    """

    def refresh(self, module: Any) -> None:
        """Widths from the projections; ``heads`` has been set before."""
        inner = int(module.to_q.out_features)
        module.sliceable_head_dim = module.heads
        spans_heads = module.out_dim == module.inner_dim  # processors that read it reshape the heads by it
        if inner != module.inner_dim and module.scale != 1.0:  # read by processors that do not call the fused attention
            module.scale = (inner // module.heads) ** -0.5
        module.inner_dim = module.inner_kv_dim = inner
        module.query_dim = int(module.to_q.in_features)
        leaving = _first_linear(module.to_out)
        if spans_heads:
            module.out_dim = inner
        elif leaving is not None:
            module.out_dim = int(leaving.out_features)
        if module.to_k is not None and not vars(module).get("is_cross_attention", True):
            module.cross_attention_dim = int(module.to_k.in_features)

    def ties(self, module: Any) -> Iterator[tuple[TensorDim, TensorDim]]:
        """Fused processors read the width of a value's heads off the key's; plain ones would not mind."""
        if module.to_v is not None:
            yield ("to_q.weight", 0), ("to_v.weight", 0)

    def queries(self, module: Any) -> Iterator[str]:
        """Fused and plain processors divide by the same root, and the plain ones read it off an attribute."""
        if module.scale != 1.0:
            yield "to_q"


def _first_linear(layers: Any) -> nn.Linear | None:
    """The first linear layer of what an attention puts out: nothing, one layer, or a list; None where there is none."""
    found = [layers] if isinstance(layers, nn.Linear) else list(layers) if isinstance(layers, nn.ModuleList) else []
    return next((layer for layer in found if isinstance(layer, nn.Linear)), None)


class _ResnetBlock(_Plain):
    """diffusers' ``ResnetBlock2D``: resampling without a layer of its own asserts on the block's input width."""

    def refresh(self, module: Any) -> None:
        module.in_channels = module.conv1.in_channels
        module.out_channels = module.conv2.out_channels


class _ScaledNorm(_Plain):
    """lucidrains' ``RMSNorm`` multiplies by the root of its width, kept or computed."""

    def refresh(self, module: Any) -> None:
        if "g" in module._parameters and isinstance(vars(module).get("scale"), float):
            module.scale = math.sqrt(module.g.numel())


class _SharedWidth(_Plain):
    """EDM's ``UNetBlock`` reshapes its attention's inner channels by the width of the block's own."""

    def ties(self, module: Any) -> Iterator[tuple[TensorDim, TensorDim]]:
        """The channels of the block and of its attention's products."""
        if vars(module).get("num_heads") and hasattr(module, "qkv") and hasattr(module, "norm2"):
            yield ("norm2.weight", 0), ("proj.weight", 1)


FAMILIES: Mapping[str, Family] = {
    "Attention": _Attention(),
    "ResnetBlock2D": _ResnetBlock(),
    "RMSNorm": _ScaledNorm(),
    "UNetBlock": _SharedWidth(),
}
"""Families by class name. ``Attention`` and ``ResnetBlock2D`` are common names: theirs are used for diffusers' classes only."""

_DIFFUSERS = ("Attention", "ResnetBlock2D")


def _family(module: nn.Module) -> Family | None:
    for base in type(module).__mro__:
        if base.__name__ in FAMILIES and (base.__name__ not in _DIFFUSERS or base.__module__.startswith("diffusers.")):
            return FAMILIES[base.__name__]
    return None


def refresh(model: nn.Module) -> None:
    """Mend what known modules remember, in a model whose layers have their final shapes."""
    for module in model.modules():
        family = _family(module)
        if family is not None:
            family.refresh(module)


def ties_of(model: nn.Module) -> Iterator[tuple[TensorDim, TensorDim]]:
    """All ties of a model, by full tensor names."""
    for name, module in model.named_modules():
        family = _family(module)
        for (a, dim_a), (b, dim_b) in family.ties(module) if family else ():
            prefix = f"{name}." if name else ""
            yield (prefix + a, dim_a), (prefix + b, dim_b)


def queries_of(model: nn.Module) -> Iterator[str]:
    """Names of all layers of a model that are known to make queries."""
    for name, module in model.named_modules():
        family = _family(module)
        for layer in family.queries(module) if family else ():
            yield f"{name}.{layer}" if name else layer
