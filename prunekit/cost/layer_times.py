"""Kinds of layers that are timed separately, how to run one at any widths, and tables of their times."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray, IntArray
from prunekit.cost.closed_form import CostModel
from prunekit.cost.stairs import on_stair
from prunekit.graph.forward_pass import Inputs, run_once
from prunekit.graph.layers import layer_kind

if TYPE_CHECKING:
    from prunekit.results.working_files import LayerKindPart, LayerTimesPart

__all__ = ["LayerOp", "LayerTimes", "Used", "layers_used", "operation"]

Op = Literal["conv", "depthwise", "transposed", "linear", "attention"]
_AGAIN = "measure it again"


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class LayerOp:
    """Everything except the widths that decides a layer's time; layers with equal values share a table.

    Args:
        op: kind of layer.
        size: positions of the input per sample (height, width); for an attention: queries, keys, width of a head (0: one head).
        kernel: kernel size of a convolution.
        stride: stride of a convolution.
        padding: padding of a convolution.
        dilation: dilation of a convolution.
        groups: number of groups of a convolution.
        fixed: input and output width if pruning does not change it, else 0.
    """

    op: Op
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    fixed: tuple[int, int] = (0, 0)

    @classmethod
    def from_json(cls, data: "LayerKindPart | JsonDict") -> "LayerOp":
        """Read what ``asdict`` made."""
        from prunekit.results.working_files import LayerKindPart  # noqa: PLC0415 - loads pydantic

        known = LayerKindPart.of(data, "A layer's kind", _AGAIN)
        kernel, stride, padding, dilation = (
            tuple(part or ()) for part in (known.kernel, known.stride, known.padding, known.dilation)
        )
        inner, outer = known.fixed or (0, 0)
        groups = 1 if known.groups is None else known.groups
        return cls(known.op, tuple(known.size), kernel, stride, padding, dilation, groups, (inner, outer))


@dataclass(frozen=True)
class Used:
    """The table that a layer uses, how often it runs per forward pass, and its number of output positions per sample and run."""

    table: int
    calls: int
    positions: int


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Times of one kind of layer.

    Args:
        kind: the kind of layer.
        inner: input widths, rising, shape (n,).
        outer: output widths, rising, shape (m,).
        seconds: seconds per batch, shape (n, m); never falling along either axis.
        blocks: input and output channels that the kernel takes at a time; between whole blocks the time does not fall.
    """

    kind: LayerOp
    inner: IntArray
    outer: IntArray
    seconds: FloatArray
    blocks: tuple[int, int] = (1, 1)

    def __call__(self, inner: FloatArray, outer: FloatArray) -> FloatArray:
        """Seconds at input and output widths of one shape; outside the table the nearest width is used.

        Widths count as whole blocks; between the table's widths, times are interpolated bilinearly.
        """
        low_i, high_i, part_i = _cell(self.inner, inner, self.blocks[0])
        low_o, high_o, part_o = _cell(self.outer, outer, self.blocks[1])
        near = self.seconds[low_i, low_o] * (1 - part_o) + self.seconds[low_i, high_o] * part_o
        far = self.seconds[high_i, low_o] * (1 - part_o) + self.seconds[high_i, high_o] * part_o
        return np.asarray(near * (1 - part_i) + far * part_i, dtype=np.float64)

    def to_json(self) -> JsonObject:
        """``{"kind", "inner", "outer", "seconds", "blocks"}``."""
        lists = {"inner": self.inner.tolist(), "outer": self.outer.tolist(), "seconds": self.seconds.tolist()}
        kind = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.kind).items()}
        return {"kind": kind, **lists, "blocks": list(self.blocks)}

    @classmethod
    def from_json(cls, data: "LayerTimesPart | JsonDict") -> "LayerTimes":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: a key is missing or of the wrong type.
            ValueError: the shapes do not agree, or widths or times fall.
        """
        from prunekit.results.working_files import LayerTimesPart  # noqa: PLC0415 - loads pydantic

        known = LayerTimesPart.of(data, "A table of layer times", _AGAIN)
        inner, outer = (np.array(axis, dtype=np.int64) for axis in (known.inner, known.outer))
        seconds = np.array(known.seconds, dtype=np.float64)
        rising = all(len(axis) and (np.diff(axis) > 0).all() for axis in (inner, outer))
        if not rising or seconds.shape != (len(inner), len(outer)) or not np.isfinite(seconds).all():
            raise ValueError("widths must rise and have one time each")
        if (np.diff(seconds, axis=0) < 0).any() or (np.diff(seconds, axis=1) < 0).any() or (seconds < 0).any():
            raise ValueError("times must not be negative, nor fall as widths rise")
        blocks = (known.blocks[0], known.blocks[1]) if known.blocks else (1, 1)
        return cls(LayerOp.from_json(known.kind), inner, outer, seconds, blocks)


def _cell(grid: IntArray, at: FloatArray, block: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Neighbours of each value on a rising grid, and its relative position between them, in [0, 1], all in whole blocks."""
    stairs, at = on_stair(grid, block), on_stair(at, block)
    low = np.maximum(np.searchsorted(stairs, at, side="right") - 1, 0)
    high = np.minimum(low + 1, len(stairs) - 1)
    part = (at - stairs[low]) / np.maximum(stairs[high] - stairs[low], 1)
    return low, high, np.clip(part, 0.0, 1.0)


def layers_used(model: nn.Module, cost: CostModel, inputs: Inputs) -> tuple[list[LayerOp], dict[str, Used]]:
    """The distinct kinds of layers, and the kind of every module that has a table.

    Products outside known layers and fused attentions have no table; their time is part of the rest.
    """
    seen = _run_shapes(model, inputs)
    kinds: dict[LayerOp, int] = {}
    layers: dict[str, Used] = {}
    modules = dict(model.named_modules())
    for name, row in cost.first_row.items():
        module, fixed = modules[name], _fixed(cost, row)
        if name in seen:
            calls, into, out = seen[name]
            positions = int(np.prod(out[1:-1] if layer_kind(module) == "linear" else out[2:], dtype=np.int64))
            op = _layer_op(module, into, out, fixed)
        elif cost.macs_rows.operators[row].startswith("_scaled_dot_product") and f"{name}.to_k" in seen:
            (calls, _, query), (_, _, key) = seen[f"{name}.to_q"], seen[f"{name}.to_k"]
            heads, positions = int(getattr(module, "heads", 1)), 0
            head = 0 if heads == 1 else int(query[-1]) // heads
            op = LayerOp("attention", (int(query[1]), int(key[1]), head), fixed=fixed)
        else:
            continue
        layers[name] = Used(kinds.setdefault(op, len(kinds)), calls, positions)
    return list(kinds), layers


def _fixed(cost: CostModel, row: int) -> tuple[int, int]:
    """Input and output width of a row if no channel group changes it, else 0."""
    inner, outer = cost.macs_rows.inner, cost.macs_rows.outer
    return tuple(0 if f.by_group[row].any() else int(f.constant[row]) for f in (inner, outer))  # type: ignore[return-value]


Shapes = tuple[int, tuple[int, ...], tuple[int, ...]]


def _run_shapes(model: nn.Module, inputs: Inputs) -> dict[str, Shapes]:
    """For each convolution and linear layer that runs: how often, and shapes of its input and output at the last run."""
    seen: dict[str, Shapes] = {}
    handles = []
    for name, module in model.named_modules():
        if layer_kind(module) not in ("conv", "depthwise", "transposed", "linear"):
            continue

        def note(_module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls = seen[name][0] if name in seen else 0
                seen[name] = (calls + 1, tuple(args[0].shape), tuple(output.shape))

        handles.append(module.register_forward_hook(note))
    try:
        run_once(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _layer_op(module: Any, into: tuple[int, ...], out: tuple[int, ...], fixed: tuple[int, int]) -> LayerOp:
    """Kind of a layer from its shapes; a convolution of a foreign class is treated as a plain one of the same shapes."""
    kind = layer_kind(module)
    if kind == "linear":
        return LayerOp("linear", (int(np.prod(into[1:-1], dtype=np.int64)),), fixed=fixed)
    kernel = tuple(int(k) for k in module.weight.shape[2:])
    size = tuple(int(s) for s in into[2:])
    if isinstance(module, nn.modules.conv._ConvNd):
        lists = (module.stride, module.padding, module.dilation)
        stride, padding, dilation = (tuple(v) if isinstance(v, tuple) else tuple(k // 2 for k in kernel) for v in lists)
    else:
        stride = tuple(max(round(a / b), 1) for a, b in zip(size, out[2:], strict=True))
        size = tuple(b * s for b, s in zip(out[2:], stride, strict=True))
        padding, dilation = tuple(k // 2 for k in kernel), (1,) * len(kernel)
    op: Op = "transposed" if kind == "transposed" else "depthwise" if kind == "depthwise" else "conv"
    groups = int(getattr(module, "groups", 1)) if op == "conv" else 1
    return LayerOp(op, size, kernel, stride, padding, dilation, groups, fixed)


def operation(
    kind: LayerOp, batch: int, inner: int, outer: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """The layer on constant data at given widths (inputs per group of a grouped convolution), ready to run."""

    def data(*shape: int) -> Tensor:
        return torch.full(shape, 0.5, device=device, dtype=dtype)

    if kind.op == "linear":
        x, weight, bias = data(batch * kind.size[0], inner), data(outer, inner), data(outer)
        return lambda: F.linear(x, weight, bias)
    if kind.op == "attention":
        queries, keys, head = kind.size
        heads, width = (1, inner) if head == 0 else (max(inner // head, 1), head)
        q, k = data(batch, heads, queries, width), data(batch, heads, keys, width)
        return lambda: F.scaled_dot_product_attention(q, k, k)
    if kind.op == "transposed":
        x, weight = data(batch, inner, *kind.size), data(inner, outer, *kind.kernel)
        transposed = _TRANSPOSED[len(kind.kernel)]
        return lambda: transposed(x, weight, None, kind.stride, kind.padding, 0, 1, kind.dilation)
    groups = outer if kind.op == "depthwise" else kind.groups
    x, weight, bias = data(batch, inner * groups, *kind.size), data(outer, inner, *kind.kernel), data(outer)
    conv = _CONV[len(kind.kernel)]
    return lambda: conv(x, weight, bias, kind.stride, kind.padding, kind.dilation, groups)
