"""What a criterion is."""

from typing import Protocol

from torch import nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGraph
from prunekit.importance.probe import Probe

__all__ = ["Criterion", "Scores"]

Scores = dict[str, FloatArray]
"""Score of every root channel, float64 of shape (size,), by channel group name."""


class Criterion(Protocol):
    """One way to score channels.

    A criterion with an attribute ``whole_model`` that is true is asked once, about all timesteps; its scores are every timestep
    group's.
    """

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """Score every channel of every group.

        Args:
            model: the network, possibly pruned already; ``graph`` is its own.
            graph: its channel groups.
            probe: the loss on the timestep group that the scores are for.

        Returns:
            Scores, higher = keep, coupled layers aggregated.
        """
        ...
