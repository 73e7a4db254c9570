"""How each kind of aten operator carries channel ids along, see :mod:`prunekit.graph.flow`.

An operator that is not listed here fixes whatever reaches it: a network is never pruned through something unknown.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunekit.graph.flow import FIXED, Flow, Grid, Labels, Rectangle

__all__ = ["rule_of"]

Rule = Callable[[Flow, Any, Sequence[Any], Mapping[str, Any], Any], None]
_FEW = (2, 3, 4)  # a slice of one in so many equal parts is taken for a split
_CONTRACTED = 100  # virtual dimension of a matrix product's inner axis


def rule_of(func: Any) -> Rule:
    """The rule of an operator overload."""
    name = _name(func)
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in func.tags:
        return _pointwise
    for part, rule in _FAMILIES.items():
        if part in name:
            return rule
    return _unknown


def _name(func: Any) -> str:
    name: str = func.name().removeprefix("aten::").split(".")[0]
    return name if name.startswith("__") else name.rstrip("_")


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _argument(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An argument by name, as the operator's schema places it."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, default)
    return default


def _unknown(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    for tensor in _tensors(args, dict(kwargs)):
        flow.fix(flow.of(tensor).grids, f"they go through {_name(func)}, which is not known how to follow")


def _nothing(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """The result says nothing about channels (shapes, comparisons of scalars, positions made by counting)."""


def _same(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    flow.put(out, flow.of(args[0]))


def _softmax(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """What is made to sum to one leaves together: each channel of it depends on all others."""
    labels = flow.of(args[0])
    flow.found.perhaps += labels.queries
    dim = args[1] % args[0].ndim
    for grid in labels.at(dim):
        flow.collapse(grid, [dim], "they are made to sum to one")
    flow.put(out, Labels(labels.grids, labels.wild))


def _filled(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    flow.put(out, Labels((), frozenset(range(out.ndim))))


def _aligned(flow: Flow, tensor: Tensor, shape: Sequence[int]) -> Labels:
    """Labels of a tensor that is broadcast to a shape."""
    shift = len(shape) - tensor.ndim
    labels = flow.of(tensor).moved(lambda dim: dim + shift)
    stretched = {dim for dim in range(len(shape)) if dim < shift or (tensor.shape[dim - shift] == 1 and shape[dim] > 1)}
    return Labels(labels.grids, labels.wild | stretched, labels.queries)


def _join(flow: Flow, parts: Sequence[Labels], shape: Sequence[int], what: str, apart: Iterable[int] = ()) -> Labels:
    """Labels of what is made of tensors that lie on each other, all broadcast to ``shape``; dims in ``apart`` are let be."""
    reason = f"they meet something of a fixed size in {what}"
    kept: list[Grid] = []
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            for a in one.grids:
                for b in other.grids:
                    flow.unify(a, b, reason)
        for grid in one.grids:
            if any(d not in o.wild and not o.at(d) for o in parts for d in set(grid.dims) - set(apart)):
                flow.fix([grid], reason)
            else:
                kept.append(grid)
    wild = frozenset(dim for dim in range(len(shape)) if all(dim in part.wild for part in parts))
    return Labels(tuple(kept), wild)


def _pointwise(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    results = _tensors(out)
    if not results:
        return
    shape = results[0].shape
    parts = [_aligned(flow, tensor, shape) for tensor in _tensors(args, dict(kwargs)) if tensor.ndim]
    joined = _join(flow, parts, shape, _name(func))
    joined = Labels(joined.grids, joined.wild, tuple(ids for part in parts for ids in part.queries))
    for result in results:
        flow.put(result, joined)


def _copy(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    target, source = args[0], args[1]
    labels = _aligned(flow, source, target.shape)
    base = target._base
    if base is not None and base.shape != target.shape:
        flow.fix((*labels.grids, *flow.of(base).grids), "they are written into a part of another tensor")
    flow.put(target, labels)


def _reshape(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    labels = flow.of(args[0])
    shape, new = tuple(args[0].shape), tuple(out.shape)
    if shape == new:
        flow.put(out, labels)
        return
    segments = _segments(shape, new)
    grids: list[Grid | None] = []
    for grid in labels.grids:
        made = _reshaped(flow, grid, shape, new, segments)
        for earlier, source in zip(grids, labels.grids, strict=False):
            if made and earlier and set(made.dims) & set(earlier.dims) and not set(grid.dims) & set(source.dims):
                flow.fix((grid, source), "two kinds of them are merged into one dimension")
                made = None
        grids.append(made)
    wild = {
        dim
        for before, after in segments
        if all(d in labels.wild or shape[d] == 1 for d in before)
        for dim in after
        if new[dim] > 1
    }
    flow.put(out, Labels(tuple(grid for grid in grids if grid is not None), frozenset(wild), labels.queries))


def _segments(shape: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest cut of both shapes into runs of dimensions of equal product."""
    segments: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(shape) or j < len(new):
        before, after, left, right = [], [], 1, 1
        if i < len(shape):
            before, left, i = [i], shape[i], i + 1
        if j < len(new):
            after, right, j = [j], new[j], j + 1
        while left != right:
            if left < right and i < len(shape):
                before, left, i = [*before, i], left * shape[i], i + 1
            elif j < len(new):
                after, right, j = [*after, j], right * new[j], j + 1
            else:  # a tensor without elements
                break
        segments.append((before, after))
    return segments


def _reshaped(
    flow: Flow, grid: Grid, shape: Sequence[int], new: Sequence[int], segments: Sequence[tuple[list[int], list[int]]]
) -> Grid | None:
    """A grid after a reshape: along each run, the new dims on which the ids depend."""
    ids, old, kept = grid.over(grid.dims), list(grid.dims), list[int]()
    split = False
    for before, after in segments:
        mine = [dim for dim in before if dim in grid.dims]
        if not mine:
            continue
        ids = np.moveaxis(ids, [old.index(dim) for dim in mine], range(len(mine)))
        old = [*mine, *(dim for dim in old if dim not in mine)]
        rest = ids.shape[len(mine) :]
        ids = ids.reshape(*(shape[dim] if dim in mine else 1 for dim in before), *rest)
        ids = np.broadcast_to(ids, (*(shape[dim] for dim in before), *rest)).reshape(*(new[d] for d in after), *rest)
        varying = list(after)
        for place in reversed(range(len(after))):
            if (ids == ids.take([0], axis=place)).all():
                ids = np.asarray(ids.take(0, axis=place))
                varying.pop(place)
        split = split or len(varying) > 1
        ids = np.moveaxis(ids, range(len(varying)), range(ids.ndim - 1 - len(varying), ids.ndim - 1))
        old = [dim for dim in old if dim not in mine]
        kept += varying
    if not kept:
        return None
    made = Grid(tuple(kept), ids if grid.hidden else ids[..., 0]).moved(lambda dim: dim)
    if split and not made.hidden:
        flow.found.rectangles.append(Rectangle(flow.module, made.ids, fixed=False))
    return made


def _permute(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    if _name(func) == "permute":
        order = [d % x.ndim for d in args[1]]
    else:
        order = list(range(x.ndim))
        a, b = (0, min(1, x.ndim - 1)) if _name(func) in ("t", "numpy_T") else (args[1] % x.ndim, args[2] % x.ndim)
        order[a], order[b] = order[b], order[a]
    flow.put(out, flow.of(x).moved(order.index))


def _expand(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    flow.put(out, _aligned(flow, args[0], out.shape))


def _repeat(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    shift = out.ndim - args[0].ndim
    labels = flow.of(args[0]).moved(lambda dim: dim + shift)
    sizes = (*[1] * shift, *args[0].shape)
    grids = []
    for grid in labels.grids:
        times = [out.shape[dim] // sizes[dim] for dim in grid.dims] + [1] * (grid.ids.ndim - len(grid.dims))
        grids.append(Grid(grid.dims, np.tile(grid.ids, times)))
    stretched = {dim for dim in range(out.ndim) if sizes[dim] == 1 and out.shape[dim] > 1}
    flow.put(out, Labels(tuple(grids), labels.wild | stretched))


def _squeeze(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dims = args[1] if len(args) > 1 else [dim for dim, size in enumerate(x.shape) if size == 1]
    gone = {dim % x.ndim for dim in ([dims] if isinstance(dims, int) else dims)} if x.ndim else set()
    gone = {dim for dim in gone if x.shape[dim] == 1}
    kept = [dim for dim in range(x.ndim) if dim not in gone]
    labels = flow.of(x)
    flow.put(out, Labels(labels.grids, labels.wild - gone, labels.queries).moved(kept.index))


def _unsqueeze(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    at = args[1] % out.ndim
    flow.put(out, flow.of(args[0]).moved(lambda dim: dim + (dim >= at)))


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
            flow.found.rectangles.append(
                Rectangle(flow.module, ids.reshape(len(sizes), sizes[0], *ids.shape[1:]).reshape(len(sizes), -1), True)
            )


def _split(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dim = _argument(func, args, kwargs, "dim", 0) % x.ndim
    labels, start = flow.of(x), 0
    _parts(flow, labels, dim, [part.shape[dim] for part in out])
    for part in out:
        flow.put(part, _taken(labels, dim, range(start, start + part.shape[dim])))
        start += part.shape[dim]


def _slice(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dim = _argument(func, args, kwargs, "dim", 0) % x.ndim
    start, end = _argument(func, args, kwargs, "start"), _argument(func, args, kwargs, "end")
    step = _argument(func, args, kwargs, "step", 1)
    which = np.arange(x.shape[dim])[slice(start, end, step)]
    parts = x.shape[dim] / max(len(which), 1)
    if step == 1 and parts in _FEW and which[0] % len(which) == 0 and len(which) > 1:
        _parts(flow, flow.of(x), dim, [len(which)] * int(parts))
    flow.put(out, _taken(flow.of(x), dim, which))


def _unbind(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dim = _argument(func, args, kwargs, "dim", 0) % x.ndim
    for place, part in enumerate(out):
        _pick(flow, flow.of(x), dim, place, part)


def _select(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    dim, place = args[1] % args[0].ndim, args[2] % args[0].shape[args[1]]
    _pick(flow, flow.of(args[0]), dim, place, out)


def _pick(flow: Flow, labels: Labels, dim: int, place: int, part: Tensor) -> None:
    """One position of a dimension, which is gone afterwards; nothing can be removed along it."""
    grids = []
    for grid in labels.grids:
        if grid.dims == (dim,):
            flow.fix([grid], "single ones of them are picked out")
        else:
            axis = grid.dims.index(dim) if dim in grid.dims else None
            ids = grid.ids if axis is None else np.asarray(grid.ids.take(place, axis=axis))
            grids.append(Grid(tuple(d for d in grid.dims if d != dim), ids))
            if axis is not None:
                whole = np.moveaxis(grid.ids, axis, 0)
                flow.found.rectangles.append(Rectangle(flow.module, whole.reshape(len(whole), -1), True))
    flow.put(part, Labels(tuple(grids), labels.wild - {dim}).moved(lambda d: d - (d > dim)))


def _cat(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    tensors = [tensor for tensor in args[0] if tensor.numel()]
    dim = _argument(func, args, kwargs, "dim", 0) % out.ndim
    parts = [flow.of(tensor) for tensor in tensors]
    others = [Labels(tuple(g for g in part.grids if dim not in g.dims), part.wild | {dim}) for part in parts]
    joined = _join(flow, others, out.shape, "a concatenation")
    shapes = {grid.dims for part in parts for grid in part.at(dim)}
    grids = [_concatenated(flow, parts, tensors, dims, dim) for dims in shapes]
    wild = joined.wild - {dim}
    flow.put(out, Labels((*joined.grids, *(grid for grid in grids if grid is not None)), wild))


def _concatenated(
    flow: Flow, parts: Sequence[Labels], tensors: Sequence[Tensor], dims: tuple[int, ...], dim: int
) -> Grid | None:
    """Ids one after another; a part without ids along the dimension is of a fixed size there."""
    pieces = []
    for part, tensor in zip(parts, tensors, strict=True):
        mine = [grid for grid in part.grids if grid.dims == dims and not grid.hidden]
        pieces.append(mine[0].ids if mine else np.full([tensor.shape[d] for d in dims], FIXED))
    if any((piece == FIXED).any() for piece in pieces) and len(dims) > 1:
        for part in parts:
            flow.fix(part.at(dim), "they are put beside something of a fixed size")
        return None
    return Grid(dims, np.concatenate(pieces, axis=dims.index(dim)))


def _glu(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dim = _argument(func, args, kwargs, "dim", -1) % x.ndim
    labels, half = flow.of(x), x.shape[dim] // 2
    _parts(flow, labels, dim, [half, half])
    halves = [_taken(labels, dim, range(start, start + half)) for start in (0, half)]
    flow.put(out, _join(flow, halves, out.shape, "glu"))


def _stack(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    at = _argument(func, args, kwargs, "dim", 0) % out.ndim
    parts = [flow.of(tensor).moved(lambda dim: dim + (dim >= at)) for tensor in args[0]]
    flow.put(out, _join(flow, [Labels(part.grids, part.wild | {at}) for part in parts], out.shape, "a stack"))


def _pad(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    changed = {dim for dim in range(x.ndim) if x.shape[dim] != out.shape[dim]}
    labels = flow.of(x)
    for dim in changed:
        flow.fix(labels.at(dim), "they are padded")
    grids = tuple(grid for grid in labels.grids if not changed & set(grid.dims))
    flow.put(out, Labels(grids, labels.wild - changed))


def _flip(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    labels = flow.of(args[0])
    for dim in args[1]:
        labels = _taken(labels, dim % out.ndim, np.arange(out.shape[dim])[::-1])
    flow.put(out, labels)


def _reduce(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dims = _argument(func, args, kwargs, "dim")
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % max(x.ndim, 1) for dim in dims}
    labels = flow.of(x)
    kept = [dim for dim in range(x.ndim) if dim not in gone]
    grids = [grid.without(gone) for grid in labels.grids]
    for result in _tensors(out):
        place = (lambda dim: dim) if result.ndim == x.ndim else kept.index
        flow.put(result, Labels(tuple(grid for grid in grids if grid), labels.wild - gone).moved(place))


def _extreme(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """A reduction that zeros would change: what lies along it can only be there as a whole."""
    x = args[0]
    if len(_tensors(args)) > 1:
        _pointwise(flow, func, args, kwargs, out)  # the larger of two tensors
        return
    dims = _argument(func, args, kwargs, "dim")
    dims = [dims] if isinstance(dims, int) else dims or range(x.ndim)
    labels = flow.of(x)
    for grid in labels.grids:
        gone = {dim % x.ndim for dim in dims} & set(grid.dims)
        if gone:
            flow.collapse(grid, gone, f"they go through {_name(func)}")
    _reduce(flow, func, args, kwargs, out)


def _along(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Running sums and the like: what comes first changes what comes later."""
    x = args[0]
    dim = _argument(func, args, kwargs, "dim", 0) % x.ndim
    flow.fix(flow.of(x).at(dim), f"they go through {_name(func)}")
    for result in _tensors(out):
        flow.put(result, flow.of(x))


def _contract(
    flow: Flow,
    func: Any,
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
    joined = _join(flow, [a, b], (), _name(func), alone)
    _count(flow, func, (*a.grids, *b.grids), sizes)
    grids = [grid.without(summed) for grid in joined.grids]
    return Labels(tuple(grid for grid in grids if grid is not None), joined.wild - set(summed))


def _count(flow: Flow, func: Any, grids: Sequence[Grid], sizes: Mapping[int, int]) -> None:
    """One product of all sizes, in which what grids cover is counted by their ids."""
    covers: list[Grid] = []
    for dim in sorted(sizes, reverse=True):
        candidates = [grid for grid in grids if dim in grid.dims and not grid.hidden]
        if candidates and not any(dim in cover.dims for cover in covers):
            covers.append(max(candidates, key=lambda grid: len(grid.dims)))
    covers = [*covers[:2], *(c for c in covers[2:] if not any(set(c.dims) & set(o.dims) for o in covers if o is not c))]
    covered = {dim for cover in covers for dim in cover.dims}
    scale = math.prod(size for dim, size in sizes.items() if dim not in covered)
    factors = [cover.ids for cover in covers]
    shared = sorted(set(covers[0].dims) & set(covers[1].dims)) if len(covers) > 1 else []
    rows = math.prod(sizes[dim] for dim in shared)
    if rows > 1:
        factors[:2] = (cover.over(shared) for cover in covers[:2])
    flow.count_product(func, scale, factors, rows)


def _matrix(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """``mm``, ``bmm`` and their ``add`` forms."""
    name = _name(func)
    bias = args[0] if name in ("addmm", "baddbmm") else None
    x, w = args[1:3] if bias is not None else args[:2]
    batch = x.ndim - 2
    lead = list(range(batch))
    queries = tuple(grid.ids for grid in flow.of(x).at(x.ndim - 1)) if batch and x.ndim == 3 else ()
    labels = _contract(
        flow,
        func,
        (flow.of(x), x.shape, [*lead, batch, _CONTRACTED]),
        (flow.of(w), w.shape, [*lead, _CONTRACTED, batch + 1]),
        [_CONTRACTED],
    )
    if bias is not None and kwargs.get("beta", 1) != 0:
        labels = _join(flow, [labels, _aligned(flow, bias, out.shape)], out.shape, name)
    flow.put(out, Labels(labels.grids, labels.wild, queries))


def _convolution(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, w, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    at = x.ndim - w.ndim + 1  # the channels' dimension; an image without a batch has one dimension less
    spatial = range(at + 1, x.ndim)
    labels = _as_pixels(flow, flow.of(x), spatial)
    weight = flow.of(w)
    for dim in range(2, w.ndim):
        flow.fix(weight.at(dim), "they are a kernel's")
    weight = Labels(tuple(g for g in weight.grids if max(g.dims) < 2), weight.wild)
    positions = math.prod(x.shape[d] for d in spatial) if transposed else math.prod(out.shape[d] for d in spatial)
    scale = math.prod(x.shape[:at]) * positions * math.prod(w.shape[2:])
    channels = x.shape[at]
    if groups == 1:
        enters, leaves = (0, 1) if transposed else (1, 0)
        inside = Labels(tuple(weight.at(enters)), weight.wild).moved(lambda _: at)
        outside = Labels(tuple(weight.at(leaves)), weight.wild).moved(lambda _: at)
        _join(flow, [Labels(tuple(labels.at(at)), labels.wild), inside], (), "a convolution")
        _note(flow, func, scale, (inside, channels), (outside, out.shape[at]))
        made = outside.grids
    elif groups == channels == out.shape[at]:
        own = Labels(tuple(g.moved(lambda _: at) for g in weight.at(0)), frozenset({at} if 0 in weight.wild else ()))
        joined = _join(flow, [Labels(tuple(labels.at(at)), labels.wild), own], (), "a convolution")
        _note(flow, func, scale, (Labels(), 1), (joined, channels))
        made = joined.grids
    else:
        flow.fix((*labels.at(at), *weight.grids), f"{flow.module} is a grouped convolution")
        _note(flow, func, scale, (Labels(), channels // groups), (Labels(), out.shape[at]))
        made = ()
    if bias is not None:
        vector = flow.of(bias).moved(lambda _: at)
        _join(flow, [Labels(tuple(made), frozenset()), vector], (), "a convolution")
    batch = tuple(grid for grid in labels.grids if at not in grid.dims)
    flow.put(out, Labels((*batch, *made), labels.wild & set(range(at))))


def _note(flow: Flow, func: Any, scale: int, inner: tuple[Labels, int], outer: tuple[Labels, int]) -> None:
    """A product of two axes of one tensor each."""
    scale *= math.prod(size for labels, size in (inner, outer) if not labels.grids)
    flow.count_product(func, scale, [labels.grids[0].ids for labels, _ in (inner, outer) if labels.grids])


def _as_pixels(flow: Flow, labels: Labels, spatial: Iterable[int]) -> Labels:
    """Labels of a tensor whose spatial positions can only be taken as a whole."""
    spatial = set(spatial)
    grids = [
        flow.collapse(grid, spatial, "they have become pixels") if spatial & set(grid.dims) else grid
        for grid in labels.grids
    ]
    return Labels(tuple(grid for grid in grids if grid is not None), labels.wild - spatial)


def _resample(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    name = _name(func)
    spatial = 3 if "3d" in name else 1 if "1d" in name else 2
    for result in _tensors(out):
        dims = range(result.ndim - spatial, result.ndim)
        flow.put(result, _as_pixels(flow, flow.of(args[0]), dims))


def _pixel_shuffle(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, area = args[0], args[1] ** 2
    at = x.ndim - 3
    labels = _as_pixels(flow, flow.of(x), (x.ndim - 2, x.ndim - 1))
    grids = []
    for grid in labels.grids:
        ids = np.moveaxis(grid.ids, grid.dims.index(at), -1)
        if _name(func) == "pixel_shuffle":
            ids = ids.reshape(*ids.shape[:-1], -1, area)
            flow.link(ids[..., 1:], ids[..., :1], "they become pixels")
            ids = ids[..., 0]
        else:
            ids = ids.repeat(area, axis=-1)
        grids.append(Grid(grid.dims, np.moveaxis(ids, -1, grid.dims.index(at))))
    flow.put(out, Labels(tuple(grids), labels.wild - {at}))


def _vectors(flow: Flow, labels: Labels, dim: int, vectors: Iterable[Any], what: str) -> Labels:
    """Labels of a tensor whose dimension is scaled or shifted by vectors."""
    for vector in vectors:
        if isinstance(vector, Tensor):
            own = flow.of(vector).moved(lambda _: dim)
            joined = _join(flow, [Labels(tuple(labels.at(dim)), labels.wild), own], (), what)
            labels = Labels((*labels.grids, *joined.grids), labels.wild - {dim})
    return labels


def _group_norm(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, weight, bias = args[:3]
    labels = flow.of(x)
    if weight is None:
        flow.found.norms += [(flow.module, grid.ids, int(args[6])) for grid in labels.at(1)]
    labels = _vectors(flow, labels, 1, (weight, bias), "a norm")
    flow.put(out[0], labels)


def _layer_norm(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x, shape = args[0], args[1]
    labels = flow.of(x)
    over = [x.ndim - 1 - d for d in range(len(shape))]
    if len(over) > 1:
        grids = {id(grid): grid for dim in over for grid in labels.at(dim)}
        flow.fix(grids.values(), f"{flow.module} is a norm over more than the channels")
        for vector in _tensors(args[2:4]):
            flow.fix(flow.of(vector).grids, f"{flow.module} is a norm over more than the channels")
    else:
        labels = _vectors(flow, labels, over[0], args[2:4], "a norm")
    flow.put(_tensors(out)[0], labels)


def _batch_norm(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    vectors = [value for value in args[1:5] if isinstance(value, Tensor)]
    flow.put(_tensors(out)[0], _vectors(flow, flow.of(args[0]), 1, vectors, "a norm"))


def _embedding(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    table = flow.of(args[0])
    flow.fix(table.at(0), "they are a table's rows")
    flow.put(out, Labels(tuple(g.moved(lambda _: out.ndim - 1) for g in table.at(1))))


def _attention(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Fused attention of query, key and value of shape (…, length, width of a head)."""
    query, key, value = args[:3]
    n = query.ndim
    lead = list(range(n - 2))
    labels = [flow.of(tensor) for tensor in (query, key, value)]
    for one in labels:
        flow.fix(one.at(n - 2), "they are positions of an attention")
    scores = _contract(
        flow,
        func,
        (labels[0], query.shape, [*lead, n - 2, _CONTRACTED]),
        (labels[1], key.shape, [*lead, n - 1, _CONTRACTED]),
        [_CONTRACTED],
    )
    divided = _argument(func, args, kwargs, "scale") is None  # by the root of the width; else nobody knows by what
    asking = flow.found.queries if divided else flow.found.perhaps
    asking += [grid.ids for grid in labels[0].at(n - 1)]
    if query.shape[-1] == value.shape[-1]:  # heads of one size: implementations read one off the other
        _join(flow, [Labels(tuple(labels[0].at(n - 1))), Labels(tuple(labels[2].at(n - 1)))], (), "attention", [n - 2])
    result = _contract(
        flow,
        func,
        (scores, (*query.shape[:-1], key.shape[-2]), [*lead, n - 2, _CONTRACTED]),
        (labels[2], value.shape, [*lead, _CONTRACTED, n - 1]),
        [_CONTRACTED],
    )
    flow.put(out[0] if isinstance(out, tuple | list) else out, result)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), _permute),
    **dict.fromkeys(
        ("alias", "detach", "clone", "_to_copy", "contiguous", "lift_fresh", "lift"),
        _same,
    ),
    **dict.fromkeys(
        (
            "zeros",
            "ones",
            "full",
            "zeros_like",
            "ones_like",
            "full_like",
            "new_zeros",
            "new_ones",
            "new_full",
            "scalar_tensor",
        ),
        _filled,
    ),
    **dict.fromkeys(
        ("empty", "empty_like", "new_empty", "rand_like", "randn_like", "arange", "linspace", "randn", "rand", "eye"),
        _nothing,
    ),
    **dict.fromkeys(("_local_scalar_dense", "sym_size", "equal", "is_same_size"), _nothing),
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "expand": _expand,
    "repeat": _repeat,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), _split),
    "slice": _slice,
    "unbind": _unbind,
    "select": _select,
    "cat": _cat,
    "stack": _stack,
    "glu": _glu,
    "constant_pad_nd": _pad,
    "flip": _flip,
    "copy": _copy,
    **dict.fromkeys(
        (
            "mean",
            "sum",
            "var",
            "std",
            "var_mean",
            "linalg_vector_norm",
            "norm",
        ),
        _reduce,
    ),
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "logsumexp"), _extreme),
    "cumsum": _along,
    "cumprod": _along,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrix),
    "convolution": _convolution,
    "_convolution": _convolution,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "embedding": _embedding,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_shuffle,
    "_prelu_kernel": _pointwise,
}
_FAMILIES: Mapping[str, Rule] = {
    "batch_norm": _batch_norm,
    "_scaled_dot_product": _attention,
    "upsample": _resample,
    "avg_pool": _resample,
    "max_pool": _resample,
    "reflection_pad": _resample,
    "replication_pad": _resample,
}
