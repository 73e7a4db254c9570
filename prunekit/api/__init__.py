"""The calls to try first. Their parts can also be called alone."""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need

if TYPE_CHECKING:
    from prunekit.api.making_experts import make_experts
    from prunekit.api.one_network import Pruned, prune

__all__ = ["Pruned", "make_experts", "prune"]

__getattr__ = at_need(__name__, {"making_experts": ("make_experts",), "one_network": ("Pruned", "prune")})
