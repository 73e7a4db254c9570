"""Read the channel groups of a network off torch-pruning's dependency graph."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.errors import GraphError
from prunekit.graph.families import Attention, attentions
from prunekit.graph.structure import Axis, ChannelGraph, ChannelGroup, Member, NormMode
from prunekit.graph.surgery import Inputs, axis_size, evaluation_mode, layer_kind, run_once
from prunekit.graph.trial import faults

__all__ = ["trace"]


def trace(model: nn.Module, example_inputs: Inputs, norm_mode: NormMode = "even") -> ChannelGraph:
    """Find which channels can only be removed together.

    Every channel group is pruned for trial, see :mod:`prunekit.graph.trial`; those that fail are left whole, with the reason.

    Args:
        model: the network; it is run a few times and not changed.
        example_inputs: arguments of one forward pass, batch 1: a dict by name, or a tuple by place.
        norm_mode: how group norms shrink, see :class:`ChannelGraph`.

    Raises:
        GraphError: the network cannot be traced.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with evaluation_mode(model), torch.enable_grad(), warnings.catch_warnings():
            for parameter, _ in flags:
                parameter.requires_grad_(parameter.is_floating_point())  # the tracing follows gradients
            warnings.simplefilter("ignore")
            inputs = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
            dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
            raw_groups = list(dependencies.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear]))
    except Exception as error:  # torch-pruning raises whatever its tracing ran into
        raise GraphError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); "
            "check that the example inputs run and that its forward uses differentiable operations."
        ) from error
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    names = {module: name for name, module in model.named_modules()}
    found: list[tuple[str, list[Member]]] = []
    left_whole: dict[str, str] = {}
    tied_layers = _tied_layers(model)
    for raw in raw_groups:
        root = names.get(raw[0].dep.target.module, raw[0].dep.target.name)
        members, reason = _members(raw, names, dependencies)
        shared = [m.layer for m in members if model.get_submodule(m.layer) in tied_layers]
        if shared:
            reason = f"{shared[0]} shares its weights with another layer"
        reason = reason or _irregular(members)
        if reason:
            left_whole[root] = reason
        else:
            found.append((root, members))
    order, resolutions = _first_runs(model, example_inputs)
    groups = [_group(model, members, norm_mode, order) for _, members in found]
    groups = [replace(group, resolution=resolutions.get(group.name, 1)) for group in groups]
    groups.sort(key=lambda group: order[group.name])
    _refuse_overlaps(groups)
    graph = _graph(model, groups, left_whole, norm_mode)
    failed = faults(model, graph, example_inputs)
    if not failed:
        return graph
    return _graph(model, [group for group in groups if group.name not in failed], left_whole | failed, norm_mode)


def _graph(
    model: nn.Module, groups: Iterable[ChannelGroup], left_whole: Mapping[str, str], norm_mode: NormMode
) -> ChannelGraph:
    groups = tuple(groups)
    sizes = {(m.layer, m.axis): axis_size(model.get_submodule(m.layer), m.axis) for g in groups for m in g.members}
    return ChannelGraph(groups, sizes, left_whole, norm_mode)


def _first_runs(model: nn.Module, inputs: Inputs) -> tuple[dict[str, int], dict[str, int]]:
    """Rank of every module by when its forward pass first starts (modules that never run last), and its output's resolution."""
    started: dict[str, int] = {}
    resolutions: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def note(_module: nn.Module, _args: Any, name: str = name) -> None:
            started.setdefault(name, len(started))

        def measure(module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            if layer_kind(module) is not None and isinstance(output, Tensor):
                positions = output.numel() // axis_size(module, "out")
                resolutions[name] = max(resolutions.get(name, 1), math.isqrt(positions - 1) + 1)

        handles += [module.register_forward_pre_hook(note), module.register_forward_hook(measure)]
    try:
        run_once(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: started.get(name, len(started)) for name, _ in model.named_modules()}, resolutions


def _members(raw: Any, names: Mapping[nn.Module, str], dependencies: Any) -> tuple[list[Member], str]:
    """Members of one torch-pruning group, and the reason to leave it whole ('' for none)."""
    positions: dict[tuple[str, Axis], dict[int, int]] = {}
    for item in raw:
        target = item.dep.target
        is_out = bool(dependencies.is_out_channel_pruning_fn(item.dep.handler))
        if is_out and not target.outputs:
            return [], "its channels are the network's output"
        if target.module not in names:
            continue  # an operation without tensors
        kind = layer_kind(target.module)
        reason = _unsliceable(target.module)
        if reason:
            return [], f"{names[target.module]} {reason}"
        if kind is None:
            continue
        axis: Axis = "out" if is_out or kind in ("norm", "embedding", "depthwise") else "in"
        if max(item.idxs, default=0) >= axis_size(target.module, axis):
            return [], f"how its channels reach {names[target.module]} cannot be followed"
        tied = positions.setdefault((names[target.module], axis), {})
        for position, root in zip(item.idxs, item.root_idxs, strict=True):
            if tied.setdefault(int(position), int(root)) != int(root):
                return [], f"{names[target.module]} ties one channel to two others"
    members = [
        Member(layer, axis, np.array(list(tied), dtype=np.int64), np.array(list(tied.values()), dtype=np.int64))
        for (layer, axis), tied in positions.items()
    ]
    return members, ""


def _unsliceable(module: Any) -> str:
    """Why a layer's channels cannot be removed, '' when they can."""
    match layer_kind(module):
        case None if any(True for _ in module.parameters(recurse=False)):
            return f"is a {type(module).__name__}, which is not known how to slice"
        case "norm" if module.weight is None:
            return "is a norm without weights, whose width no tensor tells"
        case "norm" if module.weight.ndim > 1:
            return "is a norm over more than the channels"
        case "conv" if module.groups > 1:
            return "is a grouped convolution"
    return ""


def _tied_layers(model: nn.Module) -> set[nn.Module]:
    """Layers that have a parameter together with another layer."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    return {module for modules in owners.values() if len(modules) > 1 for module in modules}


def _irregular(members: Iterable[Member]) -> str:
    """Reason why the members cannot be a group: some root channel owns more positions than another."""
    members = list(members)
    size = len(members[0].roots) if members else 0
    for member in members:
        counts = np.bincount(member.roots, minlength=size)
        if len(counts) != size or (counts != counts[0]).any():
            return f"{member.layer} does not tie the same number of positions to every channel"
    return ""


def _group(model: nn.Module, members: list[Member], norm_mode: NormMode, order: Mapping[str, int]) -> ChannelGroup:
    size = len(members[0].roots)
    producers = [
        m.layer for m in members if m.axis == "out" and layer_kind(model.get_submodule(m.layer)) in ("conv", "linear")
    ]
    name = min(producers or [members[0].layer], key=order.__getitem__)
    heads = _heads(model, members)
    if heads:
        rows = math.gcd(*heads)  # what is removed is whole heads of every attention
        return ChannelGroup(name, size, rows, True, size // rows, tuple(members))
    norms = [(m, model.get_submodule(m.layer)) for m in members]
    group_norms = [(m, norm) for m, norm in norms if isinstance(norm, nn.GroupNorm)]
    if norm_mode == "whole":
        rows = math.gcd(*[norm.num_groups for m, norm in group_norms if len(m.roots) == norm.num_channels])
        if rows > 1 and size % rows == 0:
            return ChannelGroup(name, size, rows, True, size // rows, tuple(members))
    step = math.lcm(*[norm.num_groups for _, norm in group_norms] or [1])
    rows = step if size % step == 0 else 1
    return ChannelGroup(name, size, rows, False, min(step, size), tuple(members))


def _heads(model: nn.Module, members: list[Member]) -> list[int]:
    """Number of heads of every attention with several whose projections the members' output channels are."""
    known = {
        f"{name}.{part}": int(module.heads) for name, module in attentions(model) for part in Attention.projections
    }
    return [known[m.layer] for m in members if m.axis == "out" and known.get(m.layer, 1) > 1]


def _refuse_overlaps(groups: Iterable[ChannelGroup]) -> None:
    """Each position of each axis belongs to one group at most; anything else would remove channels twice."""
    owner: dict[tuple[str, Axis], IntArray] = {}
    for group in groups:
        for member in group.members:
            taken = owner.get((member.layer, member.axis), np.array([], dtype=np.int64))
            if np.intersect1d(taken, member.positions).size:
                raise GraphError(
                    f"{member.layer} ({member.axis}) belongs to two channel groups, one of them {group.name}."
                )
            owner[member.layer, member.axis] = np.concatenate([taken, member.positions])
