"""Means, variances and norms over channels that are written out: what may change when channels go, and what must not.

A statistic of some channels may be used on those channels (``x - mean``, ``x / std``), as a norm does, and then changes as a
norm's would. Used on anything else it carries the removed channels elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit._types import BoolArray, IntArray
from prunekit.graph.calls import Call
from prunekit.graph.labels import Labels

__all__ = ["Statistics", "visible"]

_REDUCTIONS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "vector_norm", "linalg_vector_norm"}
_VIEWS = {
    "view",
    "reshape",
    "expand",
    "expand_as",
    "unsqueeze",
    "squeeze",
    "unflatten",
    "flatten",
    "getitem",
    "contiguous",
}
_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "detach"}
_ROOTS = {"sqrt", "rsqrt", "pow", "reciprocal", "square", "clamp", "clamp_min", "clip", "maximum", "abs", "neg"}
_SAME = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "div": "div", "divide": "div"}
_SUMS = {
    **_SAME,
    "true_divide": "div",
    "truediv": "div",
    "rtruediv": "div",
    "addcmul": "add",
    **{f"{way}{name}": kind for way in "ri" for name, kind in _SAME.items()},
}


@dataclass(frozen=True, eq=False)
class _Statistic:
    """Of which ids a number is a statistic, and whether it is another one in the pruned network."""

    ids: IntArray
    differs: bool


class Statistics:
    """Follows statistics through the calls of the full network.

    Args:
        gone: for every id, whether it is removed.
        component: of every id: equal ones are removed together.
    """

    def __init__(self, gone: BoolArray, component: IntArray) -> None:
        self._gone, self._component = gone, component
        self._statistics: dict[int, _Statistic] = {}
        self._normed: set[int] = set()

    def may_differ(self, call: Call, given: Sequence[int]) -> bool:
        """Whether what a call gives is a statistic."""
        return self._made(call, given) is not None

    def is_normed(self, call: Call, given: Sequence[int]) -> bool:
        """Whether a call scales something that is normed over removed channels, as norms do by the root of their width."""
        return _base(call.name) in ("mul", "div") and any(number in self._normed for number in given)

    def go_on(self, call: Call, given: Sequence[int], results: Iterable[int], differs: bool) -> IntArray:
        """Note what has come of a call.

        Args:
            call: the call.
            given: numbers of the full network's tensors that it was given.
            results: and of those that it gave, or wrote into.
            differs: whether they differ in the pruned network.

        Returns:
            Ids whose statistic, another one in the pruned network, went where it must not.
        """
        made = self._made(call, given)
        normed = self._norms(call, given)
        own = self._of(given)
        for number in results:
            if made is not None:
                self._statistics[number] = _Statistic(made.ids, made.differs or differs)
            elif normed:
                self._normed.add(number)
        if made is None and not self._applied(call, given) and any(one.differs for one in own):
            return np.concatenate([one.ids for one in own if one.differs])
        return np.zeros(0, dtype=np.int64)

    def _of(self, given: Sequence[int]) -> list[_Statistic]:
        return [self._statistics[number] for number in given if number in self._statistics]

    def _made(self, call: Call, given: Sequence[int]) -> _Statistic | None:
        """The statistic that a call gives."""
        name, own = _base(call.name), self._of(given)
        if name in _REDUCTIONS and call.before and not own:
            left = self.removed(call.after)
            lost = self.removed(call.before[:1])
            lost = lost[~np.isin(self._component[lost], self._component[left])]
            return _Statistic(lost, differs=False) if len(lost) else None
        keeps = name in _VIEWS | _CASTS | _ROOTS | _REDUCTIONS or name in _SUMS
        if not own or not keeps:
            return None
        others = [labels for labels, number in zip(call.before, given, strict=True) if number not in self._statistics]
        if len(self.removed(others)) or (name in _SUMS and others):
            return None
        return _Statistic(np.concatenate([one.ids for one in own]), any(one.differs for one in own))

    def _applied(self, call: Call, given: Sequence[int]) -> bool:
        """Whether a call uses a statistic on the channels that it is of."""
        own = self._of(given)
        if not own or _SUMS.get(_base(call.name)) not in ("sub", "mul", "div"):
            return False
        others = [labels for labels, number in zip(call.before, given, strict=True) if number not in self._statistics]
        on = set(self._component[self.removed(others)].tolist())
        return bool(on) and all(on & set(self._component[one.ids].tolist()) for one in own)

    def _norms(self, call: Call, given: Sequence[int]) -> bool:
        name = _base(call.name)
        if name == "normalize":
            return len(self.removed(call.before[:1])) > 0
        passes = name in _VIEWS | _CASTS or name in _SUMS
        return self._applied(call, given) or (passes and any(number in self._normed for number in given))

    def removed(self, labels: Iterable[Labels]) -> IntArray:
        """Removed ids that positions of some tensors stand for."""
        ids = visible(labels)
        return np.unique(ids[self._gone[ids]])


def visible(labels: Iterable[Labels]) -> IntArray:
    """All ids that positions of some tensors stand for."""
    ids = [grid.ids.ravel() for one in labels for grid in one.grids if not grid.hidden]
    return np.concatenate([np.zeros(0, dtype=np.int64), *ids])


def _base(name: str) -> str:
    name = name.strip("_")
    return _SUMS.get(name, name)
