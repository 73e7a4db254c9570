"""Timestep groups: contiguous ranges of training timesteps, group 0 the cleanest."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunekit.groups.evidence import Evidence, Grouping
from prunekit.groups.methods import METHODS, Explicit, GroupingMethod, Snr, Uniform, make_groups
from prunekit.groups.partition import FORMAT, TimestepGroup, TimestepGroups

if TYPE_CHECKING:
    from prunekit.groups.denoiser import OptimalDenoiser
    from prunekit.groups.similarity import ETA, Rule, Similarity, cut_by_matrix

__all__ = [
    "ETA",
    "FORMAT",
    "METHODS",
    "Evidence",
    "Explicit",
    "Grouping",
    "GroupingMethod",
    "OptimalDenoiser",
    "Rule",
    "Similarity",
    "Snr",
    "TimestepGroup",
    "TimestepGroups",
    "Uniform",
    "cut_by_matrix",
    "make_groups",
]

_AT_NEED = {"OptimalDenoiser": "denoiser"} | dict.fromkeys(("ETA", "Rule", "Similarity", "cut_by_matrix"), "similarity")


def __getattr__(name: str) -> Any:
    """What looks at images is imported when it is asked for, so that planning answers at once."""
    if name not in _AT_NEED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_AT_NEED[name]}"), name)
