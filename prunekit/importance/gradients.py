"""Criteria that use gradients of the loss on the timestep group."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, ChannelGroup, Member
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.groups import TimestepGroup
from prunekit.importance.backward import kept_gradients, slopes_of
from prunekit.importance.channel_sums import Part, parts_of, per_root, points_of
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Scores
from prunekit.importance.signals import Place, watching

__all__ = ["DiffPruning", "differentiable", "fisher", "mean_gradients", "taylor"]

Gradients = Mapping[str, Tensor]
"""Gradient of a loss by parameter name."""


def taylor(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""First-order rise of the loss when the channel is removed, :math:`|\sum w\,\partial L/\partial w|` (arXiv:1906.10771, eq. 8).

    The gradient is the mean over the probe's whole calibration set. Per coupled tensor the products are summed over the channel's
    weights in float64, and the absolute sums are added over the tensors. The aggregation over coupled layers is this project's.

    The sums are linear in the gradient, so each gradient is summed up and dropped as the backward pass makes it: besides weights
    and activations this takes the memory of the largest layer.
    """
    parameters = _parameters(model)
    found = {group.name: list(parts_of(model, group, parameters)) for group in graph}
    sums = {name: [torch.zeros(_length(part), dtype=torch.float64) for part in parts] for name, parts in found.items()}
    wanted: dict[nn.Parameter, list[tuple[Part, Tensor]]] = {parameter: [] for parameter in parameters.values()}
    for name, parts in found.items():
        for number, part in enumerate(parts):
            sums[name][number] = sums[name][number].to(part.parameter.device)
            wanted[part.parameter].append((part, sums[name][number]))
    with differentiable(model):
        for loss, count in probe.losses(model):
            with kept_gradients(loss, wanted), _summing(wanted, count / probe.samples):
                loss.backward()
    probe.pool(each for own in sums.values() for each in own)
    scores = {}
    for group in graph:
        total = np.zeros(group.size)
        for part, along in zip(found[group.name], sums[group.name], strict=True):
            total += np.abs(per_root(along, 0, part.member, group.size))
        scores[group.name] = total
    return scores


def _length(part: Part) -> int:
    return part.parameter.shape[part.dim]


@contextmanager
def _summing(wanted: Mapping[nn.Parameter, Sequence[tuple[Part, Tensor]]], weight: float) -> Iterator[None]:
    """Within the block, every gradient that a backward pass makes is summed up, times its weights, and dropped.

    Args:
        wanted: for each parameter, the parts that belong to channel groups, with the sums along their dimension.
        weight: of the pass.
    """

    def take(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None or not wanted[parameter]:
            return
        product = parameter.detach().double() * gradient.double()
        for part, total in wanted[parameter]:
            along = product.movedim(part.dim, 0).flatten(1).sum(1) if product.ndim > 1 else product
            total.add_(along, alpha=weight)

    handles = [parameter.register_post_accumulate_grad_hook(take) for parameter in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class DiffPruning:
    r"""Diff-Pruning: one Taylor score for all timesteps, :math:`\sum_w |w \sum_{t} \partial L_t/\partial w|` (arXiv:2305.10924).

    Timesteps are visited from the cleanest on, with the same draws at each, and their gradients added up until
    :math:`L_t / L_\max` falls below the threshold, with L_max the largest loss so far: the noisier timesteps, which have a small
    loss, would hide the details. Absolute values are taken per weight, as in the published code, and not per channel as in
    :func:`taylor`; they are added over the channel's weights and over coupled tensors. This is a baseline without timestep groups:
    every group gets the same scores.

    The published code visits every timestep with one batch of 128; this visits ``steps`` evenly spread timesteps with one chunk of
    draws. The timestep that falls below the threshold is left out, as in the paper's sum; the published code includes it.

    Args:
        threshold: threshold of L_t / L_max; 0.05 in the published code.
        steps: largest number of timesteps to visit.

    Raises:
        InputError: the threshold is not in [0, 1), or there is no step.
    """

    threshold: float = 0.05
    steps: int = 100
    whole_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1 or self.steps < 1:
            raise InputError(
                f"Got threshold {self.threshold:g} and {self.steps} steps; expected a threshold in [0, 1) and at least 1 step."
            )

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
        """See the class."""
        group = probe.group
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in _parameters(model).items()}
        highest = 0.0
        for timestep in np.unique(np.linspace(group.start, group.stop - 1, self.steps).round().astype(int)).tolist():
            at = replace(
                probe,
                group=TimestepGroup(group.index, timestep, timestep + 1),
                samples=min(probe.samples, probe.chunk),
                part_of=None,
                ranks=(),
            )
            gradients, loss = mean_gradients(model, at)
            highest = max(highest, loss)
            if loss < self.threshold * highest:
                break
            for name, gradient in gradients.items():
                total[name] += gradient
        return {group.name: _products(model, group, total) for group in graph}


def fisher(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""Second-order rise of the loss when the channel is removed, :math:`\frac{1}{2N}\sum_n g_{nk}^2` (arXiv:1801.05787).

    :math:`g_{nk}` is the derivative of the n-th sample's own loss by a gate on channel k, :math:`\sum x\,\partial L_n/\partial x`
    over its positions; n runs over the N draws of the calibration set. Coupled layers share the gate: the derivatives of all known
    layers that read the channel are added before squaring (Group Fisher Pruning, arXiv:2108.00708). This project's choices: if no
    known layer reads the channel (queries and keys), the gate is at the layer that makes it; if it has free tensors only, at these.

    One backward pass per batch gives the derivatives of every sample, if the rows of these layers' inputs are the samples of the
    batch and the loss is their mean. Otherwise samples are evaluated one by one, which is slower; a loss that cannot draw
    separately (:class:`prunekit.importance.DrawnLoss`) then gets one generator per sample.
    """
    points = {group.name: points_of(model, group) for group in graph}
    total: dict[str, Tensor] | None = None
    if not points:
        return {}
    if all(points.values()):
        total = _by_gates(model, graph, points, probe)
    if total is None:
        total = _by_samples(model, graph, points, probe)
    return {name: values.cpu().numpy() / (2 * probe.samples) for name, values in total.items()}


class _Gates:
    """A gate of ones on every channel of every row that passes.

    Reentrant checkpointing runs a block first without gradients, and again with gradients during the backward pass. The gates of
    the first run are then not part of the graph, and those of the second run count.
    """

    def __init__(self) -> None:
        self.gates: dict[Place, list[Tensor]] = {}
        self.reentrant = False

    def __call__(self, place: Place, signal: Tensor, dim: int) -> Tensor:
        """Put a gate of shape (rows, channels) on a signal."""
        rows = signal.shape[0] if dim > 0 else 1
        self.reentrant |= not torch.is_grad_enabled()
        gate = torch.ones(rows, signal.shape[dim], dtype=signal.dtype, device=signal.device, requires_grad=True)
        self.gates.setdefault(place, []).append(gate)
        return signal * gate.reshape([size if d in (0, dim) else 1 for d, size in enumerate(signal.shape)])

    def by_sample(self, loss: Tensor, samples: int, parameters: Iterable[nn.Parameter]) -> dict[Place, Tensor] | None:
        """Derivative of each sample's loss, shape (samples, channels), float64; None if rows are not samples."""
        slopes: Sequence[Tensor | None]
        if self.reentrant:
            with kept_gradients(loss, parameters):
                loss.backward()
                gates = self._taken()
                slopes = [gate.grad for _, gate in gates]
        else:
            gates = self._taken()
            slopes = torch.autograd.grad(loss, [gate for _, gate in gates], allow_unused=True)
            self._taken()  # non-reentrant checkpointing has run blocks again; those gates do not count
        if any(len(gate) != samples for _, gate in gates):
            return None
        found: dict[Place, Tensor] = {}
        for (place, gate), slope in zip(gates, slopes, strict=True):
            by_sample = (torch.zeros_like(gate) if slope is None else slope).double() * samples
            found[place] = found[place] + by_sample if place in found else by_sample
        return found

    def _taken(self) -> list[tuple[Place, Tensor]]:
        """The gates that were made since the last call."""
        gates = [(place, gate) for place, gates in self.gates.items() for gate in gates]
        self.gates = {}
        return gates


def _by_gates(
    model: nn.Module, graph: ChannelGraph, points: Mapping[str, list[Member]], probe: Probe
) -> dict[str, Tensor] | None:
    """Sum over samples of squared gate derivatives, by channel group; None if rows are not samples on any process."""
    members = [member for found in points.values() for member in found]
    total = _zeros(model, graph)
    failed = torch.zeros_like(next(iter(total.values()))[:1])
    watcher = _Gates()
    with differentiable(model), watching(model, members, watcher):
        for loss, samples in probe.losses(model):
            slopes = watcher.by_sample(loss, samples, model.parameters())
            if slopes is None or any((member.layer, member.axis) not in slopes for member in members):
                failed += 1
                break
            for group in graph:
                gate = torch.zeros(samples, group.size, dtype=torch.float64, device=failed.device)
                for member in points[group.name]:
                    positions, roots = (torch.from_numpy(a).to(failed.device) for a in (member.positions, member.roots))
                    gate.index_add_(1, roots, slopes[member.layer, member.axis].to(failed.device)[:, positions])
                total[group.name] += gate.square().sum(0)
    probe.pool([failed])
    if failed.any():
        return None
    probe.pool(total.values())
    return total


def _by_samples(
    model: nn.Module, graph: ChannelGraph, points: Mapping[str, list[Member]], probe: Probe
) -> dict[str, Tensor]:
    """The same from the gradients of the weights, sample by sample: a layer's column of w·∂L/∂w sums to the gate's derivative."""
    total = _zeros(model, graph)
    parameters = _parameters(model)
    gated = {
        group.name: [
            part for part in parts_of(model, group, parameters) if part.member in (points[group.name] or group.members)
        ]
        for group in graph
    }
    with differentiable(model):
        for loss, _ in probe.one_by_one().losses(model):
            gradients = dict(zip(parameters, slopes_of(loss, parameters.values()), strict=True))
            for group in graph:
                gate = np.zeros(group.size)
                for part in gated[group.name]:
                    gradient = gradients[part.key]
                    if gradient is not None:
                        product = part.parameter.detach().double() * gradient.double()
                        gate += per_root(product, part.dim, part.member, group.size)
                total[group.name] += torch.from_numpy(gate**2).to(total[group.name].device)
    probe.pool(total.values())
    return total


def _zeros(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    device = next(model.parameters(), torch.zeros(())).device
    return {group.name: torch.zeros(group.size, dtype=torch.float64, device=device) for group in graph}


def _products(model: nn.Module, group: ChannelGroup, gradients: Gradients) -> FloatArray:
    """Sum over coupled tensors of Σ|w·g| over the channel's weights, shape (size,)."""
    total = np.zeros(group.size)
    for part in parts_of(model, group, _parameters(model)):
        product = part.parameter.detach().double() * gradients[part.key]
        total += per_root(product.abs(), part.dim, part.member, group.size)
    return total


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}


def mean_gradients(model: nn.Module, probe: Probe) -> tuple[dict[str, Tensor], float]:
    """Gradient of the probe's mean loss for every parameter, float64, and that loss."""
    parameters = _parameters(model)
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    device = next(iter(total.values()), torch.zeros(())).device
    mean = torch.zeros(1, dtype=torch.float64, device=device)
    with differentiable(model):
        for loss, count in probe.losses(model):
            weight = count / probe.samples
            mean += float(loss.detach()) * weight
            for sum_, gradient in zip(total.values(), slopes_of(loss, parameters.values()), strict=True):
                if gradient is not None:
                    sum_.add_(gradient.double(), alpha=weight)
    probe.pool([*total.values(), mean])
    return total, float(mean)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, with gradients for every parameter; flags and modes are restored afterwards."""
    parameters = list(_parameters(model).values())
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        with evaluation_mode(model), torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
