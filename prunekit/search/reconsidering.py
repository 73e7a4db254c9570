"""Second thoughts about residual branches: put a removed one back, or remove another one, and let other groups pay or gain."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.search.meeting_targets import WidthProblem, meet_target
from prunekit.search.task import Task

__all__ = ["reconsider"]

_TIMES = 3
_NEVER = 1e30


def reconsider(task: Task, steps: IntArray, rates: Mapping[int, float]) -> IntArray:
    """Flip switches of residual branches as long as a measured loss falls; the target is met all the while.

    A decision that was right at the full widths may be wrong at the target. For every branch, the other state is made into a
    candidate: what it costs is taken from the channel groups whose measured rate is least, what it saves is given back to those
    whose rate is highest. The candidates that the rates favour are measured, and the best is taken.

    Args:
        task: the search.
        steps: widths that meet the target, shape (groups,).
        rates: rise of the loss per cost saved, by channel group, for the groups that were measured.
    """
    switches = [g for g, group in enumerate(task.widths.graph) if group.branch is not None and len(group.widths) > 1]
    if not switches:
        return steps
    worst = max(rates.values(), default=1.0)
    rate = np.array([rates.get(g, worst) for g in range(len(steps))])
    loss = task.measure(steps, -1)
    for _ in range(_TIMES):
        found = [flipped for g in switches if (flipped := _flipped(task.widths, steps, g, rate)) is not None]
        favoured = [found[i][1] for i in np.argsort([rise for rise, _ in found], kind="stable")[: task.shortlist]]
        if not favoured:
            return steps
        best, least = task.best_of(favoured, -1, near=steps)
        if least >= loss:
            return steps
        steps, loss = best, least
        task.choose("branches", steps, -1, loss)
    return steps


def _flipped(problem: WidthProblem, steps: IntArray, switch: int, rate: FloatArray) -> tuple[float, IntArray] | None:
    """A state at the target in which a switch has its other state, and the rise that the rates expect; None if there is none."""
    flipped = steps.copy()
    flipped[switch] = 1 - steps[switch]
    flipped = _filled(problem, problem.settled(flipped), rate)
    tables = [_expected(problem, flipped, g, rate[g]) for g in range(len(steps))]
    for g, group in enumerate(problem.graph):
        if group.branch is not None:
            tables[g] = np.where(np.arange(len(group.widths)) == flipped[g], 0.0, _NEVER)
    paid = problem.settled(meet_target(replace(problem, lost=tables), flipped))
    if paid[switch] == steps[switch]:
        return None
    saved = int(problem.spent(steps)) - int(problem.spent(np.where(np.arange(len(steps)) == switch, flipped, steps)))
    return saved * rate[switch] + sum(float(table[k]) for table, k in zip(tables, paid, strict=True)), paid


def _expected(problem: WidthProblem, steps: IntArray, group: int, rate: float) -> FloatArray:
    """What the loss may rise by when one group has other widths than now: by its rate, twice that where nothing is left."""
    trials = np.repeat(steps[None], len(problem.graph.groups[group].widths), axis=0)
    trials[:, group] = np.arange(len(trials))
    saved = int(problem.spent(steps)) - problem.spent(trials)
    return np.asarray(rate * saved * (1 + np.maximum(saved, 0) / max(int(saved.max()), 1)), dtype=np.float64)


def _filled(problem: WidthProblem, steps: IntArray, rate: FloatArray) -> IntArray:
    """Steps given back as long as the cost stays within the target, those of the highest rate first."""
    for group in np.argsort(-rate, kind="stable"):
        back = np.repeat(steps[None], steps[group] + 1, axis=0)
        back[:, group] = np.arange(steps[group] + 1)
        fits = np.flatnonzero(problem.spent(back) <= problem.target)
        if problem.graph.groups[group].branch is None and len(fits):
            steps = back[fits[0]]
    return steps
