"""Proposers: ways to decide how much to prune where. Each ends at the target."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.graph import PruningPlan, apply
from prunekit.importance import Probe, Scores
from prunekit.search.targets import WidthProblem, meet_target

__all__ = ["PROPOSERS", "Proposer", "Task", "proposer"]


@dataclass(eq=False)
class Task:
    """What a proposer works on, and its memory.

    Args:
        model: the full network.
        widths: the channel groups, their costs and the target.
        scores: importance for this timestep group: which channels of a channel group go first.
        probe: loss on the timestep group, fixed draws.
        rounds: decisions that a multi-round proposer takes.
        shortlist: candidates that are measured in the first round.
        memory: measured candidates (round, steps, MACs, loss; round −1 closes the last stretch; what they spend of the target
            where that is not MACs) and choices, in order.
    """

    model: nn.Module
    widths: WidthProblem
    scores: Scores
    probe: Probe
    rounds: int = 12
    shortlist: int = 8
    memory: list[dict[str, Any]] = field(default_factory=list)

    def plan(self, steps: IntArray) -> PruningPlan:
        """The plan that keeps the best channels after ``steps`` of shape (groups,)."""
        return PruningPlan.from_widths(self.widths.graph, self.widths.widths(steps), self.scores)

    def measure(self, steps: IntArray, search_round: int) -> float:
        """Proxy: the timestep group's loss of the network pruned so, before any repair. Remembered."""
        candidate = apply(self.model, self.widths.graph, self.plan(steps), share=True)
        loss = self.probe.mean(candidate)
        entry = {"round": search_round, "steps": steps.tolist(), "macs": int(self.widths.macs(steps)), "loss": loss}
        if self.widths.spends.name != "macs":
            entry["spent"] = int(self.widths.spent(steps))
        self.memory.append(entry)
        return loss


class Proposer(Protocol):
    """Decides the widths."""

    def __call__(self, task: Task) -> IntArray:
        """Steps of every channel group, shape (groups,), whose cost meets the task's target."""
        ...


def uniform(task: Task) -> IntArray:
    """The same fraction of channels kept everywhere, as nearly as legal widths at the target allow: the baseline.

    Scores decide which channels go, never how many: what is minimised is the squared deviation from the common fraction.
    """
    problem = task.widths
    sizes = problem.graph.full_widths

    def at(ratio: float) -> IntArray:
        return np.asarray(np.abs(problem.width_table - (ratio * sizes)[:, None]).argmin(1))

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if problem.spent(at(middle)) > problem.target else (middle, high)
    deviation = [(group.widths / group.size - low) ** 2 for group in problem.graph]
    return meet_target(replace(problem, lost=deviation), at(low))


def oneshot(task: Task) -> IntArray:
    """Widths from the scores alone, in one decision: least importance lost at the target. Nothing is measured."""
    return meet_target(task.widths)


def greedy(task: Task) -> IntArray:
    """Round by round, remove where the measured loss rises least per cost saved (multi-round search of TDC, arXiv:2312.13307).

    The paper's proposer is a language model; this one is deterministic and offline. Candidates are short-listed by the scores.
    An old measurement stands until its candidate comes to the front, and is then taken again: a channel group that was dear in an
    earlier round has seldom become cheap. The last stretch, smaller than any step, is closed by exchanging a few steps: the
    exchanges that the measured rates favour are measured too, and the best is taken.
    """
    problem = task.widths
    steps = np.zeros(len(problem.graph), dtype=np.int64)
    full = int(problem.spent(steps))
    chunk = max((full - problem.target) / task.rounds, 1.0)
    rates = _Rates()
    loss = task.measure(steps, 0) if problem.target < full else 0.0
    for search_round in range(1, 10 * task.rounds):
        candidates = _candidates(problem, steps, chunk)
        if not candidates:
            break
        front, loss = _front_runner(task, steps, loss, candidates, rates, search_round)
        steps = candidates[front]
    return _close(task, steps, rates)


@dataclass(eq=False)
class _Rates:
    """Rise of the loss per cost saved by channel group: as last measured, and what is assumed of groups never measured."""

    measured: dict[int, float] = field(default_factory=dict)
    assumed: float = np.inf

    def __call__(self, group: int) -> float:
        return self.measured.get(group, self.assumed)


def _candidates(problem: WidthProblem, steps: IntArray, chunk: float) -> dict[int, IntArray]:
    """For each channel group, the smallest removal that saves about a chunk and does not pass the target.

    A removal that saves next to nothing is none: taken because it still fits, it would cost loss for next to nothing.
    """
    now = int(problem.spent(steps))
    room = now - problem.target
    least = 0.25 * min(chunk, room)
    found: dict[int, IntArray] = {}
    for g, most in enumerate(problem.max_steps):
        extra = np.arange(1, most - steps[g] + 1)
        if room <= 0.25 * chunk or not len(extra):
            continue
        trials = np.repeat(steps[None], len(extra), axis=0)
        trials[:, g] += extra
        saved = now - problem.spent(trials)
        fitting = np.flatnonzero((saved <= room) & (saved >= least))
        if len(fitting):
            enough = fitting[saved[fitting] >= 0.5 * chunk]
            found[g] = trials[enough[0] if len(enough) else fitting[-1]]
    return found


def _front_runner(
    task: Task, steps: IntArray, loss: float, candidates: Mapping[int, IntArray], rates: _Rates, search_round: int
) -> tuple[int, float]:
    """The channel group whose candidate, freshly measured, stays in front of the others' last known rates; and its loss."""
    problem = task.widths
    now_spent, now_lost = int(problem.spent(steps)), float(problem.loss(steps))
    saved = {g: now_spent - int(problem.spent(candidate)) for g, candidate in candidates.items()}
    losses: dict[int, float] = {}

    def measure(g: int) -> None:
        losses[g] = task.measure(candidates[g], search_round)
        rates.measured[g] = (losses[g] - loss) / saved[g]

    ranked = sorted(candidates, key=lambda g: (float(problem.loss(candidates[g])) - now_lost) / saved[g])
    if not rates.measured:  # the short list first; the rest waits behind it, in the order of the scores
        for g in ranked[: task.shortlist]:
            measure(g)
        rates.assumed = max(rates.measured.values())
    while (front := min(ranked, key=rates)) not in losses:
        measure(front)
    task.memory.append({"round": search_round, "chosen": problem.graph.groups[front].name, "loss": losses[front]})
    return front, losses[front]


def _close(task: Task, steps: IntArray, rates: _Rates) -> IntArray:
    """Bring measured widths within the tolerance of the target by the exchange that measures best.

    Only groups with a measured rate take part, where that suffices: of the others nobody knows what a step costs. Where no exchange
    is near enough, those widths at the target are taken that differ least from the measured ones.
    """
    problem = task.widths
    if 0 <= problem.target - int(problem.spent(steps)) <= problem.tolerance or problem.missed(steps) == 0:
        return steps
    candidates = problem.neighbours(steps)
    near = problem.target - problem.spent(candidates) <= problem.tolerance
    if not near.any():
        now = problem.widths(steps)
        moved = [np.abs(group.widths - width) / group.size for group, width in zip(problem.graph, now, strict=True)]
        return meet_target(replace(problem, lost=moved), steps)
    unknown = [g for g in range(len(steps)) if g not in rates.measured]
    familiar = (candidates[:, unknown] == steps[unknown]).all(1)
    candidates = candidates[familiar] if familiar.any() else candidates
    saved = np.zeros((5, len(steps)))
    for change in range(-2, 3):
        alone = np.clip(steps + change * np.eye(len(steps), dtype=np.int64), 0, problem.max_steps)
        saved[change + 2] = int(problem.spent(steps)) - problem.spent(alone)
    worst = max(rates.measured.values(), default=0.0)
    rate = np.array([rates.measured.get(g, worst) for g in range(len(steps))])
    expected = (saved[candidates - steps + 2, np.arange(len(steps))] * rate).sum(1)
    shortlist = candidates[np.argsort(expected, kind="stable")[: task.shortlist]]
    measured = [task.measure(candidate, -1) for candidate in shortlist]
    return np.asarray(shortlist[int(np.argmin(measured))])


PROPOSERS: Mapping[str, Proposer] = {"greedy": greedy, "oneshot": oneshot, "uniform": uniform}


def proposer(name: str) -> Proposer:
    """A proposer by name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PROPOSERS:
        raise InputError(f"Unknown proposer {name!r}; expected one of {', '.join(PROPOSERS)}.")
    return PROPOSERS[name]
