"""Importance of channels, per timestep group, for any network and any loss."""

from prunekit._callable import callable_module
from prunekit.importance.criteria import CRITERIA, WITHOUT_LOSS, branch_passes, criterion
from prunekit.importance.gradient_similarity import GradientSimilarity
from prunekit.importance.gradients import DiffPruning
from prunekit.importance.map import ImportanceMap, importance
from prunekit.importance.measured import Proxy
from prunekit.importance.probe import DrawnLoss, Loss, Probe, no_loss
from prunekit.importance.protocol import Criterion, Scores

__all__ = [
    "CRITERIA",
    "WITHOUT_LOSS",
    "Criterion",
    "DiffPruning",
    "DrawnLoss",
    "GradientSimilarity",
    "ImportanceMap",
    "Loss",
    "Probe",
    "Proxy",
    "Scores",
    "branch_passes",
    "criterion",
    "importance",
    "no_loss",
]

callable_module(__name__)
