"""Costs in MACs per sample per evaluation: counted on a model, or computed for a pruning plan as a closed form of the widths."""

from prunekit.cost.closed_form import CostModel
from prunekit.cost.counter import MacCount, count_macs, count_params
from prunekit.cost.latency import LatencyCheck, LatencyTable, prediction_error
from prunekit.cost.latency_model import LatencyModel
from prunekit.cost.other_counters import Difference, OtherCount, other_counters
from prunekit.cost.timing import LatencyOptions, train_step_rate
from prunekit.cost.training import GPUS, StepCost, gpu_hours
from prunekit.cost.verify import verify

__all__ = [
    "GPUS",
    "CostModel",
    "Difference",
    "LatencyCheck",
    "LatencyModel",
    "LatencyOptions",
    "LatencyTable",
    "MacCount",
    "OtherCount",
    "StepCost",
    "count_macs",
    "count_params",
    "gpu_hours",
    "other_counters",
    "prediction_error",
    "train_step_rate",
    "verify",
]
