"""Operators that keep the place of what goes in, or take places together: pointwise, sums, running sums."""

from collections.abc import Mapping

from prunekit.graph.flow import Flow
from prunekit.graph.labels import Labels
from prunekit.graph.operators.common import Operation, Rule, aligned, join, tensors_in

__all__ = ["RULES", "pointwise", "unknown"]


def unknown(flow: Flow, op: Operation) -> None:
    """What is not listed: nothing that reaches it can be pruned."""
    for tensor in op.tensors:
        flow.fix(flow.of(tensor).grids, f"they go through {op.name}, which is not known how to follow")


def _nothing(flow: Flow, op: Operation) -> None:
    """The result says nothing about channels (shapes, comparisons of scalars, positions made by counting)."""


def _count(flow: Flow, op: Operation) -> None:
    """Numbers from 0 on may be those of a tensor's channels, see :func:`prunekit.graph.operators.picking._diagonal`."""
    start, step = op.argument("start", 0), op.argument("step", 1)
    if start == 0 and step == 1 and len(op.out) > 1 and not op.out.is_floating_point():
        flow.put(op.out, Labels(counted=flow.new_ids(len(op.out))))


def _same(flow: Flow, op: Operation) -> None:
    flow.put(op.out, flow.of(op.args[0]))


def _softmax(flow: Flow, op: Operation) -> None:
    """What is made to sum to one leaves together: each channel of it depends on all others."""
    labels = flow.of(op.args[0])
    flow.found.perhaps += labels.queries
    dim = op.args[1] % op.args[0].ndim
    for grid in labels.at(dim):
        flow.collapse(grid, [dim], "they are made to sum to one")
    flow.put(op.out, Labels(labels.grids, labels.wild))


def _filled(flow: Flow, op: Operation) -> None:
    flow.put(op.out, Labels((), frozenset(range(op.out.ndim))))


def _filled_like(flow: Flow, op: Operation) -> None:
    """One value everywhere, in a shape that shrinks with another tensor's."""
    grids = (grid for grid in flow.of(op.args[0]).grids if all(op.out.shape[dim] > 1 for dim in grid.dims))
    flow.put(op.out, Labels(tuple(grids), frozenset(range(op.out.ndim))))


def pointwise(flow: Flow, op: Operation) -> None:
    """Tensors that are broadcast and lie on each other."""
    results = op.results
    if not results:
        return
    shape = results[0].shape
    parts = [aligned(flow, tensor, shape) for tensor in op.tensors if tensor.ndim]
    joined = join(flow, parts, shape, op.name)
    joined = Labels(joined.grids, joined.wild, tuple(ids for part in parts for ids in part.queries))
    for result in results:
        flow.put(result, joined)


def _reduce(flow: Flow, op: Operation) -> None:
    x = op.args[0]
    dims = op.argument("dim")
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % max(x.ndim, 1) for dim in dims}
    labels = flow.of(x)
    kept = [dim for dim in range(x.ndim) if dim not in gone]
    grids = [grid.without(gone) for grid in labels.grids]
    for result in op.results:
        place = (lambda dim: dim) if result.ndim == x.ndim else kept.index
        flow.put(result, Labels(tuple(grid for grid in grids if grid), labels.wild - gone).moved(place))


def _extreme(flow: Flow, op: Operation) -> None:
    """A reduction that zeros would change: what lies along it can only be there as a whole."""
    x = op.args[0]
    if len(tensors_in(op.args)) > 1:
        pointwise(flow, op)  # the larger of two tensors
        return
    dims = op.argument("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(x.ndim)
    labels = flow.of(x)
    for grid in labels.grids:
        gone = {dim % x.ndim for dim in dims} & set(grid.dims)
        if gone:
            flow.collapse(grid, gone, f"they go through {op.name}")
    _reduce(flow, op)


def _along(flow: Flow, op: Operation) -> None:
    """Running sums and the like: what comes first changes what comes later."""
    x = op.args[0]
    dim = op.argument("dim", 0) % x.ndim
    flow.fix(flow.of(x).at(dim), f"they go through {op.name}")
    for result in op.results:
        flow.put(result, flow.of(x))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "alias",
            "detach",
            "clone",
            "_to_copy",
            "contiguous",
            "lift_fresh",
            "lift",
            "rand_like",
            "randn_like",
            "empty_like",
            "_conj",
            "bernoulli",
            "native_dropout",
            "resolve_conj",
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            "empty",
            "new_empty",
            "zeros",
            "ones",
            "full",
            "new_zeros",
            "new_ones",
            "new_full",
            "scalar_tensor",
        ),
        _filled,
    ),
    "arange": _count,
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), _filled_like),
    **dict.fromkeys(("linspace", "randn", "rand", "eye"), _nothing),
    **dict.fromkeys(("_local_scalar_dense", "sym_size", "equal", "is_same_size"), _nothing),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("mean", "sum", "var", "std", "var_mean", "linalg_vector_norm", "norm"), _reduce),
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "logsumexp"), _extreme),
    **dict.fromkeys(("cumsum", "cumprod"), _along),
    "_prelu_kernel": pointwise,
}
