"""Sets of channels that leave together, and the axes that they are on, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.graph.blocks import same_blocks
from prunekit.graph.labels import Findings, Rectangle
from prunekit.graph.layers import Kind
from prunekit.graph.structure import Axis

__all__ = ["PRODUCERS", "AxisOf", "Found", "Roots", "cuts_blocks", "tied_tensors", "touching"]

PRODUCERS = ("conv", "linear", "transposed", "embedding")
"""Kinds of layers that make channels."""


@dataclass(frozen=True, eq=False)
class Found:
    """Channels that leave together: components of ids with the same axes.

    Args:
        name: see :class:`ChannelGroup`.
        layer: module name of the first layer that makes them.
        start: first of its positions.
        components: one for each root channel, in order, shape (size,).
        axes: places, in the run's list, of the axes that they are on.
        heads: number of contiguous blocks that must stay equal or leave whole, None for none.
        fixed_parts: whether the number of blocks is fixed.
        modules: modules that reshape the channels into these blocks.
        bound: whether only whole blocks can leave.
    """

    name: str
    layer: str
    start: int
    components: IntArray
    axes: tuple[int, ...]
    heads: int | None
    fixed_parts: bool
    modules: tuple[str, ...]
    bound: bool = False


class Roots:
    """Which root channel each component is.

    Args:
        components: of the root channels, in order, each once.
    """

    def __init__(self, components: IntArray) -> None:
        self._order = np.argsort(components)
        self._sorted = components[self._order]

    def __getitem__(self, components: IntArray) -> IntArray:
        """Root channels of components, −1 for others, of the same shape."""
        place = np.searchsorted(self._sorted, components).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[place] == components, self._order[place], -1)


@dataclass(frozen=True)
class AxisOf:
    """One axis of one tensor.

    Args:
        tensor: its name.
        dim: its dimension.
        layer: the layer that this is an axis of, the tensor where there is none.
        axis: the layer's axis.
        kind: the layer's.
    """

    tensor: str
    dim: int
    layer: str
    axis: Axis
    kind: Kind | None


def cuts_blocks(rows: IntArray | None, fixed: bool, blocks: IntArray) -> bool:
    """Whether what lies within blocks is only kept by whole blocks."""
    return rows is None or (not (fixed and 1 in rows.shape) and not same_blocks(rows, blocks))


def touching(sets: Sequence[IntArray], component: IntArray, findings: Findings) -> list[tuple[list[Rectangle], bool]]:
    """For each set of components, the rectangles that have any of them, and whether any of them only leaves in whole blocks.

    Args:
        sets: disjoint sets of components.
        component: of every id, −1 for what can never be removed.
        findings: what the pass has said.
    """
    owner = np.full(int(component.max(initial=0)) + 2, -1, dtype=np.int64)  # the last is for what can never be removed
    for place, components in enumerate(sets):
        owner[components] = place
    owner = owner[component]
    rectangles: list[list[Rectangle]] = [[] for _ in sets]
    for rectangle in sorted(findings.rectangles, key=lambda rectangle: rectangle.inner):
        owners = np.unique(owner[rectangle.ids])
        for place in owners[owners >= 0]:
            rectangles[place].append(rectangle)
    whole = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(owner[ids] for ids in findings.whole)]))
    return [(mine, bool(place in whole)) for place, mine in enumerate(rectangles)]


def tied_tensors(model: nn.Module) -> dict[str, str]:
    """Tensors that several layers share, by each of their names, with the first layer's."""
    names: dict[Tensor, list[str]] = {}
    for layer, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(f"{layer}.{name}" if layer else name)
    shared = [same for same in names.values() if len(same) > 1]
    return {name: same[0].rpartition(".")[0] for same in shared for name in same}
