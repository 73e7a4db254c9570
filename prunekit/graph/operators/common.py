"""What the rules of operators have in common."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from prunekit._types import Args, Kwargs
from prunekit.graph.flow import Flow
from prunekit.graph.labels import Grid, Labels

__all__ = ["Operation", "Rule", "aligned", "join", "name_of", "tensors_in"]


def name_of(func: OpOverload) -> str:
    """Name of an operator without namespace and overload."""
    name: str = func.name().removeprefix("aten::").split(".")[0]
    return name if name.startswith("__") else name.rstrip("_")


def tensors_in(*values: object) -> list[Tensor]:
    """Tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Operation:
    """One call of an operator.

    Args:
        func: the operator.
        args: its arguments by place.
        kwargs: its arguments by name.
        out: what it returned.
    """

    func: OpOverload
    args: Args
    kwargs: Kwargs
    out: Any

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload."""
        return name_of(self.func)

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments."""
        return tensors_in(self.args, self.kwargs)

    @property
    def results(self) -> list[Tensor]:
        """Tensors among the results."""
        return tensors_in(self.out)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operator's schema, however it was given."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)
        return default


Rule = Callable[[Flow, Operation], None]
"""Says what becomes of the labels of an operator's inputs."""


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
