"""Operators that keep the place of what goes in, or take places together: pointwise, sums, running sums."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.graph.flow import Flow
from prunekit.graph.labels import Labels
from prunekit.graph.operators.common import Rule, aligned, argument, join, name_of, tensors_in

__all__ = ["RULES", "pointwise", "unknown"]


def unknown(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """What is not listed: nothing that reaches it can be pruned."""
    for tensor in tensors_in(args, dict(kwargs)):
        flow.fix(flow.of(tensor).grids, f"they go through {name_of(func)}, which is not known how to follow")


def _nothing(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """The result says nothing about channels (shapes, comparisons of scalars, positions made by counting)."""


def _count(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Numbers from 0 on may be those of a tensor's channels, see :func:`prunekit.graph.operators.picking._diagonal`."""
    start, step = argument(func, args, kwargs, "start", 0), argument(func, args, kwargs, "step", 1)
    if start == 0 and step == 1 and len(out) > 1 and not out.is_floating_point():
        flow.put(out, Labels(counted=flow.new_ids(len(out))))


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


def _filled_like(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """One value everywhere, in a shape that shrinks with another tensor's."""
    grids = (grid for grid in flow.of(args[0]).grids if all(out.shape[dim] > 1 for dim in grid.dims))
    flow.put(out, Labels(tuple(grids), frozenset(range(out.ndim))))


def pointwise(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Tensors that are broadcast and lie on each other."""
    results = tensors_in(out)
    if not results:
        return
    shape = results[0].shape
    parts = [aligned(flow, tensor, shape) for tensor in tensors_in(args, dict(kwargs)) if tensor.ndim]
    joined = join(flow, parts, shape, name_of(func))
    joined = Labels(joined.grids, joined.wild, tuple(ids for part in parts for ids in part.queries))
    for result in results:
        flow.put(result, joined)


def _reduce(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    x = args[0]
    dims = argument(func, args, kwargs, "dim")
    dims = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % max(x.ndim, 1) for dim in dims}
    labels = flow.of(x)
    kept = [dim for dim in range(x.ndim) if dim not in gone]
    grids = [grid.without(gone) for grid in labels.grids]
    for result in tensors_in(out):
        place = (lambda dim: dim) if result.ndim == x.ndim else kept.index
        flow.put(result, Labels(tuple(grid for grid in grids if grid), labels.wild - gone).moved(place))


def _extreme(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """A reduction that zeros would change: what lies along it can only be there as a whole."""
    x = args[0]
    if len(tensors_in(args)) > 1:
        pointwise(flow, func, args, kwargs, out)  # the larger of two tensors
        return
    dims = argument(func, args, kwargs, "dim")
    dims = [dims] if isinstance(dims, int) else dims or range(x.ndim)
    labels = flow.of(x)
    for grid in labels.grids:
        gone = {dim % x.ndim for dim in dims} & set(grid.dims)
        if gone:
            flow.collapse(grid, gone, f"they go through {name_of(func)}")
    _reduce(flow, func, args, kwargs, out)


def _along(flow: Flow, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Running sums and the like: what comes first changes what comes later."""
    x = args[0]
    dim = argument(func, args, kwargs, "dim", 0) % x.ndim
    flow.fix(flow.of(x).at(dim), f"they go through {name_of(func)}")
    for result in tensors_in(out):
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
