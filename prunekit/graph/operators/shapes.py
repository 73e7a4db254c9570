"""Operators that move, cut and put together, and compute nothing."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunekit.graph.flow import Flow
from prunekit.graph.labels import FIXED, Grid, Labels, Rectangle
from prunekit.graph.operators.common import Operation, Rule, aligned, join

__all__ = ["RULES"]


def _copy(flow: Flow, op: Operation) -> None:
    target, source = op.args[0], op.args[1]
    labels = aligned(flow, source, target.shape)
    base, own = target._base, flow.of(target)
    if (
        base is not None and own.grids
    ):  # a part of something that has channels of its own, such as a tensor made to be filled
        flow.put(target, join(flow, [own, labels], target.shape, "what is written into a part of a tensor"))
        return
    if base is not None and base.shape != target.shape:
        _write_part(flow, base, target, labels)
    flow.put(target, labels)


def _write_part(flow: Flow, base: Tensor, part: Tensor, labels: Labels) -> None:
    """Rows of a tensor that was made to be filled: along whole dimensions it takes on the ids of the first rows written."""
    where = _dims_in(base, part)
    there, written = flow.of(base), [dim for grid in labels.grids for dim in grid.dims]
    if there.grids or not all(where.get(dim) in there.wild for dim in written):
        flow.fix((*labels.grids, *there.grids), "they are written into a part of another tensor")
        return
    same = {where[dim] for dim in labels.wild if dim in where}  # along all others the tensor now varies
    flow.put(base, Labels(tuple(grid.moved(where.__getitem__) for grid in labels.grids), there.wild & same))


def _dims_in(base: Tensor, part: Tensor) -> dict[int, int]:
    """For the dimensions of a view that cover a whole dimension of its base, which one that is."""
    found: dict[int, int] = {}
    for dim, size in enumerate(part.shape):
        alike = [d for d in range(base.ndim) if base.shape[d] == size and base.stride(d) == part.stride(dim)]
        if size > 1 and len(alike) == 1:
            found[dim] = alike[0]
    return found


def _reshape(flow: Flow, op: Operation) -> None:
    labels = flow.of(op.args[0])
    shape, new = tuple(op.args[0].shape), tuple(op.out.shape)
    if shape == new:
        flow.put(op.out, labels)
        return
    segments = _segments(shape, new)
    grids, sources = list[Grid | None](), list[Grid]()
    first_stays = flow.heads_leave or flow.is_weight(op.args[0])  # of a weight, what comes later is a kernel's
    for grid in sorted(labels.grids, key=lambda grid: grid.dims if first_stays else tuple(-dim for dim in grid.dims)):
        made = _reshaped(flow, grid, shape, new, segments)
        for earlier, source in zip(grids, sources, strict=True):
            if made and earlier and set(made.dims) & set(earlier.dims) and not set(grid.dims) & set(source.dims):
                flow.fix([grid], "two kinds of them are merged into one dimension")
                made = None
        grids.append(made)
        sources.append(grid)
    wild = {
        dim
        for before, after in segments
        if all(d in labels.wild or shape[d] == 1 for d in before)
        for dim in after
        if new[dim] > 1
    }
    flow.put(op.out, Labels(tuple(grid for grid in grids if grid is not None), frozenset(wild), labels.queries))


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
        inner = len(grid.dims) > 1 and len(made.ids) == len(grid.ids)  # blocks are split, and stay what they are
        flow.found.rectangles.append(Rectangle(flow.module, made.ids, fixed=False, inner=inner))
        if len(grid.dims) == 1:
            flow.note_blocks(made)
    return made


def _permute(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    if op.name == "permute":
        order = [d % x.ndim for d in op.args[1]]
    else:
        order = list(range(x.ndim))
        a, b = (0, min(1, x.ndim - 1)) if op.name in ("t", "numpy_T") else (op.args[1] % x.ndim, op.args[2] % x.ndim)
        order[a], order[b] = order[b], order[a]
    flow.put(op.out, flow.of(x).moved(order.index))


def _expand(flow: Flow, op: Operation) -> None:
    flow.put(op.out, aligned(flow, op.args[0], op.out.shape))


def _repeat(flow: Flow, op: Operation) -> None:
    shift = op.out.ndim - op.args[0].ndim
    labels = flow.of(op.args[0]).moved(lambda dim: dim + shift)
    sizes = (*[1] * shift, *op.args[0].shape)
    grids = []
    for grid in labels.grids:
        times = [op.out.shape[dim] // sizes[dim] for dim in grid.dims] + [1] * (grid.ids.ndim - len(grid.dims))
        grids.append(Grid(grid.dims, np.tile(grid.ids, times)))
    stretched = {dim for dim in range(op.out.ndim) if sizes[dim] == 1 and op.out.shape[dim] > 1}
    flow.put(op.out, Labels(tuple(grids), labels.wild | stretched))


def _squeeze(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dims = op.args[1] if len(op.args) > 1 else [dim for dim, size in enumerate(x.shape) if size == 1]
    gone = {dim % x.ndim for dim in ([dims] if isinstance(dims, int) else dims)} if x.ndim else set()
    gone = {dim for dim in gone if x.shape[dim] == 1}
    kept = [dim for dim in range(x.ndim) if dim not in gone]
    labels = flow.of(x)
    flow.fix((grid for grid in labels.grids if set(grid.dims) <= gone), "single ones of them are picked out")
    grids = [_squeezed(grid, gone) for grid in labels.grids if not set(grid.dims) <= gone]
    flow.put(op.out, Labels(tuple(grids), labels.wild - gone, labels.queries).moved(kept.index))


def _squeezed(grid: Grid, gone: set[int]) -> Grid:
    """A grid without dims of one position."""
    ids = grid.ids
    for dim in sorted(gone & set(grid.dims), reverse=True):
        ids = np.asarray(ids.take(0, axis=grid.dims.index(dim)))
    return Grid(tuple(dim for dim in grid.dims if dim not in gone), ids)


def _unsqueeze(flow: Flow, op: Operation) -> None:
    at = op.args[1] % op.out.ndim
    flow.put(op.out, flow.of(op.args[0]).moved(lambda dim: dim + (dim >= at)))


def _view_as_complex(flow: Flow, op: Operation) -> None:
    """Pairs become one number: they can only leave together."""
    labels, last = flow.of(op.args[0]), op.args[0].ndim - 1
    grids = []
    for grid in labels.grids:
        if last not in grid.dims or grid.hidden:
            grids.append(grid.without([last]) if last in grid.dims else grid)
            continue
        pairs = grid.over([dim for dim in grid.dims if dim != last])
        if len(grid.dims) == 1:
            flow.fix([grid], "they are the two parts of a complex number")
        else:
            flow.link(pairs[..., 1:], pairs[..., :1], "they are the two parts of a complex number")
            grids.append(Grid(grid.dims[:-1], pairs[..., 0]))
    flow.put(op.out, Labels(tuple(grid for grid in grids if grid is not None), labels.wild - {last}))


def _view_as_real(flow: Flow, op: Operation) -> None:
    labels = flow.of(op.args[0])
    flow.put(op.out, Labels(labels.grids, labels.wild | {op.out.ndim - 1}))


def _cat(flow: Flow, op: Operation) -> None:
    tensors = [tensor for tensor in op.args[0] if tensor.numel()]
    dim = op.argument("dim", 0) % op.out.ndim
    parts = [flow.of(tensor) for tensor in tensors]
    others = [Labels(tuple(g for g in part.grids if dim not in g.dims), part.wild | {dim}) for part in parts]
    joined = join(flow, others, op.out.shape, "a concatenation")
    shapes = {grid.dims for part in parts for grid in part.at(dim)}
    grids = [_concatenated(flow, parts, tensors, dims, dim) for dims in shapes]
    wild = joined.wild - {dim}
    flow.put(op.out, Labels((*joined.grids, *(grid for grid in grids if grid is not None)), wild))


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


def _stack(flow: Flow, op: Operation) -> None:
    at = op.argument("dim", 0) % op.out.ndim
    parts = [flow.of(tensor).moved(lambda dim: dim + (dim >= at)) for tensor in op.args[0]]
    grids = [part.grids[0] for part in parts if len(part.grids) == 1]
    if len(grids) == len(parts) > 1 and all(flow.share_blocks(grids[0], grid) for grid in grids[1:]):
        flow.found.whole.append(np.concatenate([grid.ids.ravel() for grid in grids]))
        order = sorted((*grids[0].dims, at))
        ids = np.stack([grid.ids for grid in grids], axis=order.index(at))
        flow.put(op.out, Labels((Grid(tuple(order), ids),), frozenset.intersection(*(part.wild for part in parts))))
        return
    flow.put(op.out, join(flow, [Labels(part.grids, part.wild | {at}) for part in parts], op.out.shape, "a stack"))


def _pad(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    changed = {dim for dim in range(x.ndim) if x.shape[dim] != op.out.shape[dim]}
    labels = flow.of(x)
    for dim in changed:
        flow.fix(labels.at(dim), "they are padded")
    grids = tuple(grid for grid in labels.grids if not changed & set(grid.dims))
    flow.put(op.out, Labels(grids, labels.wild - changed))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), _permute),
    "expand": _expand,
    "repeat": _repeat,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "copy": _copy,
}
