"""Importance of channels, per timestep group, for any network and any loss."""

from prunekit.importance.criteria import CRITERIA, Criterion, Scores, criterion
from prunekit.importance.map import FORMAT, ImportanceMap, importance
from prunekit.importance.probe import Loss, Probe

__all__ = ["CRITERIA", "FORMAT", "Criterion", "ImportanceMap", "Loss", "Probe", "Scores", "criterion", "importance"]
