"""Measures the times of a network's single layers and of the network at several widths, in turn on one machine."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._chosen import check_choice
from prunekit._json import JsonObject
from prunekit._types import FloatArray, IntArray
from prunekit.choices import TimedPrecision
from prunekit.cost.clocks import device_named, machine_of, seconds_of
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerOp, LayerTimes, Used, layers_used, operation
from prunekit.cost.stairs import block_of, probed_widths
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.copying import copied
from prunekit.graph.forward_pass import Inputs, device_of, evaluation_mode, output_tensors

__all__ = ["LatencyOptions", "Measured", "measure"]


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure.

    Args:
        batch_size: samples per forward pass; the table's times are for the whole batch.
        grid: number of widths measured per axis of a layer.
        repeats: number of times that each figure is measured after one warm-up; the shortest time is used, since other
            programs only make it longer.
        fits: number of random plans that the rest is fitted to, in addition to the full, a middle and the smallest network.
        checks: number of random plans for which measured and predicted times are compared.
        seed: seed of the random plans.
        device: where to measure, such as ``cpu`` or ``cuda``; the model's own device if missing.
        dtype: the type of weights and activations.
        compiled: whether the networks are compiled by ``torch.compile``. Single layers never are; what compiling saves is in the
            rest, which is fitted to the networks.

    Raises:
        InputError: a number is too small, or the dtype is unknown.
    """

    batch_size: int = 16
    grid: int = 5
    repeats: int = 5
    fits: int = 8
    checks: int = 5
    seed: int = 0
    device: str | None = None
    dtype: TimedPrecision = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if min(self.batch_size, self.repeats) < 1 or self.grid < 2 or min(self.fits, self.checks) < 0:
            raise InputError(
                f"Got batch size {self.batch_size}, {self.repeats} repeats, a grid of {self.grid}, {self.fits} fits and "
                f"{self.checks} checks; expected at least 1, 1, 2, 0 and 0."
            )
        check_choice("dtype", self.dtype, get_args(TimedPrecision))


class Measured(NamedTuple):
    """The result of :func:`measure`.

    Args:
        machine: torch's version, threads, device and processor.
        times: one table per distinct kind of layer.
        layers: for each module with a table: which table, how often it runs, and its output positions per sample.
        plans: widths of the networks that were timed as a whole, shape (plans, groups): the full one, a middle one, the smallest,
            then random ones.
        seconds: their times per batch, shape (plans,).
    """

    machine: JsonObject
    times: tuple[LayerTimes, ...]
    layers: Mapping[str, Used]
    plans: IntArray
    seconds: FloatArray


def measure(
    model: nn.Module, graph: ChannelGraph, cost: CostModel, inputs: Inputs, options: LatencyOptions
) -> Measured:
    """Time layers and networks; the arguments are those of :meth:`prunekit.cost.LatencyTable.of`.

    Raises:
        GraphError: no layer of the cost model runs.
    """
    kinds, layers = layers_used(model, cost, inputs)
    if not kinds:
        raise GraphError("None of the network's layers has a known cost, so there is nothing to time.")
    grids = _grids(graph, cost, kinds, layers, options.grid)
    plans = _plans(graph, options)
    model, device, dtype = _placed(model, options)
    batched = {key: _batched(value, options.batch_size, device, dtype) for key, value in _by_key(inputs).items()}
    timed = partial(operation, batch=options.batch_size, device=device, dtype=dtype)
    of_layers = [list(_timed_widths(kind, *axes)) for kind, axes in zip(kinds, grids, strict=True)]
    jobs: list[Callable[[], Callable[[], object]]] = [
        partial(timed, kind, inner=inner, outer=outer)
        for kind, widths in zip(kinds, of_layers, strict=True)
        for inner, outer in widths
    ]
    by_name = isinstance(inputs, Mapping)
    networks = [partial(_forward, model, graph, plan, batched, by_name) for plan in plans]
    with evaluation_mode(model), torch.no_grad():
        if options.compiled:
            of_networks = np.array([_compiled_seconds(network, options.repeats, device) for network in networks])
            seconds = _seconds(jobs, options.repeats, device)
        else:
            seconds = _seconds([*jobs, *networks], options.repeats, device)
            of_networks = seconds[len(jobs) :]
    return Measured(machine_of(device), _tables(kinds, grids, of_layers, seconds), layers, plans, of_networks)


def _placed(model: nn.Module, options: LatencyOptions) -> tuple[nn.Module, torch.device, torch.dtype]:
    """The network where and in what type it is to be timed, a copy where that is not its own."""
    own = next(model.parameters())
    device = own.device if options.device is None else device_named(options.device)
    dtype: torch.dtype = getattr(torch, options.dtype)
    if (own.device, own.dtype) == (device, dtype):
        return model, device, dtype
    return nn.Module.to(copied(model), device=device, dtype=dtype), device, dtype  # diffusers' own has warnings


def _timed_widths(kind: LayerOp, inner: IntArray, outer: IntArray) -> Iterator[tuple[int, int]]:
    """Input and output widths at which a kind of layer is timed: the grid's, then those that show its blocks."""
    yield from itertools.product(inner.tolist(), outer.tolist())
    for axis, widths in enumerate(_probes(kind, inner, outer)):
        for width in widths.tolist():
            yield (width, int(outer[len(outer) // 2])) if axis == 0 else (int(inner[len(inner) // 2]), width)


def _probes(kind: LayerOp, inner: IntArray, outer: IntArray) -> tuple[IntArray, IntArray]:
    """Widths of both axes that show a layer's blocks; none for attentions, whose widths are those of whole heads."""
    axes = (inner, outer) if kind.op != "attention" else (inner[:0], outer[:0])
    return tuple(probed_widths(*axis[[0, -1]].tolist()) if len(axis) > 1 else axis[:0] for axis in axes)  # type: ignore[return-value]


def _grids(
    graph: ChannelGraph, cost: CostModel, kinds: Sequence[LayerOp], layers: Mapping[str, Used], points: int
) -> list[tuple[IntArray, IntArray]]:
    """Input and output widths to measure for each kind, from the smallest to the largest that any of its layers can have."""
    smallest = np.array([group.widths[-1] for group in graph], dtype=np.int64)
    ends = cost.layer_widths(np.array([smallest, graph.full_widths]).reshape(2, len(graph)))
    grids = []
    for index in range(len(kinds)):
        rows = [cost.first_row[name] for name, use in layers.items() if use.table == index]
        least_most = [(int(axis[0, rows].min()), int(axis[1, rows].max())) for axis in ends]
        grids.append((_grid(*least_most[0], points), _grid(*least_most[1], points)))
    return grids


def _grid(least: int, most: int, points: int) -> IntArray:
    """Evenly spread widths including both ends; those between are multiples that suit the kernels."""
    multiple = 32 if most - least >= 128 else 8 if most - least >= 32 else 1
    between = np.rint(np.linspace(least, most, points)[1:-1] / multiple) * multiple
    return np.unique(np.clip([least, *between, most], least, most)).astype(np.int64)


def train_step_rate(model: nn.Module, inputs: Inputs, macs: int, batch_size: int) -> float:
    """MACs per second that a train step reaches on this machine: the fastest of several, as other programs slow steps down.

    Args:
        model: the network, in float32.
        inputs: arguments of one forward pass at batch 1.
        macs: MACs of one forward pass at batch 1; the backward pass counts twice.
        batch_size: images in a step.
    """
    device = device_of(model)
    given = {key: _batched(value, batch_size, device) for key, value in _by_key(inputs).items()}

    def step() -> None:
        output = model(**given) if isinstance(inputs, Mapping) else model(*given.values())
        torch.stack([tensor.float().square().mean() for tensor in output_tensors(output)]).sum().backward()

    with torch.enable_grad():
        seconds = min(seconds_of(step, device) for _ in range(_STEPS))
    model.zero_grad(set_to_none=True)
    return 3 * macs * batch_size / seconds


def _plans(graph: ChannelGraph, options: LatencyOptions) -> IntArray:
    """Widths of the full, a middle and the smallest network, then of random ones, shape (plans, groups)."""
    plans = [[group.widths[round(u * (len(group.widths) - 1))] for group in graph] for u in (0, 0.5, 1)]
    rng = np.random.default_rng(options.seed)
    for count in (options.fits, options.checks):
        for ratio in np.linspace(0.9, 0.3, count):
            around = np.clip(ratio + rng.uniform(-0.25, 0.25, len(graph)), 0, 1) * graph.full_widths
            plans.append([g.widths[np.abs(g.widths - w).argmin()] for g, w in zip(graph, around, strict=True)])
    return np.array(plans, dtype=np.int64).reshape(len(plans), len(graph))


def _seconds(jobs: Sequence[Callable[[], Callable[[], object]]], repeats: int, device: torch.device) -> FloatArray:
    """The shortest time of each job, shape (jobs,). A job returns the function that is timed.

    Every pass runs all jobs, so a slow minute of the machine does not distort a single figure; the first pass warms up.
    """
    samples = [[_settled_seconds(job, device) for job in jobs] for _ in range(repeats + 1)]
    return np.asarray(np.min(samples[1:], axis=0), dtype=np.float64)


def _settled_seconds(job: Callable[[], Callable[[], object]], device: torch.device) -> float:
    """The time of a job's function.

    On a CPU it runs on fresh data, since layers within a network find neither weights nor inputs in the cache; what takes a
    millisecond or less is repeated. On a GPU the first run chooses the kernels and is not counted.
    """
    first = seconds_of(run := job(), device)
    if device.type != "cpu":
        return min(seconds_of(run, device, _CALLS) for _ in range(_TIMES))
    return first if first > _SHORT else min(seconds_of(job(), device) for _ in range(_TIMES))


def _compiled_seconds(network: Callable[[], Callable[[], object]], repeats: int, device: torch.device) -> float:
    """The shortest time of a network that is compiled, alone: torch keeps only a few compiled forms of one class."""
    torch.compiler.reset()
    run = torch.compile(network(), dynamic=False)
    seconds_of(run, device)
    return min(seconds_of(run, device, _CALLS) for _ in range(repeats + 1))


_SHORT = 1e-3  # seconds
_TIMES = 5
_STEPS = 5  # train steps that are timed
_CALLS = 10  # between two events of a GPU


def _tables(
    kinds: Sequence[LayerOp],
    grids: Sequence[tuple[IntArray, IntArray]],
    of_layers: Sequence[list[tuple[int, int]]],
    measured: FloatArray,
) -> tuple[LayerTimes, ...]:
    """Tables of the kinds' times, which lie one after another in ``measured``, made monotone, with the kernels' blocks."""
    tables, start = [], 0
    for kind, (inner, outer), widths in zip(kinds, grids, of_layers, strict=True):
        seconds = measured[start : start + len(inner) * len(outer)].reshape(len(inner), len(outer))
        rising = np.maximum.accumulate(np.maximum.accumulate(seconds, 0), 1)
        falling = np.minimum.accumulate(np.minimum.accumulate(seconds[::-1, ::-1], 0), 1)[::-1, ::-1]
        place, blocks = start + seconds.size, []
        for probed in _probes(kind, inner, outer):
            blocks.append(block_of(probed, measured[place : place + len(probed)]))
            place += len(probed)
        found = (blocks[0], blocks[1])
        tables.append(LayerTimes(kind, inner, outer, 0.5 * (rising + falling), found))  # between its monotone hulls
        start += len(widths)
    return tuple(tables)


def _forward(
    model: nn.Module, graph: ChannelGraph, widths: IntArray, inputs: Mapping[Any, Any], by_name: bool
) -> Callable[[], object]:
    """A forward pass of the network pruned to widths of shape (groups,), ready to run."""
    scores = {group.name: np.zeros(group.size) for group in graph}
    pruned = apply(model, graph, PruningPlan.from_widths(graph, widths, scores), share=True).eval()
    return lambda: pruned(**inputs) if by_name else pruned(*inputs.values())


def _by_key(inputs: Inputs) -> dict[Any, Any]:
    return dict(inputs) if isinstance(inputs, Mapping) else dict(enumerate(inputs))


def _batched(value: Any, batch_size: int, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """An argument for a batch: tensors of one sample, also within lists and mappings, are repeated; numbers become ``dtype``."""
    if isinstance(value, Mapping):
        return {key: _batched(part, batch_size, device, dtype) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_batched(part, batch_size, device, dtype) for part in value)
    if not isinstance(value, Tensor):
        return value
    placed = value.to(device, dtype if value.is_floating_point() else None)
    return placed.repeat_interleave(batch_size, 0) if placed.ndim and placed.shape[0] == 1 else placed
