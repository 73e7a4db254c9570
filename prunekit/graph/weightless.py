"""Run a network for its shapes only: weights and activations on the meta device, while small numbers that tell positions stay.

Nothing is computed and nothing is stored, so a pass takes as long for a large network as for a narrow one. Tensors that do not
depend on weights or inputs keep their values: positions, indices and masks decide which channels are picked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prunekit._types import Args, Function, Kwargs
from prunekit.graph.copying import structure
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.hollow import hollow_result
from prunekit.graph.surgery import all_tensors, put

__all__ = ["LARGE", "hollow", "hollow_inputs", "is_hollow", "is_large", "skeleton", "weightless", "without_values"]

Result = TypeVar("Result")


@dataclass
class Threshold:
    """From where on a network is run without values where these do not matter.

    Args:
        parameters: number of parameters.
    """

    parameters: int


LARGE = Threshold(3_000_000)
"""Smaller networks are run as they are: that takes no longer."""
_META = torch.device("meta")
_CPU = torch.device("cpu")


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a network without values, on the meta device; buffers of whole numbers keep theirs."""
    own = chain(model.named_parameters(), model.named_buffers())
    clone = structure(model, (tensor for _, tensor in own))
    put(clone, {key: _hollow(tensor) for key, tensor in all_tensors(model).items()})
    return clone


def hollow_inputs(inputs: Inputs) -> Inputs:
    """Inputs without values; whole numbers keep theirs."""
    made: Inputs = tree_map(lambda value: _hollow(value) if isinstance(value, Tensor) else value, inputs)
    return made


def hollow(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of a network and its inputs, both without values, to be run within :func:`weightless`."""
    return skeleton(model), hollow_inputs(inputs)


def without_values(model: nn.Module, inputs: Inputs, run: Callable[[nn.Module, Inputs], Result]) -> Result | None:
    """Run something without values where a network is large or has none; None where it is small, or needs its values.

    Args:
        model: the network; a copy of it is run.
        inputs: of its forward pass.
        run: is given the copy and its inputs.
    """
    if not is_large(model):
        return None
    try:
        bare = hollow(model, inputs)
        with weightless(), torch.random.fork_rng(devices=[]):
            return run(*bare)
    except Exception:  # it says why when it is run with values
        return None


def is_large(model: nn.Module) -> bool:
    """Whether a network has many parameters, or is on the meta device: better run without values where these do not matter."""
    own = list(model.parameters())
    return any(one.is_meta for one in own) or sum(one.numel() for one in own) > LARGE.parameters


def is_hollow(inputs: Inputs) -> bool:
    """Whether any of the inputs has no values."""
    return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(inputs))


@contextmanager
def weightless() -> Iterator[None]:
    """Within the block, tensors with values and tensors without may meet, and what comes of it has none."""
    with _Meeting(), _Fused():
        yield


def _hollow(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.empty_like(tensor, device=_META)
    return tensor if tensor.is_meta else tensor.to(_CPU)


class _Meeting(TorchDispatchMode):
    """Lets tensors of the meta device meet others."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        device = kwargs.get("device")
        if not any(tensor.is_meta for tensor in given):
            if device is not None:  # made beside weights, or moved to them
                kwargs = {**kwargs, "device": _CPU}
            return func(*args, **kwargs)
        if device is not None:
            kwargs = {**kwargs, "device": _META}
        if all(tensor.is_meta for tensor in given):
            known = hollow_result(func, args, kwargs)
            return func(*args, **kwargs) if known is NotImplemented else known
        bare_args, bare_kwargs = tree_map(_bare, (args, kwargs))
        out = func(*bare_args, **bare_kwargs)
        if out is not None and given and out is bare_args[0]:  # it writes into a tensor that has values
            return args[0]
        return out


def _tensors(args: Args, kwargs: Kwargs) -> list[Tensor]:
    """Tensors among an operator's arguments, which hold no deeper lists than one."""
    found: list[Tensor] = []
    for value in chain(args, kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _bare(value: Any) -> Any:
    return value.to(_META) if isinstance(value, Tensor) and not value.is_meta else value


class _Fused(TorchFunctionMode):
    """Fused attention is what the processor would run; on the meta device torch writes it out instead."""

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if _is_fused(given):
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    *(given[name] for name in names[:3]),
                    0.0,
                    given.get("is_causal", False),
                    attn_mask=given.get("attn_mask"),
                    scale=given.get("scale"),
                )[0]
        return func(*args, **kwargs)


def _is_fused(given: dict[str, Any]) -> bool:
    """Whether torch has a fused kernel for the processor, see ``use_flash_attention`` of its source."""
    query, key, value = (given[name] for name in ("query", "key", "value"))
    mask = given.get("attn_mask")
    return bool(
        any(tensor.is_meta for tensor in (query, key, value))
        and query.ndim == key.ndim == value.ndim == 4
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and not given.get("dropout_p")
        and (mask is None or mask.ndim in (2, 4))
        and 0 not in (*query.shape, *key.shape)
    )
