"""Budget allocation: how much compute each timestep group gets, by difficulty or by the losses that searches measured."""

from prunekit.allocation.frontier import Frontier, read_frontier, read_frontiers
from prunekit.allocation.rules import DIFFICULTY_RULES, RULES, allocate, feasible_budgets
from prunekit.allocation.sensitivity import GroupSensitivity, Sensitivity
from prunekit.allocation.targets import Allocation, GroupTarget

__all__ = [
    "DIFFICULTY_RULES",
    "RULES",
    "Allocation",
    "Frontier",
    "GroupSensitivity",
    "GroupTarget",
    "Sensitivity",
    "allocate",
    "feasible_budgets",
    "read_frontier",
    "read_frontiers",
]
