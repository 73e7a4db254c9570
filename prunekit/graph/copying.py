"""Copies of networks, also of those that hold tensors which torch refuses to copy."""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import GraphError

__all__ = ["copied", "structure"]

_CONTAINERS = (dict, OrderedDict, list, set)
Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """A copy of a network that shares nothing with it.

    Results that the network keeps, such as the weight that torch's old spectral norm computes, are copied without their history:
    ``copy.deepcopy`` refuses them.
    """
    return _deep(model, {id(kept): kept.detach().clone() for kept in _results(model)})


def structure(model: Network, shared: Iterable[Tensor]) -> Network:
    """A copy of a network in which some tensors are the network's own; they are meant to be replaced."""
    memo: dict[int, Any] = {id(kept): kept.detach() for kept in _results(model)}
    memo |= {id(tensor): tensor for tensor in shared}
    for value in chain.from_iterable(vars(module).values() for module in model.modules()):
        if type(value) in _CONTAINERS and not value:  # a dozen a module, for hooks; to copy each takes the time
            memo[id(value)] = type(value)()
    return _deep(model, memo)


def _deep(model: Network, memo: dict[int, Any]) -> Network:
    """A deep copy.

    Raises:
        GraphError: something in the network cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # whatever a class raises that was not made to be copied
        raise GraphError(
            f"{type(model).__name__} cannot be copied: {_culprit(model, memo)} ({type(error).__name__}: {error}); expected what "
            "copy.deepcopy can copy: remove it before the call, or give the module inside that computes."
        ) from error


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """The innermost module that cannot be copied, with the attribute if it is one."""
    for name, module in reversed(list(model.named_modules())):
        for key, value in vars(module).items():
            if key not in ("_parameters", "_modules") and not _can_be_copied(value, memo):
                place = f"{name}.{key}" if name else key
                return f"its attribute {place}, of type {type(value).__name__}, refuses it"
        if not _can_be_copied(module, memo):
            return f"the class {type(module).__name__}{f' of its module {name}' if name else ''} refuses it"
    return "something in it refuses it"


def _can_be_copied(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # whatever its class raises
        return False
    return True


def _results(model: nn.Module) -> list[Tensor]:
    """Tensors that modules hold and autograd computed, also in lists and dicts."""
    held = chain.from_iterable(vars(module).values() for module in model.modules())
    filled = (value for value in held if isinstance(value, Tensor) or (type(value) in _CONTAINERS and value))
    leaves = chain.from_iterable(tree_leaves(value) for value in filled)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf]
