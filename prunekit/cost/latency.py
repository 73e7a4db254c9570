"""Latency of any pruning plan, from a table of layer times measured on one machine.

A network's time is taken to be the sum of its layers' times, each interpolated in a table over its input and output widths, and
of a rest (norms, activations, copies, calls) that is affine in the number of values that the layers put out. The rest is fitted to
measured times of a few pruned networks; with those of others the predictions are compared, and the comparison stays in the table.
"""

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import FloatArray, IntArray, JsonDict
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerOp, LayerTimes, Used, layers_used, operation
from prunekit.errors import FileFormatError, GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.surgery import Inputs, evaluation_mode

__all__ = ["FORMAT", "LatencyCheck", "LatencyModel", "LatencyOptions", "LatencyTable"]

FORMAT = "prunekit-latency/1"
_REST = ("layer_scale", "seconds", "seconds_per_value")


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure.

    Args:
        batch_size: samples per forward pass; the table's times are for the whole batch.
        grid: widths measured per axis of a layer.
        repeats: times each figure is measured, after one warm-up; medians count.
        fits: random plans that the rest is fitted to, beside the full, a middle and the smallest network.
        checks: random plans whose measured time is compared with the predicted.
        seed: of the random plans.
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


@dataclass(frozen=True)
class LatencyCheck:
    """A plan's MACs as a fraction of the base's, and its predicted and measured seconds per batch."""

    mac_ratio: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """(predicted − measured) / measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Layer times of one network on one machine.

    Args:
        machine: torch's version, threads, device and processor.
        batch_size: samples per forward pass.
        fingerprint: of the channel graph that it was measured for.
        times: one table per distinct kind of layer.
        layers: for each module whose products have a table: which, how often, and how many positions it puts out per sample.
        rest: how much slower layers are within the network than alone, seconds that do not depend on the widths, and seconds per
            value that the layers put out in a batch.
        base_seconds: measured time of the full network.
        checks: predicted and measured time of random plans.
    """

    machine: JsonDict
    batch_size: int
    fingerprint: str
    times: tuple[LayerTimes, ...]
    layers: Mapping[str, Used]
    rest: tuple[float, float, float]
    base_seconds: float
    checks: tuple[LatencyCheck, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        cost: CostModel,
        inputs: Inputs,
        options: LatencyOptions | None = None,
    ) -> "LatencyTable":
        """Measure on the model's device with torch's present number of threads: seconds to minutes, by the options.

        Args:
            model: the full network, unchanged.
            graph: its channel groups.
            cost: their cost model, whose rows know each layer's widths.
            inputs: arguments of one forward pass, batch 1.
            options: see :class:`LatencyOptions`.

        Raises:
            GraphError: none of the cost model's layers runs.
        """
        options = options or LatencyOptions()
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
        measured = medians[len(medians) - len(plans) :]
        table = cls(_machine(device), options.batch_size, graph.fingerprint, times, layers, (1, 0, 0), measured[0], ())
        return table._fitted(graph, cost, plans, measured, 3 + options.fits)

    def _fitted(
        self, graph: ChannelGraph, cost: CostModel, plans: IntArray, measured: FloatArray, fitted: int
    ) -> "LatencyTable":
        """Fit the rest to the first plans, and compare with the others."""
        bound = self.bind(graph, cost)
        rest = _fit_rest(bound.layer_seconds(plans[:fitted]), bound.values(plans[:fitted]), measured[:fitted])
        table = replace(self, rest=rest)
        predicted = 1e-9 * table.bind(graph, cost).nanoseconds(plans)
        ratios = cost.macs(plans) / max(int(cost.macs(graph.full_widths)), 1)
        figures = zip(ratios, predicted, measured, strict=True)
        checks = tuple(LatencyCheck(*(float(value) for value in row)) for row in figures)[fitted:]
        return replace(table, checks=checks)

    @property
    def error(self) -> float | None:
        """Median of the checks' absolute relative errors; None without checks."""
        return statistics.median(abs(check.error) for check in self.checks) if self.checks else None

    def bind(self, graph: ChannelGraph, cost: CostModel) -> "LatencyModel":
        """The table as a function of the channel groups' widths.

        Raises:
            InputError: it was measured for another network or norm mode.
        """
        if self.fingerprint != graph.fingerprint or not set(self.layers) <= set(cost.first_row):
            raise InputError(
                f"The table of layer times was measured for another network or norm mode (fingerprint {self.fingerprint}, "
                f"this network's is {graph.fingerprint}); measure one for this network."
            )
        return LatencyModel(self, cost)

    def to_json(self) -> dict[str, Any]:
        """``{"format", "machine", "batch_size", …}``; times in seconds per batch."""
        return {
            "format": FORMAT,
            "machine": dict(self.machine),
            "batch_size": self.batch_size,
            "fingerprint": self.fingerprint,
            "base_seconds": self.base_seconds,
            "rest": dict(zip(_REST, self.rest, strict=True)),
            "times": [table.to_json() for table in self.times],
            "layers": {name: asdict(used) for name, used in self.layers.items()},
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: JsonDict, source: Path | str = "The table of layer times") -> "LatencyTable":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: it is of another format, or something is missing or of the wrong kind.
        """
        if data.get("format") != FORMAT:
            raise FileFormatError(f"{source} has format {data.get('format')!r}; expected {FORMAT!r}.")
        try:
            times = tuple(LayerTimes.from_json(table) for table in data["times"])
            layers = {name: Used(**{k: int(v) for k, v in used.items()}) for name, used in data["layers"].items()}
            if not all(0 <= used.table < len(times) for used in layers.values()):
                raise ValueError("a layer names a table that is not there")
            scale, constant, per_value = (float(data["rest"][key]) for key in _REST)
            if not all(0 <= value < math.inf for value in (scale, constant, per_value)):
                raise ValueError("the rest is negative or infinite")
            checks = tuple(LatencyCheck(**{k: float(v) for k, v in check.items()}) for check in data["checks"])
            facts = (int(data["batch_size"]), str(data["fingerprint"]), times, layers, (scale, constant, per_value))
            return cls(dict(data["machine"]), *facts, float(data["base_seconds"]), checks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{source} cannot be read ({error!r}); measure it again.") from error


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Predicted time of any plan: a :class:`LatencyTable` bound to the rows of a cost model."""

    table: LatencyTable
    cost: CostModel

    @cached_property
    def _rows(self) -> list[tuple[LayerTimes, IntArray, IntArray]]:
        """For each table: rows of the cost model that use it, and how often each runs."""
        place = self.cost.first_row
        found = []
        for index, times in enumerate(self.table.times):
            used = [(place[name], use.calls) for name, use in self.table.layers.items() if use.table == index]
            found.append((times, np.array([row for row, _ in used]), np.array([calls for _, calls in used])))
        return found

    @cached_property
    def _positions(self) -> IntArray:
        positions = np.zeros(len(self.cost.macs_rows.owners), dtype=np.int64)
        for name, use in self.table.layers.items():
            positions[self.cost.first_row[name]] = use.calls * use.positions
        return positions

    def nanoseconds(self, widths: IntArray) -> IntArray:
        """Time per batch of widths of shape (..., groups), as int64 nanoseconds of shape (...)."""
        scale, constant, per_value = self.table.rest
        seconds = scale * self.layer_seconds(widths) + constant + per_value * self.values(widths)
        return np.asarray(np.rint(1e9 * seconds), dtype=np.int64)

    def layer_seconds(self, widths: IntArray) -> FloatArray:
        """Time of the layers alone, in seconds per batch, shape (...)."""
        inner, outer = _affine_widths(self.cost, widths)
        total: FloatArray = np.zeros(np.shape(widths)[:-1])
        for times, rows, calls in self._rows:
            total = total + times(inner[..., rows], outer[..., rows]) @ calls
        return total

    def values(self, widths: IntArray) -> FloatArray:
        """Numbers that the layers put out per batch, shape (...)."""
        return np.asarray(self.table.batch_size * (_affine_widths(self.cost, widths)[1] @ self._positions), dtype=float)


def _affine_widths(cost: CostModel, widths: IntArray) -> tuple[FloatArray, FloatArray]:
    """Input and output width of every row of the cost model, shape (..., rows), for widths of shape (..., groups)."""
    rows, w = cost.macs_rows, np.asarray(widths, dtype=np.float64)
    return rows.inner(w).astype(float), rows.outer(w).astype(float)


def _grids(
    graph: ChannelGraph, cost: CostModel, kinds: Sequence[LayerOp], layers: Mapping[str, Used], points: int
) -> list[tuple[IntArray, IntArray]]:
    """Input and output widths to measure for each kind: from the least to the most that any of its layers can have."""
    smallest = np.array([group.widths[-1] for group in graph], dtype=np.int64)
    ends = _affine_widths(cost, np.array([smallest, graph.full_widths]).reshape(2, len(graph)))
    grids = []
    for index in range(len(kinds)):
        rows = [cost.first_row[name] for name, use in layers.items() if use.table == index]
        least_most = [(int(axis[0, rows].min()), int(axis[1, rows].max())) for axis in ends]
        grids.append((_grid(*least_most[0], points), _grid(*least_most[1], points)))
    return grids


def _grid(least: int, most: int, points: int) -> IntArray:
    """Evenly spread widths with both ends, those between in multiples that kernels like."""
    multiple = 32 if most - least >= 128 else 8 if most - least >= 32 else 1
    between = np.rint(np.linspace(least, most, points)[1:-1] / multiple) * multiple
    return np.unique(np.clip([least, *between, most], least, most)).astype(np.int64)


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
    """Median time of each job, shape (jobs,). A job makes what is timed.

    Every pass goes over all jobs, so that a slow minute of the machine spoils no figure alone; the first pass warms up.
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


def _fit_rest(layers: FloatArray, values: FloatArray, measured: FloatArray) -> tuple[float, float, float]:
    """Factor of the layers' times, constant and time per value, none below zero, of least squared relative error.

    Args:
        layers: seconds by the layers' tables, shape (plans,).
        values: numbers that the layers put out, shape (plans,).
        measured: seconds, shape (plans,).
    """
    design = np.stack([layers, np.ones_like(layers), values], 1) / measured[:, None]
    found = (np.inf, np.array([1.0, 0.0, 0.0]))
    for used in itertools.product((False, True), repeat=3):
        part = np.zeros(3)
        part[list(used)] = np.linalg.lstsq(design[:, used], np.ones(len(measured)), rcond=None)[0]
        error = float(((design @ part - 1) ** 2).sum())
        if (part >= 0).all() and error < found[0] and used[0]:
            found = (error, part)
    scale, constant, per_value = (float(value) for value in found[1])
    return scale, constant, per_value


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type, "processor": name}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()
