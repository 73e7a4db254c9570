"""Closed-form repair of the layers that read removed channels, so that a pruned network computes nearly what it did before.

A layer that reads channels x loses some of them. What it computed from those is predicted from the ones that stay, by least squares
on calibration activations, and added to its weights: no gradient, no training. (Least-squares reconstruction after channel
pruning: He et al., arXiv:1707.06168, eq. 3; the bias correction alone: Molchanov et al. subtract means, as data-free methods do.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.layers import layer_kind
from prunekit.importance import Probe

__all__ = ["Repair", "RepairKind"]

RepairKind = Literal["none", "bias", "least-squares"]
_RIDGE = 1e-3  # of the mean variance: activations of one layer are often nearly dependent


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of what enters one layer: mean (channels,) and covariance (channels, channels), float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, eq=False)
class Repair:
    """How to repair a network for any plan, from one pass over a timestep group's calibration set.

    Args:
        model: the full network.
        graph: its channel groups.
        moments: of what enters each layer that may lose inputs.
        kind: ``none``, ``bias`` (the mean of what is lost goes to the bias) or ``least-squares``.
    """

    model: nn.Module
    graph: ChannelGraph
    moments: dict[str, _Moments]
    kind: RepairKind

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, probe: Probe, kind: RepairKind = "least-squares") -> "Repair":
        """Measure the moments on the probe's draws; nothing is measured for ``none``."""
        layers = {m.layer for group in graph for m in group.members if m.axis == "in"}
        repairable = [name for name in layers if layer_kind(model.get_submodule(name)) in ("conv", "linear")]
        moments = {} if kind == "none" else _measured(model, sorted(repairable), probe)
        return cls(model, graph, moments, kind)

    def apply(self, plan: PruningPlan, *, share: bool = False) -> nn.Module:
        """The network pruned by the plan and repaired."""
        return apply(self.model, self.graph, plan, share=share, instead=dict(self._repaired(plan)))

    def _repaired(self, plan: PruningPlan) -> Iterator[tuple[str, Tensor]]:
        """Full-size tensors that differ: weights (and biases) of layers that lose inputs."""
        for layer, removed in _removed_inputs(self.graph, plan).items():
            if layer not in self.moments or not len(removed):
                continue
            module: Any = self.model.get_submodule(layer)
            moments, weight = self.moments[layer], module.weight.detach()
            gone = torch.from_numpy(removed).to(weight.device)
            kept = torch.from_numpy(np.setdiff1d(np.arange(weight.shape[1]), removed)).to(weight.device)
            lost = weight.index_select(1, gone).double()
            constant = moments.mean[gone]
            if self.kind == "least-squares" and len(kept):
                mix = _regression(moments.covariance, kept, gone)  # (gone, kept)
                extra = torch.einsum("og...,gk->ok...", lost, mix)
                yield f"{layer}.weight", weight.index_add(1, kept, extra.to(weight.dtype))
                constant = constant - mix @ moments.mean[kept]
            if module.bias is not None:
                shift = lost.flatten(2).sum(-1) if lost.ndim > 2 else lost
                yield f"{layer}.bias", module.bias.detach() + (shift @ constant).to(module.bias.dtype)


def _regression(covariance: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """Coefficients (gone, kept) that predict centred removed channels from centred kept ones."""
    inner = covariance[kept][:, kept]
    ridge = _RIDGE * float(inner.diagonal().mean()) + 1e-12
    inner = inner + ridge * torch.eye(len(kept), dtype=inner.dtype, device=inner.device)
    mix: Tensor = torch.linalg.solve(inner, covariance[kept][:, gone])
    return mix.T


def _removed_inputs(graph: ChannelGraph, plan: PruningPlan) -> dict[str, IntArray]:
    """Positions that each layer's input axis loses."""
    removed: dict[str, list[IntArray]] = {}
    for name, kept in plan.kept.items():
        for member in graph[name].members:
            if member.axis == "in":
                removed.setdefault(member.layer, []).append(member.positions[~np.isin(member.roots, kept)])
    return {layer: np.sort(np.concatenate(parts)) for layer, parts in removed.items()}


def _measured(model: nn.Module, layers: list[str], probe: Probe) -> dict[str, _Moments]:
    counts = dict.fromkeys(layers, 0)
    sums: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    handles = []
    for name in layers:
        module = model.get_submodule(name)
        linear = layer_kind(module) == "linear"

        def note(_module: nn.Module, args: Any, name: str = name, linear: bool = linear) -> None:
            x = args[0].detach()
            rows = x.reshape(-1, x.shape[-1]) if linear else x.movedim(1, -1).reshape(-1, x.shape[1])
            centre = rows.mean(0, dtype=torch.float64)  # products of centred rows lose no digits in float32
            spread = rows - centre.to(rows.dtype)
            counts[name] += len(rows)
            sums[name] = sums.get(name, 0) + len(rows) * centre
            product = (spread.T @ spread).double() + len(rows) * torch.outer(centre, centre)
            products[name] = products.get(name, 0) + product

        handles.append(module.register_forward_pre_hook(note))
    try:
        probe.mean(model)
    finally:
        for handle in handles:
            handle.remove()
    means = {name: total / counts[name] for name, total in sums.items()}
    return {
        name: _Moments(mean, products[name] / counts[name] - torch.outer(mean, mean)) for name, mean in means.items()
    }
