"""The search: rounds of proposals and measurements that end in a pruning plan at a target."""

from prunekit.search.proposers import PROPOSERS, Proposer, Task, proposer
from prunekit.search.search import SearchOptions, SearchResult, search
from prunekit.search.targets import Measure, TargetOf, WidthProblem, lost_importance, meet_target

__all__ = [
    "PROPOSERS",
    "Measure",
    "Proposer",
    "SearchOptions",
    "SearchResult",
    "TargetOf",
    "Task",
    "WidthProblem",
    "lost_importance",
    "meet_target",
    "proposer",
    "search",
]
