"""The pruning engine's structure: channel groups, plans, surgery. It knows nothing of diffusion."""

from prunekit.graph.branch import Branch
from prunekit.graph.constraints import Constraints
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph, ChannelGroup, HeadMode, Member, NormMode, Shrink
from prunekit.graph.surgery import apply, attributes, fit, sliced_state, slicer
from prunekit.graph.template import Template
from prunekit.graph.trace import trace, with_branches

__all__ = [
    "Branch",
    "ChannelGraph",
    "ChannelGroup",
    "Constraints",
    "HeadMode",
    "Member",
    "NormMode",
    "PruningPlan",
    "Shrink",
    "Template",
    "apply",
    "attributes",
    "fit",
    "sliced_state",
    "slicer",
    "trace",
    "with_branches",
]
