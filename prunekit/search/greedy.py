"""The default proposer: round by round, remove where the measured loss rises least per cost saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunekit._types import IntArray
from prunekit.search.meeting_targets import WidthProblem, meet_target
from prunekit.search.reconsidering import reconsider
from prunekit.search.task import Task

__all__ = ["candidates_of", "close", "greedy"]


def greedy(task: Task) -> IntArray:
    """Round by round, remove where the measured loss rises least per cost saved (multi-round search of TDC, arXiv:2312.13307).

    The paper's proposer is a language model; this one is deterministic and offline. The scores give a short list of candidates. All
    others are assumed to have the short list's median rate, and are measured once they rank first.
    A measurement is reused until its candidate ranks first; it is then repeated. This works because a channel group that was
    expensive in an earlier round seldom becomes cheap. For proxies that jump, ``task.fresh`` repeats more measurements per round.
    The last stretch, smaller than any step, is closed by exchanging a few steps: the exchanges that the measured rates favour are
    measured too, and the best is taken. Then the states of residual branches are reconsidered, if any may be removed.
    """
    problem = task.widths
    steps = np.zeros(len(problem.graph), dtype=np.int64)
    full = int(problem.spent(steps))
    if problem.target >= full:
        return steps
    chunk = max((full - problem.target) / task.rounds, 1.0)
    rates = _Rates()
    task.said_far(full, full)
    loss = task.measure(steps, 0)
    for search_round in range(1, 10 * task.rounds):
        candidates = candidates_of(problem, steps, chunk, task.bite)
        if not candidates:
            break
        if task.screening:
            loss = task.measure(steps, search_round, near=steps, draws=task.screening, anew=False)
        front, loss = _front_runner(task, steps, loss, candidates, rates, search_round)
        steps = candidates[front]
        task.said_far(int(problem.spent(steps)), full)
    task.said_far(problem.target, full)
    closed = close(task, steps, rates.measured, None if task.screening else loss)
    return reconsider(task, closed, rates.measured)


@dataclass(eq=False)
class _Rates:
    """Rise of the loss per cost saved, by channel group: the last measurement, or an assumed value for groups never measured."""

    measured: dict[int, float] = field(default_factory=dict)
    assumed: float = np.inf

    def __call__(self, group: int) -> float:
        return self.measured.get(group, self.assumed)


def candidates_of(problem: WidthProblem, steps: IntArray, chunk: float, bite: float) -> dict[int, IntArray]:
    """For each channel group, the smallest removal that saves about a chunk, within a bite and not past the target.

    A removal that saves next to nothing is not a candidate: it would raise the loss for no gain.
    """
    now = int(problem.spent(steps))
    room = now - problem.target
    least = 0.25 * min(chunk, room)
    found: dict[int, IntArray] = {}
    for g, most in enumerate(problem.max_steps):
        if found and problem.graph.groups[g].branch is not None:
            break  # widths first: branches are decided at the target, where their worth among narrow layers shows
        left = problem.width_table[g, steps[g] : most + 1]
        fewer = int((left[1:] >= (1 - bite) * left[0]).sum())
        extra = np.arange(1, min(max(fewer, 1), len(left) - 1) + 1)
        if room <= 0.25 * chunk or not len(extra):
            continue
        trials = np.repeat(steps[None], len(extra), axis=0)
        trials[:, g] += extra
        saved = now - problem.spent(trials)
        fitting = np.flatnonzero((saved <= room) & (saved >= least))
        if len(fitting):
            enough = fitting[saved[fitting] >= 0.5 * chunk]
            found[g] = problem.settled(trials[enough[0] if len(enough) else fitting[-1]])
    return found


def _front_runner(
    task: Task, steps: IntArray, loss: float, candidates: Mapping[int, IntArray], rates: _Rates, search_round: int
) -> tuple[int, float]:
    """The channel group with the best candidate and its loss: freshly measured, it still beats the others' last known rates."""
    problem = task.widths
    now_spent, now_lost = int(problem.spent(steps)), float(problem.loss(steps))
    saved = {g: now_spent - int(problem.spent(candidate)) for g, candidate in candidates.items()}
    losses: dict[int, float] = {}

    def measure(waiting: Sequence[int]) -> None:
        ahead = [candidates[g] for g in waiting[1:]]
        losses[waiting[0]] = task.measure(
            candidates[waiting[0]], search_round, ahead, steps, task.screening, anew=False
        )
        task.said_far(now_spent, task.full)
        rates.measured[waiting[0]] = (losses[waiting[0]] - loss) / saved[waiting[0]]

    ranked = sorted(candidates, key=lambda g: (float(problem.loss(candidates[g])) - now_lost) / saved[g])
    if not rates.measured:  # the short list first; the others follow in the order of the scores
        shortlist = ranked[: task.shortlist]
        for i in range(len(shortlist)):
            measure(shortlist[i:])
        rates.assumed = float(np.median(list(rates.measured.values())))
    fresh = min(task.fresh, len(ranked))
    while (front := min(ranked, key=rates)) not in losses or len(losses) < fresh:
        if task.screening and len(losses) >= max(task.shortlist, fresh):
            front = min(losses, key=rates)
            break
        measure(sorted((g for g in ranked if g not in losses), key=rates))  # the best candidate, then the runners-up
    task.choose(problem.graph.groups[front].name, candidates[front], search_round, losses[front], task.screening)
    return front, losses[front]


def close(task: Task, steps: IntArray, rates: Mapping[int, float], loss: float | None = None) -> IntArray:
    """Bring measured widths within the tolerance of the target by the exchange that measures best.

    If no exchange is near enough, the widths at the target that differ least from the measured ones are taken. Exchanges are
    measured in the order of what they promise, until one raises the loss by no more than is negligible.

    Args:
        task: the search.
        steps: measured widths, shape (groups,), nearer the target than any removal is large.
        rates: rise of the loss per cost saved, by channel group, for the groups that were measured.
        loss: of the steps, on all draws; None if it is not known.
    """
    problem = task.widths
    if 0 <= problem.target - int(problem.spent(steps)) <= problem.tolerance or problem.missed(steps) == 0:
        if task.screening:
            task.best_of([steps], -1)
        return steps
    enough = -np.inf if loss is None or not task.slack else loss + task.slack
    best, least = task.best_of(list(_exchanges(task, steps, rates)), -1, steps, enough)
    task.choose("exchange", best, -1, least)
    return np.asarray(best)


def _exchanges(task: Task, steps: IntArray, rates: Mapping[int, float]) -> IntArray:
    """States at the target that are worth measuring, shape (states, groups), the most promising first.

    Only groups with a measured rate take part if these suffice: the effect of a step is unknown for the others.
    """
    problem = task.widths
    candidates = problem.neighbours(steps)
    near = problem.target - problem.spent(candidates) <= problem.tolerance
    if not near.any():
        now = problem.widths(steps)
        moved = [np.abs(group.widths - width) / group.size for group, width in zip(problem.graph, now, strict=True)]
        return meet_target(replace(problem, lost=moved), steps)[None]
    unknown = [g for g in range(len(steps)) if g not in rates]
    familiar = (candidates[:, unknown] == steps[unknown]).all(1)
    candidates = candidates[familiar] if familiar.any() else candidates
    saved = np.zeros((5, len(steps)))
    for change in range(-2, 3):
        alone = np.clip(steps + change * np.eye(len(steps), dtype=np.int64), 0, problem.max_steps)
        saved[change + 2] = int(problem.spent(steps)) - problem.spent(alone)
    worst = max(rates.values(), default=0.0)
    rate = np.array([rates.get(g, worst) for g in range(len(steps))])
    expected = (saved[candidates - steps + 2, np.arange(len(steps))] * rate).sum(1)
    return np.asarray(candidates[np.argsort(expected, kind="stable")[: task.shortlist]])
