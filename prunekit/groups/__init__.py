"""Timestep groups: contiguous ranges of training timesteps, group 0 the cleanest."""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need
from prunekit.groups.cut_evidence import Evidence, Grouping
from prunekit.groups.methods import METHODS, Explicit, GroupingMethod, Snr, Uniform, make_groups
from prunekit.groups.partition import TimestepGroup, TimestepGroups

if TYPE_CHECKING:
    from prunekit.groups.optimal_denoiser import OptimalDenoiser
    from prunekit.groups.similarity import ETA, Similarity, cut_by_matrix

__all__ = [
    "ETA",
    "METHODS",
    "Evidence",
    "Explicit",
    "Grouping",
    "GroupingMethod",
    "OptimalDenoiser",
    "Similarity",
    "Snr",
    "TimestepGroup",
    "TimestepGroups",
    "Uniform",
    "cut_by_matrix",
    "make_groups",
]

_HOMES = {  # planning does not need them and starts faster without
    "optimal_denoiser": ("OptimalDenoiser",),
    "similarity": ("ETA", "Similarity", "cut_by_matrix"),
}
__getattr__ = at_need(__name__, _HOMES)
