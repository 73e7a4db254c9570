"""The calls of torch's functions that a forward pass makes, in order, each with the labels of what goes in and comes out.

This level, above autograd, is the one at which a pruned network makes the same calls as the full one: below, torch picks kernels by
width, and copies come and go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from prunekit._types import Args, Function, Kwargs
from prunekit.graph.declared import call_layer
from prunekit.graph.following import Following
from prunekit.graph.labels import Labels

__all__ = ["Call", "Recorder", "call_name", "is_plain", "leaves_of", "opened", "tensors_among", "versions"]

_NESTED = (tuple, list, dict)
_TENSOR_PROPERTIES = ("data", "T", "mT", "H", "mH", "real", "imag", "grad")


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a torch function.

    Args:
        name: of the function.
        module: name of the module that was running.
        before: labels of the tensors among the arguments, before the call.
        after: labels of the tensors that came back.
        written: labels of the arguments after the call, by place, for those that it wrote into.
    """

    name: str
    module: str
    before: tuple[Labels, ...]
    after: tuple[Labels, ...]
    written: Mapping[int, Labels]


class Recorder(TorchFunctionMode):
    """Notes every call while a :class:`Following` follows the operators below.

    Args:
        flow: knows the labels and the running module.
    """

    def __init__(self, flow: Following) -> None:
        super().__init__()
        self.flow = flow
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if is_plain(func, args, kwargs):
            return func(*args, **kwargs)
        given = tensors_among((args, kwargs))
        before, counts = tuple(self.flow.of(tensor) for tensor in given), versions(given)
        out = self.flow.declared(func, args, kwargs) if func is call_layer else func(*args, **kwargs)
        written = {
            i: self.flow.of(tensor)
            for i, (tensor, count) in enumerate(zip(given, counts, strict=True))
            if versions([tensor]) != [count]
        }
        after = tuple(self.flow.of(tensor) for tensor in tensors_among(out))
        self.calls.append(Call(call_name(func), self.flow.module, before, after, written))
        return out


def call_name(func: Function) -> str:
    """Name of a function, as a message gives it."""
    name = getattr(func, "__name__", str(func))
    return str(getattr(getattr(func, "__self__", None), "__name__", name)) if name in ("__get__", "__set__") else name


def is_plain(func: Function, args: Args, kwargs: Kwargs) -> bool:
    """Whether a call is none of the network's own steps.

    It only reads a property that is no tensor (a shape, a dtype, a device), or sets a mode of its thread, or is a step of a
    function that torch maps over its arguments (``vmap``, as masks are made with), or an operator that torch calls by itself.
    """
    if isinstance(func, OpOverload):
        return True
    name = getattr(func, "__name__", "")
    given = [*args, *(kwargs or {}).values()]
    given += [part for value in given if isinstance(value, tuple | list) for part in value]  # indices of a mask
    if any(isinstance(value, Tensor) and is_functorch_wrapped_tensor(value) for value in given):
        return True
    return name == "_set_grad_enabled" or (name == "__get__" and call_name(func) not in _TENSOR_PROPERTIES)


def tensors_among(values: Any) -> list[Tensor]:
    """Tensors in nested arguments or results, in order."""
    if isinstance(values, Tensor):
        return [values]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def leaves_of(result: Any) -> list[Any]:
    """What a call gave, leaf by leaf."""
    return [result] if isinstance(result, Tensor) else tree_leaves(result)


def opened(args: Args, kwargs: Kwargs) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves of a call's arguments, and what makes arguments of leaves again; quick where nothing is nested."""
    leaves = [*args, *kwargs.values()]
    if any(isinstance(leaf, _NESTED) for leaf in leaves):
        nested, spec = tree_flatten((args, kwargs))
        return nested, lambda changed: tree_unflatten(changed, spec)
    count = len(args)
    return leaves, lambda changed: (tuple(changed[:count]), dict(zip(kwargs, changed[count:], strict=True)))


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each tensor has been written into, 0 where nobody counts."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
