"""Operators that layers are made of: products, convolutions, norms, attention, changes of resolution."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prunekit.graph.flow import Flow
from prunekit.graph.labels import Grid, Labels
from prunekit.graph.operators.common import Operation, Rule, aligned, join, tensors_in
from prunekit.graph.operators.elementwise import unknown

__all__ = ["BY_PART", "RULES"]

_CONTRACTED = 100  # virtual dimension of a matrix product's inner axis


def _contract(
    flow: Flow,
    op: Operation,
    left: tuple[Labels, Sequence[int], Sequence[int]],
    right: tuple[Labels, Sequence[int], Sequence[int]],
    summed: Sequence[int],
) -> Labels:
    """A product summed over the virtual dims ``summed``; other dims that both sides have lie on each other.

    Each side: its labels, its shape and the virtual dim of each of its dims. Virtual dims below 100 are the result's.
    """
    (a, a_shape, a_dims), (b, b_shape, b_dims) = left, right
    a, b = a.moved(lambda dim: a_dims[dim]), b.moved(lambda dim: b_dims[dim])
    sizes = dict(zip(a_dims, a_shape, strict=True)) | dict(zip(b_dims, b_shape, strict=True))
    alone = set(a_dims) ^ set(b_dims)
    a, b = (Labels(side.grids, side.wild | (alone - set(dims))) for side, dims in ((a, a_dims), (b, b_dims)))
    joined = join(flow, [a, b], (), op.name, alone)
    _count(flow, op, (*a.grids, *b.grids), sizes)
    grids = [grid.without(summed) for grid in joined.grids]
    return Labels(tuple(grid for grid in grids if grid is not None), joined.wild - set(summed))


def _count(flow: Flow, op: Operation, grids: Sequence[Grid], sizes: Mapping[int, int]) -> None:
    """One product of all sizes, in which what grids cover is counted by their ids."""
    covers: list[Grid] = []
    for grid_is_hidden in (False, True):
        for dim in sorted(sizes, reverse=True):
            candidates = [grid for grid in grids if dim in grid.dims and grid.hidden == grid_is_hidden]
            if candidates and not any(dim in cover.dims for cover in covers):
                covers.append(max(candidates, key=lambda grid: len(grid.dims)))
    covers = [*covers[:2], *(c for c in covers[2:] if not any(set(c.dims) & set(o.dims) for o in covers if o is not c))]
    covered = {dim for cover in covers for dim in cover.dims}
    scale = math.prod(size for dim, size in sizes.items() if dim not in covered)
    shared = sorted(set(covers[0].dims) & set(covers[1].dims)) if len(covers) > 1 else []
    rows = math.prod(sizes[dim] for dim in shared)
    factors = [cover.over([*shared, *(dim for dim in cover.dims if dim not in shared)]) for cover in covers[:2]]
    factors += [cover.over(cover.dims) for cover in covers[2:]]
    flow.count_product(op.func, scale, factors, rows, hidden=True)


def _matrix(flow: Flow, op: Operation) -> None:
    """``mm``, ``bmm`` and their ``add`` forms."""
    name = op.name
    bias = op.args[0] if name in ("addmm", "baddbmm") else None
    x, w = op.args[1:3] if bias is not None else op.args[:2]
    batch = x.ndim - 2
    lead = list(range(batch))
    queries = tuple(grid.ids for grid in flow.of(x).at(x.ndim - 1)) if batch and x.ndim == 3 else ()
    labels = _contract(
        flow,
        op,
        (flow.of(x), x.shape, [*lead, batch, _CONTRACTED]),
        (flow.of(w), w.shape, [*lead, _CONTRACTED, batch + 1]),
        [_CONTRACTED],
    )
    if flow.is_weight(w):
        flow.found.made += [grid.ids.ravel() for grid in flow.of(w).at(w.ndim - 1)]
    if bias is not None and op.kwargs.get("beta", 1) != 0:
        labels = join(flow, [labels, aligned(flow, bias, op.out.shape)], op.out.shape, name)
    flow.put(op.out, Labels(labels.grids, labels.wild, queries))


def _convolution(flow: Flow, op: Operation) -> None:
    x, w, bias, transposed, groups = op.args[0], op.args[1], op.args[2], op.args[6], op.args[8]
    at = x.ndim - w.ndim + 1  # the channels' dimension; an image without a batch has one dimension less
    spatial = range(at + 1, x.ndim)
    labels = _as_pixels(flow, flow.of(x), spatial)
    weight = flow.of(w)
    for dim in range(2, w.ndim):
        flow.fix(weight.at(dim), "they are a kernel's")
    weight = Labels(tuple(g for g in weight.grids if max(g.dims) < 2), weight.wild)
    positions = math.prod(x.shape[d] for d in spatial) if transposed else math.prod(op.out.shape[d] for d in spatial)
    scale = math.prod(x.shape[:at]) * positions * math.prod(w.shape[2:])
    batch = tuple(grid for grid in labels.grids if at not in grid.dims)
    channels = x.shape[at]
    if groups == 1:
        enters, leaves = (0, 1) if transposed else (1, 0)
        inside = Labels(tuple(weight.at(enters)), weight.wild).moved(lambda _: at)
        outside = Labels(tuple(weight.at(leaves)), weight.wild).moved(lambda _: at)
        join(flow, [Labels(tuple(labels.at(at)), labels.wild), inside], (), "a convolution")
        _note(flow, op, scale, (inside, channels), (outside, op.out.shape[at]), batch)
        made = outside.grids
    elif groups == channels == op.out.shape[at]:
        own = Labels(tuple(g.moved(lambda _: at) for g in weight.at(0)), frozenset({at} if 0 in weight.wild else ()))
        joined = join(flow, [Labels(tuple(labels.at(at)), labels.wild), own], (), "a convolution")
        _note(flow, op, scale, (Labels(), 1), (joined, channels), batch)
        made = joined.grids
    else:
        flow.fix((*labels.at(at), *weight.grids), f"{flow.module} is a grouped convolution")
        _note(flow, op, scale, (Labels(), channels // groups), (Labels(), op.out.shape[at]), batch)
        made = ()
    flow.found.made += [grid.ids.ravel() for grid in made]
    if bias is not None:
        vector = flow.of(bias).moved(lambda _: at)
        join(flow, [Labels(tuple(made), frozenset()), vector], (), "a convolution")
    flow.put(op.out, Labels((*batch, *made), labels.wild & set(range(at))))


def _note(
    flow: Flow, op: Operation, scale: int, inner: tuple[Labels, int], outer: tuple[Labels, int], batch: Sequence[Grid]
) -> None:
    """A product of two axes of one tensor each; channels that were put into the batch, as fixed filters want them, are counted."""
    scale *= math.prod(size for labels, size in (inner, outer) if not labels.grids)
    factors = [labels.grids[0].ids for labels, _ in (inner, outer) if labels.grids]
    for grid in batch[:1] if len(factors) < 2 else ():
        if not grid.hidden:
            scale //= grid.ids.size
            factors.append(grid.ids)
    flow.count_product(op.func, scale, factors)


def _as_pixels(flow: Flow, labels: Labels, spatial: Iterable[int]) -> Labels:
    """Labels of a tensor whose spatial positions can only be taken as a whole."""
    spatial = set(spatial)
    grids = [
        flow.collapse(grid, spatial, "they have become pixels") if spatial & set(grid.dims) else grid
        for grid in labels.grids
    ]
    return Labels(tuple(grid for grid in grids if grid is not None), labels.wild - spatial)


def _resample(flow: Flow, op: Operation) -> None:
    name = op.name
    spatial = 3 if "3d" in name else 1 if "1d" in name else 2
    for result in op.results:
        dims = range(result.ndim - spatial, result.ndim)
        flow.put(result, _as_pixels(flow, flow.of(op.args[0]), dims))


def _pixel_shuffle(flow: Flow, op: Operation) -> None:
    x, area = op.args[0], op.args[1] ** 2
    at = x.ndim - 3
    labels = _as_pixels(flow, flow.of(x), (x.ndim - 2, x.ndim - 1))
    grids = []
    for grid in labels.grids:
        ids = np.moveaxis(grid.ids, grid.dims.index(at), -1)
        if op.name == "pixel_shuffle":
            ids = ids.reshape(*ids.shape[:-1], -1, area)
            flow.link(ids[..., 1:], ids[..., :1], "they become pixels")
            ids = ids[..., 0]
        else:
            ids = ids.repeat(area, axis=-1)
        grids.append(Grid(grid.dims, np.moveaxis(ids, -1, grid.dims.index(at))))
    flow.put(op.out, Labels(tuple(grids), labels.wild - {at}))


def _vectors(flow: Flow, labels: Labels, dim: int, vectors: Iterable[Any], what: str) -> Labels:
    """Labels of a tensor whose dimension is scaled or shifted by vectors, which are the same along all other dimensions."""
    others = frozenset(d for grid in labels.grids for d in grid.dims) - {dim}
    for vector in vectors:
        if isinstance(vector, Tensor):
            own = Labels(flow.of(vector).moved(lambda _: dim).grids, others)
            joined = join(flow, [Labels(tuple(labels.at(dim)), labels.wild), own], (), what)
            labels = Labels((*labels.grids, *joined.grids), labels.wild - {dim})
    return labels


def _group_norm(flow: Flow, op: Operation) -> None:
    x, weight, bias = op.args[:3]
    labels = flow.of(x)
    if weight is None:
        flow.found.norms += [(flow.module, grid.ids, int(op.args[6])) for grid in labels.at(1)]
    labels = _vectors(flow, labels, 1, (weight, bias), "a norm")
    flow.put(op.out[0], labels)


def _layer_norm(flow: Flow, op: Operation) -> None:
    x, shape = op.args[0], op.args[1]
    labels = flow.of(x)
    over = [x.ndim - 1 - d for d in range(len(shape))]
    if len(over) > 1:
        grids = {id(grid): grid for dim in over for grid in labels.at(dim)}
        flow.fix(grids.values(), f"{flow.module} is a norm over more than the channels")
        for vector in tensors_in(op.args[2:4]):
            flow.fix(flow.of(vector).grids, f"{flow.module} is a norm over more than the channels")
    else:
        labels = _vectors(flow, labels, over[0], op.args[2:4], "a norm")
    flow.put(op.results[0], labels)


def _batch_norm(flow: Flow, op: Operation) -> None:
    vectors = [value for value in op.args[1:5] if isinstance(value, Tensor)]
    flow.put(op.results[0], _vectors(flow, flow.of(op.args[0]), 1, vectors, "a norm"))


def _weight_norm(flow: Flow, op: Operation) -> None:
    """A weight that is normed along all dims but one, and scaled along that one."""
    weight, scale = flow.of(op.args[0]), flow.of(op.args[1])
    joined = join(flow, [weight, aligned(flow, op.args[1], op.args[0].shape)], op.args[0].shape, "a norm of weights")
    flow.put(op.out[0], Labels(joined.grids or weight.grids, weight.wild))
    flow.put(op.out[1], scale)


def _vector_product(flow: Flow, op: Operation) -> None:
    """``mv`` and ``dot``: sums along the last dimension, which by convention cost nothing.

    Of weights alone they make a spectral norm. Its two vectors are right for all channels only, so a part of the weights would be
    divided by too small a number: they stay whole.
    """
    a, b = flow.of(op.args[0]), flow.of(op.args[1])
    if flow.is_weight(op.args[0]) and flow.is_weight(op.args[1]):
        layer = flow.module.partition("parametrizations.")[0].rstrip(".") or "a layer"
        flow.fix((*a.grids, *b.grids), f"{layer} divides its weights by their spectral norm")
    last = op.args[0].ndim - 1
    b = Labels(b.grids, b.wild).moved(lambda _: last)
    joined = join(flow, [a, Labels(b.grids, b.wild | set(range(last)))], op.args[0].shape, op.name)
    kept = tuple(grid for grid in (grid.without([last]) for grid in joined.grids) if grid is not None)
    flow.put(op.out, Labels(kept, joined.wild - {last}))


def _embedding(flow: Flow, op: Operation) -> None:
    table = flow.of(op.args[0])
    flow.fix(table.at(0), "they are a table's rows")
    flow.put(op.out, Labels(tuple(g.moved(lambda _: op.out.ndim - 1) for g in table.at(1))))


def _repeated(labels: Labels, dim: int, times: int, is_single: bool) -> Labels:
    """Labels of a tensor that is repeated along a dimension, each position so many times; a single one is the same everywhere."""
    grids = [
        Grid(grid.dims, grid.ids.repeat(times, axis=grid.dims.index(dim))) if dim in grid.dims else grid
        for grid in labels.grids
    ]
    return Labels(tuple(grids), labels.wild | {dim} if is_single else labels.wild)


def _attention(flow: Flow, op: Operation) -> None:
    """Fused attention, divided by the root of the width unless a scale is given."""
    mask = op.argument("attn_mask", op.argument("attn_bias"))
    if isinstance(mask, Tensor) and op.args[0].ndim > 2:
        _bias_heads(flow, op.args[0], mask)
    _fused_attention(flow, op, op.argument("scale") is None)


def _bias_heads(flow: Flow, query: Tensor, mask: Tensor) -> None:
    """What is added to the scores may be made for each head, which then leaves with its head."""
    at = query.ndim - 3
    made = flow.of(mask).moved(lambda dim: dim + query.ndim - mask.ndim).at(at)
    for own in flow.of(query).at(at):
        for grid in made:
            flow.unify(own, grid, "they are added to the scores of an attention")


def _fused_attention(flow: Flow, op: Operation, is_divided: bool) -> None:
    """Attention of query, key and value of shape (…, length, width of a head)."""
    query, key, value = op.args[:3]
    n = query.ndim
    lead = list(range(n - 2))
    labels = [flow.of(tensor) for tensor in (query, key, value)]
    times = query.shape[-3] // key.shape[-3] if n > 2 else 1
    if times > 1:  # keys and values that several queries share
        labels[1:] = [_repeated(one, n - 3, times, key.shape[-3] == 1) for one in labels[1:]]
    shape = (*query.shape[:-2], *key.shape[-2:])
    for one in labels:
        flow.fix(one.at(n - 2), "they are positions of an attention")
    scores = _contract(
        flow,
        op,
        (labels[0], query.shape, [*lead, n - 2, _CONTRACTED]),
        (labels[1], shape, [*lead, n - 1, _CONTRACTED]),
        [_CONTRACTED],
    )
    asking = flow.found.queries if is_divided else flow.found.perhaps
    asking += [grid.ids for grid in labels[0].at(n - 1)]
    if query.shape[-1] == value.shape[-1]:  # heads of one size: implementations read one off the other
        widths = [Labels(tuple(labels[i].at(n - 1)), labels[i].wild) for i in (0, 2)]
        join(flow, widths, (), "attention", [n - 2])
    result = _contract(
        flow,
        op,
        (scores, (*query.shape[:-1], key.shape[-2]), [*lead, n - 2, _CONTRACTED]),
        (labels[2], (*query.shape[:-2], *value.shape[-2:]), [*lead, _CONTRACTED, n - 1]),
        [_CONTRACTED],
    )
    flow.put(op.results[0], result)


def _flex_attention(flow: Flow, op: Operation) -> None:
    """Attention with a custom score function: other tensors that this function reads keep their size."""
    for tensor in tensors_in(op.args[3:], op.kwargs):
        flow.fix(flow.of(tensor).grids, "they are read by the scores of a flexible attention")
    _fused_attention(flow, op, False)
    query, last = flow.of(op.args[0]), op.args[0].ndim - 1
    grids = [grid.without([last]) for grid in query.grids]
    for total in op.out[1:]:  # one number for each query: a logarithm of a sum, a largest score
        flow.put(total, Labels(tuple(grid for grid in grids if grid is not None), query.wild - {last}))


def _recurrent(flow: Flow, op: Operation) -> None:
    """Whole recurrent layers, of which nothing can be followed: their matrices meet every position of the input."""
    unknown(flow, op)
    x, weights = op.args[0], op.args[1:3] if op.name == "mkldnn_rnn_layer" else op.args[1]
    matrices = sum(weight.numel() for weight in weights if weight.ndim == 2)
    flow.count_product(op.func, math.prod(x.shape[:-1]) * matrices, ())


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix),
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "flex_attention": _flex_attention,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "embedding": _embedding,
    **dict.fromkeys(("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"), _recurrent),
    "_weight_norm_interface": _weight_norm,
    **dict.fromkeys(("mv", "dot", "vdot"), _vector_product),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _pixel_shuffle),
}
"""Rules by an operator's name."""

BY_PART: Mapping[str, Rule] = {
    "batch_norm": _batch_norm,
    "_scaled_dot_product": _attention,
    **dict.fromkeys(("upsample", "avg_pool", "max_pool", "reflection_pad", "replication_pad"), _resample),
}
"""Rules by a part of the name, for operators with a name for each device or number of dimensions."""
