"""Trial by pruning: does removing a channel group's channels remove what they carried, and nothing else?

A dependency graph can be wrong without an error: heads that a reshape mixes, a width that an attribute or a buffer remembers. So
a copy of the network with random weights is pruned for trial, and compared with the unpruned copy in which the same channels are
silenced (zero weights at their producers and their consumers). In both, norms are replaced by their scale and shift alone, since
the statistics of a norm may change when its channels do. The two outputs must be equal, to rounding.
"""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from prunekit.errors import GraphError, PrunekitError
from prunekit.graph.families import neutralise
from prunekit.graph.layers import layer_kind
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph, ChannelGroup
from prunekit.graph.surgery import Inputs, all_tensors, apply, run_once, tensors_of

__all__ = ["faults"]

_TOLERANCE = {"cpu": 1e-4}  # of the largest output; measured rounding is 5e-6 on a U-Net of 36M parameters
_LOOSE = 1e-2  # on devices that may round products to TF32


def faults(model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> dict[str, str]:
    """Channel groups that cannot be pruned safely, by name, with the reason.

    Args:
        model: the network, unchanged.
        graph: its channel groups.
        inputs: arguments of one forward pass, by name or by place.
    """
    prunable = [group for group in graph if len(group.widths) > 1]
    if not prunable:
        return {}
    trial = _Trial(model, graph, inputs)
    found: dict[str, str] = {}
    for seed in (None, 0):  # one step everywhere, then a random number of steps
        good = [group for group in prunable if group.name not in found]
        offenders = _offenders(trial, good, seed)
        found |= offenders
        good = [group for group in good if group.name not in found]
        joint = trial.fault(good, seed) if offenders else ""
        if joint:  # parts pass that do not pass together
            found |= {group.name: f"together with others, {joint}" for group in good}
    return found


def _offenders(trial: "_Trial", groups: list[ChannelGroup], seed: int | None) -> dict[str, str]:
    """Bisect: a set that passes has no offender."""
    reason = trial.fault(groups, seed)
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    return _offenders(trial, groups[:half], seed) | _offenders(trial, groups[half:], seed)


class _Trial:
    """A copy of a network with random weights, and random inputs."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> None:
        self.graph = graph
        self.model = apply(model, graph, PruningPlan({}, graph.fingerprint)).float()
        generator = Generator().manual_seed(0)
        self.inputs: Inputs = tree_map(partial(_random_like, generator=generator), inputs)
        _randomise(self.model, generator)
        if not self._is_finite():
            self.model, self.inputs = apply(model, graph, PruningPlan({}, graph.fingerprint)), inputs

    def fault(self, groups: Iterable[ChannelGroup], seed: int | None) -> str:
        """What goes wrong when these groups shrink, by one step each or by the seed's numbers of steps; '' for nothing."""
        rng = np.random.default_rng(seed or 0)
        kept = {}
        for group in groups:
            width = int(group.widths[1] if seed is None else rng.choice(group.widths[1:]))
            kept[group.name] = group.select(rng.random(group.size), width)
        if not kept:
            return ""
        plan = PruningPlan({name: tuple(channels.tolist()) for name, channels in kept.items()}, self.graph.fingerprint)
        expected = _run(self._silenced(kept), self.inputs)
        try:
            found = _run(apply(self.model, self.graph, plan), self.inputs)
        except PrunekitError as error:
            return f"removing its channels is refused: {error}"
        except Exception as error:  # whatever the foreign network raises
            return f"removing its channels stops the network ({type(error).__name__}: {str(error).split(chr(10))[0]})"
        if [tuple(a.shape) for a in found] != [tuple(b.shape) for b in expected]:
            return "removing its channels changes the shape of the output"
        for a, b in zip(found, expected, strict=True):
            tolerance = _TOLERANCE.get(b.device.type, _LOOSE) * float(b.abs().max())
            if not torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
                return "removing its channels changes what the other channels compute, in a way that is not known"
        return ""

    def _is_finite(self) -> bool:
        try:
            return all(bool(output.isfinite().all()) for output in _run(self._silenced({}), self.inputs))
        except (RuntimeError, ValueError, AssertionError):  # a network that checks its inputs
            return False

    def _silenced(self, kept: dict[str, Any]) -> nn.Module:
        """The unpruned copy with zeros wherever a removed channel is made or read."""
        model = apply(self.model, self.graph, PruningPlan({}, self.graph.fingerprint))
        state = all_tensors(model)
        for name, channels in kept.items():
            group = self.graph[name]
            for member in group.members:
                gone = torch.from_numpy(member.positions[~np.isin(member.roots, channels)])
                for key, dim in tensors_of(model, member):
                    state[key].index_fill_(dim, gone.to(state[key].device), 0)
        return model


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    neutralise(model)
    with _PointwiseNorms():
        output = run_once(model, inputs)
    if not isinstance(output, Tensor | tuple | list):
        output = dict(output) if isinstance(output, dict) else dict(vars(output))
    tensors = [leaf.float() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not tensors:
        raise GraphError(f"{type(model).__name__} returns no tensors; expected one, or a tuple or dict of them.")
    return tensors


def _random_like(value: Any, generator: Generator) -> Any:
    """Floats become uniform in 0.5 … 1.5, so that a logarithm or a root of them exists; all else stays."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return (torch.rand(value.shape, generator=generator) + 0.5).to(value.device)


def _randomise(model: nn.Module, generator: Generator) -> None:
    """Give known layers weights that keep the scale of their inputs; zero-initialised outputs would hide every fault."""
    for module in model.modules():
        kind = layer_kind(module)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if kind is None or not tensor.is_floating_point():
                continue
            if key == "running_var" or (kind == "norm" and key == "weight"):
                values = torch.rand(tensor.shape, generator=generator) + 0.5
            else:
                fan_in = tensor[0].numel() if tensor.ndim > 1 and kind != "embedding" else 4
                values = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            tensor.data.copy_(values)


class _PointwiseNorms(TorchFunctionMode):
    """Norms become their scale and shift alone: their statistics may change when their channels do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _NORMS:
            return func(*args, **kwargs)
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        x: Tensor = given["input"]
        for name, by in (("weight", torch.mul), ("bias", torch.add)):
            vector = given.get(name)
            if vector is not None:
                shape = (1, -1, *([1] * (x.ndim - 2))) if func is F.group_norm else tuple(vector.shape)
                x = by(x, vector.reshape(shape))
        return x


_NORMS = (F.group_norm, F.layer_norm, F.rms_norm, F.normalize)
