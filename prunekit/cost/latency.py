"""Latency of any pruning plan, from a table of layer times measured on one machine.

A network's predicted time is the sum of its layers' times and a rest. Each layer's time is interpolated in a table over its input
and output widths, in whole blocks of its kernel. The rest (norms, activations, copies, calls) is proportional to the number of
values that the layers output, and to the number of layers that run, and is fitted to measured times of a few pruned networks. The
predictions are compared with measured times of other pruned networks, and the comparison is stored in the table.
:mod:`prunekit.cost.timing` does the measurements.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray, IntArray
from prunekit.choices import TimedPrecision
from prunekit.cost.clocks import is_here
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerTimes, Used
from prunekit.cost.stairs import BLOCKS, multiple_of
from prunekit.cost.timing import LatencyOptions, measure
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import ChannelGraph
from prunekit.graph.forward_pass import Inputs
from prunekit.results.formats import LATENCY

if TYPE_CHECKING:
    from prunekit.results.working_files import LatencyFile

__all__ = ["LatencyCheck", "LatencyModel", "LatencyTable", "Rest"]

_AGAIN = "measure it again"


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


class Rest(NamedTuple):
    """Time of a forward pass that is in no layer's table.

    Args:
        layer_scale: factor by which layers are slower within the network than alone.
        seconds: what does not depend on the plan; 0 in tables of this version.
        seconds_per_value: seconds for each value that the layers output in a batch.
        seconds_per_call: seconds for each layer that runs; it has the time to start layers, norms and activations.
    """

    layer_scale: float = 1.0
    seconds: float = 0.0
    seconds_per_value: float = 0.0
    seconds_per_call: float = 0.0


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Layer times of one network on one machine.

    Args:
        machine: torch's version, threads, device and processor.
        batch_size: samples per forward pass.
        fingerprint: hash of the channel graph that it was measured for.
        times: one table per distinct kind of layer.
        layers: for each module with a table: which table, how often it runs, and its output positions per sample.
        rest: time outside the layers.
        base_seconds: measured time of the full network.
        checks: predicted and measured time of random plans.
        dtype: type of weights and activations.
        compiled: whether the networks were compiled by ``torch.compile``.
    """

    machine: JsonDict
    batch_size: int
    fingerprint: str
    times: tuple[LayerTimes, ...]
    layers: Mapping[str, Used]
    rest: Rest
    base_seconds: float
    checks: tuple[LatencyCheck, ...]
    dtype: TimedPrecision = "float32"
    compiled: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        cost: CostModel,
        inputs: Inputs,
        options: LatencyOptions | None = None,
    ) -> "LatencyTable":
        """Measure with torch's current number of threads; takes seconds to minutes, depending on the options.

        Args:
            model: the full network; it is not changed.
            graph: its channel groups.
            cost: the cost model of the channel groups.
            inputs: arguments of one forward pass, batch 1.
            options: see :class:`LatencyOptions`.

        Raises:
            GraphError: no layer of the cost model runs.
        """
        options = options or LatencyOptions()
        machine, times, layers, plans, measured = measure(model, graph, cost, inputs, options)
        table = cls(
            machine,
            options.batch_size,
            graph.fingerprint,
            times,
            layers,
            Rest(),
            float(measured[0]),
            (),
            options.dtype,
            options.compiled,
        )
        return table._fitted(graph, cost, plans, measured, len(plans) - options.checks)

    def _fitted(
        self, graph: ChannelGraph, cost: CostModel, plans: IntArray, measured: FloatArray, fitted: int
    ) -> "LatencyTable":
        """Fit the rest to the first plans, and check the predictions on the others."""
        bound = self.bind(graph, cost)
        first = plans[:fitted]
        rest = _fit_rest(bound.layer_seconds(first), bound.values(first), bound.calls(first), measured[:fitted])
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

    @property
    def worst(self) -> float | None:
        """Largest of the checks' absolute relative errors; None without checks."""
        return max((abs(check.error) for check in self.checks), default=None)

    def about(self) -> JsonObject:
        """Where and how the times were measured, and how far predictions are off: for the records of what was planned with it."""
        return {
            "machine": dict(self.machine),
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "compiled": self.compiled,
            "error": self.error,
            "worst_error": self.worst,
        }

    def describe(self) -> str:
        """:meth:`about` in a sentence; it says if the times were measured on another machine than this one."""
        machine = "{processor} ({device}, threads: {threads}, torch {torch})".format_map(self.machine)
        elsewhere = "" if is_here(self.machine) else ", which is not this machine"
        compiled = ", compiled" if self.compiled else ""
        checked = "unchecked"
        if self.error is not None and self.worst is not None:
            checked = f"off by {self.error:.1%} in the median of random plans, {self.worst:.1%} at worst"
        return (
            f"Latency is for batches of {self.batch_size} in {self.dtype}{compiled} on {machine}{elsewhere}; its prediction is "
            f"{checked}."
        )

    def bind(self, graph: ChannelGraph, cost: CostModel) -> "LatencyModel":
        """The table as a function of the channel groups' widths.

        Raises:
            InputError: the table was measured for another network or norm mode.
        """
        if self.fingerprint != graph.fingerprint or not set(self.layers) <= set(cost.first_row):
            raise InputError(
                f"The table of layer times was measured for another network or norm mode (fingerprint {self.fingerprint}, "
                f"this network's is {graph.fingerprint}); measure one for this network."
            )
        return LatencyModel(self, cost)

    def to_json(self) -> JsonObject:
        """``{"format", "machine", "batch_size", …}``; times in seconds per batch."""
        return {
            "format": LATENCY,
            "machine": dict(self.machine),
            "batch_size": self.batch_size,
            "fingerprint": self.fingerprint,
            "base_seconds": self.base_seconds,
            "rest": self.rest._asdict(),
            "times": [table.to_json() for table in self.times],
            "layers": {name: asdict(used) for name, used in self.layers.items()},
            "checks": [asdict(check) for check in self.checks],
            "dtype": self.dtype,
            "compiled": self.compiled,
        }

    @classmethod
    def from_json(
        cls, data: "LatencyFile | JsonDict", source: Path | str = "The table of layer times"
    ) -> "LatencyTable":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the format is another, or a key is missing or of the wrong type.
        """
        from prunekit.results.working_files import LatencyFile  # noqa: PLC0415 - loads pydantic

        if isinstance(data, Mapping) and data.get("format") != LATENCY:
            raise FileFormatError(f"{source} has format {data.get('format')!r}; expected {LATENCY!r}.")
        known = LatencyFile.of(data, str(source), _AGAIN)
        try:
            times = tuple(LayerTimes.from_json(table) for table in known.times)
            layers = {name: Used(used.table, used.calls, used.positions) for name, used in known.layers.items()}
            if not all(used.table < len(times) for used in layers.values()):
                raise ValueError("a layer names a table that is not there")
        except FileFormatError:
            raise
        except ValueError as error:
            raise FileFormatError(f"{source} cannot be read ({error}); {_AGAIN}.") from error
        rest = known.rest
        return cls(
            dict(known.machine),
            known.batch_size,
            known.fingerprint,
            times,
            layers,
            Rest(rest.layer_scale, rest.seconds or 0.0, rest.seconds_per_value, rest.seconds_per_call or 0.0),
            known.base_seconds,
            tuple(LatencyCheck(each.mac_ratio, each.predicted, each.measured) for each in known.checks),
            known.dtype or "float32",
            bool(known.compiled),
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
    def _calls(self) -> IntArray:
        """How often the layer of each row of MACs runs, shape (rows,); 0 for rows without a table."""
        return self._by_row(lambda use: use.calls)

    @cached_property
    def _positions(self) -> IntArray:
        """Output positions per sample of each row's layer in all its runs, shape (rows,)."""
        return self._by_row(lambda use: use.calls * use.positions)

    def _by_row(self, number: Callable[[Used], int]) -> IntArray:
        found = np.zeros(len(self.cost.macs_rows.owners), dtype=np.int64)
        for name, use in self.table.layers.items():
            found[self.cost.first_row[name]] = number(use)
        return found

    def nanoseconds(self, widths: IntArray) -> IntArray:
        """Time per batch at widths of shape (..., groups), as int64 nanoseconds of shape (...)."""
        scale, constant, per_value, per_call = self.table.rest
        seconds = scale * self.layer_seconds(widths) + constant
        seconds = seconds + per_value * self.values(widths) + per_call * self.calls(widths)
        return np.asarray(np.rint(1e9 * seconds), dtype=np.int64)

    def layer_seconds(self, widths: IntArray) -> FloatArray:
        """Time of the layers alone, in seconds per batch, shape (...)."""
        inner, outer = self.cost.layer_widths(widths)
        present = self._present(widths)
        total: FloatArray = np.zeros(np.shape(widths)[:-1])
        for times, rows, calls in self._rows:
            total = total + (times(inner[..., rows], outer[..., rows]) * present[..., rows]) @ calls
        return total

    def values(self, widths: IntArray) -> FloatArray:
        """Number of values that the layers output per batch, shape (...)."""
        outer = self.cost.layer_widths(widths)[1] * self._present(widths)
        return np.asarray(self.table.batch_size * (outer @ self._positions), dtype=float)

    def calls(self, widths: IntArray) -> FloatArray:
        """Number of runs of layers in a forward pass, shape (...)."""
        return np.asarray(self._present(widths) @ self._calls, dtype=float)

    def _present(self, widths: IntArray) -> FloatArray:
        """1 for every row of MACs whose layer runs at these widths, 0 for those of removed branches, shape (..., rows)."""
        return self.cost.present(widths).astype(np.float64)

    def multiples(self, graph: ChannelGraph) -> ChannelGraph:
        """The same channel groups with widths in the multiples at which time falls, where these leave a group enough choice.

        A multiple is at least the group's own. A group of few channels keeps its own: so does one whose time falls evenly.
        """
        groups = []
        for place, group in enumerate(graph):
            at = np.repeat(graph.full_widths[None], len(group.widths), axis=0)
            at[:, place] = group.widths
            unit = len(group.members[0].positions) // group.size if group.members else 1
            known = [group.multiple, *(unit * block for block in BLOCKS if unit * block > group.multiple)]
            wide = [one // unit if one % unit == 0 else one for one in known]
            best = multiple_of(group.widths, self.nanoseconds(at), wide)
            held = replace(group, multiple=known[wide.index(best)])
            groups.append(held if group.branch is None and len(held.widths) >= _FEWEST else group)
        return replace(graph, groups=tuple(groups))


_FEWEST = 4  # widths that a group is left to choose from


def _fit_rest(layers: FloatArray, values: FloatArray, calls: FloatArray, measured: FloatArray) -> Rest:
    """Factor of the layers' times, and time per value and call: non-negative, with least squared relative error.

    Args:
        layers: seconds from the layers' tables, shape (plans,).
        values: number of values that the layers output, shape (plans,).
        calls: number of layers that run, shape (plans,).
        measured: measured seconds, shape (plans,).
    """
    design = np.stack([layers, values, calls], 1) / measured[:, None]
    found = (np.inf, np.array([1.0, 0.0, 0.0]))
    for used in itertools.product((False, True), repeat=3):
        part = np.zeros(3)
        part[list(used)] = np.linalg.lstsq(design[:, used], np.ones(len(measured)), rcond=None)[0]
        error = float(((design @ part - 1) ** 2).sum())
        if (part >= 0).all() and error < found[0] and used[0]:
            found = (error, part)
    scale, per_value, per_call = (float(value) for value in found[1])
    return Rest(scale, 0.0, per_value, per_call)
