"""The rule of layers whose class the user has declared, see :mod:`prunekit.graph.declared`."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunekit.errors import GraphError
from prunekit.graph.declared import declared_kind, weight_of
from prunekit.graph.flow import Flow
from prunekit.graph.labels import Labels, Product
from prunekit.graph.operators.common import join

__all__ = ["follow_declared"]


def follow_declared(flow: Flow, args: Any, kwargs: Mapping[str, Any], out: Any, macs: int) -> None:
    """Labels of what a declared layer gives.

    Args:
        flow: knows the labels.
        args: of :func:`prunekit.graph.declared.call_layer`.
        kwargs: likewise.
        out: what it gave.
        macs: multiply-accumulates that it took, as a counter sees them.

    Raises:
        InputError: the layer computes nothing of its kind.
        GraphError: nobody knows how its cost depends on its width.
    """
    tensors, kind = args[3], declared_kind(args)
    given = (*args[4:], *kwargs.values())
    name, at = weight_of(flow.module, kind, tensors, given, out)
    x, weight = given[0], tensors[name]
    reads, makes = weight.shape[1], weight.shape[0]
    if macs % (reads * makes):
        raise GraphError(
            f"{flow.module} was declared as {kind} and takes {macs:,} MACs, no multiple of its {reads} × {makes} channels; remove "
            "its class from declare, and it stays whole."
        )
    labels = _flat(flow, flow.of(x), at)
    own = flow.of(weight)
    for dim in range(2, weight.ndim):
        flow.fix(own.at(dim), "they are a kernel's")
    inside, outside = (Labels(tuple(g.moved(lambda _: at) for g in own.at(dim) if len(g.dims) == 1)) for dim in (1, 0))
    for other, tensor in tensors.items():
        if other != name:
            _lay_vector(flow, tensor, (inside, reads), (outside, makes), at)
    join(flow, [Labels(tuple(labels.at(at)), labels.wild), inside], (), f"a layer declared as {kind}")
    flow.found.made += [grid.ids.ravel() for grid in outside.grids[:1]]
    if macs:
        factors = tuple(side.grids[0].ids for side in (inside, outside) if side.grids)
        free = math.prod(size for side, size in ((inside, reads), (outside, makes)) if not side.grids)
        flow.found.products.append(
            Product(flow.module, "convolution" if kind == "conv" else "linear", macs // (reads * makes) * free, factors)
        )
    others = tuple(grid for grid in labels.grids if at not in grid.dims)
    flow.put(out, Labels((*others, *outside.grids[:1]), labels.wild - {at}))


def _flat(flow: Flow, labels: Labels, at: int) -> Labels:
    """Labels of a tensor of which a layer reads one dimension: what else lies along it is one thing with it."""
    grids = []
    for grid in labels.grids:
        others = [dim for dim in grid.dims if dim != at]
        kept = flow.collapse(grid, others, "a declared layer reads them") if at in grid.dims and others else grid
        grids += [kept] if kept is not None else []
    return Labels(tuple(grids), labels.wild)


def _lay_vector(flow: Flow, tensor: Tensor, inner: tuple[Labels, int], outer: tuple[Labels, int], at: int) -> None:
    """One more tensor of a layer: a vector goes with the channels made, or else with those read, and all else is fixed."""
    (inside, reads), (outside, makes) = inner, outer
    labels = flow.of(tensor)
    dim = next((d for d, size in enumerate(tensor.shape) if size == tensor.numel() > 1), None)
    if dim is not None and tensor.numel() in (makes, reads):
        vector = Labels(tuple(grid.moved(lambda _: at) for grid in labels.at(dim)))
        join(flow, [outside if tensor.numel() == makes else inside, vector], (), "a declared layer")
    else:
        flow.fix(labels.grids, "they are a tensor of a declared layer that is neither its weight nor a vector")
