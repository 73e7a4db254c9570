"""The calls that a newcomer tries first; everything that they are made of can be called alone."""

from prunekit.api.experts import make_experts
from prunekit.api.pruning import Pruned, prune

__all__ = ["Pruned", "make_experts", "prune"]
