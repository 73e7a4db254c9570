"""What is known of the positions of one tensor: which ids they stand for, see :mod:`prunekit.graph.flow`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunekit._types import IntArray

__all__ = ["FIXED", "Findings", "Grid", "Labels", "Product", "Rectangle"]

FIXED = 0
"""The id of positions that can never be removed."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Which id the positions along some dimensions of a tensor stand for.

    Args:
        dims: ascending dimensions of the tensor.
        ids: shape (size of each dim …), or one axis more: all the ids that lie behind a position, after a sum over them.
    """

    dims: tuple[int, ...]
    ids: IntArray

    @property
    def hidden(self) -> bool:
        """Whether ids were summed over: their positions are gone from the tensor, and their order still binds it."""
        return self.ids.ndim > len(self.dims)

    def moved(self, where: Callable[[int], int]) -> "Grid":
        """The same grid on other dimensions."""
        new = [where(dim) for dim in self.dims]
        order = [int(i) for i in np.argsort(new)]
        rest = range(len(new), self.ids.ndim)
        return Grid(tuple(new[i] for i in order), self.ids.transpose(*order, *rest))

    def over(self, dims: Sequence[int]) -> IntArray:
        """Ids with these dims as leading axes, and all else flattened behind them: shape (…, k)."""
        lead = [self.dims.index(dim) for dim in dims]
        rest = [axis for axis in range(self.ids.ndim) if axis not in lead]
        return self.ids.transpose(*lead, *rest).reshape(*(self.ids.shape[axis] for axis in lead), -1)

    def without(self, dims: Iterable[int]) -> "Grid | None":
        """After a sum over some of the dims; None where no dim is left."""
        kept = [dim for dim in self.dims if dim not in set(dims)]
        if not kept:
            return None
        ids = self.over(kept)
        return Grid(tuple(kept), ids if len(kept) < len(self.dims) or self.hidden else ids[..., 0])


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of one tensor.

    Args:
        grids: its ids; grids may share dimensions.
        wild: dimensions along which it is the same everywhere, by broadcasting or by being filled with one value.
        queries: for what may be an attention's scores, the ids that were summed over.
        counted: for the numbers 0, 1, 2, …, one id each: as many stay as ids do, and they count from 0 again.
    """

    grids: tuple[Grid, ...] = ()
    wild: frozenset[int] = frozenset()
    queries: tuple[IntArray, ...] = ()
    counted: IntArray | None = None

    def at(self, dim: int) -> list[Grid]:
        """The grids that a dimension takes part in."""
        return [grid for grid in self.grids if dim in grid.dims]

    def moved(self, where: Callable[[int], int]) -> "Labels":
        """The same labels on other dimensions."""
        return Labels(tuple(grid.moved(where) for grid in self.grids), frozenset(map(where, self.wild)), self.queries)


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Ids that a reshape or a split has put on several axes: what is removed must leave a rectangle.

    Args:
        module: name of the module that was running.
        ids: one axis for each factor.
        fixed: whether the length of the first axis is fixed, as the number of parts of a split is.
        inner: whether it lies within the blocks of another one (halves of a head that is rotated): blocks that leave whole keep it.
    """

    module: str
    ids: IntArray
    fixed: bool
    inner: bool = False


@dataclass(frozen=True, eq=False)
class Product:
    """Multiply-accumulates of one operator call: ``scale`` times the numbers of ids that stay of each factor, over ``rows``.

    Args:
        module: name of the module that was running.
        operator: aten operator.
        scale: positions and kernel.
        factors: ids, any shape.
        rows: leading rows that the first two factors share (heads), 1 for none.
        hidden: whether the last axis of each factor has all ids that lie behind a position.
    """

    module: str
    operator: str
    scale: int
    factors: tuple[IntArray, ...]
    rows: int = 1
    hidden: bool = False


@dataclass(eq=False)
class Findings:
    """What one pass says about ids.

    Args:
        same: pairs of equally long ids that are the same thing.
        fixed: ids that can never be removed, with the reason.
        rectangles: ids on several axes.
        norms: module, channels and number of norm groups of group norms without weights.
        queries: what an attention divides by the root of how many of them a head has.
        perhaps: the same of attentions that are written out, of which nobody knows the divisor.
        products: everything that multiplies.
        whole: ids on several axes, of which only whole blocks along the first one can leave: the others meet something of a fixed
            size, as the channels of a head meet rotary positions.
        made: ids of weights' axes that some product gives to its result.
        deciding: names of modules in which shapes depend on values, as where tokens are sent to experts.
    """

    same: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    fixed: list[tuple[IntArray, str]] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    norms: list[tuple[str, IntArray, int]] = field(default_factory=list)
    queries: list[IntArray] = field(default_factory=list)
    perhaps: list[IntArray] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    whole: list[IntArray] = field(default_factory=list)
    made: list[IntArray] = field(default_factory=list)
    deciding: set[str] = field(default_factory=set)
