"""Costs in MACs per sample per evaluation: counted on a model, and of a pruning plan as a closed form of the widths."""

from prunekit.cost.closed_form import CostModel
from prunekit.cost.counter import MacCount, count_macs, count_params, other_counters

__all__ = ["CostModel", "MacCount", "count_macs", "count_params", "other_counters"]
