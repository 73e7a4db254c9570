"""Which channels are queries, whose products an attention divides by the root of their number."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prunekit._types import BoolArray, IntArray
from prunekit.graph.families import queries_of
from prunekit.graph.found import PRODUCERS, Found
from prunekit.graph.labels import FIXED

if TYPE_CHECKING:
    from prunekit.graph.channels import Channels

__all__ = ["Asking"]


class Asking:
    """What the attentions of a network ask for.

    Args:
        channels: of the network.
    """

    def __init__(self, channels: "Channels") -> None:
        self.channels = channels

    def asks(self, found: Found) -> bool:
        """Whether an attention that is written out may divide by the width of these channels."""
        return self.channels.is_among(found, self._asks[1] & ~self._asks[0])

    @cached_property
    def attended(self) -> IntArray:
        """Components of what products of two activations sum over."""
        products = [p for p in self.channels.flow.found.products if p.operator in ("bmm", "baddbmm")]
        factors = [ids.ravel() for p in products for ids in p.factors]
        ids = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *factors]))[1:]
        return np.unique(self.channels.component[ids])

    def queries(self, found: Found, perhaps: bool) -> Iterator[tuple[str, IntArray]]:
        """Layers and positions that make this group's queries."""
        root, asking = self.channels.roots(found.components), self._asks[int(perhaps)]
        for axis in (self.channels.axes[place] for place in found.axes):
            own = self.channels.flow.axes[axis.tensor, axis.dim]
            if axis.axis == "out" and axis.kind in PRODUCERS and axis.tensor.endswith("weight"):
                mine = (root[self.channels.component[own]] >= 0) & asking[own]
                if mine.any():
                    yield axis.layer, np.flatnonzero(mine)

    @cached_property
    def _asks(self) -> tuple[BoolArray, BoolArray]:
        """Whether each id is certainly a channel of a query, and perhaps, each of shape (ids,)."""
        asks = np.zeros((2, self.channels.flow.count), dtype=bool)
        for ids in self.channels.flow.found.queries:
            asks[:, ids.ravel()] = True
        for ids in self.channels.flow.found.perhaps:
            asks[1, ids.ravel()] = True
        for layer in queries_of(self.channels.model):
            asks[:, self.channels.flow.axes.get((f"{layer}.weight", 0), [])] = True
        asks[:, FIXED] = False
        return asks[0], asks[1]
