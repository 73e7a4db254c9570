"""The search: rounds of proposals and measurements that end in a pruning plan at a MAC target."""

from prunekit.search.proposers import PROPOSERS, Proposer, Task, proposer
from prunekit.search.search import SearchOptions, SearchResult, search
from prunekit.search.targets import WidthProblem, lost_importance, meet_target

__all__ = [
    "PROPOSERS",
    "Proposer",
    "SearchOptions",
    "SearchResult",
    "Task",
    "WidthProblem",
    "lost_importance",
    "meet_target",
    "proposer",
    "search",
]
