"""The pruning engine's structure: channel groups, plans, surgery. It knows nothing of diffusion."""

from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph, ChannelGroup, Member, NormMode
from prunekit.graph.surgery import apply, fit, norm_groups, sliced_state
from prunekit.graph.trace import trace

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Member",
    "NormMode",
    "PruningPlan",
    "apply",
    "fit",
    "norm_groups",
    "sliced_state",
    "trace",
]
