"""The partition itself: half-open ranges that cover 0 … T without gap or overlap."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit._json import JsonDict
from prunekit._types import FloatArray, IntArray
from prunekit.errors import FileFormatError, InputError
from prunekit.results.formats import GROUPS

if TYPE_CHECKING:
    from prunekit.results.planning_files import GroupPart, Partition

__all__ = ["TimestepGroup", "TimestepGroups"]

_AGAIN = "make the file again with `prunekit groups`"


@dataclass(frozen=True)
class TimestepGroup:
    """Timesteps ``start ≤ t < stop``; index 0 is the cleanest group."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @classmethod
    def of(cls, part: "GroupPart") -> "TimestepGroup":
        """The group that a file describes."""
        return cls(part.index, part.start, part.stop)

    def widened(self, overlap: int, num_timesteps: int) -> tuple[int, int]:
        """The range with ``overlap`` more timesteps on each side, kept inside 0 … T."""
        return max(0, self.start - overlap), min(num_timesteps, self.stop + overlap)


@dataclass(frozen=True)
class TimestepGroups:
    """A partition of the training timesteps.

    Args:
        num_timesteps: T.
        groups: the ranges, cleanest first, contiguous from 0 to T.
        method: name of the method that made it, e.g. ``uniform``.

    Raises:
        InputError: the ranges overlap, leave a gap, or are out of order.

    Example:
        >>> groups = TimestepGroups.from_cuts(1000, [250, 600])
        >>> [(g.start, g.stop) for g in groups], groups.index_of([0, 250, 999]).tolist()
        ([(0, 250), (250, 600), (600, 1000)], [0, 1, 2])
    """

    num_timesteps: int
    groups: tuple[TimestepGroup, ...]
    method: str = "explicit"

    def __post_init__(self) -> None:
        if not self.groups:
            raise InputError("A partition needs at least one timestep group; got none.")
        expected = 0
        for index, group in enumerate(self.groups):
            if group.index != index or group.start != expected or group.stop <= group.start:
                raise InputError(
                    f"Timestep group {index} is [{group.start}, {group.stop}) with index {group.index}; "
                    f"expected a non-empty range that starts at {expected}."
                )
            expected = group.stop
        if expected != self.num_timesteps:
            raise InputError(
                f"Timestep groups end at {expected}; expected them to cover all {self.num_timesteps} timesteps."
            )

    @classmethod
    def from_cuts(cls, num_timesteps: int, cuts: Sequence[int], method: str = "explicit") -> "TimestepGroups":
        """Groups between 0, the rising ``cuts`` and T.

        Raises:
            InputError: the cuts do not rise, or are not between 0 and T.
        """
        edges = [0, *(int(cut) for cut in cuts), num_timesteps]
        if any(low >= high for low, high in itertools.pairwise(edges)):
            raise InputError(f"Got cuts {list(cuts)}; expected rising integers strictly between 0 and {num_timesteps}.")
        ranges = itertools.pairwise(edges)
        return cls(num_timesteps, tuple(TimestepGroup(i, low, high) for i, (low, high) in enumerate(ranges)), method)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[TimestepGroup]:
        return iter(self.groups)

    def __getitem__(self, index: int) -> TimestepGroup:
        if not 0 <= index < len(self.groups):
            raise InputError(f"There is no timestep group {index}; expected 0 … {len(self.groups) - 1}.")
        return self.groups[index]

    @property
    def cuts(self) -> tuple[int, ...]:
        """Inner borders, shape (len − 1,)."""
        return tuple(group.start for group in self.groups[1:])

    def index_of(self, timesteps: Sequence[int] | IntArray | FloatArray) -> IntArray:
        """Group index of each timestep, same shape; fractional timesteps belong to the range that contains them."""
        return np.searchsorted(np.array(self.cuts), np.asarray(timesteps), side="right").astype(np.int64)

    def shares(self, timesteps: Sequence[int] | IntArray | FloatArray) -> FloatArray:
        """Fraction of the given sampler steps that falls into each group, shape (len,), summing to 1.

        Raises:
            InputError: there are no steps.
        """
        if np.size(timesteps) == 0:
            raise InputError("Shares of the sampler's steps need at least one step; got none.")
        counts = np.bincount(self.index_of(timesteps), minlength=len(self))
        return np.asarray(counts / counts.sum(), dtype=np.float64)

    def to_json(self) -> dict[str, object]:
        """The content of ``groups.json``."""
        return {
            "format": GROUPS,
            "num_timesteps": self.num_timesteps,
            "method": self.method,
            "groups": [{"index": g.index, "start": g.start, "stop": g.stop} for g in self.groups],
        }

    @classmethod
    def from_json(
        cls, data: "Partition | JsonDict", source: Path | str = "The file of timestep groups"
    ) -> "TimestepGroups":
        """Read what :meth:`to_json` wrote; also reads the group ranges of an ``allocation.json``.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or the ranges are not a partition.
        """
        from prunekit.results.planning_files import Partition  # noqa: PLC0415 - loads pydantic

        known = Partition.of(data, str(source), _AGAIN)
        try:
            return cls(known.num_timesteps, tuple(map(TimestepGroup.of, known.groups)), known.method)
        except InputError as error:
            raise FileFormatError(f"{source} cannot be read ({str(error).rstrip('.')}); {_AGAIN}.") from error
