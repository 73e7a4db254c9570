"""prunekit: structural pruning and importance for diffusion models, timestep group by timestep group.

``import prunekit as pk`` and start with one of these:

- :func:`prunekit.prune`: one network, down to a fraction of its MACs;
- :func:`prunekit.make_experts`: from a pipeline and images, one pruned and fine-tuned network for each timestep group;
- :func:`prunekit.importance`: scores of every channel for every timestep group.

A name is imported when it is first used, so ``import prunekit`` takes no time.
"""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need

if TYPE_CHECKING:
    from prunekit._progress import watched
    from prunekit.allocation import Allocation, allocate
    from prunekit.api import Pruned, make_experts, prune
    from prunekit.checkpoint import Base, load_base
    from prunekit.cost import CostModel, count_macs
    from prunekit.data import load_images
    from prunekit.errors import (
        BudgetError,
        FileFormatError,
        GraphError,
        InputError,
        MissingFileError,
        PlanError,
        PrunekitError,
    )
    from prunekit.graph import ChannelGraph, Constraints, PruningPlan, trace
    from prunekit.groups import TimestepGroup, TimestepGroups, make_groups
    from prunekit.importance import ImportanceMap, Probe, importance
    from prunekit.nets import MultiDecoderUNet, TimestepExperts, load_experts, save_experts
    from prunekit.schedule import NoiseSchedule
    from prunekit.search import repair, search  # type: ignore[no-redef]
    from prunekit.slim import SlimModel, load_slim, save_slim

__version__ = "0.1.0"

_HOMES = {
    "_progress": ("watched",),
    "allocation": ("Allocation", "allocate"),
    "api": ("Pruned", "make_experts", "prune"),
    "checkpoint": ("Base", "load_base"),
    "cost": ("CostModel", "count_macs"),
    "data": ("load_images",),
    "errors": (
        "BudgetError",
        "FileFormatError",
        "GraphError",
        "InputError",
        "MissingFileError",
        "PlanError",
        "PrunekitError",
    ),
    "graph": ("ChannelGraph", "Constraints", "PruningPlan", "trace"),
    "groups": ("TimestepGroup", "TimestepGroups", "make_groups"),
    "importance": ("ImportanceMap", "Probe"),
    # diffusers looks ModelMixin up in the library that model_index.json names, to know how its classes are loaded
    "nets": ("ModelMixin", "MultiDecoderUNet", "TimestepExperts", "load_experts", "save_experts"),
    "schedule": ("NoiseSchedule",),
    "search": ("repair",),
    "slim": ("SlimModel", "load_slim", "save_slim"),
}
__all__ = [
    "Allocation",
    "Base",
    "BudgetError",
    "ChannelGraph",
    "Constraints",
    "CostModel",
    "FileFormatError",
    "GraphError",
    "ImportanceMap",
    "InputError",
    "MissingFileError",
    "MultiDecoderUNet",
    "NoiseSchedule",
    "PlanError",
    "Probe",
    "Pruned",
    "PrunekitError",
    "PruningPlan",
    "SlimModel",
    "TimestepExperts",
    "TimestepGroup",
    "TimestepGroups",
    "__version__",
    "allocate",
    "count_macs",
    "importance",
    "load_base",
    "load_experts",
    "load_images",
    "load_slim",
    "make_experts",
    "make_groups",
    "prune",
    "repair",
    "save_experts",
    "save_slim",
    "search",
    "trace",
    "watched",
]


__getattr__ = at_need(__name__, _HOMES, packages=("importance", "search"))  # they are called like their function


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
