"""Measures the times of a network's single layers and of the network at several widths, in turn on one machine."""

import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._json import JsonObject
from prunekit._types import FloatArray, IntArray
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerOp, LayerTimes, Used, layers_used, operation
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.forward_pass import Inputs, evaluation_mode, output_tensors

__all__ = ["LatencyOptions", "Measured", "measure"]


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure.

    Args:
        batch_size: samples per forward pass; the table's times are for the whole batch.
        grid: number of widths measured per axis of a layer.
        repeats: number of times that each figure is measured after one warm-up; the median is used.
        fits: number of random plans that the rest is fitted to, in addition to the full, a middle and the smallest network.
        checks: number of random plans for which measured and predicted times are compared.
        seed: seed of the random plans.
    """

    batch_size: int = 16
    grid: int = 5
    repeats: int = 5
    fits: int = 4
    checks: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.repeats) < 1 or self.grid < 2 or min(self.fits, self.checks) < 0:
            raise InputError(
                f"Got batch size {self.batch_size}, {self.repeats} repeats, a grid of {self.grid}, {self.fits} fits and "
                f"{self.checks} checks; expected at least 1, 1, 2, 0 and 0."
            )


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
    device = next(model.parameters()).device
    kinds, layers = layers_used(model, cost, inputs)
    if not kinds:
        raise GraphError("None of the network's layers has a known cost, so there is nothing to time.")
    grids = _grids(graph, cost, kinds, layers, options.grid)
    plans = _plans(graph, options)
    batched = {key: _batched(value, options.batch_size) for key, value in _by_key(inputs).items()}
    jobs = [
        partial(operation, kind, options.batch_size, int(inner), int(outer), device)
        for kind, axes in zip(kinds, grids, strict=True)
        for inner, outer in itertools.product(*axes)
    ]
    jobs += [partial(_forward, model, graph, plan, batched, isinstance(inputs, Mapping)) for plan in plans]
    with evaluation_mode(model), torch.no_grad():
        medians = _median_seconds(jobs, options.repeats, device)
    times = _tables(kinds, grids, medians)
    return Measured(_machine(device), times, layers, plans, medians[len(medians) - len(plans) :])


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


def train_step_rate(model: nn.Module, inputs: Inputs, macs: int, batch_size: int = 1, repeats: int = 5) -> float:
    """MACs per second that a train step reaches on this machine: the fastest of several, as other programs slow steps down.

    Args:
        model: the network, in float32.
        inputs: arguments of one forward pass at batch 1.
        macs: MACs of one forward pass at batch 1; the backward pass counts twice.
        batch_size: images in a step.
        repeats: number of steps that are timed.
    """
    given = {key: _batched(value, batch_size) for key, value in _by_key(inputs).items()}

    def step() -> None:
        output = model(**given) if isinstance(inputs, Mapping) else model(*given.values())
        torch.stack([tensor.float().square().mean() for tensor in output_tensors(output)]).sum().backward()

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.enable_grad():
        seconds = min(_seconds(step, device) for _ in range(repeats))
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


def _median_seconds(jobs: Sequence[Callable[[], Callable[[], Any]]], repeats: int, device: torch.device) -> FloatArray:
    """Median time of each job, shape (jobs,). A job returns the function that is timed.

    Every pass runs all jobs, so a slow minute of the machine does not distort a single figure; the first pass warms up.
    """
    samples = [[_seconds(job(), device) for job in jobs] for _ in range(repeats + 1)]
    return np.asarray(np.median(samples[1:], axis=0), dtype=np.float64)


def _tables(
    kinds: Sequence[LayerOp], grids: Sequence[tuple[IntArray, IntArray]], medians: FloatArray
) -> tuple[LayerTimes, ...]:
    """Tables of the kinds' times, one after another in ``medians``, made monotone."""
    tables, start = [], 0
    for kind, (inner, outer) in zip(kinds, grids, strict=True):
        seconds = medians[start : start + len(inner) * len(outer)].reshape(len(inner), len(outer))
        rising = np.maximum.accumulate(np.maximum.accumulate(seconds, 0), 1)
        falling = np.minimum.accumulate(np.minimum.accumulate(seconds[::-1, ::-1], 0), 1)[::-1, ::-1]
        tables.append(LayerTimes(kind, inner, outer, 0.5 * (rising + falling)))  # between its monotone hulls
        start += seconds.size
    return tuple(tables)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _forward(
    model: nn.Module, graph: ChannelGraph, widths: IntArray, inputs: Mapping[Any, Any], by_name: bool
) -> Callable[[], Any]:
    """A forward pass of the network pruned to widths of shape (groups,), ready to run."""
    scores = {group.name: np.zeros(group.size) for group in graph}
    pruned = apply(model, graph, PruningPlan.from_widths(graph, widths, scores), share=True).eval()
    return lambda: pruned(**inputs) if by_name else pruned(*inputs.values())


def _by_key(inputs: Inputs) -> dict[Any, Any]:
    return dict(inputs) if isinstance(inputs, Mapping) else dict(enumerate(inputs))


def _batched(value: Any, batch_size: int) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return value.repeat_interleave(batch_size, 0)
    return value


def _machine(device: torch.device) -> JsonObject:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type, "processor": name}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()
