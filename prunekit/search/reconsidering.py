"""Second thoughts about residual branches: put a removed one back, or remove another one, and let other groups pay or gain."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.search.meeting_targets import WidthProblem, meet_target
from prunekit.search.task import Task

__all__ = ["reconsider"]

_TIMES = 8  # branches that change their state
_NEVER = 1e30


def reconsider(task: Task, steps: IntArray, rates: Mapping[int, float]) -> IntArray:
    """Flip switches of residual branches as long as a measured loss falls by more than is negligible; the target is met throughout.

    What a branch is worth shows at the target, where the layers around it are narrow. For every branch, the other state is made
    into a candidate: what it costs is taken from the channel groups whose measured rate is least, what it saves is given back to
    those whose rate is highest. The best of the candidates is taken if it measures better, and the next are made from it.

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
        ranked = sorted(switches, key=lambda g: _worth(task.widths, steps, g))[: 2 * task.shortlist]
        flipped = [found for g in ranked if (found := _flipped(task.widths, steps, g, rate)) is not None]
        if not flipped:
            return steps
        best, least = task.best_of(flipped, -1, near=steps)
        if least >= loss - task.slack:
            return steps
        steps, loss = best, least
        task.choose("branches", steps, -1, loss)
    return steps


def _worth(problem: WidthProblem, steps: IntArray, switch: int) -> float:
    """Importance that a branch has per cost, the least first; what is removed already comes before all others."""
    other = problem.settled(np.where(np.arange(len(steps)) == switch, 1 - steps, steps))
    saved = int(problem.spent(steps)) - int(problem.spent(other))
    return float(problem.lost_table[switch, 1]) / saved if saved > 0 else -np.inf


def _flipped(problem: WidthProblem, steps: IntArray, switch: int, rate: FloatArray) -> IntArray | None:
    """A state at or below the target in which a switch has its other state; None if there is none."""
    flipped = steps.copy()
    flipped[switch] = 1 - steps[switch]
    flipped = _filled(problem, problem.settled(flipped), rate)
    tables = [_expected(problem, flipped, g, rate[g]) for g in range(len(steps))]
    for g, group in enumerate(problem.graph):
        if group.branch is not None:
            tables[g] = np.where(np.arange(len(group.widths)) == flipped[g], 0.0, _NEVER)
    paid = problem.settled(meet_target(replace(problem, lost=tables), flipped))
    if paid[switch] != steps[switch]:
        return paid
    return flipped if problem.spent(flipped) <= problem.target else None


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
