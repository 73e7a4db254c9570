"""What goes with a residual branch when it is removed."""

from dataclasses import dataclass

from torch import nn

from prunekit._json import JsonObject
from prunekit.graph import ChannelGraph
from prunekit.graph.branch import Branch

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """What is removed with a residual branch.

    Args:
        layers: its layers, in the network's order.
        channel_groups: the channel groups, and the branches within it, of which nothing is left without it.
    """

    layers: tuple[str, ...]
    channel_groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, branch: Branch) -> "Contents":
        """What is removed with a branch of a network.

        Args:
            model: the network.
            graph: its groups, with a switch for the branch.
            branch: the branch.
        """
        weighed = (
            name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))
        )
        return cls(tuple(name for name in weighed if branch.removes(name)), graph.held_by(branch.name))

    def to_json(self) -> JsonObject:
        """``{"layers", "channel_groups"}``."""
        return {"layers": list(self.layers), "channel_groups": list(self.channel_groups)}
