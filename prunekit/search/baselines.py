"""Proposers that decide in one step without measuring, and the conversion of any wished widths to widths at the target."""

from dataclasses import replace

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.search.meeting_targets import WidthProblem, meet_target
from prunekit.search.task import Task

__all__ = ["at_target", "oneshot", "uniform"]


def uniform(task: Task) -> IntArray:
    """Baseline: keep the same fraction of channels everywhere, as nearly as legal widths at the target allow.

    Scores decide which channels go, not how many: the squared deviation from the common fraction is minimised.
    """
    return at_target(task.widths, np.zeros(len(task.widths.graph)))


def oneshot(task: Task) -> IntArray:
    """Widths from the scores alone, in one step: they lose the least importance at the target. Nothing is measured."""
    return meet_target(task.widths)


def at_target(problem: WidthProblem, removed: FloatArray) -> IntArray:
    """Steps of every group that meet the target, as near to the wished fractions as legal widths allow.

    The wish sets the proportions between groups; its own cost rarely equals the target, so it is scaled: fractions grow in
    proportion from zero to the wish, and then evenly to everything. At the scale that costs the target, the legal widths of least
    squared deviation are taken.

    Args:
        problem: the channel groups and the target.
        removed: wished fraction to remove of every group, shape (groups,), in [0, 1].

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
