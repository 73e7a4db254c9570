"""MACs and parameters of any pruning plan as a closed form of its widths: no surgery, no forward pass."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit._types import FloatArray, IntArray
from prunekit.cost.counter import MacCount, count_macs
from prunekit.errors import GraphError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.families import attentions
from prunekit.graph.surgery import Inputs, layer_kind, run_once

__all__ = ["CostModel"]


@dataclass(frozen=True, eq=False)
class CostModel:
    r"""MACs and parameters of any plan as a closed form of the channel groups' widths w.

    Each row is :math:`s (a + A w)(b + B w)`: s positions × kernel size, a + A·w inputs and b + B·w outputs.

    Args:
        macs_rows: rows of MACs, one per layer or attention product.
        params_rows: rows of parameters.
        names: what each row of MACs belongs to.
    """

    macs_rows: "_Rows"
    params_rows: "_Rows"
    names: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> "CostModel":
        """Measure where each layer runs, once, and read the coefficients off the graph.

        Matrix products outside known layers (an attention that is not diffusers') are taken to be linear in the widths; their
        slopes are measured, one channel group at a time.

        Raises:
            GraphError: the closed form differs from the counter, on the network or on a pruned one.
        """
        positions, attention_sizes = _positions(model, inputs)
        macs, params = _RowBuilder(graph), _RowBuilder(graph)
        modules = dict(model.named_modules())
        for name, module in modules.items():
            kind = layer_kind(module)
            if kind in ("conv", "transposed", "depthwise", "linear"):
                kernel = _weight(module)[0, 0].numel()
                inner = macs.constant(1) if kind == "depthwise" else macs.width(module, name, "in", kind)
                macs.add(name, positions.get(name, 0) * kernel, inner, macs.width(module, name, "out", kind))
                params.add(name, kernel, inner, params.width(module, name, "out", kind))
        _add_vectors(params, modules)
        _add_attention(macs, model, attention_sizes)
        counted = count_macs(model, inputs)
        model_ = cls(macs.rows(), params.rows(), tuple(macs.names))
        rest = counted.macs - int(model_.macs(graph.full_widths))
        if rest < 0:
            raise GraphError(
                f"The cost model says {-rest} MACs more than the counter; a layer runs in a way that is not known."
            )
        slopes = _slopes(model, graph, inputs, model_, rest)
        outer = (rest - int(slopes @ graph.full_widths), slopes)
        macs.add("matrix products outside known layers", 1, macs.constant(1), outer)
        fixed = counted.params - int(model_.params(graph.full_widths))
        params.add("other parameters", fixed, params.constant(1), params.constant(1))
        found = cls(macs.rows(), params.rows(), tuple(macs.names))
        found._check(model, graph, inputs)
        return found

    def _check(self, model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> None:
        """Compare with the counter at the smallest widths, where anything that is not linear shows most."""
        widths = np.array([group.widths[-1] for group in graph], dtype=np.int64)
        counted = _count_at(model, graph, inputs, widths)
        if (counted.macs, counted.params) != (int(self.macs(widths)), int(self.params(widths))):
            raise GraphError(
                f"A pruned {type(model).__name__} costs {counted.macs:,} MACs and {counted.params:,} parameters, and the cost "
                f"model says {int(self.macs(widths)):,} and {int(self.params(widths)):,}; a layer's cost depends on its width "
                "in a way that is not known."
            )

    def macs(self, widths: IntArray) -> IntArray:
        """MACs per sample of widths of shape (..., groups), as int64 of shape (...)."""
        return np.asarray(self.macs_rows(widths).sum(-1), dtype=np.int64)

    def params(self, widths: IntArray) -> IntArray:
        """Parameters of widths of shape (..., groups), as int64 of shape (...)."""
        return np.asarray(self.params_rows(widths).sum(-1), dtype=np.int64)

    def by_row(self, widths: IntArray) -> dict[str, int]:
        """MACs of each layer and attention product at one set of widths, shape (groups,)."""
        return dict(zip(self.names, (int(v) for v in self.macs_rows(widths)), strict=True))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Bilinear rows; all arrays int64: scale (rows,), constants (rows,), coefficients (rows, groups)."""

    scale: IntArray
    inner: IntArray
    inner_by_group: IntArray
    outer: IntArray
    outer_by_group: IntArray

    def __call__(self, widths: IntArray) -> IntArray:
        """Value of each row, shape (..., rows). float64 products are exact here: every factor is far below 2^53."""
        w = np.asarray(widths, dtype=np.float64)
        inner: FloatArray = self.inner + w @ self.inner_by_group.T
        outer: FloatArray = self.outer + w @ self.outer_by_group.T
        return self.scale * inner.astype(np.int64) * outer.astype(np.int64)


_Affine = tuple[int, IntArray]


class _RowBuilder:
    """Collects rows; reads an axis' width as an affine form of the channel groups' widths."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.count = len(graph)
        self.names: list[str] = []
        self._rows: list[tuple[int, _Affine, _Affine]] = []
        self._by_group: dict[tuple[str, str], IntArray] = {}
        for g, group in enumerate(graph):
            for member in group.members:
                coefficients = self._by_group.setdefault(
                    (member.layer, member.axis), np.zeros(self.count, dtype=np.int64)
                )
                coefficients[g] += len(member.positions) // group.size
        self._full = graph.full_widths

    def constant(self, value: int) -> _Affine:
        return value, np.zeros(self.count, dtype=np.int64)

    def width(self, module: Any, name: str, axis: str, kind: str) -> _Affine:
        """Affine form of a layer axis; grouped convolutions count their inputs per group."""
        dim = {"out": 0, "in": 1} if kind != "transposed" else {"out": 1, "in": 0}
        size = int(module.weight.shape[dim[axis]])
        coefficients = self._by_group.get((name, axis), np.zeros(self.count, dtype=np.int64))
        return size - int(coefficients @ self._full), coefficients

    def add(self, name: str, scale: int, inner: _Affine, outer: _Affine) -> None:
        self.names.append(name)
        self._rows.append((int(scale), inner, outer))

    def rows(self) -> _Rows:
        return _Rows(
            np.array([row[0] for row in self._rows], dtype=np.int64),
            np.array([row[1][0] for row in self._rows], dtype=np.int64),
            np.array([row[1][1] for row in self._rows], dtype=np.int64).reshape(len(self._rows), self.count),
            np.array([row[2][0] for row in self._rows], dtype=np.int64),
            np.array([row[2][1] for row in self._rows], dtype=np.int64).reshape(len(self._rows), self.count),
        )

    def vector(self, module: nn.Module, name: str, length: int) -> _Affine:
        coefficients = self._by_group.get((name, "out"), np.zeros(self.count, dtype=np.int64))
        return length - int(coefficients @ self._full), coefficients


def _count_at(model: nn.Module, graph: ChannelGraph, inputs: Inputs, widths: IntArray) -> MacCount:
    scores = {group.name: np.zeros(group.size) for group in graph}
    return count_macs(apply(model, graph, PruningPlan.from_widths(graph, widths, scores), share=True), inputs)


def _slopes(model: nn.Module, graph: ChannelGraph, inputs: Inputs, known: CostModel, rest: int) -> IntArray:
    """MACs per channel, shape (groups,), of products that no row of ``known`` describes; ``rest`` in all."""
    slopes = np.zeros(len(graph), dtype=np.int64)
    for g, group in enumerate(graph):
        if rest and len(group.widths) > 1:
            widths = graph.full_widths.copy()
            widths[g] -= group.step
            left = _count_at(model, graph, inputs, widths).macs - int(known.macs(widths))
            slopes[g] = (rest - left) // group.step
    return slopes


def _add_vectors(params: _RowBuilder, modules: Mapping[str, nn.Module]) -> None:
    """Biases, norms' weights and embeddings, which are one number per output channel (and per table row)."""
    for name, module in modules.items():
        kind = layer_kind(module)
        if kind is None:
            continue
        for key, tensor in module.named_parameters(recurse=False):
            if kind == "embedding":
                table, width = tensor.shape
                params.add(f"{name}.{key}", table, params.constant(1), params.vector(module, name, width))
            elif tensor.ndim == 1:
                params.add(f"{name}.{key}", 1, params.constant(1), params.vector(module, name, len(tensor)))


def _add_attention(macs: _RowBuilder, model: nn.Module, sizes: Mapping[str, int]) -> None:
    """L_query·L_key·(width of the query + width of the value), for each attention whose projections are known."""
    for name, module in attentions(model):
        if name in sizes:
            query = macs.width(module.to_q, f"{name}.to_q", "out", "linear")
            value = macs.width(module.to_v, f"{name}.to_v", "out", "linear")
            both = (query[0] + value[0], query[1] + value[1])
            macs.add(f"{name} (attention products)", sizes[name], macs.constant(1), both)


class _AttentionSizes(TorchFunctionMode):
    """Adds up L_query·L_key of fused attention calls, by the innermost module that is running."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.sizes: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key")))
            self.sizes[self.stack[-1]] += int(query.shape[0]) * int(query.shape[-2]) * int(key.shape[-2])
        return func(*args, **kwargs)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)  # noqa: S101 - asked of layers of a known kind only
    return module.weight


def _positions(model: nn.Module, inputs: Inputs) -> tuple[dict[str, int], dict[str, int]]:
    """How many output positions each layer computes per sample, and the size of each attention's score matrix."""
    positions: Counter[str] = Counter()
    stack: list[str] = [""]
    handles = []
    for name, module in model.named_modules():
        kind = layer_kind(module)

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)

        def leave(module: nn.Module, args: Any, output: Any, name: str = name, kind: Any = kind) -> None:
            stack.pop()
            if kind in ("conv", "depthwise", "linear") and isinstance(output, Tensor):
                positions[name] += output.numel() // _weight(module).shape[0]
            elif kind == "transposed":  # each input position meets the whole kernel
                positions[name] += args[0].numel() // _weight(module).shape[0]

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with _AttentionSizes(stack) as attention:
            run_once(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return dict(positions), dict(attention.sizes)
