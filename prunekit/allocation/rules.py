r"""Rules: how a budget is divided among timestep groups.

Groups are ranked by difficulty from the noisiest (easiest) to the cleanest (hardest), by the SNR in dB of their timesteps. A rule
of difficulty turns this into a fraction of the base model's MACs per group, such that the mean over the sampler's actual steps is
exactly the budget. Rule ``measured`` uses the frontiers of the searches instead.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from prunekit._messages import did_you_mean
from prunekit._types import FloatArray, IntArray
from prunekit.allocation.frontier import RECORD, Frontier, check_same_base
from prunekit.allocation.knapsack import choose_points
from prunekit.allocation.sensitivity import Sensitivity
from prunekit.allocation.targets import Allocation, GroupTarget
from prunekit.errors import BudgetError, InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule, sampler_timesteps

__all__ = ["DIFFICULTY_RULES", "RULES", "allocate", "check_leaves_cleanest", "feasible_budgets", "own_floor"]

DIFFICULTY_RULES = ("auto", "linear", "snr", "uniform")
RULES = (*DIFFICULTY_RULES, "measured")
_LEAVING_CLEANEST = ("auto", "linear", "snr")
_SNR_SCALE_DB = 20.0
_FLOOR = 0.1  # of rules snr and uniform
_LEAST_OF_SQUARE = 0.625  # rule auto: the smallest target is this part of the budget's square
_STEPS = 50  # of DDIM, the default


def check_leaves_cleanest(rule: str) -> None:
    """Refuse a rule that may prune the cleanest group although the others could pay alone.

    Raises:
        InputError: it may, so the cleanest group cannot be left to the base.
    """
    if rule in RULES and rule not in _LEAVING_CLEANEST:
        raise InputError(
            f"Got rule {rule} with experts noisy; expected {', '.join(_LEAVING_CLEANEST[:-1])} or {_LEAVING_CLEANEST[-1]}, which "
            "leave the base whole for the cleaner timesteps."
        )


def allocate(
    groups: TimestepGroups,
    schedule: NoiseSchedule,
    budget: float,
    sampling_steps: IntArray | FloatArray | None = None,
    rule: str = "auto",
    *,
    floor: float | None = None,
    network_floor: float = 0.0,
    sampler: str = "ddim",
    frontiers: Sequence[Frontier] = (),
    sensitivity: Sensitivity | None = None,
) -> Allocation:
    r"""Give each timestep group a MAC target, such that the mean over the sampler's steps is the budget.

    ``auto`` (this project's rule, the default): as ``snr``, but no group gets less than :math:`\tfrac58 B^2` of the base (0.4 at a
    budget of 0.8). The cleaner groups stay whole and the noisy ones pay, none of them so much that a short fine-tuning cannot
    mend it. It meets every budget that the network can be pruned to.

    ``linear`` (TDC, arXiv:2312.13307): :math:`F_i = (i/N + ((N-i)/N) k) F`, i the rank from the noisiest group (1) to
    the cleanest (N). The paper gives k; here k is solved from the budget and the sampler's steps. We found no published
    statement of which end is large; giving F to the cleanest group is this project's choice.

    ``snr`` (this project's rule): targets proportional to the signal's share of the amplitude in the group,
    :math:`d_i = 1/(1 + 10^{-\mathrm{dB}_i/20})`, clipped to ``floor … 1``; the factor is solved exactly.

    ``uniform``: every group gets the budget (the baseline).

    ``measured`` (this project's rule): chooses one recorded point on each group's frontier. The choice has the least loss, summed
    over the sampler's steps, of all choices with mean MACs within the budget; it is exact, see
    :func:`prunekit.allocation.knapsack.choose_points`. The remaining budget is too small for any group to reach its next point. It
    goes to the group with the steepest fall of the loss, so this group's target lies between two recorded points and its loss there
    is interpolated. The mean is then exactly the budget, unless all groups are at their best points: the remainder is then not
    spent. A group that contains none of the sampler's steps gets its best point.
    Losses are summed exactly as the journals hold them, so a group with a large loss weighs more than one with a small loss.
    With a ``sensitivity`` the sum is :math:`\sum_g A_g L_g` instead: each group's loss is multiplied by what the sampler makes of
    an error in the group, :math:`A_g`, and no longer by the group's number of steps. The sum is then the expected mean square
    change of the sample.

    Args:
        groups: the partition.
        schedule: gives the SNR of each timestep; it has as many timesteps as the partition.
        budget: wanted mean fraction of the base model's MACs, in (0, 1].
        sampling_steps: training timestep of every network evaluation of the sampler, shape (steps,); those of DDIM in 50 steps
            if missing.
        rule: a member of :data:`RULES`.
        floor: the smallest ratio that rules ``auto``, ``snr`` and ``uniform`` give to any group, in (0, 1]; if missing, the rule's
            own: 0.1 for ``snr`` and ``uniform``.
        network_floor: the smallest ratio that the network can be pruned to, in [0, 1]. No difficulty rule gives less to any group;
            what the others get is then shared anew, so that the mean stays exact. 0 if it is not known.
        sampler: name of the sampler, for the record.
        frontiers: one per group, cleanest first; required by rule ``measured``. With frontiers, the allocation of any rule stores
            them and gives its targets in MACs too.
        sensitivity: of the same groups, sampler and steps. With it, the allocation of any rule stores it; only rule ``measured``
            decides by it. See :mod:`prunekit.sampling.disturbances`.

    Raises:
        BudgetError: the budget is outside the range that the rule can reach; ``feasible`` has the range.
        InputError: the rule is unknown, a floor is out of its range, groups and schedule differ in length, or the frontiers or the
            sensitivity do not belong to the groups.

    Example:
        >>> from prunekit.groups import make_groups
        >>> from prunekit.schedule import sampler_timesteps
        >>> schedule = NoiseSchedule.linear(1000)
        >>> plan = allocate(make_groups(schedule), schedule, 0.8, sampler_timesteps(1000, 50))
        >>> [round(group.mac_ratio, 6) for group in plan.groups]
        [1.0, 1.0, 1.0, 0.6, 0.4]
    """
    _check(groups, schedule, rule, floor, network_floor, frontiers)
    if sampling_steps is None:
        sampling_steps = sampler_timesteps(schedule.num_timesteps, min(_STEPS, schedule.num_timesteps))
    counts = np.bincount(groups.index_of(sampling_steps), minlength=len(groups))
    if sensitivity is not None:
        sensitivity.check(groups, sampler, counts)
    shares = groups.shares(sampling_steps)
    feasible = feasible_budgets(rule, shares, floor, frontiers, network_floor)
    low, high = feasible
    if not (budget > 0 and low - 1e-12 <= budget <= high + 1e-12):
        raise BudgetError(_refusal(budget, rule, len(groups), feasible, network_floor), feasible)
    snr_db = np.array([schedule.snr_db[g.start : g.stop].mean() for g in groups])
    if rule == "measured":
        ratios = _measured(budget, counts, frontiers, counts if sensitivity is None else sensitivity.weights)
    else:
        ratios = _ratios(rule, budget, shares, snr_db, max(own_floor(rule, budget, floor), network_floor))
    targets = tuple(
        GroupTarget(g.index, g.start, g.stop, float(snr_db[g.index]), float(shares[g.index]), float(ratios[g.index]))
        for g in groups
    )
    made = Allocation(
        budget,
        rule,
        groups.num_timesteps,
        sampler,
        len(sampling_steps),
        targets,
        feasible,
        frontiers=tuple(frontiers),
        network_floor=network_floor or None,
        sensitivity=sensitivity,
    )
    return made.for_model(frontiers[0].base_macs) if frontiers else made


def feasible_budgets(
    rule: str,
    shares: FloatArray,
    floor: float | None = None,
    frontiers: Sequence[Frontier] = (),
    network_floor: float = 0.0,
) -> tuple[float, float]:
    """Smallest and largest mean ratio that a rule reaches with the sampler's shares (cleanest group first).

    The arguments are those of :func:`allocate`. Without floors, rule ``auto`` reaches every budget above 0.
    """
    if rule == "measured":
        return float(shares @ [frontier.macs[0] / frontier.base_macs for frontier in frontiers]), 1.0
    if rule == "linear":
        ranks = np.arange(len(shares), 0, -1) / len(shares)
        return max(network_floor, float(shares @ np.maximum(ranks, network_floor))), 1.0  # rounding may put it below
    return max(float(own_floor(rule, 0.0, floor)), network_floor), 1.0


def own_floor(rule: str, budget: float, floor: float | None) -> float:
    """The smallest ratio that a rule gives by itself."""
    if rule == "linear":
        return 0.0
    if floor is not None:
        return floor
    return _LEAST_OF_SQUARE * budget**2 if rule == "auto" else _FLOOR


def _refusal(budget: float, rule: str, count: int, feasible: tuple[float, float], network_floor: float) -> str:
    """The sentence for a budget that cannot be met, with what to do."""
    low, high = feasible
    if network_floor > 0 and budget < network_floor:
        return (
            f"A budget of {budget:g} cannot be met: this network can be pruned to {network_floor:.4g} of its MACs and no further; "
            f"expected {math.ceil(low * 1e4) / 1e4:g} … {high:g}, by any rule."
        )
    span = f"{low:.6g} … {high:g}" if low > 0 else f"above 0 and at most {high:g}"
    what = f"A budget of {budget:g} cannot be met by rule {rule!r} with {count} groups; expected {span}"
    mends = ["a budget in that range"]
    if rule == "measured":
        mends.append(f"searches down to a smaller target: {RECORD}")
    if rule != "auto" and budget < 1:
        mends.append("the `rule` auto, which meets every budget that the network can be pruned to")
    if rule == "linear":
        mends.append("fewer groups")
    return f"{what}. Choose {', or '.join(mends)}."


def _check(
    groups: TimestepGroups,
    schedule: NoiseSchedule,
    rule: str,
    floor: float | None,
    network_floor: float,
    frontiers: Sequence[Frontier],
) -> None:
    if not isinstance(groups, TimestepGroups):
        raise InputError(
            f"Got a {type(groups).__name__} as groups; expected TimestepGroups, such as make_groups(schedule, count=5)."
        )
    if rule not in RULES:
        raise InputError(
            f"Unknown allocation rule {rule!r}{did_you_mean(rule, RULES)}; expected one of {', '.join(RULES)}."
        )
    if groups.num_timesteps != schedule.num_timesteps:
        raise InputError(
            f"The groups cover {groups.num_timesteps} timesteps and the noise schedule has {schedule.num_timesteps}; "
            "make both with the same `num_timesteps`."
        )
    if floor is not None and not 0 < floor <= 1:
        raise InputError(f"Got `floor` {floor:g}; expected a ratio above 0 and at most 1.")
    if not 0 <= network_floor <= 1:
        raise InputError(f"Got `network_floor` {network_floor:g}; expected a ratio from 0 to 1.")
    if len(frontiers) != len(groups) and (frontiers or rule == "measured"):
        raise InputError(
            f"Got {len(frontiers)} recorded frontiers for {len(groups)} timestep groups; expected one for each: {RECORD}."
        )
    check_same_base(frontiers)


def _measured(
    budget: float, counts: IntArray, frontiers: Sequence[Frontier], weigh: FloatArray | IntArray
) -> FloatArray:
    """Ratios by rule ``measured``, shape (groups,).

    Args:
        budget: wanted mean ratio.
        counts: the sampler's steps in each group.
        frontiers: one for each group.
        weigh: by what each group's loss is multiplied; only their ratios matter.
    """
    steps, base = int(counts.sum()), frontiers[0].base_macs
    used = {g: frontiers[g] for g in np.flatnonzero(counts).tolist()}
    weights = [counts[g] * np.array(frontier.macs, dtype=np.int64) for g, frontier in used.items()]
    scale = float(weigh.sum()) or 1.0
    losses = [weigh[g] / scale * np.array(frontier.loss) for g, frontier in used.items()]
    room = Fraction(str(float(budget))) * steps * base
    least = sum(int(weight[0]) for weight in weights)
    chosen = choose_points(
        weights, losses, max(math.floor(room), least)
    )  # rounding may put a budget at the limit below it
    points = dict(zip(used, chosen, strict=True))
    targets = [Fraction(frontier.macs[points.get(g, -1)]) for g, frontier in enumerate(frontiers)]
    left = room - sum(int(counts[g]) * targets[g] for g in used)
    while left > 0 and (slopes := {g: slope for g in used if (slope := _next_slope(used[g], points[g])) is not None}):
        steepest = max(slopes, key=lambda g: slopes[g] * weigh[g] / counts[g])
        there = used[steepest].macs[points[steepest] + 1]
        rise = min(
            left / int(counts[steepest]), there - targets[steepest]
        )  # reaches the next point only if losses tie by rounding
        targets[steepest] += rise
        points[steepest] += 1
        left -= rise * int(counts[steepest])
    return np.array([float(target / base) for target in targets])


def _next_slope(frontier: Frontier, point: int) -> float | None:
    """Fall of the loss per MAC from this point to the next; None at the last point."""
    if point + 1 == len(frontier.macs):
        return None
    return (frontier.loss[point] - frontier.loss[point + 1]) / (frontier.macs[point + 1] - frontier.macs[point])


def _ratios(rule: str, budget: float, shares: FloatArray, snr_db: FloatArray, floor: float) -> FloatArray:
    """Ratios by a difficulty rule, none below the floor, shape (groups,)."""
    count = len(shares)
    if rule == "linear":
        ranks = np.arange(count, 0, -1) / count
        rest = float(shares @ (1 - ranks))
        k = (budget - float(shares @ ranks)) / rest if rest > 0 else 1.0
        ratios = np.asarray(ranks + (1 - ranks) * min(max(k, 0.0), 1.0))
        return ratios if ratios.min() >= floor else _to_mean(ranks, 1 - ranks, shares, budget, floor)
    if rule in ("auto", "snr"):
        return _to_mean(np.zeros(count), 1 / (1 + 10 ** (-snr_db / _SNR_SCALE_DB)), shares, budget, floor)
    return np.full(count, budget)


def _to_mean(offset: FloatArray, slope: FloatArray, shares: FloatArray, budget: float, floor: float) -> FloatArray:
    """``clip(offset + c·slope, floor, 1)``, with c ≥ 0 chosen so that the weighted mean is the budget.

    The mean is piecewise linear and non-decreasing in c, with breaks where a group reaches the floor or 1. The piece that contains
    the budget is found by comparing at the breaks, and then solved in closed form.
    """

    def clipped(factor: float) -> FloatArray:
        return np.clip(offset + factor * slope, floor, 1.0)

    rising = slope > 0
    reached = [(limit - offset[rising]) / slope[rising] for limit in (floor, 1.0)]
    breaks = np.sort(np.concatenate([np.zeros(1), *(np.maximum(at, 0.0) for at in reached)]))
    means = np.array([shares @ clipped(factor) for factor in breaks])
    right = int(np.searchsorted(means, budget))
    if right == 0 or right == len(breaks):
        return clipped(breaks[min(right, len(breaks) - 1)])
    rise = means[right] - means[right - 1]
    part = (budget - means[right - 1]) / rise if rise > 0 else 0.0
    return clipped(breaks[right - 1] + part * (breaks[right] - breaks[right - 1]))
