"""Bridges to Torch-Pruning: its pruners can use prunekit's importance, and its dependency groups can apply prunekit's plans.

Needs ``pip install torch-pruning``. Torch-Pruning calls an importance with one of its groups, a list of (dependency, indices);
channels are matched by module and axis, so the two libraries may divide the network into groups differently.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.errors import InputError, PlanError
from prunekit.graph import ChannelGraph, PruningPlan, attributes
from prunekit.graph.layers import axis_size
from prunekit.graph.structure import Axis

__all__ = ["TimestepImportance", "prune_by_plan"]


class TimestepImportance(tp.importance.Importance):  # type: ignore[misc] # no type information is published
    """The scores of one timestep group as an importance for Torch-Pruning.

    Args:
        model: the network, before any pruning.
        graph: its channel groups, from :func:`prunekit.graph.trace`.
        scores: channel group to scores, shape (size,) each, higher = keep: ``importance(...).of(3)``.

    Raises:
        InputError: a channel group of the network has no scores.

    Example::

        scores = prunekit.importance.importance(model, inputs, loss, groups, by="taylor").of(3)
        pruner = tp.pruner.MetaPruner(model, inputs, TimestepImportance(model, graph, scores), pruning_ratio=0.3)
        pruner.step()
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, scores: Mapping[str, FloatArray]) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._sizes = dict(graph.axis_sizes)
        self._scores: dict[tuple[str, Axis], FloatArray] = {}
        for group in graph.shrinking("width"):  # Torch-Pruning removes no branches
            if group.name not in scores:
                raise InputError(f"There are no scores for channel group {group.name}; score the network's own graph.")
            for member in group.members:
                axis = (member.layer, member.axis)
                own = self._scores.setdefault(axis, np.full(self._sizes[axis], np.nan))
                own[member.positions] = scores[group.name][member.roots]

    def __call__(self, group: Any) -> Tensor | None:
        """Score of each root channel of a group, shape (channels,); None if prunekit prunes none of them.

        Channels that prunekit leaves whole get the highest score of their group, so that they are removed last.

        Raises:
            InputError: layers were pruned after this object was made; make a new one for every step.
        """
        total = np.full(len(group[0].idxs), np.nan)
        for item in group:
            known = self._of(item.dep)
            if known is None:
                continue
            scores = known[np.asarray(item.idxs)]
            roots = np.asarray(item.root_idxs)
            place = {root: i for i, root in enumerate(group[0].idxs)}
            for root, score in zip(roots, scores, strict=True):
                if root in place and np.isnan(total[place[root]]):
                    total[place[root]] = score
        if np.isnan(total).all():
            return None
        return torch.from_numpy(np.where(np.isnan(total), np.nanmax(total), total)).float()

    def _of(self, dependency: Any) -> FloatArray | None:
        """Scores of every position of the axis that a dependency prunes; NaN for a position without a score."""
        module, axis = dependency.target.module, _axis(dependency.handler)
        place = (self._names.get(module, ""), axis)
        if place not in self._scores:
            return None
        size = axis_size(module, axis)
        if size != self._sizes[place]:
            raise InputError(
                f"{place[0]} has {size} {axis} channels and had {self._sizes[place]} when it was scored; "
                "score the pruned network for the next step."
            )
        return self._scores[place]


def prune_by_plan(dependencies: Any, model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Remove a plan's channels through Torch-Pruning's dependency groups, in place.

    The weights that stay are those of :func:`prunekit.graph.apply`.

    Args:
        dependencies: ``tp.DependencyGraph().build_dependency(model, example_inputs)``.
        model: the network that both graphs were made from.
        graph: prunekit's channel groups.
        plan: the channels to keep.

    Returns:
        ``model``.

    Raises:
        PlanError: the plan removes residual branches, narrows attention heads or does not fit the graph, which is checked before
            anything is removed; or Torch-Pruning couples the channels differently. The message names the layer.
    """
    plan.check(graph)
    if plan.removed:
        raise PlanError(
            f"The plan removes {plan.removed[0]}; Torch-Pruning removes channels and no branches: use prunekit.graph.apply, or a "
            "plan of graph.shrinking('width')."
        )
    narrowed = [name for name, kept in plan.kept.items() if len(kept) < graph[name].size and graph[name].queries]
    if narrowed:
        raise PlanError(
            f"The plan narrows the attention heads of {narrowed[0]}, whose queries would have to be scaled; "
            "use prunekit.graph.apply, or trace with head_mode='whole'."
        )
    sizes = attributes(model, graph, plan)
    modules = dict(model.named_modules())
    positions = plan.positions(graph)
    for layer, removed in _removals(graph, positions):
        module = modules[layer]
        if axis_size(module, "out") == graph.axis_sizes[layer, "out"]:  # not yet pruned with an earlier group
            pruner = dependencies.get_pruner_of_module(module)
            dependencies.get_pruning_group(module, pruner.prune_out_channels, removed).prune()
    for (layer, axis), kept in positions.items():
        if layer in modules and axis in ("in", "out") and axis_size(modules[layer], axis) != len(kept):
            raise PlanError(
                f"Torch-Pruning left {axis_size(modules[layer], axis)} {axis} channels of {layer} where the plan keeps "
                f"{len(kept)}; it couples other channels there: use prunekit.graph.apply."
            )
    for name, values in sizes.items():
        for key, value in values.items():
            old = getattr(modules[name], key)
            setattr(modules[name], key, (value,) if isinstance(old, tuple) else value)
    return model


def _removals(graph: ChannelGraph, positions: Mapping[tuple[str, Axis], Any]) -> Iterator[tuple[str, list[int]]]:
    """Every convolution and linear layer that loses outputs, with the positions of these outputs."""
    for group in graph:
        for member in group.members:
            if member.axis == "out" and (member.layer, "out") in positions:
                whole = np.arange(graph.axis_sizes[member.layer, "out"])
                yield member.layer, np.setdiff1d(whole, positions[member.layer, "out"]).tolist()


def _axis(handler: object) -> Axis:
    """``in`` or ``out``, from the name of Torch-Pruning's pruning function."""
    return "in" if "in_channels" in getattr(handler, "__name__", "") else "out"
