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
from torch.utils._pytree import tree_map

from prunekit._types import IntArray
from prunekit.errors import GraphError, PrunekitError
from prunekit.graph.families import neutralise
from prunekit.graph.flow import Deadline
from prunekit.graph.layers import layer_kind
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph, ChannelGroup
from prunekit.graph.surgery import Inputs, all_tensors, apply, fit, output_tensors, run_once, tensors_of

__all__ = ["faults"]

_TOLERANCE = {"cpu": 2e-5}  # of the largest output; measured rounding is 5e-6 on a U-Net of 36M parameters
_LOOSE = 1e-2  # on devices that may round products to TF32


def faults(model: nn.Module, graph: ChannelGraph, inputs: Inputs, deadline: Deadline) -> dict[str, str]:
    """Channel groups that cannot be pruned safely, by name, with the reason.

    Args:
        model: the network, unchanged.
        graph: its channel groups.
        inputs: arguments of one forward pass, by name or by place.
        deadline: when to give up.

    Raises:
        GraphError: the time is up.
    """
    prunable = [group for group in graph if len(group.widths) > 1]
    if not prunable:
        return {}
    trial = _Trial(model, graph, inputs, deadline)
    found: dict[str, str] = {}
    for seed in (None, 0, 1):  # one step everywhere, at the front; then random numbers of steps, also at the end
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

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: Inputs, deadline: Deadline) -> None:
        self.graph, self.deadline = graph, deadline
        self.model = apply(model, graph, PruningPlan({}, graph.fingerprint)).float()
        generator = Generator().manual_seed(0)
        self.inputs: Inputs = tree_map(partial(_random_like, generator=generator), inputs)
        _randomise(self.model, generator)
        if not self._is_finite():
            self.model, self.inputs = apply(model, graph, PruningPlan({}, graph.fingerprint)), inputs

    def fault(self, groups: Iterable[ChannelGroup], seed: int | None) -> str:
        """What goes wrong when these groups shrink, by one step each or by the seed's numbers of steps; '' for nothing.

        A slice of remembered length shows when channels before it are gone, or its last ones; groups whose widths only have to
        be equal show when neighbours differ.
        """
        self.deadline.check()
        rng = np.random.default_rng(seed or 0)
        kept, last = {}, 0
        for group in groups:
            width = int(group.widths[1] if seed is None else rng.choice(_others(group.widths[1:], last)))
            scores = np.arange(group.size) / group.size if seed is None else rng.random(group.size)
            scores[-1] -= seed is not None
            kept[group.name], last = group.select(scores, width), width
        if not kept:
            return ""
        plan = PruningPlan({name: tuple(channels.tolist()) for name, channels in kept.items()}, self.graph.fingerprint)
        expected = _run(self._silenced(kept), self.inputs)
        try:
            found = _run(apply(self.model, self.graph, plan, share=True), self.inputs)
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
        model = apply(self.model, self.graph, PruningPlan({}, self.graph.fingerprint), share=True)
        state = all_tensors(model)
        for name, channels in kept.items():
            for member in self.graph[name].members:
                gone = torch.from_numpy(member.positions[~np.isin(member.roots, channels)])
                for key, dim in tensors_of(model, member.layer, member.axis):
                    state[key] = state[key].index_fill(dim, gone.to(state[key].device), 0)
        return fit(model, state, {})


def _others(widths: IntArray, width: int) -> IntArray:
    """All widths but one, where there are others."""
    others = widths[widths != width]
    return others if len(others) else widths


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    neutralise(model)
    with _Plainer():
        output = run_once(model, inputs)
    leaves = output_tensors(output)
    tensors = [(torch.view_as_real(leaf) if leaf.is_complex() else leaf).float() for leaf in leaves]
    if not tensors:
        raise GraphError(f"{type(model).__name__} returns no tensors; expected one, or a tuple or dict of them.")
    return tensors


def _random_like(value: Any, generator: Generator) -> Any:
    """Floats become uniform in 0.5 … 1.5, so that a logarithm or a root of them exists; all else stays."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return (torch.rand(value.shape, generator=generator) + 0.5).to(value.device)


def _randomise(model: nn.Module, generator: Generator) -> None:
    """Weights that keep the scale of what they multiply; outputs, gates and scales that start at zero would hide every fault."""
    for module in model.modules():
        kind = layer_kind(module)
        buffers = module.named_buffers(recurse=False) if kind else ()  # a raw buffer may be anything
        for key, tensor in (*module.named_parameters(recurse=False), *buffers):
            if not tensor.is_floating_point():
                continue
            vector = kind is None and tensor.numel() == max(tensor.shape, default=1)
            if key == "running_var" or vector or (kind == "norm" and key == "weight"):
                values = torch.rand(tensor.shape, generator=generator) + 0.5
            else:
                fan_in = (
                    4 if tensor.ndim < 2 or kind == "embedding" else tensor[0].numel() if kind else tensor.shape[-1]
                )
                values = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            tensor.data.copy_(values)


class _Plainer(TorchFunctionMode):
    """Norms become their scale and shift alone; attention weights grow with the scores, so that a wrong divisor shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _SOFTMAX:
            scores, dim = (*args, *(kwargs[key] for key in ("input", "dim") if kwargs.get(key) is not None))[:2]
            return out + (torch.where(scores.abs() < _MASKED, scores, 0) / scores.shape[dim]).to(out.dtype)
        if func is F.scaled_dot_product_attention:
            return out + _plain_attention(*args, **kwargs)
        return _pointwise(func, *args, **kwargs) if func in _NORMS else out


_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_NORMS = (
    F.group_norm,
    F.layer_norm,
    F.rms_norm,
)  # F.normalize is left as it is: zeros add nothing to a root of squares
_MASKED = 1e3  # scores beyond it are masks


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Any:
    """Attention whose weights are its scores; nothing where heads are shared between queries."""
    if query.shape[:-2] != key.shape[:-2]:
        return 0
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return query @ key.transpose(-1, -2) * (factor / key.shape[-2]) @ value


def _pointwise(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What a norm's weights do."""
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    x: Tensor = given["input"]
    for name, by in (("weight", torch.mul), ("bias", torch.add)):
        vector = given.get(name)
        if vector is not None:
            shape = (1, -1, *([1] * (x.ndim - 2))) if func is F.group_norm else tuple(vector.shape)
            x = by(x, vector.reshape(shape))
    return x
