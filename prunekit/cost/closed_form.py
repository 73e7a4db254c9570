"""MACs and parameters of any pruning plan as a closed form of its widths: no surgery, no forward pass."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from prunekit._types import BoolArray, FloatArray, IntArray
from prunekit.cost.counter import count_by_shapes
from prunekit.errors import GraphError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.forward_pass import Inputs, check_one_sample
from prunekit.graph.terms import Term, Width

__all__ = ["CostModel"]


@dataclass(frozen=True, eq=False)
class CostModel:
    r"""MACs and parameters of any plan as a closed form of the channel groups' widths w.

    Each row is :math:`s (a + A w)(b + B w)`: s positions × kernel size, a + A·w inputs and b + B·w outputs. It is zero where the
    row belongs to a residual branch that is removed.

    Args:
        macs_rows: rows of MACs, one per operator call that multiplies.
        params_rows: rows of parameters, one per tensor.
        unknown: operators that may multiply, and that nobody knows the MACs of: they count as none.
    """

    macs_rows: "_Rows"
    params_rows: "_Rows"
    unknown: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"<CostModel: rows of MACs {len(self.macs_rows.scale)}, rows of parameters {len(self.params_rows.scale)}>"
        )

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> "CostModel":
        """Read the coefficients off the graph, and check them against the counter, on the network and on its narrowest form.

        Warns of operators whose MACs are not known.

        Raises:
            GraphError: the closed form differs from the counter.
            InputError: the inputs are a batch of several samples.
        """
        check_one_sample(inputs)
        found = cls(_Rows.of(graph.products, graph), _Rows.of(graph.parameters, graph))
        unknown: set[str] = set()
        for widths in _ends(graph):
            scores = {group.name: np.zeros(group.size) for group in graph}
            pruned = apply(model, graph, PruningPlan.from_widths(graph, widths, scores), share=True)
            counted = count_by_shapes(pruned, inputs)
            if (counted.macs, counted.params) != (int(found.macs(widths)), int(found.params(widths))):
                raise GraphError(
                    f"{type(model).__name__} at {int(widths.sum())} of {int(graph.full_widths.sum())} channels costs "
                    f"{counted.macs:,} MACs and {counted.params:,} parameters, and the cost model says "
                    f"{int(found.macs(widths)):,} and {int(found.params(widths)):,}; a layer's cost depends on its width in a way "
                    "that is not known."
                )
            unknown.update(counted.unknown)
        if unknown:
            warnings.warn(
                f"{type(model).__name__} runs {', '.join(sorted(unknown))}, whose MACs are not known; they count as none, so "
                "costs and targets are those of the rest of the network.",
                stacklevel=2,
            )
        return replace(found, unknown=tuple(sorted(unknown)))

    def present(self, widths: IntArray) -> BoolArray:
        """Whether the module of each row of MACs is there, shape (..., rows), for widths of shape (..., groups)."""
        return self.macs_rows.present(widths)

    def macs(self, widths: IntArray) -> IntArray:
        """MACs per sample at widths of shape (..., groups), as int64 of shape (...)."""
        return np.asarray(self.macs_rows(widths).sum(-1), dtype=np.int64)

    def params(self, widths: IntArray) -> IntArray:
        """Parameters at widths of shape (..., groups), as int64 of shape (...)."""
        return np.asarray(self.params_rows(widths).sum(-1), dtype=np.int64)

    @cached_property
    def first_row(self) -> dict[str, int]:
        """The first row of MACs of every module that multiplies in its own code."""
        owners = self.macs_rows.owners
        return {name: row for row, name in reversed(list(enumerate(owners)))}

    def layer_widths(self, widths: IntArray) -> tuple[FloatArray, FloatArray]:
        """Input and output width of every row of MACs, shape (..., rows), for widths of shape (..., groups).

        Rows of removed branches keep their widths, see :meth:`present`.
        """
        rows, w = self.macs_rows, np.asarray(widths, dtype=np.float64)
        return rows.inner(w).astype(float), rows.outer(w).astype(float)

    def by_module(self, widths: IntArray) -> dict[str, int]:
        """MACs by the module that multiplies in its own code, at one set of widths of shape (groups,)."""
        return _summed(self.macs_rows.owners, self.macs_rows(widths))

    def by_operator(self, widths: IntArray) -> dict[str, int]:
        """MACs by aten operator, at one set of widths of shape (groups,)."""
        return _summed(self.macs_rows.operators, self.macs_rows(widths))


def _ends(graph: ChannelGraph) -> Iterator[IntArray]:
    """Widths at which the closed form is checked: the full ones, the smallest, and full ones without half of the branches."""
    smallest = np.array([group.widths[-1] for group in graph], dtype=np.int64)
    yield graph.full_widths
    yield smallest
    switches = [place for place, group in enumerate(graph) if group.branch is not None]
    for odd in (0, 1) if switches else ():
        widths = graph.full_widths.copy()
        widths[switches[odd::2]] = smallest[switches[odd::2]]
        yield widths


def _summed(names: Sequence[str], values: IntArray) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, value in zip(names, values, strict=True):
        total[name] += int(value)
    return dict(total)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Bilinear rows; arrays int64: scale (rows,), constants and divisors (rows,), coefficients (rows, groups).

    ``needs`` has the places of switches, shape (switches,), and ``held`` whether they hold each row, shape (rows, switches).
    """

    owners: tuple[str, ...]
    operators: tuple[str, ...]
    scale: IntArray
    inner: "_Factors"
    outer: "_Factors"
    needs: IntArray
    held: FloatArray

    @classmethod
    def of(cls, terms: Sequence[Term], graph: ChannelGraph) -> "_Rows":
        groups = len(graph)
        switches = [(place, group.branch) for place, group in enumerate(graph) if group.branch is not None]
        held = [[branch.removes(term.owner) for _, branch in switches] for term in terms]
        return cls(
            tuple(term.owner for term in terms),
            tuple(term.operator for term in terms),
            np.array([term.scale for term in terms], dtype=np.int64),
            _Factors.of([term.inner for term in terms], groups),
            _Factors.of([term.outer for term in terms], groups),
            np.array([place for place, _ in switches], dtype=np.int64),
            np.array(held, dtype=np.float64).reshape(len(terms), len(switches)),
        )

    def __call__(self, widths: IntArray) -> IntArray:
        """Value of each row, shape (..., rows)."""
        w = np.asarray(widths, dtype=np.float64)
        found = np.asarray(self.scale * self.inner(w) * self.outer(w), dtype=np.int64)
        return found * self.present(widths) if len(self.needs) else found

    def present(self, widths: IntArray) -> BoolArray:
        """Whether each row is there, shape (..., rows)."""
        removed = np.asarray(widths)[..., self.needs] == 0
        return np.asarray(removed.astype(np.float64) @ self.held.T == 0)

    @property
    def touched(self) -> BoolArray:
        """Whether the value of each row follows the width of each group, shape (rows, groups)."""
        touched: BoolArray = (self.inner.by_group != 0) | (self.outer.by_group != 0)
        touched[:, self.needs] |= self.held > 0
        return touched


@dataclass(frozen=True, eq=False)
class _Factors:
    """One factor of each row."""

    constant: IntArray
    by_group: FloatArray
    divisor: IntArray

    @classmethod
    def of(cls, factors: Sequence[Width], groups: int) -> "_Factors":
        table = np.zeros((len(factors), groups))
        for row, factor in enumerate(factors):
            table[row, list(factor.by_group)] = list(factor.by_group.values())
        return cls(
            np.array([factor.constant for factor in factors], dtype=np.int64),
            table,
            np.array([factor.divisor for factor in factors], dtype=np.int64),
        )

    def __call__(self, widths: FloatArray) -> IntArray:
        """Shape (..., rows). float64 products are exact here: every number is far below 2^53."""
        total = self.constant + (widths @ self.by_group.T).astype(np.int64)
        return np.asarray(total // self.divisor)
