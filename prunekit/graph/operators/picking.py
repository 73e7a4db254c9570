"""Operators that take some positions of a tensor: splits, slices, picks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.graph.flow import Flow
from prunekit.graph.labels import Grid, Labels, Rectangle
from prunekit.graph.operators.common import Operation, Rule, join, tensors_in

__all__ = ["RULES"]

_FEW = (2, 3, 4)  # a slice of one in so many equal parts is taken for a split


def _taken(labels: Labels, dim: int, which: Any) -> Labels:
    """Labels of some positions along one dimension."""
    grids = []
    for grid in labels.grids:
        ids = grid.ids.take(which, axis=grid.dims.index(dim)) if dim in grid.dims else grid.ids
        grids.append(Grid(grid.dims, ids))
    return Labels(tuple(grids), labels.wild)


def _parts(flow: Flow, labels: Labels, dim: int, sizes: Sequence[int]) -> None:
    """A split into a fixed number of equal parts binds them to stay equal."""
    if len(sizes) > 1 and len(set(sizes)) == 1:
        for grid in labels.at(dim):
            ids = np.moveaxis(grid.ids, grid.dims.index(dim), 0)
            parts = ids.reshape(len(sizes), sizes[0], *ids.shape[1:]).reshape(len(sizes), -1)
            flow.found.rectangles.append(Rectangle(flow.module, parts, True, inner=dim != grid.dims[0]))


def _split(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dim = op.argument("dim", 0) % x.ndim
    labels, start = flow.of(x), 0
    _parts(flow, labels, dim, [part.shape[dim] for part in op.out])
    for part in op.out:
        flow.put(part, _taken(labels, dim, range(start, start + part.shape[dim])))
        start += part.shape[dim]


def _slice(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dim = op.argument("dim", 0) % x.ndim
    start, end = op.argument("start"), op.argument("end")
    step = op.argument("step", 1)
    which = np.arange(x.shape[dim])[slice(start, end, step)]
    parts = x.shape[dim] / max(len(which), 1)
    if step == 1 and len(which) > 1 and parts in _FEW and which[0] % len(which) == 0:
        _parts(flow, flow.of(x), dim, [len(which)] * int(parts))
    flow.put(op.out, _taken(flow.of(x), dim, which))


def _index_select(flow: Flow, op: Operation) -> None:
    """Positions by number, repeated or reordered; on a device without values nobody knows which."""
    x, dim, index = op.args[0], op.args[1] % max(op.args[0].ndim, 1), op.args[2]
    labels = flow.of(x)
    if index.is_meta:
        flow.fix(labels.at(dim), "they are picked by numbers that nobody knows")
        labels = Labels(tuple(grid for grid in labels.grids if dim not in grid.dims), labels.wild)
    else:
        flow.fix((grid for grid in labels.at(dim) if grid.dims == (dim,)), "single ones of them are picked out")
        labels = _taken(labels, dim, index.reshape(-1).cpu().numpy())
    repeated = {dim} if x.ndim and x.shape[dim] == 1 else set()  # one position, as often as it is asked for
    flow.put(op.out, Labels(labels.grids, labels.wild | repeated))


def _indexed(x: Tensor, indices: Sequence[Any]) -> tuple[dict[int, int], list[int], int]:
    """How indexing by tensors moves the dimensions of a tensor.

    Returns:
        Where each dimension goes that no index is for, the dimensions that indices are for, and how many take the place of these.
    """
    taken, now = list[int](), 0
    shapes = []
    for index in indices:
        width = index.ndim if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) else 1
        if isinstance(index, Tensor):
            taken += range(now, now + width)
            shapes.append(index.shape if index.dtype not in (torch.bool, torch.uint8) else (1,))
        now += width
    count = len(torch.broadcast_shapes(*shapes)) if shapes else 0
    together = taken == list(range(taken[0], taken[0] + len(taken))) if taken else True
    first = taken[0] if taken and together else 0
    kept = [dim for dim in range(x.ndim) if dim not in taken]
    return {dim: place + (count if place >= first else 0) for place, dim in enumerate(kept)}, taken, count


def _index(flow: Flow, op: Operation) -> None:
    """Rows that are picked by tensors of numbers, or by masks: the channels along the other dimensions do not change."""
    labels = flow.of(op.args[0])
    where, taken, _ = _indexed(op.args[0], op.args[1])
    flow.fix(
        (grid for grid in labels.grids if set(grid.dims) & set(taken)), "single ones of them are picked out by an index"
    )
    grids = tuple(grid.moved(where.__getitem__) for grid in labels.grids if not set(grid.dims) & set(taken))
    wild = {where[dim] for dim in labels.wild if dim in where}
    flow.put(op.out, Labels(grids, frozenset(wild)))


def _index_put(flow: Flow, op: Operation) -> None:
    """Rows that are written where tensors of numbers, or masks, say: along the other dimensions they lie on what is there."""
    x, values = op.args[0], op.args[2]
    diagonal = _diagonal(flow, x, op.args[1], values)
    if diagonal is not None:
        flow.put(op.out, diagonal)
        return
    where, taken, count = _indexed(x, op.args[1])
    ndim = len(where) + count
    back = {place: dim for dim, place in where.items()}
    shape = [x.shape[back[d]] if d in back else 1 for d in range(ndim)]
    lead = ndim - values.ndim
    own = flow.of(values).moved(lambda d: d + lead)
    grids = [grid.without([d for d in grid.dims if d not in back]) for grid in own.grids]
    flow.fix((grid for grid in own.grids if set(grid.dims) - set(back)), "they are written into rows of another tensor")
    moved = [grid.moved(back.__getitem__) for grid in grids if grid is not None]
    narrow = {back[d] for d in back if d < lead or values.shape[d - lead] == 1 < shape[d]}
    wild = {back[d] for d in own.wild if d in back} | narrow | set(taken)
    there = flow.of(x)
    flow.fix((grid for grid in there.grids if set(grid.dims) & set(taken)), "rows of them are overwritten")
    there = Labels(tuple(g for g in there.grids if not set(g.dims) & set(taken)), there.wild | set(taken))
    joined = join(flow, [there, Labels(tuple(moved), frozenset(wild))], x.shape, "what is written into rows")
    flow.put(op.out, Labels(joined.grids, joined.wild - set(taken)))


def _diagonal(flow: Flow, x: Tensor, indices: Sequence[Any], values: Tensor) -> Labels | None:
    """Labels of a tensor of zeros, on the diagonal of which something is written: both of its axes have the same channels.

    So a fixed filter becomes the kernel of a convolution that gives every channel to itself. None for any other tensor.
    """
    given = [(dim, flow.of(index).counted) for dim, index in enumerate(indices) if index is not None]
    if flow.of(x).grids or len(given) != 2:
        return None
    (a, ids), (b, others) = given
    if ids is None or ids is not others or not len(ids) == x.shape[a] == x.shape[b]:
        return None
    where, taken, count = _indexed(x, indices)
    lead = len(where) + count - values.ndim
    back = {place - lead: dim for dim, place in where.items()}
    own = flow.of(values).grids
    if not set(taken) <= flow.of(x).wild or any(len(grid.dims) > 1 for grid in own if set(grid.dims) - set(back)):
        return None
    for grid in own:  # numbers of its own for each channel
        if not set(grid.dims) <= set(back):
            flow.link(ids, grid.ids, "they are written on a diagonal")
    kept = [grid.moved(back.__getitem__) for grid in own if set(grid.dims) <= set(back)]
    return Labels((Grid((a,), ids), Grid((b,), ids), *kept))


def _scatter(flow: Flow, op: Operation) -> None:
    """Rows that are written or added where numbers say, along one dimension: along the others they lie on what is there."""
    x, dim = op.args[0], op.argument("dim", 0) % max(op.args[0].ndim, 1)
    source = op.argument("src", op.argument("source"))
    parts = [flow.of(tensor) for tensor in (x, source) if isinstance(tensor, Tensor)]
    others = [d for d in range(x.ndim) if d != dim]
    is_whole = all(
        tensor.shape[d] == x.shape[d]
        for tensor in tensors_in(op.args[1:], dict(op.kwargs))
        for d in others
        if tensor.ndim == x.ndim
    )
    for part in parts:
        flow.fix(
            (grid for grid in part.grids if dim in grid.dims or not is_whole),
            "they are written into rows of another tensor",
        )
    parts = [
        Labels(tuple(g for g in part.grids if dim not in g.dims and is_whole), part.wild | {dim}) for part in parts
    ]
    joined = join(flow, parts, x.shape, "what is written into rows")
    flow.put(op.out, Labels(joined.grids, joined.wild - {dim}))


def _unbind(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dim = op.argument("dim", 0) % x.ndim
    for place, part in enumerate(op.out):
        _pick(flow, flow.of(x), dim, place, part)


def _select(flow: Flow, op: Operation) -> None:
    dim, place = op.args[1] % op.args[0].ndim, op.args[2] % op.args[0].shape[op.args[1]]
    _pick(flow, flow.of(op.args[0]), dim, place, op.out)


def _pick(flow: Flow, labels: Labels, dim: int, place: int, part: Tensor) -> None:
    """One position of a dimension, which is gone afterwards; nothing can be removed along it."""
    grids = []
    for grid in labels.grids:
        if grid.dims == (dim,):
            flow.fix_if_used(part, [grid], "single ones of them are picked out")
        else:
            axis = grid.dims.index(dim) if dim in grid.dims else None
            ids = grid.ids if axis is None else np.asarray(grid.ids.take(place, axis=axis))
            grids.append(Grid(tuple(d for d in grid.dims if d != dim), ids))
            if axis is not None:
                whole = np.moveaxis(grid.ids, axis, 0)
                flow.found.rectangles.append(
                    Rectangle(flow.module, whole.reshape(len(whole), -1), True, inner=axis > 0)
                )
    flow.put(part, Labels(tuple(grids), labels.wild - {dim}).moved(lambda d: d - (d > dim)))


def _glu(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dim = op.argument("dim", -1) % x.ndim
    labels, half = flow.of(x), x.shape[dim] // 2
    _parts(flow, labels, dim, [half, half])
    halves = [_taken(labels, dim, range(start, start + half)) for start in (0, half)]
    flow.put(op.out, join(flow, halves, op.out.shape, "glu"))


def _flip(flow: Flow, op: Operation) -> None:
    labels = flow.of(op.args[0])
    for dim in op.args[1]:
        labels = _taken(labels, dim % op.out.ndim, np.arange(op.out.shape[dim])[::-1])
    flow.put(op.out, labels)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), _split),
    "slice": _slice,
    "unbind": _unbind,
    "index_select": _index_select,
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), _index_put),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy"), _scatter),
    "select": _select,
    "glu": _glu,
    "flip": _flip,
}
