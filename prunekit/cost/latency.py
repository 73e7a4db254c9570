"""Latency of any pruning plan, from a table of layer times measured on one machine.

A network's predicted time is the sum of its layers' times and a rest. Each layer's time is interpolated in a table over its input
and output widths, in whole blocks of its kernel. The rest (norms, activations, copies, calls) is proportional to the number of
values that the layers output, and to the number of layers that run, and is fitted to measured times of a few pruned networks. The
predictions are compared with measured times of other pruned networks, and the comparison is stored in the table.
:mod:`prunekit.cost.timing` does the measurements.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray, IntArray
from prunekit.choices import TimedPrecision
from prunekit.cost.clocks import is_here
from prunekit.cost.closed_form import CostModel
from prunekit.cost.latency_model import LatencyModel, Rest, fit_rest
from prunekit.cost.layer_times import LayerTimes, Used
from prunekit.cost.timing import LatencyOptions, measure
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import ChannelGraph
from prunekit.graph.forward_pass import Inputs
from prunekit.results.formats import LATENCY

if TYPE_CHECKING:
    from prunekit.results.working_files import LatencyFile

__all__ = ["LatencyCheck", "LatencyTable", "prediction_error"]

_AGAIN = "measure it again"
_MOST, _LONGEST = 2**31, 1e6  # calls or positions; seconds


def prediction_error(error: float | None, worst: float | None) -> str:
    """How far predicted times are off, in words.

    Args:
        error: median relative error over random plans; None if it was not checked.
        worst: largest relative error of these.
    """
    if error is None or worst is None:
        return "unchecked"
    return f"off by {error:.1%} in the median of random plans, {worst:.1%} at worst"


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
        rest = fit_rest(bound.layer_seconds(first), bound.values(first), bound.calls(first), measured[:fitted])
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
        known = defaultdict(lambda: "unknown", self.machine)
        machine = "{processor} ({device}, threads: {threads}, torch {torch})".format_map(known)
        elsewhere = "" if is_here(self.machine) else ", which is not this machine"
        compiled = ", compiled" if self.compiled else ""
        return (
            f"Latency is for batches of {self.batch_size} in {self.dtype}{compiled} on {machine}{elsewhere}; its prediction is "
            f"{prediction_error(self.error, self.worst)}."
        )

    def bind(self, graph: ChannelGraph, cost: CostModel) -> "LatencyModel":
        """The table as a function of the channel groups' widths.

        Raises:
            InputError: the table was measured for another network or norm mode, or for wider layers only.
        """
        if self.fingerprint != graph.fingerprint or not set(self.layers) <= set(cost.first_row):
            raise InputError(
                f"The table of layer times was measured for another network or norm mode (fingerprint {self.fingerprint}, "
                f"this network's is {graph.fingerprint}); measure one for this network."
            )
        self._check_reach(graph, cost)
        made = LatencyModel(self, cost)
        if made.nanoseconds(graph.full_widths) <= 0:
            raise InputError(
                "The table of layer times says that the network takes no time; measure one for this network."
            )
        return made

    def _check_reach(self, graph: ChannelGraph, cost: CostModel) -> None:
        """Refuse channel groups that become narrower than what was timed, as with other limits on layers.

        Raises:
            InputError: some do.
        """
        smallest = np.array([group.widths[-1] for group in graph], dtype=np.int64)
        inner, outer = cost.layer_widths(smallest)
        for name, used in self.layers.items():
            row, times = cost.first_row[name], self.times[used.table]
            if inner[row] < times.inner[0] or outer[row] < times.outer[0]:
                raise InputError(
                    f"The table of layer times has none for layer {name} at its smallest width, {int(inner[row])} inputs and "
                    f"{int(outer[row])} outputs; measure one with the constraints and the way to shrink that you prune with."
                )

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
            if max((max(used.calls, used.positions) for used in layers.values()), default=0) > _MOST:
                raise ValueError(f"a layer has more than {_MOST:,} calls or positions")
            timed = [known.base_seconds, *(value or 0.0 for value in vars(known.rest).values())]
            if max(timed) > _LONGEST or any(table.seconds.max() > _LONGEST for table in times):
                raise ValueError(f"a time is above {_LONGEST:g} seconds")
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
