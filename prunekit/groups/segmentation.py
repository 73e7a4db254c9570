r"""Exact partitions into contiguous intervals: dynamic programming over any cost that is a sum over intervals.

With C(i, j) the cost of interval [i, j), the least cost of cutting [0, j) into k intervals is

.. math:: B_k(j) = \min_{i < j} B_{k-1}(i) + C(i, j),

This is optimal and takes N·n² steps for N intervals of n nodes; no solver is needed (Bellman, 1961).
"""

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.errors import InputError

__all__ = ["FINEST", "best_intervals", "dissimilarity_costs", "finely", "partition_cost"]

FINEST = 1000
"""Largest number of nodes that cuts can lie on: every timestep up to T = 1000, above that every T/1000-th."""


def best_intervals(costs: FloatArray, count: int) -> tuple[int, ...]:
    """Inner borders of the cheapest cut of 0 … n into ``count`` non-empty intervals.

    Ties are broken by the smallest last border, then the smallest border before it, and so on.

    Args:
        costs: cost of interval [i, j) at row i and column j, shape (n + 1, n + 1); only entries with i < j are used.
        count: number of intervals, 1 … n.

    Returns:
        ``count − 1`` rising numbers strictly between 0 and n.

    Raises:
        InputError: the count is impossible.

    Example:
        >>> points = np.array([0.0, 0.1, 5.0, 5.1, 9.0])
        >>> costs = [[points[i:j].var() * (j - i) if i < j else 0.0 for j in range(6)] for i in range(6)]
        >>> best_intervals(np.array(costs), 3)
        (2, 4)
    """
    nodes = len(costs) - 1
    if not 1 <= count <= nodes:
        raise InputError(f"Got {count} intervals for {nodes} nodes; expected 1 … {nodes}.")
    allowed = np.where(np.triu(np.ones(costs.shape, dtype=bool), 1), costs, np.inf)
    best = allowed[0]
    origins: list[IntArray] = []
    for _ in range(count - 1):
        sums = best[:, None] + allowed
        origins.append(sums.argmin(axis=0))
        best = np.take_along_axis(sums, origins[-1][None], axis=0)[0]
    cuts: list[int] = []
    for origin in reversed(origins):
        cuts.append(int(origin[cuts[-1] if cuts else nodes]))
    return tuple(reversed(cuts))


def dissimilarity_costs(similarity: FloatArray) -> FloatArray:
    r"""Cost of every interval: :math:`C(i,j) = \frac{1}{j-i}\sum_{a,b\in[i,j)} (1 - S(a,b))`.

    This is the interval's length times its mean dissimilarity, so every timestep counts once, with its mean dissimilarity to the
    timesteps of its interval. The cost is this project's choice; papers that cut by gradients sum over pairs, with and without
    division by the length.

    Args:
        similarity: S, symmetric, shape (n, n).

    Returns:
        Shape (n + 1, n + 1), for :func:`best_intervals`.
    """
    nodes = len(similarity)
    sums = np.zeros((nodes + 1, nodes + 1))
    np.cumsum(np.cumsum(1.0 - similarity, axis=0), axis=1, out=sums[1:, 1:])
    corner = np.diagonal(sums)
    inside = corner[None, :] - sums - sums.T + corner[:, None]
    places = np.arange(nodes + 1)
    return np.asarray(np.triu(inside, 1) / np.maximum(places[None, :] - places[:, None], 1))


def partition_cost(costs: FloatArray, cuts: tuple[int, ...]) -> float:
    """Cost of the intervals between 0, the cuts and n."""
    edges = np.array([0, *cuts, len(costs) - 1])
    return float(costs[edges[:-1], edges[1:]].sum())


def finely(values: FloatArray, at: IntArray, num_timesteps: int) -> FloatArray:
    """Interpolate curves or maps linearly to evenly spread timesteps: all T, or :data:`FINEST` of them if T is larger.

    Args:
        values: shape (nodes,), or (nodes, nodes).
        at: the nodes' timesteps, shape (nodes,), rising.
        num_timesteps: T.

    Returns:
        Shape (n,) or (n, n) with n = min(T, FINEST); node i covers the timesteps from ⌈i·T/n⌉ up to the start of node i + 1.
    """
    nodes = min(num_timesteps, FINEST)
    wanted = (np.arange(nodes) + 0.5) * num_timesteps / nodes - 0.5
    place = np.interp(wanted, at, np.arange(len(at)))
    low = np.minimum(place.astype(np.int64), max(len(at) - 2, 0))
    high, part = np.minimum(low + 1, len(at) - 1), place - low
    rows = values[low] * (1 - part).reshape(-1, *[1] * (values.ndim - 1))
    rows = rows + values[high] * part.reshape(-1, *[1] * (values.ndim - 1))
    if values.ndim == 1:
        return np.asarray(rows)
    return np.asarray(rows[:, low] * (1 - part) + rows[:, high] * part)
