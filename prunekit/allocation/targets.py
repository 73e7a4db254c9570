"""Allocations: a MAC target for every timestep group, as data and as ``allocation.json``."""

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

from prunekit._types import JsonDict
from prunekit.allocation.frontier import Frontier
from prunekit.errors import FileFormatError
from prunekit.groups import TimestepGroups

__all__ = ["FORMAT", "Allocation", "GroupTarget"]

FORMAT = "prunekit-allocation/1"


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
    """A MAC target for every timestep group; ``mean_mac_ratio`` is the mean over the sampler's steps.

    ``frontiers`` are the evidence of rule ``measured``, and what other rules can be judged by: one per group, or none.
    """

    budget: float
    rule: str
    num_timesteps: int
    sampler: str
    sampler_steps: int
    groups: tuple[GroupTarget, ...]
    feasible: tuple[float, float]
    base_macs: int | None = None
    frontiers: tuple[Frontier, ...] = ()

    @property
    def mean_mac_ratio(self) -> float:
        """Mean of the groups' ratios, weighted by the sampler's steps."""
        return float(sum(group.share * group.mac_ratio for group in self.groups))

    @property
    def timestep_groups(self) -> TimestepGroups:
        """The partition that the targets belong to."""
        return TimestepGroups.from_cuts(self.num_timesteps, [group.start for group in self.groups[1:]], "allocation")

    def for_model(self, base_macs: int) -> "Allocation":
        """The same allocation with targets in MACs: the largest integer that does not exceed each ratio, float rounding aside."""

        def whole(macs: float) -> int:
            near = round(macs)
            return near if abs(macs - near) <= 1e-9 + 1e-15 * macs else int(macs)

        groups = tuple(replace(g, target_macs=whole(g.mac_ratio * base_macs)) for g in self.groups)
        return replace(self, groups=groups, base_macs=base_macs)

    def expected_loss(self, recorded_only: bool = False) -> float | None:
        """Mean over the sampler's steps of the loss that the frontiers show at the targets.

        Args:
            recorded_only: count each group at its best recorded point within the target, instead of linear between points.

        Returns:
            None without frontiers, or where a target lies below a group's frontier. The loss is that of the searches: of
            pruned networks before any fine-tuning.
        """
        total = 0.0
        for group, frontier in zip(self.groups, self.frontiers, strict=bool(self.frontiers)):
            loss = (frontier.recorded_at if recorded_only else frontier.loss_at)(group.mac_ratio)
            if loss is None and group.share > 0:
                return None
            total += group.share * (loss or 0.0)
        return total if self.frontiers else None

    def to_json(self) -> dict[str, Any]:
        """The content of ``allocation.json``."""
        data = {
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
        if self.frontiers:
            data["frontiers"] = [frontier.to_json() for frontier in self.frontiers]
        return data

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
                tuple(Frontier.from_json(frontier) for frontier in data.get("frontiers", ())),
            )
            TimestepGroups.from_json(data)
            if len(allocation.frontiers) not in (0, len(groups)):
                raise ValueError(f"{len(allocation.frontiers)} frontiers for {len(groups)} groups")
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"The allocation cannot be read ({error}); make it again with `prunekit allocate`."
            ) from error
        return allocation


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
