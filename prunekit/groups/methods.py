"""Ways to cut the timesteps into groups. All share one protocol: they take a schedule and a count and return a grouping."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from prunekit._messages import did_you_mean
from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.groups.cut_evidence import Evidence, Grouping
from prunekit.groups.partition import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = ["METHODS", "NODES", "Explicit", "GroupingMethod", "Snr", "Uniform", "check_count", "make_groups", "nodes_of"]

NODES = 64
"""Number of timesteps at which methods measure by default."""


class GroupingMethod(Protocol):
    """Cuts a schedule's timesteps into ``count`` groups and returns the evidence for the cuts."""

    name: ClassVar[str]

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """Cut the timesteps.

        Raises:
            InputError: the count is impossible for this schedule or this method.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Ranges of equally many timesteps; if T is not divisible by the count, sizes differ by one. Evidence: t/T."""

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
    """Ranges between given cuts. Evidence: the SNR in decibels; the reason for the cuts is the caller's.

    Args:
        cuts: first timestep of every group except the first.
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
    """Refuse more groups than the schedule has timesteps.

    Raises:
        InputError: there are more groups than timesteps, or none.
    """
    if not 1 <= count <= schedule.num_timesteps:
        raise InputError(
            f"Got {count} timestep groups for {schedule.num_timesteps} timesteps; expected 1 … {schedule.num_timesteps}."
        )


def nodes_of(num_timesteps: int, nodes: int = NODES) -> IntArray:
    """``nodes`` evenly spread timesteps including both ends, or all T if there are fewer."""
    return np.unique(np.linspace(0, num_timesteps - 1, min(nodes, num_timesteps)).round().astype(np.int64))
