"""Widths at a MAC target: never above it, and as near below it as the architecture's steps allow."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.cost import CostModel
from prunekit.errors import BudgetError
from prunekit.graph import ChannelGraph

__all__ = ["WidthProblem", "lost_importance", "meet_target"]

_MAX_MOVES = 200_000


def lost_importance(graph: ChannelGraph, scores: Mapping[str, FloatArray]) -> list[FloatArray]:
    """Importance lost at every legal width: for each group, shape (len(group.widths),), rising from 0."""
    tables = []
    for group in graph:
        total = float(scores[group.name].sum())
        kept = [float(scores[group.name][group.select(scores[group.name], int(width))].sum()) for width in group.widths]
        tables.append(total - np.array(kept))
    return tables


@dataclass(frozen=True, eq=False)
class WidthProblem:
    """Choose a number of steps for every channel group so that the cost meets a target and little importance is lost.

    Args:
        graph: the channel groups.
        cost: their cost model.
        lost: importance lost after k steps, one array per group, see :func:`lost_importance`.
        target: MACs that must not be exceeded.
        tolerance: MACs by which the target may be missed before a nearer solution is preferred to a better one.
    """

    graph: ChannelGraph
    cost: CostModel
    lost: list[FloatArray]
    target: int
    tolerance: int

    @cached_property
    def max_steps(self) -> IntArray:
        """Largest number of steps of every group, shape (groups,)."""
        return np.array([len(group.widths) - 1 for group in self.graph], dtype=np.int64)

    @cached_property
    def width_table(self) -> IntArray:
        """Width of every group after k steps, shape (groups, most steps + 1); past a group's last it stays."""
        longest = int(self.max_steps.max(initial=0)) + 1
        table = [np.pad(group.widths, (0, longest - len(group.widths)), "edge") for group in self.graph]
        return np.array(table, dtype=np.int64).reshape(len(self.graph), longest)

    def widths(self, steps: IntArray) -> IntArray:
        """Widths after ``steps``, same shape (..., groups)."""
        return np.asarray(self.width_table[np.arange(len(self.graph)), steps])

    def macs(self, steps: IntArray) -> IntArray:
        """MACs after ``steps`` of shape (..., groups)."""
        return self.cost.macs(self.widths(steps))

    def check(self) -> None:
        """Refuse a target that no widths reach.

        Raises:
            BudgetError: even the smallest widths cost more; ``feasible`` has the range in MACs.
        """
        least, full = int(self.macs(self.max_steps)), int(self.macs(np.zeros_like(self.max_steps)))
        if self.target < least:
            raise BudgetError(
                f"A target of {self.target:,} MACs is below what this network can be pruned to; "
                f"expected {least:,} … {full:,} ({least / max(full, 1):.4f} … 1 of the base).",
                (least, full),
            )

    def reachable(self, states: IntArray) -> tuple[IntArray, IntArray]:
        """Those of the states, shape (states, groups), that exist and cost at most the target; and the MACs they miss it by."""
        states = states[((states >= 0) & (states <= self.max_steps)).all(1)]
        missed = self.target - self.macs(states)
        return states[missed >= 0], missed[missed >= 0]

    def neighbours(self, steps: IntArray) -> IntArray:
        """States a few exchanges away that cost at most the target, shape (states, groups), possibly none.

        Those that miss it by no more than the tolerance; the nearest where none is that near.
        """
        states, missed = self.reachable(steps + _moves(len(steps)))
        return states[missed <= max(self.tolerance, int(missed.min()))] if len(states) else states

    def loss(self, steps: IntArray) -> FloatArray:
        """Importance lost, summed over the groups, for steps of shape (..., groups)."""
        total: FloatArray = np.zeros(steps.shape[:-1])
        for g, table in enumerate(self.lost):
            total = total + table[steps[..., g]]
        return total


def meet_target(problem: WidthProblem, steps: IntArray | None = None) -> IntArray:
    """Steps of every group whose MACs are at most the target, missing it by no more than the tolerance where that is possible.

    Descends greedily by importance lost per MAC saved, then exchanges steps between up to three groups at a time while that
    brings the cost nearer (outside the tolerance) or loses less importance (inside it).

    Args:
        problem: what to solve.
        steps: where to start, shape (groups,); the full widths when absent.

    Raises:
        BudgetError: even the smallest widths cost more than the target; ``feasible`` has the range in MACs.
    """
    problem.check()
    steps = np.zeros(len(problem.graph), dtype=np.int64) if steps is None else steps.copy()
    while problem.macs(steps) > problem.target:
        steps = _cheapest_step(problem, steps)
    moves = _moves(len(steps))
    while True:
        better = _best_exchange(problem, steps, moves)
        if better is None:
            return steps
        steps = better


def _cheapest_step(problem: WidthProblem, steps: IntArray) -> IntArray:
    """One more step in the group where it loses least importance per MAC saved."""
    candidates = steps + np.eye(len(steps), dtype=np.int64)
    candidates = candidates[(candidates <= problem.max_steps).all(1)]
    saved = problem.macs(steps) - problem.macs(candidates)
    risen = problem.loss(candidates) - problem.loss(steps)
    rate = np.where(saved > 0, risen / np.maximum(saved, 1), np.inf)
    return np.asarray(candidates[int(np.argmin(rate))] if np.isfinite(rate).any() else candidates[0])


def _moves(count: int) -> IntArray:
    """Changes of one, two or three groups by up to two steps each, shape (moves, count), as many kinds as fit the limit."""
    kinds: list[IntArray] = [np.zeros((0, count), dtype=np.int64)]
    total = 0
    for size, changes in ((1, (-2, -1, 1, 2)), (2, (-2, -1, 1, 2)), (3, (-1, 1))):
        deltas = list(itertools.product(changes, repeat=size))
        places = list(itertools.combinations(range(count), size))
        total += len(deltas) * len(places)
        if total > _MAX_MOVES or size > count:
            break
        block = np.zeros((len(places), len(deltas), count), dtype=np.int64)
        for column in range(size):
            block[np.arange(len(places))[:, None], np.arange(len(deltas)), np.array(places)[:, [column]]] = np.array(
                deltas
            )[:, column]
        kinds.append(block.reshape(-1, count))
    return np.concatenate(kinds)


def _best_exchange(problem: WidthProblem, steps: IntArray, moves: IntArray) -> IntArray | None:
    """The neighbour that is better, or None: first by miss beyond the tolerance, then by importance lost."""
    candidates, missed = problem.reachable(steps + moves)
    if not len(candidates):
        return None
    beyond = np.maximum(missed - problem.tolerance, 0)
    lost = problem.loss(candidates)
    best = int(np.lexsort((lost, beyond))[0])
    now_beyond = max(int(problem.target - problem.macs(steps)) - problem.tolerance, 0)
    now_lost = float(problem.loss(steps))
    improved = beyond[best] < now_beyond or (
        beyond[best] == now_beyond and lost[best] < now_lost - 1e-12 * abs(now_lost)
    )
    return np.asarray(candidates[best]) if improved else None
