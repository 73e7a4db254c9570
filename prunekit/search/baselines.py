"""Proposers that decide at once and measure nothing, and the way from any wish to the target."""

from dataclasses import replace

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.search.targets import WidthProblem, meet_target
from prunekit.search.task import Task

__all__ = ["at_target", "oneshot", "uniform"]


def uniform(task: Task) -> IntArray:
    """The same fraction of channels kept everywhere, as nearly as legal widths at the target allow: the baseline.

    Scores decide which channels go, never how many: what is minimised is the squared deviation from the common fraction.
    """
    return at_target(task.widths, np.zeros(len(task.widths.graph)))


def oneshot(task: Task) -> IntArray:
    """Widths from the scores alone, in one decision: least importance lost at the target. Nothing is measured."""
    return meet_target(task.widths)


def at_target(problem: WidthProblem, removed: FloatArray) -> IntArray:
    """Steps of every group at the target, as near to a wish as legal widths allow.

    A wish says how the groups compare, and seldom costs the target. So it is taken less or more of: fractions run in proportion
    from nothing to the wish, and from there evenly to everything. Where they cost the target, the legal widths of least squared
    deviation are taken.

    Args:
        problem: the channel groups and the target.
        removed: fraction to remove of every group, shape (groups,), in [0, 1].

    Raises:
        BudgetError: even the smallest widths cost more than the target.
    """
    problem.check()
    sizes = problem.graph.full_widths

    def kept(position: float) -> FloatArray:
        return np.asarray(1 - removed * min(position, 1) - (1 - removed) * max(position - 1, 0))

    def nearest(position: float) -> IntArray:
        return np.asarray(np.abs(problem.width_table - (kept(position) * sizes)[:, None]).argmin(1))

    low, high = 0.0, 2.0
    for _ in range(31):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if problem.spent(nearest(middle)) > problem.target else (low, middle)
    deviation = [(g.widths / g.size - wish) ** 2 for g, wish in zip(problem.graph, kept(high), strict=True)]
    return meet_target(replace(problem, lost=deviation), nearest(high))
