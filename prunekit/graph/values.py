"""Weights for a trial: random ones, made on the spot for each call, so that no copy of the network is needed.

Outputs, gates and scales that start at zero would hide every fault; random numbers hide none.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from prunekit.graph.forward_pass import Inputs
from prunekit.graph.layers import Kind, layer_kind, own_tensors
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph
from prunekit.graph.surgery import all_tensors, sliced_shapes, slicer, tensors_of
from prunekit.graph.template import Template

__all__ = ["Pool", "Shapes", "Weights", "random_inputs"]

_LENGTH = 1_048_583  # a prime, so that rows of a matrix do not repeat each other


class Pool:
    """Weights by name: random, or the network's own.

    Args:
        model: the network.
        is_random: False for its own, for networks that only work with these.
    """

    def __init__(self, model: nn.Module, is_random: bool = True) -> None:
        self.is_random = is_random
        generator = Generator().manual_seed(0)
        self._normal = torch.randn(_LENGTH, generator=generator)
        self._uniform = torch.rand(_LENGTH, generator=generator) + 0.5
        self._fans: dict[str, float | None] = {}
        for layer, module in model.named_modules():
            kind = layer_kind(module)
            for name, tensor in own_tensors(module).items():
                if tensor.is_floating_point() and (name in module._parameters or kind):  # a raw buffer may be anything
                    self._fans[f"{layer}.{name}" if layer else name] = _fan(kind, name, tensor)

    def __call__(self, key: str, tensor: Tensor) -> Tensor:
        """The values used for a tensor; multiplying by them keeps the scale."""
        if not self.is_random or key not in self._fans:
            return tensor
        fan = self._fans[key]
        source = self._uniform if fan is None else self._normal
        start = zlib.crc32(key.encode()) % _LENGTH
        parts, missing = [], tensor.numel()
        while missing > 0:
            parts.append(source[start : start + missing])
            missing, start = missing - len(parts[-1]), 0
        flat = torch.cat(parts) if parts else source[:0]
        values = flat if fan is None else flat / fan
        device = "cpu" if tensor.is_meta else tensor.device
        return values.reshape(tensor.shape).to(device=device, dtype=tensor.dtype)


class Shapes:
    """Stands in a pool's place where only shapes matter: each tensor is the network's own."""

    is_random = False


def _fan(kind: Kind | None, name: str, tensor: Tensor) -> float | None:
    """What to divide normal numbers by; None for numbers around 1."""
    vector = kind is None and tensor.numel() == max(tensor.shape, default=1)
    if name == "running_var" or vector or (kind == "norm" and name == "weight"):
        return None
    if tensor.ndim < 2 or kind == "embedding":
        return 2.0
    return math.sqrt(tensor[0].numel() if kind or tensor.ndim > 2 else tensor.shape[-1])


def random_inputs(inputs: Inputs) -> Inputs:
    """Floats become uniform in 0.5 … 1.5, so that a logarithm or a root of them exists; all else stays."""
    generator = Generator().manual_seed(1)

    def like(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        device = "cpu" if value.is_meta else value.device
        if not value.is_floating_point():
            return torch.ones(value.shape, dtype=value.dtype) if value.is_meta else value
        return (torch.rand(value.shape, generator=generator) + 0.5).to(device=device, dtype=value.dtype)

    made: Inputs = tree_map(like, inputs)
    return made


class Weights:
    """The tensors of the full network and of one that is pruned by a plan.

    Args:
        full: the network.
        graph: its channel groups.
        pool: values by name.
        template: makes pruned networks.
    """

    def __init__(self, full: nn.Module, graph: ChannelGraph, pool: Pool | Shapes, template: Template) -> None:
        self._full, self._graph, self._pool, self._template = full, graph, pool, template
        self._tensors = all_tensors(full)
        self._names = _names(full)

    def prune(self, plan: PruningPlan) -> nn.Module:
        """The pruned network without values."""
        self._cut = slicer(self._full, self._graph, plan)
        shapes = sliced_shapes(self._full, self._graph, plan)
        self._given = {key: _hollow(shapes[key], tensor) for key, tensor in self._tensors.items()}
        pruned = self._template(plan, self._given)
        self._own_names = _names(pruned)
        self._gone: dict[str, list[tuple[int, Tensor]]] = {}
        for name, kept in plan.kept.items():
            for member in self._graph[name].members:
                gone = torch.from_numpy(member.positions[~np.isin(member.roots, kept)])
                for key, dim in tensors_of(self._full, member.layer, member.axis):
                    self._gone.setdefault(key, []).append((dim, gone))
        return pruned

    def key(self, tensor: Tensor) -> str | None:
        """Name of a parameter or buffer of the full network, None for another tensor."""
        return self._names.get(id(tensor))

    def full(self, key: str) -> Tensor:
        """Of the full network, with zeros where channels are removed."""
        if isinstance(self._pool, Shapes):
            return self._tensors[key].detach()  # a function that gives back what it is given gives no buffer
        value = self._pool(key, self._tensors[key])
        for dim, gone in self._gone.get(key, ()):
            value = value.index_fill(dim, gone.to(value.device), 0)
        return value.clone() if value is self._tensors[key] else value

    def pruned_key(self, tensor: Tensor) -> str | None:
        """Name of a parameter or buffer of the pruned network, None for another tensor."""
        return self._own_names.get(id(tensor))

    def pruned(self, key: str) -> Tensor:
        """Of the pruned network."""
        if isinstance(self._pool, Shapes):
            given = self._given[key]
            return given.detach() if given.is_meta else self._cut(key, self._tensors[key]).detach()
        value = self._cut(key, self._pool(key, self._tensors[key]))
        return value.clone() if value is self._tensors[key] else value


def _names(model: nn.Module) -> Mapping[int, str]:
    return {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}


def _hollow(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of a shape that takes no memory; should anything read it, it reads NaN."""
    if like.is_meta:
        return torch.empty(shape, dtype=like.dtype, device="meta")
    value = float("nan") if like.is_floating_point() or like.is_complex() else 0
    return torch.full((), value, dtype=like.dtype, device=like.device).expand(shape)
