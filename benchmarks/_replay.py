"""Outputs of a slim network compared with those of the full network with the same channels silenced, with or without norms.

Norms see fewer channels in the slim network, so their statistics differ, and should. They are recorded while the silenced network
runs and replayed in the slim one, in the order of the calls: one scalar for each norm of torch, every mean, variance and norm that
code takes by itself and that has the same shape in both, and the numbers that scale what ``F.normalize`` gives. The small number
that code adds to a norm before it divides is next to nothing in both: it weighs more beside the norm of fewer channels.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from prunekit.graph import ChannelGraph, PruningPlan
from prunekit.graph.forward_pass import output_tensors, run_once
from prunekit.graph.judging import NORMS, plain_norm
from prunekit.graph.surgery import all_tensors, tensors_of

_MEANS = ("mean", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "linalg_vector_norm")
_SUMS = ("add", "radd", "iadd")
_SMALL, _NOTHING = 0.01, 1e-30
_SCALES = ("mul", "div", "truediv", "multiply", "divide", "rmul")


class _Norms(TorchFunctionMode):
    """Records statistics, or replays those that were recorded."""

    def __init__(self, recorded: list[Any] | None = None) -> None:
        super().__init__()
        self.replayed = None if recorded is None else iter(recorded)
        self.recorded: list[Any] = []
        self.normed = WeakIdKeyDictionary()
        self.statistics = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(getattr(func, "__name__", "")).strip("_")
        if func in NORMS:
            given = args[0] if args else kwargs.pop("input")
            scale = self._told(given.double().pow(2).mean().sqrt().clamp_min(1e-30))  # of zeros, too
            return plain_norm(func, ((given / scale).to(given.dtype), *args[1:]), kwargs)
        if name in _SCALES and any(leaf in self.normed for leaf in tree_leaves(args) if isinstance(leaf, Tensor)):
            args = tuple(self._told(arg) if isinstance(arg, float | int) else arg for arg in args)
        elif name in _SUMS and any(leaf in self.statistics for leaf in args if isinstance(leaf, Tensor)):
            args = tuple(_NOTHING if isinstance(arg, float) and 0 < arg < _SMALL else arg for arg in args)
        else:
            name = "normalize" if func is F.normalize else name if name in _MEANS else ""
        result = func(*args, **kwargs)
        if name in _MEANS:
            told = self._told(result)
            result = told if _shapes(told) == _shapes(result) else result
            self.statistics |= {leaf: True for leaf in tree_leaves(result)}
        elif name and name not in _SUMS:
            self.normed[result] = True
        return result

    def _told(self, own: Any) -> Any:
        """What the silenced network had here."""
        self.recorded.append(own)
        return own if self.replayed is None else next(self.replayed)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(value)]


def difference(
    full: nn.Module, slim: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: Any
) -> tuple[float, str]:
    """Largest relative difference of the outputs, and the precision: double if the network runs with it."""
    try:
        return _difference(
            _silenced(full, graph, plan).double(), copy.deepcopy(slim).double(), _double(inputs)
        ), "64 bit"
    except RuntimeError:  # it mixes its own precision in
        return _difference(_silenced(full, graph, plan), slim, inputs), "own precision"


def _difference(silenced: nn.Module, slim: nn.Module, inputs: Any) -> float:
    outputs, recorded = [], None
    for model in (silenced, slim):
        torch.manual_seed(2)
        with _Norms(recorded) as norms:
            outputs.append(output_tensors(run_once(model, inputs)))
        recorded = norms.recorded
    pairs = [(a.double(), b.double()) for a, b in zip(*outputs, strict=True)]
    return max(float((a - b).abs().amax() / a.abs().amax().clamp_min(1e-30)) for a, b in pairs if a.numel())


def _silenced(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """The full network with zeros where the plan's channels are made and where they are read."""
    model = copy.deepcopy(model)
    tensors = all_tensors(model)
    for name, kept in plan.kept.items():
        for member in graph[name].members:
            gone = torch.from_numpy(member.positions[~np.isin(member.roots, kept)])
            for key, dim in tensors_of(model, member.layer, member.axis):
                tensors[key].index_fill_(dim, gone, 0)
    return model


def _double(inputs: Any) -> Any:
    def one(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(one, inputs)
