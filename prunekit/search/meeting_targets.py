"""Widths that meet a target: never above it, and as near below it as the architecture's steps allow."""

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.choices import TargetOf
from prunekit.cost import CostModel, LatencyModel
from prunekit.errors import BudgetError, InputError
from prunekit.graph import ChannelGraph
from prunekit.search.exact import nearest_below
from prunekit.search.whole import nothing_to_prune

__all__ = ["Measure", "TargetOf", "WidthProblem", "in_units", "lost_importance", "meet_target"]


_MAX_MOVES = 200_000
_KICKS = 12  # perturbations tried if the tolerance is not reached
_VERIFIED = 64  # number of best moves for which the exact cost is evaluated
_CHUNK = 4096  # states evaluated at a time


def in_units(target: float | int, full: int, unit: str) -> int:
    """A target as a whole number of its unit.

    Args:
        target: a whole number of the unit, or a float in (0, 1], a fraction of the whole network's cost.
        full: cost of the whole network.
        unit: name of the unit, for the error message.

    Raises:
        InputError: the target is neither.
    """
    number: Any = None if isinstance(target, bool) else target
    if isinstance(number, numbers.Integral):  # includes NumPy's
        return int(number)
    fraction = float(number) if isinstance(number, numbers.Real) else math.nan
    if 0 < fraction <= 1:
        return int(Fraction(str(fraction)) * full)  # the decimal as written: 0.29 of 100 is 29
    if fraction > 1 and fraction.is_integer():
        return int(fraction)
    raise InputError(f"Got {target!r} as the target; expected a fraction in (0, 1] or a whole number of {unit}.")


@dataclass(frozen=True, eq=False)
class Measure:
    """The quantity that a target limits: an integer for any widths, never smaller for larger widths.

    Args:
        name: ``macs``, ``params`` or ``latency``.
        unit: unit of its numbers.
        of: function from widths of shape (..., groups) to int64 of shape (...).
        coupled: shape (groups, groups); False if the cost of changing one group does not depend on the other group's width.
    """

    name: TargetOf
    unit: str
    of: Callable[[IntArray], IntArray]
    coupled: np.ndarray[tuple[int, int], np.dtype[np.bool_]]

    @classmethod
    def by_name(cls, name: str, cost: CostModel, latency: LatencyModel | None = None) -> "Measure":
        """MACs, parameters, or nanoseconds by a table of layer times.

        Raises:
            InputError: the name is unknown, or the name is ``latency`` and no table is given.
        """
        if name == "latency" and latency is None:
            raise InputError("A target of latency needs a table of layer times; measure one with LatencyTable.of.")
        rows = cost.params_rows if name == "params" else cost.macs_rows
        touched = rows.touched.astype(np.int64)
        coupled = touched.T @ touched > 0
        if name == "latency" and latency is not None:
            return cls("latency", "ns", latency.nanoseconds, coupled)
        if name == "params":
            return cls("params", "parameters", cost.params, coupled)
        if name == "macs":
            return cls("macs", "MACs", cost.macs, coupled)
        raise InputError(f"Got a target of {name!r}; expected macs, params or latency.")


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
        cost: the cost model of the channel groups.
        lost: importance lost after k steps, one array per group, see :func:`lost_importance`.
        target: upper limit of the cost, in the measure's unit.
        tolerance: how far the cost may lie below the target before nearness counts more than importance.
        measure: the quantity that the target limits; MACs if missing.
    """

    graph: ChannelGraph
    cost: CostModel
    lost: list[FloatArray]
    target: int
    tolerance: int
    measure: Measure | None = None

    @cached_property
    def spends(self) -> Measure:
        """The quantity that the target limits."""
        return self.measure or Measure.by_name("macs", self.cost)

    @cached_property
    def max_steps(self) -> IntArray:
        """Largest number of steps of every group, shape (groups,)."""
        return np.array([len(group.widths) - 1 for group in self.graph], dtype=np.int64)

    @cached_property
    def width_table(self) -> IntArray:
        """Width of every group after k steps, shape (groups, most steps + 1); constant after a group's last step."""
        longest = int(self.max_steps.max(initial=0)) + 1
        table = [np.pad(group.widths, (0, longest - len(group.widths)), "edge") for group in self.graph]
        return np.array(table, dtype=np.int64).reshape(len(self.graph), longest)

    @cached_property
    def lost_table(self) -> FloatArray:
        """Importance lost after k steps, shape (groups, most steps + 1); constant after a group's last step."""
        table = [np.pad(lost, (0, self.width_table.shape[1] - len(lost)), "edge") for lost in self.lost]
        return np.array(table, dtype=np.float64).reshape(self.width_table.shape)

    def widths(self, steps: IntArray) -> IntArray:
        """Widths after ``steps``, same shape (..., groups)."""
        return np.asarray(self.width_table[np.arange(len(self.graph)), steps])

    def settled(self, steps: IntArray) -> IntArray:
        """The same plan without steps in what removed branches take with them, shape (groups,)."""
        widths = self.widths(steps)
        return np.where(self.graph.settled(widths) == widths, steps, 0)

    def macs(self, steps: IntArray) -> IntArray:
        """MACs after ``steps`` of shape (..., groups)."""
        return self.cost.macs(self.widths(steps))

    def spent(self, steps: IntArray) -> IntArray:
        """Cost in the measure's unit after ``steps`` of shape (..., groups)."""
        return self.spends.of(self.widths(steps))

    def missed(self, steps: IntArray) -> int:
        """How far the cost after the steps, shape (groups,), lies below the target or the whole network's cost, if that is less."""
        return min(self.target, int(self.spent(np.zeros_like(steps)))) - int(self.spent(steps))

    def check(self) -> None:
        """Refuse a target that no widths reach.

        Raises:
            BudgetError: even the smallest widths cost more; ``feasible`` has the range in the measure's unit.
        """
        least, full = int(self.spent(self.max_steps)), int(self.spent(np.zeros_like(self.max_steps)))
        if self.target < least:
            within = _within(self.graph)
            if (reasons := nothing_to_prune(self.graph)) is not None:
                raise BudgetError(
                    f"Nothing of this network can be pruned{within}, and a target of {self.target:,} of its {full:,} "
                    f"{self.spends.unit} asks for less; its layers stay whole, {reasons}.",
                    (least, full),
                )
            raise BudgetError(
                f"A target of {self.target:,} {self.spends.unit} is below what this network can be pruned to{within}; "
                f"expected {least:,} … {full:,} ({least / max(full, 1):.4f} … 1 of the base).",
                (least, full),
            )

    def neighbours(self, steps: IntArray) -> IntArray:
        """States a few exchanges away that cost at most the target, shape (states, groups); there may be none.

        These are all such states within the tolerance, or the nearest one if none is that near.
        """
        moves, spent, _ = _priced(self, steps)
        missed = self.target - spent
        near = np.flatnonzero((missed >= 0) & (missed <= self.tolerance))
        if not len(near):
            reachable = np.flatnonzero(missed >= 0)
            near = reachable[np.argsort(missed[reachable], kind="stable")[:_VERIFIED]]
        states = _moved(steps, moves[near])
        missed = self.target - self.spent(states)
        states, missed = states[missed >= 0], missed[missed >= 0]
        return states[missed <= max(self.tolerance, int(missed.min()))] if len(states) else states

    def loss(self, steps: IntArray) -> FloatArray:
        """Importance lost, summed over the groups, for steps of shape (..., groups)."""
        return np.asarray(self.lost_table[np.arange(len(self.graph)), steps].sum(-1), dtype=np.float64)

    def rank(self, steps: IntArray) -> tuple[int, float]:
        """Lower is better: the miss beyond the tolerance, then the importance lost, of steps of shape (groups,)."""
        return max(self.target - int(self.spent(steps)) - self.tolerance, 0), float(self.loss(steps))


def _within(graph: ChannelGraph) -> str:
    """The constraints that keep a network from shrinking as far as its structure allows."""
    if any(group.floor > 1 or group.multiple > 1 for group in graph):
        return " within the floor and width multiples that were asked for"
    return ""


def meet_target(problem: WidthProblem, steps: IntArray | None = None) -> IntArray:
    """Steps of every group that cost at most the target, and miss it by no more than the tolerance if that is possible.

    Descends greedily by importance lost per cost saved, then exchanges steps between up to three groups at a time while that
    brings the cost nearer (outside the tolerance) or loses less importance (inside it). If the result is outside the tolerance,
    this is repeated from the full widths, and from fixed perturbations of the best state so far. If that fails too,
    :func:`prunekit.search.exact.nearest_below` decides whether any widths meet the target.

    Args:
        problem: the problem to solve.
        steps: where to start, shape (groups,); the full widths if missing.

    Raises:
        BudgetError: even the smallest widths cost more than the target; ``feasible`` has the range.
    """
    problem.check()
    whole = np.zeros(len(problem.graph), dtype=np.int64)
    best = _settle(problem, whole if steps is None else steps.copy())
    rng = np.random.default_rng(0)
    for attempt in range(_KICKS):
        if problem.rank(best)[0] == 0 or problem.missed(best) == 0:
            break
        kicks = rng.integers(-3, 4, len(best)) * (rng.random(len(best)) < max(0.1, 3 / len(best)))
        kicked = whole if attempt == 0 and steps is not None else np.clip(best + kicks, 0, problem.max_steps)
        best = min(best, _settle(problem, kicked), key=problem.rank)
    if problem.rank(best)[0] > 0:
        found, _ = nearest_below(problem, best)
        best = min(best, _settle(problem, found), key=problem.rank)
    return best


def _settle(problem: WidthProblem, steps: IntArray) -> IntArray:
    """Descend to the target, then exchange steps until nothing improves."""
    while problem.spent(steps) > problem.target:
        steps = _cheapest_removal(problem, steps)
    while (better := _best_exchange(problem, steps)) is not None:
        steps = better
    return steps


def _cheapest_removal(problem: WidthProblem, steps: IntArray) -> IntArray:
    """One removal in the group that loses least importance per cost saved: up to a sixteenth of it, near the target one step."""
    now, lost = int(problem.spent(steps)), float(problem.loss(steps))
    left = problem.max_steps - steps
    for stride in (np.maximum(problem.max_steps // 16, 1), np.ones_like(steps)):
        fits = np.flatnonzero(left >= stride)
        candidates = np.repeat(steps[None], len(fits), axis=0)
        candidates[np.arange(len(fits)), fits] += stride[fits]
        saved = now - problem.spent(candidates)
        useful = (saved > 0) & ((saved <= now - problem.target) | (stride[fits] == 1))
        if useful.any():
            rate = np.where(useful, (problem.loss(candidates) - lost) / np.maximum(saved, 1), np.inf)
            return np.asarray(candidates[int(np.argmin(rate))])
    steps = steps.copy()
    steps[int(np.argmax(left))] += 1  # no single step saves anything: continue in the group with the most left
    return steps


@functools.lru_cache(maxsize=4)
def _moves(count: int) -> tuple[IntArray, IntArray, IntArray]:
    """Changes of one, two or three of ``count`` groups by up to two steps each, as many kinds as the limit allows.

    Returns:
        Group of every option, its change (the last option changes nothing), and the moves: options of shape (moves, 3), rising.
    """
    groups = np.append(np.repeat(np.arange(count), 4), 0)
    changes = np.append(np.tile([-2, -1, 1, 2], count), 0)
    kinds = [np.zeros((0, 3), dtype=np.int64)]
    total = 0
    for size in range(1, min(count, 3) + 1):
        places = np.array(list(itertools.combinations(range(count), size)))
        for picks in ((0, 1, 2, 3), (1, 2)):
            chosen = np.array(list(itertools.product(picks, repeat=size)))
            fits = total + len(places) * len(chosen) <= _MAX_MOVES
            if fits or (size < 3 and len(picks) == 2):
                block = (4 * places[:, None] + chosen[None]).reshape(-1, size)
                kinds.append(np.pad(block, ((0, 0), (0, 3 - size)), constant_values=4 * count))
                total += len(block)
                break
    return groups, changes, np.concatenate(kinds)


def _moved(steps: IntArray, moves: IntArray) -> IntArray:
    """The states that moves of shape (moves, 3) lead to, shape (moves, groups)."""
    groups, changes, _ = _moves(len(steps))
    states = np.repeat(steps[None], len(moves), axis=0)
    np.add.at(states, (np.arange(len(moves))[:, None], groups[moves]), changes[moves])
    return states


def _priced(problem: WidthProblem, steps: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Every legal move from ``steps``, shape (moves, 3), with the resulting cost and importance lost, shape (moves,).

    The cost of three changes is computed from the costs of pairs. This is exact for MACs and parameters, which are quadratic in the
    widths, and approximate for latency. Only pairs of coupled groups are evaluated together.
    """
    groups, changes, moves = _moves(len(steps))
    now = int(problem.spent(steps))
    if not len(steps):
        return moves, np.zeros(0, dtype=np.int64), np.zeros(0)
    to = np.clip(steps[groups] + changes, 0, problem.max_steps[groups])
    legal = to == steps[groups] + changes
    alone = np.repeat(steps[None], len(to), axis=0)
    alone[np.arange(len(to)), groups] = to
    rise = problem.spent(alone) - now
    together = problem.spends.coupled[np.ix_(groups, groups)] & legal[:, None] & legal
    used = np.zeros_like(together)
    for a, b in itertools.combinations(range(3), 2):
        used[moves[:, a], moves[:, b]] = True
    together &= used & (changes[:, None] != 0) & (changes != 0)
    first, second = np.nonzero(together)
    pairs = alone[first]
    pairs[np.arange(len(pairs)), groups[second]] = to[second]
    interplay = np.zeros((len(to), len(to)), dtype=np.int64)
    chunks = [problem.spent(pairs[i : i + _CHUNK]) for i in range(0, len(pairs), _CHUNK)] or [rise[:0]]
    interplay[first, second] = np.concatenate(chunks) - now - rise[first] - rise[second]
    moves = moves[legal[moves].all(1)]
    a, b, c = moves.T
    spent = now + rise[moves].sum(1) + interplay[a, b] + interplay[a, c] + interplay[b, c]
    lost = problem.lost_table[groups, to] - problem.lost_table[groups, steps[groups]]
    return moves, spent, float(problem.loss(steps)) + lost[moves].sum(1)


def _best_exchange(problem: WidthProblem, steps: IntArray) -> IntArray | None:
    """The neighbour that is better, or None: first by miss beyond the tolerance, then by importance lost."""
    moves, spent, lost = _priced(problem, steps)
    missed = problem.target - spent
    beyond = np.maximum(missed - problem.tolerance, 0)
    reachable = np.flatnonzero(missed >= 0)
    if not len(reachable):
        return None
    nearest = reachable[beyond[reachable] == beyond[reachable].min()]
    if len(nearest) > _VERIFIED:
        nearest = nearest[np.argpartition(lost[nearest], _VERIFIED)[:_VERIFIED]]
    candidates = _moved(steps, moves[nearest])
    candidates = candidates[problem.spent(candidates) <= problem.target]
    if not len(candidates):
        return None
    best = np.asarray(min(candidates, key=problem.rank))
    (now_beyond, now_lost), (best_beyond, best_lost) = problem.rank(steps), problem.rank(best)
    improved = best_beyond < now_beyond or (best_beyond == now_beyond and best_lost < now_lost - 1e-12 * abs(now_lost))
    return best if improved else None
