"""Criteria that use only the weights; the scores are the same for every timestep group."""

import numpy as np
import torch
from torch import nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGraph, ChannelGroup
from prunekit.importance.channel_sums import Part, is_layer, mean_of_layers, per_root, vectors, weights_of
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Scores

__all__ = ["fpgm", "group_magnitude", "magnitude", "magnitude_l1"]


def magnitude(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Mean over the coupled layers of the L2 norm of the channel's weights, each layer scaled to mean 1 (arXiv:1608.08710).

    Both the weights that make a channel (rows) and those that read it (columns) count. The paper ranks single filters; coupling and
    scaling are this project's. Without the scaling, the layer with the largest weights would dominate.
    """
    return {group.name: group_magnitude(model, group, 2) for group in graph}


def magnitude_l1(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """As :func:`magnitude`, with the L1 norm, which is the paper's first choice (arXiv:1608.08710, section 3.1)."""
    return {group.name: group_magnitude(model, group, 1) for group in graph}


def group_magnitude(model: nn.Module, group: ChannelGroup, power: int) -> FloatArray:
    """Mean over a channel group's layers of the channels' norms, each layer scaled to mean 1; shape (size,)."""
    norms = []
    for part in weights_of(model, group, dict(model.named_parameters())):
        powers = part.parameter.detach().abs().double().pow(power)
        norms.append(per_root(powers, part.dim, part.member, group.size) ** (1 / power))
    return mean_of_layers(norms, group.size)


def fpgm(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""Sum of distances to the other channels of the layer, :math:`\sum_j \|w_k - w_j\|_2` (FPGM, arXiv:1811.00250).

    The channel nearest to the geometric median of the filters is the most replaceable. Filters are the weights that make a channel:
    the score is the mean over free tensors and the coupled layers that make the channel, each scaled to mean 1 (this project's
    choice). If there are none, all of the channel group's weights count. If no layer has equally many weights for every channel,
    the score is :func:`magnitude`.
    """
    parameters = dict(model.named_parameters())

    def score(group: ChannelGroup) -> FloatArray:
        parts = weights_of(model, group, parameters)
        makers = [part for part in parts if part.member.axis == "out" or not is_layer(part.member)]
        found = [_distances(part, group.size) for part in makers or parts]
        layers = [one for one in found if one is not None]
        return mean_of_layers(layers, group.size) if layers else group_magnitude(model, group, 2)

    return {group.name: score(group) for group in graph}


def _distances(part: Part, size: int) -> FloatArray | None:
    """Sum of every channel's distances to all others; None if the layer does not have equally many weights for every channel."""
    filters = vectors(part, size)
    if filters is None:
        return None
    filters = filters - filters.mean(0)  # |a − b|² = |a|² + |b|² − 2ab loses fewest digits about the mean
    squares = filters.square().sum(1)
    distances = torch.addmm(squares + squares.unsqueeze(1), filters, filters.T, alpha=-2).clamp_(min=0)
    return np.asarray(distances.fill_diagonal_(0).sqrt_().sum(1).cpu().numpy())
