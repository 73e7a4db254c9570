"""What a short fine-tuning recovers of a timestep group's loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit._json import JsonDict
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.results.formats import RECOVERIES

if TYPE_CHECKING:
    from prunekit.results.recovery_files import RecoveriesFile, RecoveryPart

__all__ = ["GroupRecoveries", "Recoveries", "Recovery", "after_recovery"]

_AGAIN = "make it again with `prunekit recover`"


@dataclass(frozen=True)
class Recovery:
    """A pruned network of one timestep group, before and after a short fine-tuning.

    Args:
        macs: its MACs per sample per evaluation.
        before: its loss on the timestep group, after repair.
        after: the same loss after the fine-tuning.

    Raises:
        ValueError: a number is not positive and finite.
    """

    macs: int
    before: float
    after: float

    def __post_init__(self) -> None:
        if not (self.macs > 0 and 0 < self.before < math.inf and 0 < self.after < math.inf):
            raise ValueError("a recovery needs positive MACs and losses")

    @classmethod
    def of(cls, part: "RecoveryPart") -> "Recovery":
        """What a file says."""
        return cls(part.macs, part.before, part.after)


@dataclass(frozen=True)
class GroupRecoveries:
    """The recoveries of one timestep group, by rising MACs.

    Args:
        group: the timestep group.
        points: networks of different sizes; at least one.
    """

    group: TimestepGroup
    points: tuple[Recovery, ...]


@dataclass(frozen=True)
class Recoveries:
    """What short fine-tunings recovered in each timestep group, as data and as ``recoveries.json``.

    Args:
        num_timesteps: number of training timesteps T.
        base_macs: MACs of the base.
        steps: train steps of each fine-tuning.
        groups: of one or more timestep groups, in order.
        base_sha256: hash of the base's file; None if it is not known.

    Raises:
        ValueError: a group has no point, or is there twice, or a network has more MACs than the base.
    """

    num_timesteps: int
    base_macs: int
    steps: int
    groups: tuple[GroupRecoveries, ...]
    base_sha256: str | None = None

    def __post_init__(self) -> None:
        indices = [one.group.index for one in self.groups]
        if not indices or indices != sorted(set(indices)) or not all(one.points for one in self.groups):
            raise ValueError("recoveries need each timestep group once, with one or more points")
        most = max(point.macs for one in self.groups for point in one.points)
        if most > self.base_macs:
            raise ValueError(f"a network has {most:,} MACs and the base {self.base_macs:,}")

    def joined(self, other: "Recoveries") -> "Recoveries":
        """The same with those of other timestep groups, or of other sizes of the same ones.

        Raises:
            InputError: they are of another base, or of trainings of another length.
        """
        if (self.num_timesteps, self.base_macs, self.steps, self.base_sha256) != (
            other.num_timesteps,
            other.base_macs,
            other.steps,
            other.base_sha256,
        ):
            raise InputError(
                f"Got recoveries of {self.steps} and of {other.steps} train steps, of bases of {self.base_macs:,} and of "
                f"{other.base_macs:,} MACs; expected the same base and steps."
            )
        points: dict[TimestepGroup, list[Recovery]] = {}
        for one in (*self.groups, *other.groups):
            points.setdefault(one.group, []).extend(one.points)
        groups = (
            GroupRecoveries(group, tuple(sorted(points[group], key=lambda point: point.macs)))
            for group in sorted(points, key=lambda group: group.index)
        )
        return Recoveries(self.num_timesteps, self.base_macs, self.steps, tuple(groups), self.base_sha256)

    def of_each(self, groups: TimestepGroups) -> tuple[tuple[Recovery, ...], ...]:
        """The recoveries of every timestep group of a partition.

        Raises:
            InputError: a group of the partition has none, or these are of other groups.
        """
        known = {one.group: one.points for one in self.groups}
        if self.num_timesteps != groups.num_timesteps or set(known) != set(groups):
            own = ", ".join(f"{one.group.start}–{one.group.stop - 1}" for one in self.groups)
            wanted = ", ".join(f"{group.start}–{group.stop - 1}" for group in groups)
            raise InputError(
                f"The recoveries are of the timestep groups {own} and the allocation is for {wanted}; expected the same: {_AGAIN}."
            )
        return tuple(known[group] for group in groups)

    def to_json(self) -> dict[str, object]:
        """The content of ``recoveries.json``."""
        groups = [{**vars(one.group), "points": [dict(vars(point)) for point in one.points]} for one in self.groups]
        head = {"format": RECOVERIES, "num_timesteps": self.num_timesteps, "base_macs": self.base_macs}
        return {**head, "base_sha256": self.base_sha256, "steps": self.steps, "groups": groups}

    @classmethod
    def from_json(cls, data: "RecoveriesFile | JsonDict", source: Path | str = "The recoveries") -> "Recoveries":
        """Read what :meth:`to_json` wrote.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or numbers do not agree.
        """
        from prunekit.results.recovery_files import RecoveriesFile  # noqa: PLC0415 - loads pydantic

        known = RecoveriesFile.of(data, str(source), _AGAIN)
        try:
            groups = tuple(
                GroupRecoveries(
                    TimestepGroup(part.index, part.start, part.stop),
                    tuple(sorted(map(Recovery.of, part.points), key=lambda point: point.macs)),
                )
                for part in known.groups
            )
            return cls(known.num_timesteps, known.base_macs, known.steps, groups, known.base_sha256)
        except ValueError as error:
            raise FileFormatError(f"{source} cannot be read ({error}); {_AGAIN}.") from error


def after_recovery(losses: Sequence[float], recoveries: Sequence[Recovery]) -> FloatArray:
    """Losses that a short fine-tuning is expected to leave of losses before it, both of shape (points,).

    The logarithm of the loss after it is a function of the logarithm of the loss before it, linear between the networks that were
    trained; outside these, the loss changes by the same factor as the nearest one's. So where losses before are alike, those after
    are alike, however few networks were trained. The function is this project's.

    Raises:
        InputError: there are no recoveries, or a loss is not positive.
    """
    if not recoveries:
        raise InputError("Got no recoveries to correct losses by; expected one or more.")
    if min(losses) <= 0:
        raise InputError(f"Got a loss of {min(losses):g} to correct for recoveries; expected losses above 0.")
    known: dict[float, list[float]] = {}
    for one in recoveries:
        known.setdefault(math.log(one.before), []).append(math.log(one.after))
    before = np.array(sorted(known))
    after = np.array([np.mean(known[place]) for place in before.tolist()])
    at = np.log(np.asarray(losses, dtype=np.float64))
    inside = np.clip(at, before[0], before[-1])
    return np.asarray(np.exp(np.interp(inside, before, after) + (at - inside)), dtype=np.float64)
