"""The protocol of criteria."""

from typing import Protocol

from torch import nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGraph
from prunekit.importance.probe import Probe

__all__ = ["Criterion", "Scores"]

Scores = dict[str, FloatArray]
"""Score of every root channel, float64 of shape (size,), by channel group name."""


class Criterion(Protocol):
    """A way to score channels.

    A criterion with a true attribute ``whole_model`` is called once, for all timesteps; every timestep group gets its scores.
    """

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """Score every channel of every group.

        Args:
            model: the network; it may be pruned already.
            graph: the channel groups of this network.
            probe: the loss on the timestep group that the scores are for.

        Returns:
            Scores, higher = keep, coupled layers aggregated.
        """
        ...
