"""Activations: hooks on the layer inputs or outputs that carry a channel group, and the activation criterion."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.graph import ChannelGraph, ChannelGroup, Member
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.layers import layer_kind
from prunekit.graph.structure import Axis
from prunekit.importance.channel_sums import mean_of_layers, parts_of, per_root, points_of
from prunekit.importance.probe import Probe
from prunekit.importance.protocol import Scores
from prunekit.importance.weight_criteria import group_magnitude

__all__ = ["Place", "Watcher", "activation", "watching"]

Place = tuple[str, Axis]
"""A layer, and ``in`` for its input or ``out`` for its output."""
Watcher = Callable[[Place, Tensor, int], Tensor | None]
"""``watcher(place, signal, dim)``: the signal and the dimension of its channels; may return another signal to replace it."""


@contextmanager
def watching(model: nn.Module, members: Iterable[Member], watcher: Watcher) -> Iterator[None]:
    """Within the block, ``watcher`` sees the layers' inputs or outputs whenever they are called."""
    with ExitStack() as stack:
        for layer, axis in {(member.layer, member.axis): None for member in members}:
            module = model.get_submodule(layer)
            if axis == "in":
                hook = partial(_on_input, watcher, (layer, axis))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                stack.callback(module.register_forward_hook(partial(_on_output, watcher, (layer, axis))).remove)
        yield


def _on_input(
    watcher: Watcher, place: Place, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    if args and isinstance(args[0], Tensor):
        other = watcher(place, args[0], _channel_dim(module, args[0]))
        return None if other is None else ((other, *args[1:]), kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            other = watcher(place, value, _channel_dim(module, value))
            return None if other is None else (args, {**kwargs, name: other})
    return None


def _on_output(watcher: Watcher, place: Place, module: nn.Module, args: tuple[object, ...], output: object) -> object:
    return watcher(place, output, _channel_dim(module, output)) if isinstance(output, Tensor) else None


def _channel_dim(module: Any, signal: Tensor) -> int:
    """Dimension of the channels: the last one for linear layers, the one before the positions for convolutions."""
    return signal.ndim - 1 if layer_kind(module) == "linear" else signal.ndim - module.weight.ndim + 1


def activation(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Scores:
    r"""What the channel brings to the layers that read it, :math:`\|x_k\|_2\,\|W_{:k}\|_2`: their mean, each scaled to mean 1.

    Wanda scores a weight :math:`|W_{ik}|\,\|x_k\|_2` (arXiv:2306.11695, eq. 1), with the norm over samples and positions; this is
    the L2 norm of a channel's whole column of such scores. The column, coupling and scaling are this project's. The norms are
    taken over the probe's calibration set, in float64. Channels that no known layer reads (queries and keys) are scored by the
    norm of the outputs of the layers that make them; channels with free tensors only by :func:`magnitude`.
    """
    points = {group.name: points_of(model, group) for group in graph}
    members = [member for found in points.values() for member in found]
    device = next(model.parameters(), torch.zeros(())).device
    squares = {
        place: torch.zeros(graph.axis_sizes[place], dtype=torch.float64, device=device)
        for place in sorted({(member.layer, member.axis) for member in members})
    }

    def add(place: Place, signal: Tensor, dim: int) -> None:
        others = [d for d in range(signal.ndim) if d != dim]
        squares[place] += signal.double().square().sum(others).to(squares[place].device)

    with evaluation_mode(model), torch.no_grad(), watching(model, members, add):
        for _ in probe.losses(model):
            pass
    probe.pool(squares.values())
    means = {place: total / probe.samples for place, total in squares.items()}
    return {group.name: _activation(model, group, points[group.name], means) for group in graph}


def _activation(
    model: nn.Module, group: ChannelGroup, points: list[Member], squares: dict[Place, Tensor]
) -> FloatArray:
    """Scores of one channel group from the mean squares of its layers' inputs or outputs."""
    seen = [member for member in points if squares[member.layer, member.axis].any()]
    layers = []
    columns = {
        (part.member.layer, part.member.axis): part.parameter.detach().double().square()
        for part in parts_of(model, group, dict(model.named_parameters()))
        if part.key.endswith("weight")
    }
    for member in seen:
        total = squares[member.layer, member.axis]
        if member.axis == "in" and (member.layer, "in") in columns:
            weight = columns[member.layer, "in"]
            dim = 0 if layer_kind(model.get_submodule(member.layer)) == "transposed" else 1
            total = total * weight.movedim(dim, 0).flatten(1).sum(1)
        layers.append(np.sqrt(per_root(total, 0, member, group.size)))
    return mean_of_layers(layers, group.size) if layers else group_magnitude(model, group, 2)
