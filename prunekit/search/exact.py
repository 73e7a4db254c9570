"""Decides exactly whether any widths meet a target, by branch and bound over boxes of steps.

The cost never rises when a channel leaves, so the two corners of a box bound the cost of all its states. A box whose bounds miss
the target is dropped whole. In any other box, a path of single steps from one corner to the other crosses the target; if the step
that crosses it is small enough, the state below the target is a solution. So the search only branches on groups with a single step
larger than the tolerance, and these are few. The method is this project's own.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prunekit._types import IntArray

__all__ = ["Reachable", "nearest_below"]

_MAX_BOXES = 20_000  # a few seconds for 250 groups; smaller problems finish much earlier


class Reachable(Protocol):
    """The interface that :func:`nearest_below` needs; :class:`prunekit.search.meeting_targets.WidthProblem` implements it."""

    @property
    def target(self) -> int:
        """Upper limit of the cost."""

    @property
    def tolerance(self) -> int:
        """How far below the target the cost may lie."""

    @property
    def max_steps(self) -> IntArray:
        """Largest number of steps of every group, shape (groups,)."""

    def spent(self, steps: IntArray) -> IntArray:
        """Cost after ``steps`` of shape (..., groups), never larger after more steps."""


@dataclass(frozen=True, eq=False)
class _Box:
    """All states between two corners: ``low`` is the most expensive, ``high`` the cheapest, both of shape (groups,)."""

    low: IntArray
    high: IntArray


def nearest_below(problem: Reachable, near: IntArray, boxes_at_most: int = _MAX_BOXES) -> tuple[IntArray, bool]:
    """The state nearest below the target, or the first that is found within the tolerance.

    Args:
        problem: cost, target and tolerance.
        near: a state that costs at most the target, shape (groups,); similar states are tried first.
        boxes_at_most: after this many boxes the best state so far is returned.

    Returns:
        The state, shape (groups,), and whether the answer is certain: the state is within the tolerance, or no other is nearer.
    """
    best, missed = near, problem.target - int(problem.spent(near))
    boxes = [_Box(np.zeros_like(near), problem.max_steps.copy())]
    for _ in range(boxes_at_most):
        if not boxes or missed <= problem.tolerance:
            return best, True
        box = boxes.pop()
        most, least = (int(cost) for cost in problem.spent(np.stack([box.low, box.high])))
        if least > problem.target or problem.target - most >= missed:
            continue
        steps_of = _single_steps(problem, box)
        found = box.low if most <= problem.target else _crossing(problem, box, steps_of)
        if (nearer := problem.target - int(problem.spent(found))) < missed:
            best, missed = found, nearer
        if most > problem.target:
            boxes += _halves(box, int(np.argmax(steps_of)), near)
    return best, not boxes or missed <= problem.tolerance


def _single_steps(problem: Reachable, box: _Box) -> IntArray:
    """Cost saved in every group by one step from the most expensive corner; −1 if the box leaves no choice. Shape (groups,)."""
    one = box.low + np.eye(len(box.low), dtype=np.int64)
    saved = int(problem.spent(box.low)) - problem.spent(np.minimum(one, box.high))
    return np.where(box.high > box.low, saved, -1)


def _crossing(problem: Reachable, box: _Box, steps_of: IntArray) -> IntArray:
    """First state not above the target on a path between the corners; the path changes the groups with the largest steps first."""
    order = np.argsort(-steps_of, kind="stable")
    lengths = np.cumsum((box.high - box.low)[order])

    def state(step: int) -> IntArray:
        steps = box.low.copy()
        taken = np.clip(step - (lengths - (box.high - box.low)[order]), 0, (box.high - box.low)[order])
        steps[order] += taken
        return steps

    above, below = 0, int(lengths[-1])  # the most expensive corner is above the target, the cheapest is not
    while below - above > 1:
        middle = (above + below) // 2
        if int(problem.spent(state(middle))) > problem.target:
            above = middle
        else:
            below = middle
    return state(below)


def _halves(box: _Box, group: int, near: IntArray) -> list[_Box]:
    """The box cut in two along a group, the half with ``near`` last, so that it is looked at first."""
    middle = (int(box.low[group]) + int(box.high[group])) // 2
    first_high, second_low = box.high.copy(), box.low.copy()
    first_high[group], second_low[group] = middle, middle + 1
    halves = [_Box(box.low, first_high), _Box(second_low, box.high)]
    return halves[::-1] if near[group] <= middle else halves
