"""Criteria by name: how much each channel of a channel group matters. Higher = keep."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph
from prunekit.importance.branches import Rise, WithBranches, branch_sizes, branch_weights, random_branches
from prunekit.importance.gradients import DiffPruning, fisher, taylor
from prunekit.importance.measured import Proxy
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Criterion, Scores
from prunekit.importance.signals import activation
from prunekit.importance.weight_criteria import fpgm, magnitude, magnitude_l1

__all__ = ["CRITERIA", "WITHOUT_LOSS", "branch_passes", "criterion", "random"]


def random(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Uniform random scores from the probe's seed, one per channel: the baseline that every criterion should beat."""
    rng = np.random.default_rng([probe.seed, probe.group.index])
    return {group.name: rng.random(group.size) for group in graph}


_FEW = 32  # draws on which the rise without a branch is measured: enough to rank branches

CRITERIA: Mapping[str, Criterion] = {
    "activation": WithBranches(activation, branch_sizes),
    "diff-pruning": DiffPruning(),
    "fisher": fisher,
    "fpgm": WithBranches(fpgm, branch_weights(2)),
    "magnitude": WithBranches(magnitude, branch_weights(2)),
    "magnitude-l1": WithBranches(magnitude_l1, branch_weights(1)),
    "proxy": Proxy(),
    "random": WithBranches(random, random_branches),
    "taylor": WithBranches(taylor, Rise(_FEW)),
}
WITHOUT_LOSS = frozenset({"fpgm", "magnitude", "magnitude-l1", "random"})
"""Criteria that never evaluate the probe's loss, so they need no images."""


def criterion(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in CRITERIA:
        raise InputError(
            f"Unknown criterion {name!r}{did_you_mean(name, CRITERIA)}; expected one of {', '.join(CRITERIA)}."
        )
    return CRITERIA[name]


def branch_passes(name: str, samples: int) -> int:
    """Forward passes that a criterion takes to score one residual branch, beside those for the channels.

    Args:
        name: of the criterion.
        samples: number of draws of the calibration set.

    Raises:
        InputError: the name is unknown.

    Example:
        >>> branch_passes("taylor", 512), branch_passes("proxy", 512), branch_passes("magnitude", 512)
        (32, 512, 0)
    """
    match criterion(name):
        case WithBranches(branches=Rise(draws=draws)):
            return samples if draws is None else min(samples, draws)
        case Proxy():
            return samples
    return 0
