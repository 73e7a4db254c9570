"""Latency of any pruning plan, from a table of layer times measured on one machine.

A network's time is taken to be the sum of its layers' times, each interpolated in a table over its input and output widths, and
of a rest (norms, activations, copies, calls) that is affine in the number of values that the layers put out. The rest is fitted to
measured times of a few pruned networks; with those of others the predictions are compared, and the comparison stays in the table.
:mod:`prunekit.cost.timing` measures.
"""

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import nn
from typing_extensions import TypedDict

from prunekit._json import Amount, Bounded, Many, Named, Positive, Whole, checked
from prunekit._types import FloatArray, IntArray, JsonDict
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerTimes, TimesForm, Used
from prunekit.cost.timing import LatencyOptions, measure
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import ChannelGraph
from prunekit.graph.running import Inputs

__all__ = ["FORMAT", "LatencyCheck", "LatencyModel", "LatencyTable"]

FORMAT = "prunekit-latency/1"
_REST = ("layer_scale", "seconds", "seconds_per_value")
_AGAIN = "measure it again"
_Time = Annotated[float, Bounded(gt=0)]


class _UsedForm(TypedDict):
    table: Whole
    calls: Whole
    positions: Whole


class _RestForm(TypedDict):
    layer_scale: Amount
    seconds: Amount
    seconds_per_value: Amount


class _CheckForm(TypedDict):
    mac_ratio: Amount
    predicted: Amount
    measured: _Time


class _TableForm(TypedDict):
    machine: dict[str, Any]
    batch_size: Positive
    fingerprint: str
    base_seconds: _Time
    rest: _RestForm
    times: Many[TimesForm]
    layers: Named[_UsedForm]
    checks: Many[_CheckForm]


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
        machine, times, layers, plans, measured = measure(model, graph, cost, inputs, options)
        table = cls(machine, options.batch_size, graph.fingerprint, times, layers, (1, 0, 0), float(measured[0]), ())
        return table._fitted(graph, cost, plans, measured, len(plans) - options.checks)

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
        known = checked(_TableForm, data, str(source), _AGAIN)
        try:
            times = tuple(LayerTimes.from_json(table) for table in known["times"])
            layers = {
                name: Used(used["table"], used["calls"], used["positions"]) for name, used in known["layers"].items()
            }
            if not all(used.table < len(times) for used in layers.values()):
                raise ValueError("a layer names a table that is not there")
        except FileFormatError:
            raise
        except ValueError as error:
            raise FileFormatError(f"{source} cannot be read ({error}); {_AGAIN}.") from error
        rest = known["rest"]
        checks = tuple(LatencyCheck(each["mac_ratio"], each["predicted"], each["measured"]) for each in known["checks"])
        return cls(
            dict(known["machine"]),
            known["batch_size"],
            known["fingerprint"],
            times,
            layers,
            (rest["layer_scale"], rest["seconds"], rest["seconds_per_value"]),
            known["base_seconds"],
            checks,
        )


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
        inner, outer = self.cost.layer_widths(widths)
        total: FloatArray = np.zeros(np.shape(widths)[:-1])
        for times, rows, calls in self._rows:
            total = total + times(inner[..., rows], outer[..., rows]) @ calls
        return total

    def values(self, widths: IntArray) -> FloatArray:
        """Numbers that the layers put out per batch, shape (...)."""
        return np.asarray(self.table.batch_size * (self.cost.layer_widths(widths)[1] @ self._positions), dtype=float)


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
