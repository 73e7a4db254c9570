r"""Budget allocation: how much compute each timestep group deserves.

Groups are ranked by difficulty from the noisiest (easiest) to the cleanest (hardest): the SNR in dB of a group's timesteps
says which is which. A rule turns difficulty into a fraction of the base model's MACs per group, such that the mean over the
sampler's REAL steps is the budget exactly.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit._types import FloatArray, IntArray, JsonDict
from prunekit.errors import BudgetError, FileFormatError, InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = ["FORMAT", "RULES", "Allocation", "GroupTarget", "allocate", "feasible_budgets"]

FORMAT = "prunekit-allocation/1"
RULES = ("linear", "snr", "uniform")
_SNR_SCALE_DB = 20.0


@dataclass(frozen=True)
class GroupTarget:
    """One group's part of the budget.

    Args:
        index: timestep group, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
        snr_db: mean SNR of the group's timesteps, in dB.
        share: fraction of the sampler's steps that fall into the group.
        mac_ratio: target MACs as a fraction of the base model's.
        target_macs: the same in MACs per sample per evaluation; None when no model is known yet.
    """

    index: int
    start: int
    stop: int
    snr_db: float
    share: float
    mac_ratio: float
    target_macs: int | None = None


@dataclass(frozen=True)
class Allocation:
    """A MAC target for every timestep group; ``mean_mac_ratio`` is the mean over the sampler's steps."""

    budget: float
    rule: str
    num_timesteps: int
    sampler: str
    sampler_steps: int
    groups: tuple[GroupTarget, ...]
    feasible: tuple[float, float]
    base_macs: int | None = None

    @property
    def mean_mac_ratio(self) -> float:
        """Mean of the groups' ratios, weighted by the sampler's steps."""
        return float(sum(group.share * group.mac_ratio for group in self.groups))

    @property
    def timestep_groups(self) -> TimestepGroups:
        """The partition that the targets belong to."""
        return TimestepGroups.from_cuts(self.num_timesteps, [group.start for group in self.groups[1:]], "allocation")

    def for_model(self, base_macs: int) -> "Allocation":
        """The same allocation with targets in MACs: the largest integer that does not exceed each ratio."""
        groups = tuple(
            GroupTarget(g.index, g.start, g.stop, g.snr_db, g.share, g.mac_ratio, int(g.mac_ratio * base_macs + 1e-9))
            for g in self.groups
        )
        return Allocation(
            self.budget,
            self.rule,
            self.num_timesteps,
            self.sampler,
            self.sampler_steps,
            groups,
            self.feasible,
            base_macs,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``allocation.json``."""
        return {
            "format": FORMAT,
            "budget": self.budget,
            "rule": self.rule,
            "num_timesteps": self.num_timesteps,
            "sampler": self.sampler,
            "sampler_steps": self.sampler_steps,
            "feasible": list(self.feasible),
            "groups": [vars(group) for group in self.groups],
            "mean_mac_ratio": self.mean_mac_ratio,
            "base_macs": self.base_macs,
        }

    @classmethod
    def from_json(cls, data: JsonDict) -> "Allocation":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or the ranges are no partition.
        """
        try:
            keys = GroupTarget.__dataclass_fields__
            groups = tuple(_target({key: group[key] for key in keys}) for group in data["groups"])
            low, high = data.get("feasible", (0.0, 1.0))
            allocation = cls(
                _number(data["budget"]),
                str(data["rule"]),
                operator.index(data["num_timesteps"]),
                str(data.get("sampler", "ddim")),
                operator.index(data["sampler_steps"]),
                groups,
                (_number(low), _number(high)),
                None if data["base_macs"] is None else operator.index(data["base_macs"]),
            )
            TimestepGroups.from_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"The allocation cannot be read ({error}); make it again with `prunekit allocate`."
            ) from error
        return allocation


def allocate(
    groups: TimestepGroups,
    schedule: NoiseSchedule,
    budget: float,
    sampling_steps: IntArray | FloatArray,
    rule: str = "linear",
    *,
    floor: float = 0.1,
    sampler: str = "ddim",
) -> Allocation:
    r"""Give each timestep group a MAC target whose mean over the sampler's steps is the budget.

    ``linear`` (TDC, arXiv:2312.13307): :math:`F_i = (i/N + ((N-i)/N) k) F`, i the rank from the noisiest group (1) to
    the cleanest (N). The paper gives k; here k is solved from the budget and the sampler's own steps. Which end is large
    is not published where we could read it; that the cleanest gets F is this project's choice.

    ``snr`` (this project's): targets proportional to the signal's share of the amplitude in the group,
    :math:`d_i = 1/(1 + 10^{-\mathrm{dB}_i/20})`, clipped to ``floor … 1``, the factor solved exactly.

    ``uniform``: every group gets the budget (the baseline).

    Args:
        groups: the partition.
        schedule: gives the SNR of each timestep; as many timesteps as the partition.
        budget: wanted mean fraction of the base model's MACs, in (0, 1].
        sampling_steps: training timestep of every network evaluation of the sampler, shape (steps,).
        rule: a member of :data:`RULES`.
        floor: the smallest ratio that rules ``snr`` and ``uniform`` give to any group, in (0, 1].
        sampler: its name, for the record.

    Raises:
        BudgetError: the budget is outside what the rule can reach; ``feasible`` has the range.
        InputError: the rule is unknown, the floor is outside (0, 1], or groups and schedule differ in length.

    Example:
        >>> from prunekit.groups import make_groups
        >>> from prunekit.schedule import sampler_timesteps
        >>> schedule = NoiseSchedule.linear(1000)
        >>> plan = allocate(make_groups(schedule), schedule, 0.8, sampler_timesteps(1000, 50))
        >>> [round(group.mac_ratio, 6) for group in plan.groups]
        [1.0, 0.9, 0.8, 0.7, 0.6]
    """
    if rule not in RULES:
        raise InputError(f"Unknown allocation rule {rule!r}; expected one of {', '.join(RULES)}.")
    if groups.num_timesteps != schedule.num_timesteps:
        raise InputError(
            f"The groups cover {groups.num_timesteps} timesteps and the noise schedule has {schedule.num_timesteps}; "
            "make both with the same --num-timesteps."
        )
    if not 0 < floor <= 1:
        raise InputError(f"Got --floor {floor:g}; expected a ratio above 0 and at most 1.")
    shares = groups.shares(sampling_steps)
    feasible = feasible_budgets(rule, shares, floor)
    low, high = feasible
    if not low - 1e-12 <= budget <= high + 1e-12:
        raise BudgetError(
            f"A budget of {budget:g} cannot be met by rule {rule!r} with {len(groups)} groups; "
            f"expected {low:.6g} … {high:g}. Choose a budget in that range, another --rule, or fewer --groups.",
            feasible,
        )
    snr_db = np.array([schedule.snr_db[g.start : g.stop].mean() for g in groups])
    ratios = _ratios(rule, budget, shares, snr_db, floor)
    targets = tuple(
        GroupTarget(g.index, g.start, g.stop, float(snr_db[g.index]), float(shares[g.index]), float(ratios[g.index]))
        for g in groups
    )
    return Allocation(budget, rule, groups.num_timesteps, sampler, len(sampling_steps), targets, feasible)


def feasible_budgets(rule: str, shares: FloatArray, floor: float = 0.1) -> tuple[float, float]:
    """Smallest and largest mean ratio that a rule reaches with the sampler's shares (cleanest group first)."""
    if rule == "linear":
        ranks = np.arange(len(shares), 0, -1) / len(shares)
        return float(shares @ ranks), 1.0
    return float(floor), 1.0


def _ratios(rule: str, budget: float, shares: FloatArray, snr_db: FloatArray, floor: float) -> FloatArray:
    count = len(shares)
    if rule == "linear":
        ranks = np.arange(count, 0, -1) / count
        rest = float(shares @ (1 - ranks))
        k = (budget - float(shares @ ranks)) / rest if rest > 0 else 1.0
        return np.asarray(ranks + (1 - ranks) * min(max(k, 0.0), 1.0))
    if rule == "snr":
        return _scaled_to_mean(1 / (1 + 10 ** (-snr_db / _SNR_SCALE_DB)), shares, budget, floor)
    return np.full(count, budget)


def _scaled_to_mean(difficulty: FloatArray, shares: FloatArray, budget: float, floor: float) -> FloatArray:
    """``clip(c·difficulty, floor, 1)`` with the c that makes the weighted mean the budget.

    The mean is piecewise linear and non-decreasing in c, with breaks where a group meets the floor or 1, so the piece that
    holds the budget is found by comparing at the breaks and then solved in closed form.
    """

    def clipped(factor: float) -> FloatArray:
        return np.clip(factor * difficulty, floor, 1.0)

    breaks = np.sort(np.concatenate([floor / difficulty, 1.0 / difficulty]))
    means = np.array([shares @ clipped(factor) for factor in breaks])
    right = int(np.searchsorted(means, budget))
    if right == 0 or right == len(breaks):
        return clipped(breaks[min(right, len(breaks) - 1)])
    rise = means[right] - means[right - 1]
    part = (budget - means[right - 1]) / rise if rise > 0 else 0.0
    return clipped(breaks[right - 1] + part * (breaks[right] - breaks[right - 1]))


def _target(data: dict[str, Any]) -> GroupTarget:
    for key in ("index", "start", "stop"):
        data[key] = operator.index(data[key])
    for key in ("snr_db", "share", "mac_ratio"):
        data[key] = _number(data[key])
    if data["target_macs"] is not None:
        data["target_macs"] = operator.index(data["target_macs"])
    return GroupTarget(**data)


def _number(value: object) -> float:
    """A finite number as a float, and never a string that reads like one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
