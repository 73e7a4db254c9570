"""The multiple-choice knapsack, solved exactly: one recorded point per group, with the least loss within a capacity."""

from collections.abc import Sequence

import numpy as np

from prunekit._types import FloatArray, IntArray

__all__ = ["choose_points"]

_ROUNDING = 1e-12  # times the largest sum of losses: sums in different orders may differ by this much


def choose_points(weights: Sequence[IntArray], losses: Sequence[FloatArray], capacity: int) -> tuple[int, ...]:
    """Index of one point per group, of least total loss among all whose total weight is at most the capacity.

    Groups are merged one after the other. A partial sum is kept only if no other beats it in both weight and loss (dynamic
    programming by lists: Kellerer, Pferschy and Pisinger, *Knapsack Problems*, 2004, chapter 11), and if the linear relaxation of
    the remaining groups could still bring it below the best known solution. Neither rule drops the optimum, so the result is exact
    up to the rounding of float sums; the second rule keeps the lists short.

    Args:
        weights: weights of each group's points, rising, shape (points,).
        losses: losses of each group's points, falling, shape (points,).
        capacity: at least the sum of the groups' smallest weights.
    """
    best = _rounded_relaxation(weights, losses, capacity)
    best += _ROUNDING * sum(float(np.abs(loss).max()) for loss in losses)
    weight, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[
        tuple[IntArray, IntArray]
    ] = []  # per group: the partial sum that each was made from, and the point added
    for g in range(len(weights)):
        breaks, least = _relaxed(weights[g + 1 :], losses[g + 1 :])
        sums = (weight[:, None] + weights[g]).ravel()
        totals = (loss[:, None] + losses[g]).ravel()
        fits = np.flatnonzero(sums <= capacity - breaks[0])
        hopeful = fits[totals[fits] + np.interp(capacity - sums[fits], breaks, least) <= best]
        order = hopeful[np.lexsort((totals[hopeful], sums[hopeful]))]
        lowest = np.minimum.accumulate(totals[order])
        kept = order[np.concatenate([[True], totals[order][1:] < lowest[:-1]])]
        weight, loss = sums[kept], totals[kept]
        steps.append((kept // len(weights[g]), kept % len(weights[g])))
    state, chosen = int(np.argmin(loss)), []
    for parent, point in reversed(steps):
        chosen.append(int(point[state]))
        state = int(parent[state])
    return tuple(reversed(chosen))


def _segments(weights: Sequence[IntArray], losses: Sequence[FloatArray]) -> list[tuple[float, int, int, float]]:
    """The pieces of the groups' lower convex hulls, steepest first: (−slope, group, rise of the weight, fall of the loss)."""
    found = []
    for g, (weight, loss) in enumerate(zip(weights, losses, strict=True)):
        corner = 0
        while corner < len(weight) - 1:
            rise, fall = weight[corner + 1 :] - weight[corner], loss[corner] - loss[corner + 1 :]
            slopes = fall / rise
            ahead = int(np.flatnonzero(slopes == slopes.max())[-1])
            found.append((-float(slopes[ahead]), g, int(rise[ahead]), float(fall[ahead])))
            corner += ahead + 1
    return sorted(found, key=lambda segment: segment[0])


def _relaxed(weights: Sequence[IntArray], losses: Sequence[FloatArray]) -> tuple[IntArray, FloatArray]:
    """Least loss of the linear relaxation as a function of the capacity, piecewise linear and convex: breakpoints and values."""
    segments = _segments(weights, losses)
    breaks = np.cumsum([sum(int(weight[0]) for weight in weights), *(segment[2] for segment in segments)])
    values = np.cumsum([sum(float(loss[0]) for loss in losses), *(-segment[3] for segment in segments)])
    return np.asarray(breaks, dtype=np.int64), np.asarray(values, dtype=np.float64)


def _rounded_relaxation(weights: Sequence[IntArray], losses: Sequence[FloatArray], capacity: int) -> float:
    """Loss of a feasible solution: the relaxation's, with each group rounded down to its last corner that fits."""
    room = capacity - sum(int(weight[0]) for weight in weights)
    total = sum(float(loss[0]) for loss in losses)
    stopped: set[int] = set()
    for _, g, rise, fall in _segments(weights, losses):
        if g in stopped or rise > room:
            stopped.add(g)
            continue
        room -= rise
        total -= fall
    return total
