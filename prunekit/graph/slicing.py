"""What is left of a tensor when channels go, by its labels."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit._types import BoolArray, FloatArray, IntArray
from prunekit.graph.labels import Grid, Labels

__all__ = ["Cutter"]


class Cutter:
    """Cuts tensors of the full network to what a pruned one has in their place.

    Args:
        gone: for every id, whether it is removed, shape (ids,).
        scale: for every id, what surgery multiplies the positions by that stay, shape (ids,); see ``ChannelGroup.queries``.
    """

    def __init__(self, gone: BoolArray, scale: FloatArray) -> None:
        self._alive, self._scale = ~gone, scale
        self._scaled = bool((scale != 1).any())
        self._plans: dict[int, tuple[Labels, list[_Way]]] = {}

    def cuts(self, tensor: Tensor, labels: Labels, shape: Sequence[int] | None = None) -> Iterator[Tensor]:
        """What may be left of a tensor; several where heads have lost different channels and it is open which axis closed up.

        Args:
            tensor: of the full network.
            labels: its labels.
            shape: of the pruned network's tensor where there is one: one that is the same all along a dimension has any length.
        """
        if labels.counted is not None:
            yield tensor[: int(self._alive[labels.counted].sum())]
            return
        for way in self._ways(labels):
            yield _stretched(way(tensor), labels, shape)

    def shapes(self, tensor: Tensor, labels: Labels, shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Shapes of :meth:`cuts`."""
        if labels.counted is not None:
            yield (int(self._alive[labels.counted].sum()),)
            return
        for way in self._ways(labels):
            found = way.shape(tensor)
            if len(shape) == len(found):
                pairs = enumerate(zip(found, shape, strict=True))
                found = tuple(min(a, b) if dim in labels.wild else a for dim, (a, b) in pairs)
            yield found

    def scaled(self, tensor: Tensor, labels: Labels) -> Tensor | None:
        """The tensor with the factors of queries that narrow; None where it has none."""
        if not self._scaled or not tensor.is_floating_point():
            return None
        found = None
        for grid in labels.grids:
            factors = np.ones(1) if grid.hidden else self._scale[grid.ids]
            if (factors != 1).any():
                factor = _along(tensor, grid.dims, factors).to(tensor.dtype)
                found = (tensor if found is None else found) * factor
        return found

    def silence(self, tensor: Tensor, labels: Labels) -> None:
        """Write zeros where a tensor of the full network has what is removed, in place: 0/0 there is no fault."""
        for grid in labels.grids:
            if not grid.hidden and not self._alive[grid.ids].all():
                tensor.masked_fill_(_along(tensor, grid.dims, ~self._alive[grid.ids]), 0)

    def _ways(self, labels: Labels) -> "list[_Way]":
        known = self._plans.get(id(labels))
        if known is None:
            known = self._plans[id(labels)] = (labels, list(_ways(labels, self._alive)))
        return known[1]


class _Way:
    """One way to cut a tensor: what stays along single dimensions, and, for each row of a grid, along one of its dimensions."""

    def __init__(self, kept: dict[int, BoolArray], gathered: tuple[tuple[int, ...], int, IntArray] | None) -> None:
        self._kept = {dim: torch.from_numpy(np.flatnonzero(mask)) for dim, mask in kept.items() if not mask.all()}
        self._gathered = gathered

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of what is left of a tensor."""
        shape = list(tensor.shape)
        if self._gathered is not None:
            _, along, places = self._gathered
            shape[along] = places.shape[self._gathered[0].index(along)]
        for dim, stays in self._kept.items():
            shape[dim] = len(stays)
        return tuple(shape)

    def __call__(self, tensor: Tensor) -> Tensor:
        if self._gathered is not None:
            dims, along, places = self._gathered
            tensor = torch.take_along_dim(tensor, _along(tensor, dims, places), along)
        for dim, stays in self._kept.items():
            tensor = tensor.index_select(dim, stays.to(tensor.device))
        return tensor


def _along(tensor: Tensor, dims: Sequence[int], values: NDArray[Any]) -> Tensor:
    """Values along some dims of a tensor, in a shape that broadcasts with it, on its device."""
    shape = [1] * tensor.ndim
    for dim, size in zip(dims, values.shape, strict=True):
        shape[dim] = size
    return torch.from_numpy(values.reshape(shape)).to(tensor.device)


def _ways(labels: Labels, alive: BoolArray) -> Iterator[_Way]:
    kept: dict[int, BoolArray] = {}
    rest: list[tuple[tuple[int, ...], BoolArray]] = []
    for grid in labels.grids:
        dims, mask = _separated(grid, alive, kept)
        if dims:
            rest.append((dims, mask))
    if not rest:
        yield _Way(kept, None)
    elif len(rest) == 1:
        dims, mask = rest[0]
        for axis in reversed(range(len(dims))):
            counts = mask.sum(axis)
            if (counts == counts.flat[0]).all() and dims[axis] not in kept:
                places = np.argsort(~mask, axis=axis, kind="stable").take(range(int(counts.flat[0])), axis=axis)
                others = {dim: mask for dim, mask in kept.items() if dim not in dims}
                yield _Way(others, (dims, dims[axis], places))


def _separated(grid: Grid, alive: BoolArray, kept: dict[int, BoolArray]) -> tuple[tuple[int, ...], BoolArray]:
    """Note along which dims of a grid whole slices go; gives back the dims of which it depends on the others what goes."""
    mask: BoolArray = alive[grid.ids]
    if grid.hidden:
        mask = np.asarray(mask.any(-1))
    dims = list(grid.dims)
    for dim in grid.dims:
        axis = dims.index(dim)
        line = np.asarray(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        others = np.asarray(mask.any(axis))
        if np.array_equal(
            mask, np.expand_dims(others, axis) & line.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        ):
            kept[dim] = kept[dim] & line if dim in kept else line
            mask = others
            dims.remove(dim)
    return tuple(dims), mask


def _stretched(tensor: Tensor, labels: Labels, shape: Sequence[int] | None) -> Tensor:
    """A tensor that is the same everywhere along a dimension, as long as the pruned network's is."""
    if shape is not None and len(shape) == tensor.ndim:
        for dim, size in enumerate(shape):
            if dim in labels.wild and size < tensor.shape[dim]:
                tensor = tensor.narrow(dim, 0, size)
    return tensor
