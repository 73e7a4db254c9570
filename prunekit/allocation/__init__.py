"""Budget allocation: how much compute each timestep group gets, by difficulty or by the losses that searches measured."""

from prunekit.allocation.frontier import Frontier, read_frontier, read_frontiers
from prunekit.allocation.recovery import GroupRecoveries, Recoveries, Recovery, after_recovery
from prunekit.allocation.rules import DIFFICULTY_RULES, RULES, allocate, check_leaves_cleanest, feasible_budgets
from prunekit.allocation.sensitivity import GroupSensitivity, Sensitivity
from prunekit.allocation.sensitivity_cuts import BySensitivity
from prunekit.allocation.step_sharing import shared_steps
from prunekit.allocation.targets import Allocation, GroupTarget

__all__ = [
    "DIFFICULTY_RULES",
    "RULES",
    "Allocation",
    "BySensitivity",
    "Frontier",
    "GroupRecoveries",
    "GroupSensitivity",
    "GroupTarget",
    "Recoveries",
    "Recovery",
    "Sensitivity",
    "after_recovery",
    "allocate",
    "check_leaves_cleanest",
    "feasible_budgets",
    "read_frontier",
    "read_frontiers",
    "shared_steps",
]
