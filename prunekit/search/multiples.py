"""Widths in multiples that suit the hardware: the default, when it is relaxed to meet a target, and what it costs.

By default widths are multiples of 8 where the base's own are, unless the network is tiny: most of its channel groups have fewer
than 64 channels. Kernels for processors and GPUs work on blocks of 8 to 64 channels, so a width between them costs what the
next larger block. A network of 8 to 48 channels has no such blocks to save, and multiples of 8 would leave it almost no choice.
The multiple and the limits are this project's choice.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from prunekit._json import JsonObject
from prunekit._types import IntArray
from prunekit.graph import ChannelGraph, ChannelGroup
from prunekit.search.exact import nearest_below
from prunekit.search.meeting_targets import WidthProblem

__all__ = ["DEFAULT_MULTIPLE", "WidthMultiples", "default_multiples", "is_tiny", "price_of", "within_reach"]

DEFAULT_MULTIPLE = 8
_TINY = 64  # channels of the median group
_FEWEST = 8  # widths that multiples leave a group, if they take any away
_BOXES = 400  # of the branch and bound that prices multiples: about a second for 100 groups


@dataclass(frozen=True)
class WidthMultiples:
    """The multiples that the widths of a result respect, and what they cost.

    Args:
        groups: multiple → number of channel groups whose widths are multiples of it; 1 for any widths.
        asked: whether the user asked for them; otherwise they are the default.
        finer: names of the channel groups with finer multiples than the default's, so that the target is met.
        costs: how much nearer the target unrestricted widths come, in the unit of the measure.
    """

    groups: Mapping[int, int]
    asked: bool
    finer: tuple[str, ...] = ()
    costs: int = 0

    @property
    def largest(self) -> int:
        """The largest multiple; 1 if any widths were allowed."""
        return max(self.groups, default=1)

    def to_json(self) -> JsonObject:
        """The arguments by name, JSON-able."""
        groups = {str(multiple): count for multiple, count in self.groups.items()}
        return {"groups": groups, "asked": self.asked, "finer": list(self.finer), "costs": self.costs}

    @classmethod
    def of(cls, graph: ChannelGraph, asked: bool, wished: ChannelGraph, costs: int) -> "WidthMultiples":
        """The multiples of a graph's widths; ``wished`` is the graph with the intended multiples."""
        counts = Counter(
            max(1, group.multiple // (1 if asked else _times(group))) for group in graph if len(group.widths) > 1
        )
        finer = tuple(one.name for one, other in zip(graph, wished, strict=True) if one.multiple < other.multiple)
        return cls(dict(sorted(counts.items(), reverse=True)), asked, finer, costs)


def default_multiples(graph: ChannelGraph, multiple: int = DEFAULT_MULTIPLE) -> ChannelGraph:
    """The same channel groups with widths in multiples, where they leave a group enough choice; tiny networks are unchanged."""
    if is_tiny(group.size for group in graph if group.branch is None):
        return graph
    return replace(graph, groups=tuple(_in_multiples(group, multiple) for group in graph))


def is_tiny(sizes: Iterable[int]) -> bool:
    """Whether a network with channel groups of these sizes is too small for multiples."""
    return bool(np.median([*sizes] or [0]) < _TINY)


def _in_multiples(group: ChannelGroup, multiple: int) -> ChannelGroup:
    held = replace(group, multiple=multiple * _times(group))
    enough = len(held.widths) >= _FEWEST or len(held.widths) == len(group.widths)
    return held if group.size % multiple == 0 and enough else group


def _times(group: ChannelGroup) -> int:
    """Number of positions per root channel on the axis where multiples are counted."""
    return len(group.members[0].positions) // group.size if group.members else 1


def within_reach(problem: WidthProblem) -> WidthProblem:
    """The same problem, with multiples lifted from as few channel groups as needed to meet its target within the tolerance.

    Groups with the largest single step that the tolerance allows come first, since the fewest of these are needed. If no widths
    meet the target, multiples are lifted from all groups, or the problem is returned unchanged if that comes no nearer.
    """
    coarse = _coarse(problem)
    if not coarse or (missed := _miss(problem)) <= problem.tolerance:
        return problem
    free = _freed(problem, coarse)
    if _miss(free) >= missed:
        return problem
    order = _order(free, coarse)
    count = 1
    while count < len(order):
        found = _freed(problem, order[:count])
        if _miss(found) <= found.tolerance:
            return found
        count *= 2
    return free


def price_of(problem: WidthProblem, steps: IntArray) -> int:
    """How much nearer the target unrestricted widths come, in the unit of the measure; from a search of about a second."""
    coarse = _coarse(problem)
    if not coarse or problem.missed(steps) == 0:
        return 0
    exact = replace(problem, tolerance=0)
    nearest, _ = nearest_below(exact, steps, _BOXES)
    free = _freed(exact, coarse)
    finest, _ = nearest_below(free, _same(problem, free, nearest), _BOXES)
    return exact.missed(nearest) - free.missed(finest)


def _same(problem: WidthProblem, free: WidthProblem, steps: IntArray) -> IntArray:
    """Steps that give the same widths in a problem with more legal widths."""
    widths = problem.widths(steps)
    places = [int(np.flatnonzero(group.widths == w)[0]) for group, w in zip(free.graph, widths, strict=True)]
    return np.array(places, dtype=np.int64)


def _freed(problem: WidthProblem, places: list[int]) -> WidthProblem:
    """The problem with any widths for the groups in these places."""
    chosen = set(places)
    groups = tuple(replace(g, multiple=1) if i in chosen else g for i, g in enumerate(problem.graph))
    lost = [np.zeros(len(group.widths)) for group in groups]
    return replace(problem, graph=replace(problem.graph, groups=groups), lost=lost)


def _miss(problem: WidthProblem) -> float:
    """The smallest miss of the target that was found; infinite if even the smallest widths exceed the target."""
    if problem.target < int(problem.spent(problem.max_steps)):
        return np.inf
    return problem.missed(nearest_below(problem, problem.max_steps)[0])


def _coarse(problem: WidthProblem) -> list[int]:
    """Places of the channel groups whose widths are multiples."""
    return [place for place, group in enumerate(problem.graph) if group.multiple > 1]


def _order(free: WidthProblem, places: list[int]) -> list[int]:
    """Sort the places: groups with a single step within the tolerance, largest step first; then the others, smallest first."""
    one = np.minimum(np.eye(len(free.graph), dtype=np.int64), free.max_steps)
    saved = int(free.spent(np.zeros_like(free.max_steps))) - free.spent(one)
    return sorted(places, key=lambda g: (saved[g] > free.tolerance, abs(int(saved[g]) - free.tolerance)))
