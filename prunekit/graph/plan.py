"""A pruning plan: which root channels of which channel group are kept. Immutable, JSON, checked against its network."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from prunekit._json import JsonDict, JsonObject, Many, Named, Whole, checked
from prunekit._types import BoolArray, FloatArray, IntArray
from prunekit.errors import FileFormatError, PlanError
from prunekit.graph.branch import Stub, stubs_of
from prunekit.graph.structure import Axis, ChannelGraph

__all__ = ["PruningPlan"]


class _PlanForm(TypedDict):
    kept: Named[Many[Whole]]
    fingerprint: str
    removed: NotRequired[Many[str]]


@dataclass(frozen=True)
class PruningPlan:
    """Kept root channels of every channel group that changes, and removed branches; groups that are absent stay whole.

    Args:
        kept: channel group name to ascending root channels.
        fingerprint: of the :class:`ChannelGraph` that it was made for.
        removed: names of residual branches that are removed.

    Example:
        >>> PruningPlan({"conv1": (0, 2)}, "ab").to_json()
        {'fingerprint': 'ab', 'kept': {'conv1': [0, 2]}}
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fingerprint: str = ""
    removed: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is pruned."""
        return not self.kept and not self.removed

    @classmethod
    def from_widths(cls, graph: ChannelGraph, widths: IntArray, scores: Mapping[str, FloatArray]) -> "PruningPlan":
        """Keep the best channels of every group at the given widths, shape (groups,), in the graph's order.

        What lies within a branch that is removed is left out.
        """
        changed = [
            (group, int(width))
            for group, width in zip(graph, graph.settled(widths), strict=True)
            if width != group.size
        ]
        kept = {
            group.name: tuple(int(c) for c in group.select(scores[group.name], width))
            for group, width in changed
            if group.branch is None
        }
        removed = tuple(group.name for group, _ in changed if group.branch is not None)
        return cls(kept, graph.fingerprint, removed)

    def widths(self, graph: ChannelGraph) -> IntArray:
        """Width of every group of the graph, shape (groups,)."""
        sizes = [
            len(self.kept.get(group.name, range(group.size)))
            if group.branch is None
            else group.name not in self.removed
            for group in graph
        ]
        return np.array(sizes, dtype=np.int64)

    def channels(self, graph: ChannelGraph) -> dict[str, tuple[int, int]]:
        """Channels before and after of every channel group by name; 0 after for what is gone with a removed branch."""
        gone = {name for branch in self.removed if branch in graph.index for name in graph.held_by(branch)}
        return {
            group.name: (group.size, 0 if group.name in gone else len(self.kept.get(group.name, range(group.size))))
            for group in graph
            if group.branch is None
        }

    def stubs(self, graph: ChannelGraph) -> tuple[Stub, ...]:
        """What takes the place of the removed branches' modules."""
        return stubs_of(graph.branch_of, self.removed) if self.removed else ()

    def check(self, graph: ChannelGraph) -> None:
        """Refuse a plan that does not fit.

        Raises:
            PlanError: another network's plan, an unknown group, channels out of range or order, or an illegal width.
        """
        if self.fingerprint != graph.fingerprint:
            raise PlanError(
                f"The plan was made for another network or norm mode (fingerprint {self.fingerprint or 'absent'}, "
                f"this network's is {graph.fingerprint}); prune this network anew."
            )
        self._check_removed(graph)
        for name, kept in self.kept.items():
            if name not in graph.index or graph[name].branch is not None:
                raise PlanError(f"The plan names channel group {name!r}, which this network does not have.")
            group = graph[name]
            rising = all(low < high for low, high in itertools.pairwise(kept))
            if not kept or not rising or kept[0] < 0 or kept[-1] >= group.size:
                raise PlanError(f"The plan's channels of {name!r} must be rising numbers in 0 … {group.size - 1}.")
            if len(kept) < min(group.least, group.size):
                raise PlanError(
                    f"The plan keeps {len(kept)} of {group.size} channels of {name!r}; expected at least "
                    f"{min(group.least, group.size)}, which its structure or a constraint asks for."
                )
            if not group.is_legal(len(kept)):
                raise PlanError(
                    f"The plan keeps {len(kept)} of {group.size} channels of {name!r}; "
                    f"expected {group.size} minus a multiple of {group.step}."
                )
            if group.whole:
                rows = np.bincount(np.array(kept) // (group.size // group.rows))
                if not np.isin(rows, (0, group.size // group.rows)).all():
                    raise PlanError(f"The plan cuts through a head or norm group of {name!r}; expected whole ones.")

    def _check_removed(self, graph: ChannelGraph) -> None:
        """Refuse branches that the network does not have, or that are kept."""
        for name in self.removed:
            if name not in graph.branch_of:
                raise PlanError(f"The plan removes {name!r}, which is no branch of this network that can be removed.")
            if name in graph.index and graph[name].least > 0:
                raise PlanError(f"The plan removes {name!r}, which a constraint keeps.")

    def positions(self, graph: ChannelGraph) -> dict[tuple[str, Axis], IntArray]:
        """What stays of every layer axis that loses positions, rising, shape (kept,)."""
        alive: dict[tuple[str, Axis], BoolArray] = {}
        for name, kept in self.kept.items():
            group = graph[name]
            stays = np.zeros(group.size, dtype=np.bool_)
            stays[list(kept)] = True
            if stays.all():
                continue
            for member in group.members:
                axis = (member.layer, member.axis)
                if axis not in alive:
                    alive[axis] = np.ones(graph.axis_sizes[axis], dtype=np.bool_)
                alive[axis][member.positions[~stays[member.roots]]] = False
        return {axis: np.flatnonzero(left) for axis, left in alive.items()}

    def to_json(self) -> JsonObject:
        """``{"fingerprint", "kept"}``, and ``"removed"`` where branches are."""
        kept = {name: list(kept) for name, kept in self.kept.items()}
        removed = {"removed": list(self.removed)} if self.removed else {}
        return {"fingerprint": self.fingerprint, "kept": kept, **removed}

    @classmethod
    def from_json(cls, data: JsonDict, source: Path | str = "The pruning plan") -> "PruningPlan":
        """Read what :meth:`to_json` wrote.

        Args:
            data: JSON.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or kept channels are none or do not rise.
        """
        known = checked(_PlanForm, data, str(source))
        for name, kept in known["kept"].items():
            if not kept or any(low >= high for low, high in itertools.pairwise(kept)):
                raise FileFormatError(f"{source} cannot be read: the channels of {name[:80]!r} must be rising numbers.")
        channels = {name: tuple(kept) for name, kept in known["kept"].items()}
        return cls(channels, known["fingerprint"], tuple(known.get("removed", ())))
