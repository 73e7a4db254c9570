"""Predicted time of any pruning plan: layer times bound to the rows of a cost model, and the rest of the time."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.cost.closed_form import CostModel
from prunekit.cost.layer_times import LayerTimes, Used
from prunekit.cost.stairs import BLOCKS, multiple_of
from prunekit.graph import ChannelGraph

if TYPE_CHECKING:
    from prunekit.cost.latency import LatencyTable

__all__ = ["LatencyModel", "Rest", "fit_rest"]


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
class LatencyModel:
    """Predicted time of any plan: a :class:`~prunekit.cost.LatencyTable` bound to the rows of a cost model."""

    table: "LatencyTable"
    cost: CostModel

    @cached_property
    def _rows(self) -> list[tuple[LayerTimes, IntArray, IntArray]]:
        """For each table: rows of the cost model that use it, and how often each runs."""
        place = self.cost.first_row
        found = []
        for index, times in enumerate(self.table.times):
            used = [(place[name], use.calls) for name, use in self.table.layers.items() if use.table == index]
            rows, calls = (np.array([use[at] for use in used], dtype=np.int64) for at in (0, 1))
            found.append((times, rows, calls))
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


def fit_rest(layers: FloatArray, values: FloatArray, calls: FloatArray, measured: FloatArray) -> Rest:
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
