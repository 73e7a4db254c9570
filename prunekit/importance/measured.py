"""The criterion that removes channels and measures the loss: expensive, and the reference for all others."""

import itertools
from dataclasses import dataclass

import numpy as np
from torch import nn

from prunekit._types import FloatArray, IntArray
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, ChannelGroup, PruningPlan, Template
from prunekit.importance.branches import Rise
from prunekit.importance.gradients import taylor
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Criterion, Scores

__all__ = ["Proxy"]

_APART = 1e-9  # times the largest rise: far below the precision of the loss


@dataclass(frozen=True)
class Proxy:
    """Measured rise of the timestep group's loss when only one block of channels is removed, before any repair.

    A block is the smallest step by which the channel group may shrink: a channel, one from every norm group, or an attention head.
    A cheap criterion ranks the channels, and blocks are formed in this order. Every channel of a block gets the block's rise
    divided by the block's number of channels, so the scores of a channel group add up to its blocks' rises; within a block,
    differences of a billionth keep the cheap criterion's order. A channel gets a negative score if the loss falls without it.
    Coupled layers are removed together, so no aggregation is needed. The idea is the measured proxy of TDC's search
    (arXiv:2312.13307); the score per channel is this project's.

    A residual branch is a block of its own. It takes one pass over the calibration set per block. What cannot be removed cannot be
    measured, and gets zeros.

    Args:
        ranking: the cheap criterion that forms the blocks.
        blocks: largest number of blocks per channel group; if it has more steps, neighbours in rank share a block.

    Raises:
        InputError: there are fewer than 2 blocks.
    """

    ranking: Criterion = taylor
    blocks: int = 16

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise InputError(f"Got {self.blocks} blocks per channel group; expected at least 2, since one must stay.")

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """See the class."""
        branches = Rise()(model, graph, probe) if graph.switches else {}
        graph = graph.shrinking("width")
        ranks = self.ranking(model, graph, probe)
        whole, pruned_by = probe.mean(model), Template(model, graph)

        def score(group: ChannelGroup) -> FloatArray:
            scores = np.zeros(group.size)
            rises = []
            blocks = self._blocks(group, ranks[group.name])
            for block in blocks:
                kept = np.setdiff1d(np.arange(group.size), block)
                plan = PruningPlan({group.name: tuple(kept.tolist())}, graph.fingerprint)
                rises.append(probe.mean(pruned_by(plan)) - whole)
                scores[block] = rises[-1] / len(block)
            unmeasured = np.setdiff1d(np.arange(group.size), np.concatenate(blocks) if blocks else [])
            if rises and len(unmeasured):  # too few for a step: every legal width keeps them
                scores[unmeasured] = scores.max()
            order = np.argsort(np.argsort(ranks[group.name], kind="stable"), kind="stable") / group.size
            return np.asarray(scores + _APART * np.abs(scores).max() * order)

        return {group.name: score(group) for group in graph} | branches

    def _blocks(self, group: ChannelGroup, ranks: FloatArray) -> list[IntArray]:
        """Disjoint blocks that can each be removed alone, least important first."""
        legal = [width for width in range(group.size, 0, -group.step) if group.is_legal(width)]
        every = -(-len(legal) // self.blocks)
        kept = [group.select(ranks, width) for width in legal[::every]]
        rest = [kept[-1]] if len(kept) > 1 else []
        cut = [np.setdiff1d(more, fewer) for more, fewer in itertools.pairwise(kept)] + rest
        return [block for block in cut if group.is_legal(group.size - len(block))]
