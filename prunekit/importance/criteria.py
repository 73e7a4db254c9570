"""Criteria: how much each channel of a channel group matters. Higher = keep."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, ChannelGroup, Member
from prunekit.graph.surgery import evaluation_mode, tensors_of
from prunekit.importance.probe import Probe

__all__ = ["CRITERIA", "Criterion", "Scores", "criterion"]

Scores = dict[str, FloatArray]
"""Score of every root channel, float64 of shape (size,), by channel group name."""


class Criterion(Protocol):
    """One way to score channels."""

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


def magnitude(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Mean over the coupled layers of the L2 norm of the channel's weights, each layer scaled to mean 1 (arXiv:1608.08710).

    Without the scaling, the layer with the largest weights would decide alone; the scaling is this project's choice.
    """
    parameters = dict(model.named_parameters())

    def score(group: ChannelGroup) -> FloatArray:
        total = np.zeros(group.size)
        parts = 0
        for member in group.members:
            for key, dim in tensors_of(model, member):
                weight = parameters.get(key)
                if weight is not None and key.endswith("weight") and weight.ndim > 1:
                    norms = np.sqrt(_per_root(weight.detach().double().square(), dim, member, group.size))
                    total += norms / max(norms.mean(), 1e-30)
                    parts += 1
        return total / max(parts, 1)

    return {group.name: score(group) for group in graph}


def taylor(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""First-order rise of the loss when the channel is removed, :math:`|\sum w\,\partial L/\partial w|` (arXiv:1906.10771, eq. 8).

    The gradient is the mean over the probe's whole calibration set, in float64. Per coupled tensor the products are summed over the
    channel's weights, and the absolute sums are added over the tensors. How to aggregate over coupled layers is not the paper's.
    """
    gradients = _mean_gradients(model, probe)
    parameters = dict(model.named_parameters())

    def score(group: ChannelGroup) -> FloatArray:
        total = np.zeros(group.size)
        for member in group.members:
            for key, dim in tensors_of(model, member):
                if key in parameters:
                    product = parameters[key].detach().double() * gradients[parameters[key]]
                    total += np.abs(_per_root(product, dim, member, group.size))
        return total

    return {group.name: score(group) for group in graph}


def random(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    """Uniform random scores from the probe's seed: the baseline that any criterion must beat."""
    rng = np.random.default_rng([probe.seed, probe.group.index])
    return {group.name: rng.random(group.size) for group in graph}


CRITERIA: Mapping[str, Criterion] = {"magnitude": magnitude, "random": random, "taylor": taylor}


def criterion(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in CRITERIA:
        raise InputError(f"Unknown criterion {name!r}; expected one of {', '.join(CRITERIA)}.")
    return CRITERIA[name]


def _mean_gradients(model: nn.Module, probe: Probe) -> dict[nn.Parameter, Tensor]:
    """Gradient of the probe's mean loss for every parameter, float64; the model's own ``.grad`` is left as it was."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        with evaluation_mode(model), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            for loss, weight in probe.losses(model):
                for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if gradient is not None:
                        sum_.add_(gradient.double(), alpha=weight)
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return dict(zip(parameters, total, strict=True))


def _per_root(values: Tensor, dim: int, member: Member, size: int) -> FloatArray:
    """Sum over all dimensions but ``dim``, then add the positions that each root channel owns; shape (size,)."""
    positions, roots = member.positions, member.roots
    along = values.movedim(dim, 0).flatten(1).sum(1) if values.ndim > 1 else values
    return np.bincount(roots, weights=along.cpu().numpy()[positions], minlength=size).astype(np.float64)
