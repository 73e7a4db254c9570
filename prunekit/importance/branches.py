"""Scores of residual branches that go with the criteria for channels, in units that can be added to the channels' scores.

Where a criterion estimates the rise of the loss, a branch's score is a rise of the loss, too. Where a criterion scores the channels
of every channel group around 1, a branch gets about 1 for each channel that it adds to.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from prunekit.graph import ChannelGraph, ChannelGroup, PruningPlan, Template
from prunekit.importance.branch_signals import branch_signals
from prunekit.importance.channel_sums import parts_of
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Criterion, Scores

__all__ = ["Rise", "WithBranches", "branch_sizes", "branch_weights", "random_branches"]


@dataclass(frozen=True)
class WithBranches:
    """A criterion for channels with one for residual branches.

    Args:
        channels: scores the channel groups; it is not shown the branches.
        branches: scores the branches.
    """

    channels: Criterion
    branches: Criterion

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """Score channels and branches."""
        scores = self.channels(model, graph.shrinking("width"), probe)
        return scores | self.branches(model, graph, probe) if graph.switches else scores


@dataclass(frozen=True)
class Rise:
    """Measured rise of the timestep group's loss when a branch is removed, before any repair.

    It takes one forward pass over the draws per branch. On few draws it ranks the branches better than every score that one
    backward pass over many draws can give (`reports/search/branches.md`), and is as fast.

    Args:
        draws: number of draws of the calibration set, spread over the timestep group; all if None.
    """

    draws: int | None = None

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """See the class; channel groups have no score."""
        few = probe if self.draws is None else probe.part(self.draws)
        whole, pruned_by = few.mean(model), Template(model, graph)

        def rise(switch: ChannelGroup) -> float:
            plan = PruningPlan({}, graph.fingerprint, (switch.name,))
            return few.mean(pruned_by(plan)) - whole if len(switch.widths) > 1 else 0.0

        return {switch.name: np.array([rise(switch)]) for switch in graph.switches}


def branch_sizes(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Root mean square of what a branch adds, relative to that of the other branches, times its number of outputs.

    The mean is over the samples of the probe's calibration set. It needs the loss only to run the network.
    """
    signals = branch_signals(model, graph, probe, slopes=False)
    return _relative(graph, {name: own.added**0.5 for name, own in signals.items()})


def branch_weights(power: int) -> Criterion:
    """The criterion by the norm of the weights of the layers that a branch ends with, for weights' norms of channels.

    The score is the norm relative to that of the other branches, times the number of outputs.

    Args:
        power: 2 for the L2 norm, 1 for the L1 norm.
    """

    def criterion(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        parameters = dict(model.named_parameters())

        def norm(switch: ChannelGroup) -> float:
            parts = [part for part in parts_of(model, switch, parameters) if part.parameter.ndim > 1]
            total = sum(float(part.parameter.detach().abs().double().pow(power).sum()) for part in parts)
            return float(total ** (1 / power))

        return _relative(graph, {switch.name: norm(switch) for switch in graph.switches})

    return criterion


def random_branches(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """A uniform random number from the probe's seed, times the branch's number of outputs."""
    rng = np.random.default_rng([probe.seed, probe.group.index, len(graph)])
    return {switch.name: rng.random(1) * _outputs(switch) for switch in graph.switches}


def _relative(graph: ChannelGraph, sizes: dict[str, float]) -> Scores:
    """Sizes relative to their mean, times the branches' numbers of outputs."""
    mean = max(float(np.mean(list(sizes.values()))), 1e-30)
    return {one.name: np.array([sizes[one.name] / mean * _outputs(one)]) for one in graph.switches}


def _outputs(switch: ChannelGroup) -> float:
    """Mean number of outputs of the layers that a branch ends with; 1 if it ends with none that is known."""
    return float(np.mean([len(member.positions) for member in switch.members] or [1]))
