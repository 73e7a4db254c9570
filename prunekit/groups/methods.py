"""Ways to cut the timesteps into groups. Each takes a noise schedule and a count, and returns a partition."""

from collections.abc import Callable

import numpy as np

from prunekit.errors import InputError
from prunekit.groups.partition import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = ["METHODS", "make_groups", "snr_groups", "uniform_groups"]


def uniform_groups(schedule: NoiseSchedule, count: int) -> TimestepGroups:
    """``count`` ranges of (nearly) the same number of timesteps; where T is not divisible, sizes differ by one."""
    edges = [-(-i * schedule.num_timesteps // count) for i in range(1, count)]
    return TimestepGroups.from_cuts(schedule.num_timesteps, edges, "uniform")


def snr_groups(schedule: NoiseSchedule, count: int) -> TimestepGroups:
    """``count`` ranges that each span the same number of decibels, at least one timestep each."""
    snr_db = schedule.snr_db
    levels = np.linspace(snr_db[0], snr_db[-1], count + 1)[1:-1]
    cuts = np.searchsorted(-snr_db, -levels)
    for i in range(len(cuts)):  # equal-dB cuts can coincide where the curve is steep
        low = cuts[i - 1] + 1 if i else 1
        cuts[i] = min(max(cuts[i], low), schedule.num_timesteps - (count - 1 - i))
    return TimestepGroups.from_cuts(schedule.num_timesteps, cuts.tolist(), "snr")


METHODS: dict[str, Callable[[NoiseSchedule, int], TimestepGroups]] = {"uniform": uniform_groups, "snr": snr_groups}


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
            f"Unknown grouping method {method!r}; expected one of {', '.join(sorted(METHODS))}, or explicit cuts."
        )
    if not 1 <= count <= schedule.num_timesteps:
        raise InputError(
            f"Got {count} timestep groups for {schedule.num_timesteps} timesteps; expected 1 … {schedule.num_timesteps}."
        )
    return METHODS[method](schedule, count)
