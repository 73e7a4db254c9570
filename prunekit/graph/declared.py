"""Layers whose class the user declares to be a convolution or a linear layer: each call of one is followed as a single step.

What such a layer computes inside may be anything that the operators' rules do not know: an operator of a library, a product in
the frequency domain, weights that are unpacked on the way. The trial checks the step like that of any other function.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves

from prunekit.errors import InputError
from prunekit.graph.constraints import Declared, closest
from prunekit.graph.layers import own_tensors

__all__ = ["as_layers", "call_layer", "declared_kind", "weight_of"]


@contextmanager
def as_layers(model: nn.Module, declare: Mapping[str, Declared]) -> Iterator[None]:
    """Within the block, calls of declared layers are single functions to torch's modes, and compute what they did.

    Args:
        model: the network; copies of it count, too, since the classes are what changes.
        declare: class name → kind.

    Raises:
        InputError: the network has no module of a class.
    """
    classes = {type(module) for module in model.modules()}
    names = [name for one in classes for name in _names(one)]
    for name in declare:
        if name not in names:
            raise InputError(
                f"The network has no module of class {name}, which declare asks for; expected {closest(name, sorted(names))}."
            )
    chosen = [one for one in classes if not declare.keys().isdisjoint(_names(one))]
    inherited = [one for one in chosen if "forward" not in vars(one)]
    forwards: dict[Any, Any] = {one: one.forward for one in chosen}
    for one, forward in forwards.items():
        one.forward = _as_one_call(forward, next(declare[name] for name in _names(one) if name in declare))
    try:
        yield
    finally:
        for one, forward in forwards.items():
            if one in inherited:
                del one.forward
            else:
                one.forward = forward


def _names(one: type[nn.Module]) -> list[str]:
    """The class's name and those of the classes that it is made from, but for ``Module``."""
    return [base.__name__ for base in one.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]


def _as_one_call(original: Any, kind: Declared) -> Any:
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        tensors = own_tensors(self)
        given = [leaf for leaf in tree_leaves((args, kwargs, tensors)) if isinstance(leaf, Tensor)]
        if not has_torch_function(given):
            return original(self, *args, **kwargs)
        return handle_torch_function(call_layer, given, self, original, kind, tensors, *args, **kwargs)

    return forward


def call_layer(
    module: nn.Module, forward: Any, kind: Declared, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Any:
    """What a layer computes with other tensors in place of its own.

    Args:
        module: the layer.
        forward: what it does.
        kind: what it is declared to be; of no use here, and known to who listens.
        tensors: its parameters and buffers, by name.
        args: of its forward pass.
        kwargs: likewise.
    """
    with _reparametrize_module(module, dict(tensors)):
        return forward(module, *args, **kwargs)


def declared_kind(args: Any) -> Declared:
    """The kind, of the arguments of :func:`call_layer`."""
    kind: Declared = args[2]
    return kind


def weight_of(layer: str, kind: Declared, tensors: Mapping[str, Tensor], given: Any, out: Any) -> tuple[str, int]:
    """The weight of a declared layer, and the dimension of its input and output that has the channels.

    Args:
        layer: its name, for the error.
        kind: what it is declared to be.
        tensors: its own tensors by name.
        given: what its forward pass was given.
        out: what came of that.

    Raises:
        InputError: it computes nothing of this kind.
    """
    ndims = (2,) if kind == "linear" else (3, 4, 5)
    large = [name for name, tensor in tensors.items() if tensor.ndim in ndims and tensor.numel() > max(tensor.shape)]
    weights = ["weight"] if "weight" in large else large
    plain = len(given) == 1 and isinstance(given[0], Tensor) and isinstance(out, Tensor)
    if len(weights) != 1 or not plain:
        raise InputError(
            f"Got declare {kind} for the class of {layer}; expected a layer that takes one tensor, gives one, and has one weight "
            f"of {' or '.join(map(str, ndims))} dimensions."
        )
    shape, x = tensors[weights[0]].shape, given[0]
    at = x.ndim - (1 if kind == "linear" else len(shape) - 1)
    if at < 0 or out.ndim != x.ndim or (out.shape[at], x.shape[at]) != tuple(shape[:2]):
        raise InputError(
            f"Got declare {kind} for the class of {layer}, whose weight has shape {tuple(shape)} and which turns "
            f"{tuple(x.shape)} into {tuple(out.shape)}; expected a weight of (channels made, channels read, …)."
        )
    return weights[0], at
