"""Follow channels through one forward pass, operator by operator.

Every axis of every parameter and buffer has an *id* for each of its positions. Operators carry ids along: a convolution gives its
output channels the ids of its weight's first axis, and says that its input's ids and its weight's second axis are the same thing.
A reshape, a split or a concatenation moves ids; it never guesses. What the pass says is the same thing can only be removed
together; what meets something of a fixed size can never be removed. Below autograd, so that checkpointing, custom autograd
functions, compiled helpers and layer classes of one's own make no difference.

Ids of a tensor are held as *grids*: a grid over dimensions (1, 3) says which id each pair of positions stands for, as after
``view(batch, heads, length, width)`` of ids that were on one dimension.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from prunekit._types import IntArray
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import output_tensors
from prunekit.graph.labels import FIXED, Findings, Grid, Labels, Product, Rectangle
from prunekit.graph.layers import HEADS

__all__ = ["OTHERS", "Flow", "outputs_fixed"]

OTHERS = "*"
"""All modules that nothing is said of; the root, which may attend too, has no name."""

_PARTS = (2, 3, 4, 6, 9, 12)  # a table of so many rows is one of shifts, scales and gates


class Flow(TorchDispatchMode):
    """What is known of every tensor's ids; :class:`prunekit.graph.following.Following` carries them through what runs.

    Args:
        model: its parameters and buffers are the tensors whose axes have ids.
        deadline: when to give up.
        head_modes: how attentions are meant to shrink, ``whole`` heads or not, by module name; :data:`OTHERS` is for all others.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, deadline: Deadline, head_modes: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Findings()
        self._model = model
        self.module = ""
        self.head_modes = head_modes
        self.axes: dict[tuple[str, int], IntArray] = {}
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._sources[tensor] = name
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._derived: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._picked: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._blocks = np.zeros(0, dtype=np.int64)
        self._next = FIXED + 1
        self._deadline = deadline
        self.is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, what runs is not followed."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def fix_if_used(self, tensor: Tensor, grids: Sequence[Grid], reason: str) -> None:
        """Ids that cannot be removed if a tensor is computed with; code may only ask for its size."""
        if grids:
            self._picked[tensor] = (*self._picked.get(tensor, ()), (tuple(grids), reason))

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Say that tensors are computed with."""
        for tensor in tensors:
            for grids, reason in self._picked.pop(tensor, ()):
                self.fix(grids, reason)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer, or computed of nothing else."""
        return tensor in self._sources or tensor in self._derived

    def of(self, tensor: Any) -> Labels:
        """Labels of a tensor; a parameter or buffer that is seen first gets ids for all its axes."""
        if not isinstance(tensor, Tensor):
            return Labels()
        if tensor not in self._labels:
            name = self._sources.get(tensor)
            if name is None:
                return Labels()
            grids = [Grid((dim,), self.axis(name, dim, size)) for dim, size in enumerate(tensor.shape) if size > 1]
            self._labels[tensor] = Labels(tuple(grids))
        labels: Labels = self._labels[tensor]
        return labels

    def axis(self, name: str, dim: int, size: int) -> IntArray:
        """Ids of one axis of a parameter or buffer."""
        if (name, dim) not in self.axes:
            self.axes[name, dim] = self.new_ids(size)
        return self.axes[name, dim]

    def new_ids(self, size: int) -> IntArray:
        """Ids that no parameter or buffer has, of something that the network makes as it runs."""
        self._next += size
        return np.arange(self._next - size, self._next)

    @property
    def count(self) -> int:
        """Number of ids so far."""
        return self._next

    def put(self, tensor: Any, labels: Labels) -> None:
        """Say what is known of a result; grids that a larger one contains are dropped, and axes of one position have none."""
        if not isinstance(tensor, Tensor):
            return
        kept: list[Grid] = []
        shape = tensor.shape
        for grid in sorted(
            (_without_single(grid, shape) for grid in labels.grids), key=lambda grid: (-len(grid.dims), grid.hidden)
        ):
            if not any(set(grid.dims) <= set(other.dims) for other in kept):
                kept.append(grid)
        self._labels[tensor] = Labels(tuple(kept), labels.wild, labels.queries, labels.counted)

    def fix(self, grids: Iterable[Grid], reason: str) -> None:
        """Ids that can never be removed, with the reason."""
        for grid in grids:
            self.found.fixed.append((grid.ids.ravel(), reason))

    def bind(self, grid: Grid, dims: Iterable[int], reason: str) -> bool:
        """Some dims of a grid keep their size. Whole blocks along its first one may still leave, where that is another one.

        Returns:
            Whether they may; else all its ids are fixed.
        """
        if grid.hidden or len(grid.dims) < 2 or grid.dims[0] in dims:
            self.fix([grid], reason)
            return False
        self.found.whole.append(grid.ids.ravel())
        return True

    def link(self, a: IntArray, b: IntArray, reason: str) -> None:
        """Say that ids of equal shape are the same thing; what is linked to :data:`FIXED` is fixed, for the reason."""
        a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        bound = (a == FIXED) | (b == FIXED)
        if bound.any():
            self.found.fixed.append((np.concatenate([a[bound], b[bound]]), reason))
        free = ~bound & (a != b)
        if free.any():
            self.found.same.append((a[free], b[free]))

    def unify(self, a: Grid, b: Grid, reason: str) -> None:
        """Two grids lie on each other along the dims that they share.

        Where each has further ids behind a shared position (two factors of one attention head), those are matched one to one when
        there are equally many, so that a head keeps its shape; else all of them are one thing. A vector along one factor (one
        number per head, or per channel of every head) goes with what the attention is to lose: heads, or channels of each.
        """
        shared = [dim for dim in a.dims if dim in b.dims]
        if not shared:
            return
        for grid, vector in ((a, b), (b, a)):
            is_factor = len(vector.dims) == 1 and not vector.hidden and len(grid.dims) > 1 and not grid.hidden
            if is_factor and (vector.dims[0] == grid.dims[0]) != self.heads_leave:
                self.fix([vector], reason)
                return
        left, right = a.over(shared), b.over(shared)
        if self.share_blocks(a, b):
            self.found.whole.append(a.ids.ravel())  # whole blocks keep whatever lies within them
            return
        if left.shape[-1] != right.shape[-1] and 1 not in (left.shape[-1], right.shape[-1]):
            self.link(left[..., 1:], left[..., :1], reason)
            self.link(right[..., 1:], right[..., :1], reason)
            left, right = left[..., :1], right[..., :1]
        self.link(left, right, reason)

    @property
    def heads_leave(self) -> bool:
        """Whether the attention of the running module is meant to lose whole heads, and not channels of each."""
        return self.head_modes.get(self.module, self.head_modes[OTHERS]) == "whole"

    def note_blocks(self, grid: Grid) -> None:
        """A reshape has put ids into blocks along the first axis of a grid."""
        rows = np.broadcast_to(np.arange(len(grid.ids)).reshape(-1, *[1] * (grid.ids.ndim - 1)), grid.ids.shape)
        if len(self._blocks) < self.count:
            self._blocks = np.concatenate([self._blocks, np.zeros(self.count - len(self._blocks), dtype=np.int64)])
        self._blocks[grid.ids] = 1 + int(self._blocks.max(initial=0)) + rows

    def share_blocks(self, a: Grid, b: Grid) -> bool:
        """Whether two grids have ids of the same blocks in the same places, as a head and the same head rotated."""
        if a.dims != b.dims or a.hidden or b.hidden or len(a.dims) < 2 or a.ids.shape != b.ids.shape:
            return False
        if np.array_equal(a.ids, b.ids) or max(a.ids.max(), b.ids.max()) >= len(self._blocks):
            return False
        left, right = (self._blocks[one.ids].reshape(len(one.ids), -1) for one in (a, b))
        return bool((left > 0).all() and (left == left[:, :1]).all() and (right == left[:, :1]).all())

    def join_table(self, one: Labels, table: Labels) -> bool:
        """A table of parts and channels, such as shifts and scales, lies on channels that were put into parts: it has no heads.

        Returns:
            Whether that was the case.
        """
        if len(one.grids) != 1 or len(one.grids[0].dims) != 2 or one.grids[0].hidden:
            return False
        grid, vectors = one.grids[0], {g.dims: g for g in table.grids}
        parts, channels = vectors.get(grid.dims[:1]), vectors.get(grid.dims[1:])
        if (
            parts is None
            or channels is None
            or len(grid.ids) not in _PARTS
            or len(grid.ids) in self.heads_of(self.module)
        ):
            return False
        self.fix([parts], "they are a table's rows")
        self.link(
            grid.ids, np.broadcast_to(channels.ids, grid.ids.shape), "they meet something of a fixed size in a table"
        )
        self.found.rectangles.append(Rectangle(self.module, grid.ids, fixed=True))
        return True

    def heads_of(self, module: str) -> set[int]:
        """Numbers of heads that a module, or the one that it is in, keeps."""
        found = [self._model.get_submodule(name) for name in {module, module.rpartition(".")[0]}]
        kept = (vars(one).get(name) for one in found for name in HEADS)
        return {number for number in kept if isinstance(number, int)}

    def collapse(self, grid: Grid, dims: Iterable[int], reason: str) -> Grid | None:
        """Some dims of a grid can no longer be told apart (they became pixels): whatever lies along them is one thing."""
        kept = [dim for dim in grid.dims if dim not in set(dims)]
        if not kept:
            self.fix([grid], reason)
            return None
        ids = grid.over(kept)
        self.link(ids[..., 1:], ids[..., :1], reason)
        return Grid(tuple(kept), ids[..., 0])

    def count_product(
        self, func: OpOverload, scale: int, factors: Iterable[IntArray], rows: int = 1, hidden: bool = False
    ) -> None:
        """Note the multiply-accumulates of one operator call, see :class:`Product`."""
        name = func.name().removeprefix("aten::").split(".")[0]
        self.found.products.append(Product(self.module, name, scale, tuple(factors), rows, hidden))


def _without_single(grid: Grid, shape: Sequence[int]) -> Grid:
    """A grid over several dims without those of one position."""
    single = [dim for dim in grid.dims if shape[dim] == 1]
    if not single or len(single) == len(grid.dims):
        return grid
    ids = grid.ids
    for dim in reversed(single):
        ids = np.asarray(ids.take(0, axis=grid.dims.index(dim)))
    return Grid(tuple(dim for dim in grid.dims if dim not in single), ids)


def outputs_fixed(flow: Flow, output: Any) -> None:
    """Whatever reaches the network's output is never removed."""
    flow.use(output_tensors(output))
    for tensor in output_tensors(output):
        flow.fix(flow.of(tensor).grids, "its channels are the network's output")
