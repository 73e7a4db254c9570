"""How far a network can be pruned, known without a search, and whether the targets of all timestep groups are within that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunekit.errors import BudgetError
from prunekit.recipe import PruneOptions
from prunekit.search import Measure, in_units, nothing_to_prune
from prunekit.steps.searching import restricted

if TYPE_CHECKING:
    from prunekit.steps.bench import Bench

__all__ = ["Reach"]


@dataclass(frozen=True)
class Reach:
    """The smallest cost that a network can be pruned to, in the unit of the target and within the options' constraints.

    Args:
        least: the cost at the smallest widths.
        full: the whole network's.
        base_macs: the whole network's MACs, in which an allocation gives its targets.
        unit: what is counted.
        bound: the constraints that keep the network from shrinking further, as part of a sentence; empty without any.
        whole: why nothing can be pruned; None if something can.
    """

    least: int
    full: int
    base_macs: int
    unit: str
    bound: str = ""
    whole: str | None = None

    @classmethod
    def of(cls, bench: "Bench", options: PruneOptions) -> "Reach":
        """The reach of a base.

        Raises:
            InputError: the target is a latency, and neither the bench nor the options have layer times.
            MissingFileError: there is no table of layer times; :meth:`prunekit.steps.bench.Bench.timed` makes one.
        """
        if options.search.target_of == "latency" and bench.latency is None and options.latency_table is not None:
            bench = bench.with_times(
                options.latency_table, options.latency_batch_size
            )  # only read, since a recipe may name any path
        graph = restricted(bench.graph, options)
        measure = Measure.by_name(options.search.target_of, bench.cost, bench.latency)
        smallest = np.array([group.widths[-1] for group in graph], dtype=np.int64)
        least, full = (int(measure.of(widths)) for widths in (smallest, bench.graph.full_widths))
        bound = (
            " within the floor and width multiples that were asked for" if options.floor or options.multiples else ""
        )
        return cls(least, full, bench.macs, measure.unit, bound, nothing_to_prune(graph))

    @property
    def floor(self) -> float:
        """The smallest fraction of the base that an allocation may give to a group, so that its target can be met.

        A target of parameters or time is converted from whole MACs, and rounded down both times; the floor makes up for that.
        """
        if self.unit == "MACs":
            return self.least / self.full
        return min(1.0, (self.least + 1) / self.full + 1 / self.base_macs)

    def target(self, target: float | int) -> int:
        """A target in the unit of the search, from one in MACs or as a fraction of the base.

        Raises:
            InputError: it is neither.
        """
        macs = in_units(target, self.base_macs, "MACs")
        return macs if self.unit == "MACs" else macs * self.full // self.base_macs

    def check(self, targets: Mapping[int, float | int], mend: str) -> None:
        """Refuse targets that the network cannot be pruned to, before anything is searched.

        Args:
            targets: by timestep group, MACs or a fraction of the base.
            mend: what to do, as an imperative and the end of a sentence.

        Raises:
            BudgetError: it names the timestep groups, their targets and how far the network can be pruned; ``feasible`` has the
                range in the unit of the target.
        """
        beyond = {group: ratio for group, given in targets.items() if (ratio := self.target(given)) < self.least}
        if not beyond:
            return
        told = ", ".join(f"{group} ({wanted / self.full:.4g})" for group, wanted in beyond.items())
        named = f"timestep group{'s' * (len(beyond) > 1)} {told}"
        limits = (self.least, self.full)
        if self.whole is not None:
            raise BudgetError(
                f"Nothing of this network can be pruned{self.bound}, and the target{'s' * (len(beyond) > 1)} of {named} of its "
                f"{self.full:,} {self.unit} ask{'s' * (len(beyond) == 1)} for less; its layers stay whole, {self.whole}.",
                limits,
            )
        raise BudgetError(
            f"The target{'s' * (len(beyond) > 1)} of {named} {'are' if len(beyond) > 1 else 'is'} below what this network can be "
            f"pruned to{self.bound}, {self.least:,} of its {self.full:,} {self.unit} ({self.shown}); {mend}.",
            limits,
        )

    @property
    def shown(self) -> str:
        """The floor as a number that can be typed: rounded up to four digits after the point."""
        return f"{np.ceil(self.floor * 1e4) / 1e4:g}"
