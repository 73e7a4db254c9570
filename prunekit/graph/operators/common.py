"""What the rules of operators have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunekit.graph.flow import Flow
from prunekit.graph.labels import Grid, Labels

__all__ = ["Rule", "aligned", "argument", "join", "name_of", "tensors_in"]

Rule = Callable[[Flow, Any, Sequence[Any], Mapping[str, Any], Any], None]
"""Takes the flow, the operator, its arguments by place and by name, and what it gave."""


def name_of(func: Any) -> str:
    """Name of an operator without namespace and overload."""
    name: str = func.name().removeprefix("aten::").split(".")[0]
    return name if name.startswith("__") else name.rstrip("_")


def tensors_in(*values: Any) -> list[Tensor]:
    """Tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def argument(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An argument by name, as the operator's schema places it."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) else kwargs.get(name, default)
    return default


def aligned(flow: Flow, tensor: Tensor, shape: Sequence[int]) -> Labels:
    """Labels of a tensor that is broadcast to a shape."""
    shift = len(shape) - tensor.ndim
    labels = flow.of(tensor).moved(lambda dim: dim + shift)
    stretched = {dim for dim in range(len(shape)) if dim < shift or (tensor.shape[dim - shift] == 1 and shape[dim] > 1)}
    return Labels(labels.grids, labels.wild | stretched, labels.queries)


def join(flow: Flow, parts: Sequence[Labels], shape: Sequence[int], what: str, apart: Iterable[int] = ()) -> Labels:
    """Labels of what is made of tensors that lie on each other, all broadcast to ``shape``; dims in ``apart`` are let be."""
    reason = f"they meet something of a fixed size in {what}"
    kept: list[Grid] = []
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            if flow.join_table(one, other) or flow.join_table(other, one):
                continue
            for a in one.grids:
                for b in other.grids:
                    flow.unify(a, b, reason)
        for grid in one.grids:
            bound = {d for d in set(grid.dims) - set(apart) if any(d not in o.wild and not o.at(d) for o in parts)}
            if not bound or flow.bind(grid, bound, reason):
                kept.append(grid)
    wild = frozenset(dim for dim in range(len(shape)) if all(dim in part.wild for part in parts))
    return Labels(tuple(kept), wild)
