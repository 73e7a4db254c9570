"""Copies of networks, also of those that hold tensors which torch refuses to copy."""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["copied", "structure"]

_CONTAINERS = (dict, OrderedDict, list, set)
Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """A copy of a network that shares nothing with it.

    Results that the network keeps, such as the weight that torch's old spectral norm computes, are copied without their history:
    ``copy.deepcopy`` refuses them.
    """
    return copy.deepcopy(model, {id(kept): kept.detach().clone() for kept in _results(model)})


def structure(model: Network, shared: Iterable[Tensor]) -> Network:
    """A copy of a network in which some tensors are the network's own; they are meant to be replaced."""
    memo: dict[int, Any] = {id(kept): kept.detach() for kept in _results(model)}
    memo |= {id(tensor): tensor for tensor in shared}
    for value in chain.from_iterable(vars(module).values() for module in model.modules()):
        if type(value) in _CONTAINERS and not value:  # a dozen a module, for hooks; to copy each takes the time
            memo[id(value)] = type(value)()
    return copy.deepcopy(model, memo)


def _results(model: nn.Module) -> list[Tensor]:
    """Tensors that modules hold and autograd computed, also in lists and dicts."""
    held = chain.from_iterable(vars(module).values() for module in model.modules())
    filled = (value for value in held if isinstance(value, Tensor) or (type(value) in _CONTAINERS and value))
    leaves = chain.from_iterable(tree_leaves(value) for value in filled)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf]
