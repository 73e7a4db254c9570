"""Allocations: a MAC target for every timestep group, as data and as ``allocation.json``."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from prunekit._json import JsonDict
from prunekit.allocation.frontier import Frontier
from prunekit.allocation.sensitivity import Sensitivity
from prunekit.choices import AllocationRule
from prunekit.errors import FileFormatError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.results.formats import ALLOCATION

if TYPE_CHECKING:
    from prunekit.results.planning_files import AllocationFile, TargetPart

__all__ = ["Allocation", "GroupTarget"]

_AGAIN = "make it again with `prunekit allocate`"
_ROUNDING = 1e-6


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
        target_macs: the target in MACs per sample per evaluation; None if no model is known yet.
    """

    index: int
    start: int
    stop: int
    snr_db: float
    share: float
    mac_ratio: float
    target_macs: int | None = None

    @classmethod
    def of(cls, part: "TargetPart") -> "GroupTarget":
        """The target that a file describes."""
        return cls(part.index, part.start, part.stop, part.snr_db, part.share, part.mac_ratio, part.target_macs)


@dataclass(frozen=True)
class Allocation:
    """A MAC target for every timestep group; ``mean_mac_ratio`` is the mean over the sampler's steps.

    ``frontiers``, one per group or none, are the evidence of rule ``measured``; they also allow other rules to be judged.
    ``network_floor`` is the smallest ratio that the network can be pruned to; None if no network was looked at. ``sensitivity`` is
    what rule ``measured`` weighed the losses by; None if by the groups' numbers of steps.
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
    network_floor: float | None = None
    sensitivity: Sensitivity | None = None

    @property
    def mean_mac_ratio(self) -> float:
        """Mean of the groups' ratios, weighted by the sampler's steps."""
        return float(sum(group.share * group.mac_ratio for group in self.groups))

    @property
    def recovered(self) -> bool:
        """Whether the frontiers' losses are corrected for what a short fine-tuning recovers."""
        return any(frontier.recoveries for frontier in self.frontiers)

    @property
    def when(self) -> str:
        """When the frontiers' losses hold, in words."""
        return "after a short fine-tuning" if self.recovered else "before fine-tuning"

    @property
    def timestep_groups(self) -> TimestepGroups:
        """The partition that the targets belong to."""
        return TimestepGroups.from_cuts(self.num_timesteps, [group.start for group in self.groups[1:]], "allocation")

    def for_model(self, base_macs: int) -> "Allocation":
        """The same allocation with targets in MACs: each ratio rounded down to an integer, apart from float rounding."""
        groups = tuple(replace(g, target_macs=_whole(g.mac_ratio * base_macs)) for g in self.groups)
        return replace(self, groups=groups, base_macs=base_macs)

    def expected_loss(self, recorded_only: bool = False) -> float | None:
        """Mean loss over the sampler's steps, read from the frontiers at the targets.

        Args:
            recorded_only: use each group's best recorded point within the target, instead of interpolating between points.

        Returns:
            None without frontiers, or if a target lies below a group's frontier. The loss is the one that the searches measured,
            on pruned networks before any fine-tuning, or what a short one leaves of it, see :attr:`when`.
        """
        total = 0.0
        for group, frontier in zip(self.groups, self.frontiers, strict=bool(self.frontiers)):
            loss = (frontier.recorded_at if recorded_only else frontier.loss_at)(group.mac_ratio)
            if loss is None and group.share > 0:
                return None
            total += group.share * (loss or 0.0)
        return total if self.frontiers else None

    def expected_change(self) -> float | None:
        r"""Expected mean square change of the sample at the targets, :math:`\sum_g A_g L_g`.

        Returns:
            None without frontiers or a sensitivity, or if a target lies below a group's frontier. Losses are read as in
            :meth:`expected_loss`.
        """
        if not self.frontiers or self.sensitivity is None:
            return None
        total = 0.0
        for group, frontier, weight in zip(self.groups, self.frontiers, self.sensitivity.weights, strict=True):
            loss = frontier.loss_at(group.mac_ratio)
            if loss is None and weight > 0:
                return None
            total += float(weight) * (loss or 0.0)
        return total

    def to_json(self) -> dict[str, object]:
        """The content of ``allocation.json``."""
        data: dict[str, object] = {
            "format": ALLOCATION,
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
        if self.network_floor is not None:
            data["network_floor"] = self.network_floor
        if self.frontiers:
            data["frontiers"] = [frontier.to_json() for frontier in self.frontiers]
        if self.sensitivity is not None:
            data["sensitivity"] = self.sensitivity.to_json()
        return data

    @classmethod
    def from_json(cls, data: "AllocationFile | JsonDict", source: Path | str = "The allocation") -> "Allocation":
        """Read what :meth:`to_json` wrote.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, the ranges are not a partition, or numbers do not agree.
        """
        from prunekit.results.planning_files import AllocationFile  # noqa: PLC0415 - loads pydantic

        known = AllocationFile.of(data, str(source), _AGAIN)
        low, high = known.feasible or (0.0, 1.0)
        try:
            TimestepGroups(
                known.num_timesteps, tuple(TimestepGroup(g.index, g.start, g.stop) for g in known.groups)
            )  # refuses ranges that are no partition
            allocation = cls(
                float(known.budget),
                known.rule,
                known.num_timesteps,
                known.sampler,
                known.sampler_steps,
                tuple(map(GroupTarget.of, known.groups)),
                (float(low), float(high)),
                known.base_macs,
                tuple(map(Frontier.from_json, known.frontiers or ())),
                known.network_floor,
                None
                if known.sensitivity is None
                else Sensitivity.from_json(known.sensitivity, f"{source}: sensitivity"),
            )
            _agreeing(allocation, known.mean_mac_ratio)
        except FileFormatError:
            raise
        except ValueError as error:
            raise FileFormatError(f"{source} cannot be read ({error}); {_AGAIN}.") from error
        return allocation


def _agreeing(allocation: Allocation, mean: float | None) -> None:
    """Refuse numbers that contradict each other.

    Raises:
        ValueError: the shares do not sum to 1, or the means or the targets do not match the groups.
    """
    groups, base, found = allocation.groups, allocation.base_macs, allocation.mean_mac_ratio
    _of_one_network(allocation)
    shares = math.fsum(group.share for group in groups)
    if abs(shares - 1) > _ROUNDING:
        raise ValueError(f"the shares of the sampler's steps sum to {shares:g}; expected 1")
    if mean is not None and abs(found - mean) > _ROUNDING:
        raise ValueError(f"mean_mac_ratio is {mean:g}, and the groups' mean is {found:g}")
    spare = allocation.budget - found
    if spare < -_ROUNDING or (spare > _ROUNDING and allocation.rule != "measured"):
        raise ValueError(f"the groups' mean MAC ratio is {found:g}; expected the budget, {allocation.budget:g}")
    for group in groups:
        expected = None if base is None else _whole(group.mac_ratio * base)
        given = group.target_macs
        if (given is None) != (expected is None) or abs((given or 0) - (expected or 0)) > 1:
            raise ValueError(
                f"the target of group {group.index} is {given} MACs; expected {expected}, which is mac_ratio of base_macs"
            )


def _of_one_network(allocation: Allocation) -> None:
    """Refuse frontiers and a sensitivity of other networks, timestep groups or samplers, and what no rule gives.

    Raises:
        ValueError: there is one.
    """
    groups, base, sensitivity = allocation.groups, allocation.base_macs, allocation.sensitivity
    low, high = allocation.feasible
    if allocation.rule not in get_args(AllocationRule) or not 0 <= low <= high <= 1:
        raise ValueError(f"no rule {allocation.rule:.40} gives budgets from {low:g} to {high:g}")
    if len(allocation.frontiers) not in (0, len(groups)):
        raise ValueError(f"{len(allocation.frontiers)} frontiers for {len(groups)} groups")
    bases = sorted({frontier.base_macs for frontier in allocation.frontiers} | ({base} if base else set()))
    if len(bases) > 1:
        raise ValueError(f"its frontiers and targets are of networks of {bases[0]:,} and {bases[-1]:,} MACs")
    if sensitivity is None:
        return
    if [(g.start, g.stop) for g in sensitivity.groups] != [(g.start, g.stop) for g in groups]:
        raise ValueError("the sensitivity is of other timestep groups")
    evaluations = sum(group.evaluations for group in sensitivity.groups)
    if (sensitivity.sampler, evaluations) != (allocation.sampler, allocation.sampler_steps):
        raise ValueError("the sensitivity is of another sampler or number of steps")


def _whole(macs: float) -> int:
    """The largest integer that is not above ``macs``, apart from float rounding."""
    near = round(macs)
    return near if abs(macs - near) <= 1e-9 + 1e-15 * macs else int(macs)
