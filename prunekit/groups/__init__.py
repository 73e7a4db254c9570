"""Timestep groups: contiguous ranges of training timesteps, group 0 the cleanest."""

from prunekit.groups.methods import METHODS, make_groups
from prunekit.groups.partition import FORMAT, TimestepGroup, TimestepGroups

__all__ = ["FORMAT", "METHODS", "TimestepGroup", "TimestepGroups", "make_groups"]
