"""The search: rounds of proposals and measurements that end in a pruning plan at a target."""

from prunekit._callable import callable_module
from prunekit.search.endpoint import Endpoint, UnconfirmedEndpoint
from prunekit.search.journal import Journal
from prunekit.search.meeting_targets import Measure, TargetOf, WidthProblem, in_units, lost_importance, meet_target
from prunekit.search.multiples import DEFAULT_MULTIPLE, WidthMultiples, default_multiples, is_tiny
from prunekit.search.proposers import MEASURING_NOTHING, PROPOSERS, check_available, proposer
from prunekit.search.proxies import PROXIES, make_proxy, proxy_evaluations, proxy_samples
from prunekit.search.repair import Repair, RepairKind, repair
from prunekit.search.search import SearchOptions, SearchResult, search
from prunekit.search.search_cost import search_operations, search_samples
from prunekit.search.task import Proposer, Task
from prunekit.search.whole import nothing_to_prune, why_whole

__all__ = [
    "DEFAULT_MULTIPLE",
    "MEASURING_NOTHING",
    "PROPOSERS",
    "PROXIES",
    "Endpoint",
    "Journal",
    "Measure",
    "Proposer",
    "Repair",
    "RepairKind",
    "SearchOptions",
    "SearchResult",
    "TargetOf",
    "Task",
    "UnconfirmedEndpoint",
    "WidthMultiples",
    "WidthProblem",
    "check_available",
    "default_multiples",
    "in_units",
    "is_tiny",
    "lost_importance",
    "make_proxy",
    "meet_target",
    "nothing_to_prune",
    "proposer",
    "proxy_evaluations",
    "proxy_samples",
    "repair",
    "search",
    "search_operations",
    "search_samples",
    "why_whole",
]

callable_module(__name__)
