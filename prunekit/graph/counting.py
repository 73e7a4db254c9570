"""Numbers of channels that stay, as functions of the widths of channel groups."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from prunekit._types import IntArray
from prunekit.graph.labels import FIXED, Product
from prunekit.graph.structure import ChannelGroup
from prunekit.graph.terms import Term, Width

__all__ = ["Count"]


@dataclass(frozen=True, eq=False)
class Count:
    """Counts ids by channel group.

    Args:
        place: group of every component, −1 for none.
        component: of every id, shape (ids,); −1 for what can never be removed.
        groups: the channel groups.
    """

    place: IntArray
    component: IntArray
    groups: tuple[ChannelGroup, ...]

    def width(self, ids: IntArray | None, divisor: int = 1) -> Width:
        """Number of these ids that stay."""
        if ids is None:
            return Width()
        flat = self.place[self.component[ids.ravel()]]
        numbers = np.bincount(flat[flat >= 0], minlength=len(self.groups))
        shares = {int(g): Fraction(int(numbers[g]), self.groups[int(g)].size) for g in np.flatnonzero(numbers)}
        parts = math.lcm(*(share.denominator for share in shares.values()))
        by_group = {g: int(share * parts) for g, share in shares.items()}
        return Width(int((flat < 0).sum()) * parts, by_group, divisor * parts)

    def _positions(self, ids: IntArray) -> IntArray:
        """An id for each position behind which several lie, shape (..., k) to (...): the position leaves only if all of them do.

        That is so where they are the same thing, or a head that leaves whole.
        """
        components = self.component[ids]
        groups = self.place[components]
        is_whole = np.array([*(group.whole for group in self.groups), False])[groups[..., 0]]
        leaves = (components == components[..., :1]).all(-1) | (is_whole & (groups == groups[..., :1]).all(-1))
        return np.where(leaves, ids[..., 0], FIXED)

    def product(self, product: Product) -> Term:
        """The term of a product; heads that two factors share are counted once."""
        factors = [self._positions(ids) if product.hidden else ids for ids in product.factors]
        widths, scale, rows = [self.width(ids) for ids in factors], product.scale, product.rows
        if rows > 1 and any(self.groups[g].whole for g in widths[1].by_group):  # what stays of a head is all of it
            widths[1] = Width(factors[1].size // rows)
        elif rows > 1:
            widths[1] = replace(widths[1], divisor=widths[1].divisor * rows)
        moving = [width for width in widths if width.by_group]
        still = [*(width for width in widths if not width.by_group), *moving[2:]]  # a third would make it trilinear
        full = np.array([group.size for group in self.groups])
        scale *= math.prod(width(full) for width in still)
        return Term(product.module, product.operator, scale, *moving[:2])
