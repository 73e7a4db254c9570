"""Criteria that look at the weights alone; the same for every timestep group."""

import numpy as np
import torch
from torch import nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGraph, ChannelGroup
from prunekit.importance.channels import Part, is_layer, mean_of_layers, per_root, vectors, weights_of
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Scores

__all__ = ["fpgm", "group_magnitude", "magnitude", "magnitude_l1"]


def magnitude(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Mean over the coupled layers of the L2 norm of the channel's weights, each layer scaled to mean 1 (arXiv:1608.08710).

    Both what makes a channel (rows) and what reads it (columns) count. The paper ranks single filters; coupling and scaling are
    this project's: without the scaling, the layer with the largest weights would decide alone.
    """
    return {group.name: group_magnitude(model, group, 2) for group in graph}


def magnitude_l1(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """As :func:`magnitude`, with the L1 norm, which is the paper's first choice (arXiv:1608.08710, section 3.1)."""
    return {group.name: group_magnitude(model, group, 1) for group in graph}


def group_magnitude(model: nn.Module, group: ChannelGroup, power: int) -> FloatArray:
    """Mean over a channel group's layers of the channels' norms, each layer scaled to mean 1; shape (size,)."""
    norms = []
    for part in weights_of(model, group, dict(model.named_parameters())):
        powers = part.parameter.detach().double().abs().pow(power)
        norms.append(per_root(powers, part.dim, part.member, group.size) ** (1 / power))
    return mean_of_layers(norms, group.size)


def fpgm(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""Sum of distances to the other channels of the layer, :math:`\sum_j \|w_k - w_j\|_2` (FPGM, arXiv:1811.00250).

    The channel nearest to the geometric median of the filters is the most replaceable. Filters are what makes a channel: of the
    coupled layers those count that produce it, and free tensors, each scaled to mean 1, and their mean is the score (ours). Where
    none does, all of the channel group's weights count; where no layer gives every channel as many weights, :func:`magnitude`.
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
    """Sum of every channel's distances to all others; None where the layer does not treat all channels alike."""
    filters = vectors(part, size)
    if filters is None:
        return None
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
    return np.asarray(distances.sum(1).cpu().numpy())
