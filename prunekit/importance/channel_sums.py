"""From tensors to channels: which tensors of a channel group count, and sums over each channel's part of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGroup, Member
from prunekit.graph.layers import layer_kind
from prunekit.graph.surgery import tensors_of

__all__ = ["Part", "is_layer", "mean_of_layers", "parts_of", "per_root", "points_of", "vectors", "weights_of"]

_PRODUCTS = ("conv", "depthwise", "transposed", "linear")


@dataclass(frozen=True, eq=False)
class Part:
    """A dimension of a parameter that belongs to a channel group.

    Args:
        member: the channel group's member that the dimension belongs to.
        key: state key of the parameter.
        dim: the dimension.
        parameter: the tensor.
    """

    member: Member
    key: str
    dim: int
    parameter: nn.Parameter


def parts_of(model: nn.Module, group: ChannelGroup, parameters: Mapping[str, nn.Parameter]) -> Iterator[Part]:
    """Every parameter dimension of a channel group; ``parameters`` are the model's, by name."""
    for member in group.members:
        for key, dim in tensors_of(model, member.layer, member.axis):
            if key in parameters:
                yield Part(member, key, dim, parameters[key])


def is_layer(member: Member) -> bool:
    """Whether the member is an axis of a known layer, not a dimension of a free tensor."""
    return member.axis in ("in", "out")


def weights_of(model: nn.Module, group: ChannelGroup, parameters: Mapping[str, nn.Parameter]) -> list[Part]:
    """The parts that hold a vector per channel: layers' weights and free tensors of two dimensions or more.

    Biases, norms and gains hold one number per channel; they count only if a channel group has nothing else.
    """
    parts = list(parts_of(model, group, parameters))
    return [part for part in parts if _is_matrix(part)] or parts


def _is_matrix(part: Part) -> bool:
    if part.key.endswith("weight") and part.parameter.ndim > 1:
        return True
    return not is_layer(part.member) and sum(size > 1 for size in part.parameter.shape) > 1


def points_of(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The inputs of known layers that read the channels; if there are none, the outputs of known layers that make them."""
    known = [
        member
        for member in group.members
        if is_layer(member) and layer_kind(model.get_submodule(member.layer)) in _PRODUCTS
    ]
    return [member for member in known if member.axis == "in"] or known


def per_root(values: Tensor, dim: int, member: Member, size: int) -> FloatArray:
    """Sum over all dimensions but ``dim``, then add the positions that each root channel owns; shape (size,)."""
    positions, roots = member.positions, member.roots
    along = values.movedim(dim, 0).flatten(1).sum(1) if values.ndim > 1 else values
    return np.bincount(roots, weights=along.cpu().numpy()[positions], minlength=size).astype(np.float64)


def mean_of_layers(layers: list[FloatArray], size: int) -> FloatArray:
    """Mean of scores of shape (size,), each scaled to mean 1 first; otherwise the layer with the largest scores would dominate."""
    total = np.zeros(size)
    for scores in layers:
        total += scores / max(scores.mean(), 1e-30)
    return total / max(len(layers), 1)


def vectors(part: Part, size: int) -> Tensor | None:
    """Each root channel's part, float64 of shape (size, numbers); None if channels own different numbers of positions."""
    order = np.argsort(part.member.roots, kind="stable")
    counts = np.bincount(part.member.roots, minlength=size)
    if counts.min() != counts.max():
        return None
    rows = part.parameter.detach().double().movedim(part.dim, 0).flatten(1)
    return rows[torch.from_numpy(part.member.positions[order]).to(rows.device)].reshape(size, -1)
