"""Ways to cut the timesteps into groups behind one protocol: a noise schedule and a count in, a partition with its evidence out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from prunekit._messages import did_you_mean
from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.groups.evidence import Evidence, Grouping
from prunekit.groups.partition import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = ["METHODS", "NODES", "Explicit", "GroupingMethod", "Snr", "Uniform", "check_count", "make_groups", "nodes_of"]

NODES = 64
"""Timesteps at which methods look, unless told."""


class GroupingMethod(Protocol):
    """What cuts a schedule's timesteps into ``count`` groups and says why there."""

    name: ClassVar[str]

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """Cut.

        Raises:
            InputError: the count is impossible for this schedule, or this method.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Ranges of (nearly) the same number of timesteps; where T is not divisible, sizes differ by one. Evidence: t/T."""

    name: ClassVar[str] = "uniform"

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """See the class."""
        check_count(schedule, count)
        timesteps = schedule.num_timesteps
        edges = [-(-i * timesteps // count) for i in range(1, count)]
        nodes = nodes_of(timesteps)
        evidence = Evidence(nodes, {"fraction": nodes / timesteps})
        return Grouping(TimestepGroups.from_cuts(timesteps, edges, self.name), evidence)


@dataclass(frozen=True)
class Snr:
    """Ranges that each span the same number of decibels, at least one timestep each. Evidence: the SNR in decibels."""

    name: ClassVar[str] = "snr"

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """See the class."""
        check_count(schedule, count)
        snr_db = schedule.snr_db
        levels = np.linspace(snr_db[0], snr_db[-1], count + 1)[1:-1]
        cuts = np.searchsorted(-snr_db, -levels)
        for i in range(len(cuts)):  # equal-dB cuts can coincide where the curve is steep
            low = cuts[i - 1] + 1 if i else 1
            cuts[i] = min(max(cuts[i], low), schedule.num_timesteps - (count - 1 - i))
        nodes = nodes_of(schedule.num_timesteps)
        evidence = Evidence(nodes, {"snr_db": snr_db[nodes]}, facts={"levels_db": levels.tolist()})
        return Grouping(TimestepGroups.from_cuts(schedule.num_timesteps, cuts.tolist(), self.name), evidence)


@dataclass(frozen=True)
class Explicit:
    """Ranges between given cuts. Evidence: the SNR in decibels; why there, only the caller knows.

    Args:
        cuts: first timesteps of all groups but the first.
    """

    cuts: Sequence[int]
    name: ClassVar[str] = "explicit"

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """See the class; the count is one more than the cuts."""
        check_count(schedule, count)
        if count != len(self.cuts) + 1:
            raise InputError(f"Got {len(self.cuts)} explicit cuts and {count} timestep groups; expected one cut less.")
        nodes = nodes_of(schedule.num_timesteps)
        groups = TimestepGroups.from_cuts(schedule.num_timesteps, self.cuts, self.name)
        return Grouping(groups, Evidence(nodes, {"snr_db": schedule.snr_db[nodes]}))


METHODS: dict[str, GroupingMethod] = {method.name: method for method in (Uniform(), Snr())}
"""Methods that need nothing but the schedule. :class:`prunekit.groups.Similarity` needs images, and
:class:`prunekit.importance.GradientSimilarity` a network."""


def make_groups(schedule: NoiseSchedule, count: int = 5, method: str = "uniform") -> TimestepGroups:
    """Cut a schedule's timesteps into ``count`` groups.

    Args:
        schedule: gives T and the SNR of each timestep.
        count: number of groups, 1 … T.
        method: a key of :data:`METHODS`.

    Raises:
        InputError: the method is unknown or the count impossible.
    """
    if method not in METHODS:
        raise InputError(
            f"Unknown grouping method {method!r}{did_you_mean(method, METHODS)}; expected one of {', '.join(sorted(METHODS))}, or "
            "explicit cuts."
        )
    return METHODS[method](schedule, count).groups


def check_count(schedule: NoiseSchedule, count: int) -> None:
    """Refuse a number of groups that a schedule does not have the timesteps for."""
    if not 1 <= count <= schedule.num_timesteps:
        raise InputError(
            f"Got {count} timestep groups for {schedule.num_timesteps} timesteps; expected 1 … {schedule.num_timesteps}."
        )


def nodes_of(num_timesteps: int, nodes: int = NODES) -> IntArray:
    """Evenly spread timesteps with both ends, ``nodes`` of them or all T."""
    return np.unique(np.linspace(0, num_timesteps - 1, min(nodes, num_timesteps)).round().astype(np.int64))
