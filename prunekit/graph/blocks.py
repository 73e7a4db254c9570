"""Channels as a table of blocks, read off the grid that a reshape puts them into."""

import numpy as np

from prunekit._types import IntArray

__all__ = ["same_blocks", "table_of"]


def table_of(grid: IntArray) -> IntArray | None:
    """Root channels as a table (blocks, within), each once, from a grid with repeats; None where there is none.

    Axes along which nothing changes are left out; where only one is left, the first of the grid makes a column of blocks (heads
    that leave as one), and any other a single row.
    """
    axes = list(range(grid.ndim))
    for axis in reversed(range(grid.ndim)):
        if len(axes) > 1 and (grid == grid.take([0], axis=axes.index(axis))).all():
            grid = np.asarray(grid.take(0, axis=axes.index(axis)))
            axes.remove(axis)
    if len(axes) == 1:
        line = _once(grid)
        return None if line is None else line[:, None] if axes[0] == 0 else line[None]
    lines = [_once(row) for row in grid.reshape(-1, grid.shape[-1])]
    if any(line is None or len(line) != len(lines[0]) for line in lines):  # type: ignore[arg-type]
        return None
    table = np.array(lines, dtype=np.int64)
    _, first = np.unique(table, axis=0, return_index=True)
    table = table[np.sort(first)]
    return table if table.size == len(np.unique(table)) else None


def _once(line: IntArray) -> IntArray | None:
    """Each value once, in order; None where some stand more often than others."""
    _, first, counts = np.unique(line, return_index=True, return_counts=True)
    return line[np.sort(first)] if (counts == counts[0]).all() else None


def same_blocks(a: IntArray, b: IntArray) -> bool:
    """Whether two tables hold the same root channels in each row, in whatever order."""
    return a.shape == b.shape and bool((np.sort(a, axis=1) == np.sort(b, axis=1)).all())
