"""Plans a budget. This is the only stage that needs neither a model nor torch."""

import math
from collections.abc import Sequence

import numpy as np

from prunekit._types import FloatArray
from prunekit.allocation import Allocation, Frontier, Sensitivity, allocate
from prunekit.allocation.rules import own_floor
from prunekit.errors import BudgetError, InputError
from prunekit.groups import METHODS, Explicit, Grouping, TimestepGroups
from prunekit.schedule import NoiseSchedule, Parameterization, sampler_timesteps
from prunekit.schedule.diffusers import settings_text, steps_as_planned

__all__ = [
    "cut_groups",
    "cut_with_evidence",
    "evaluations",
    "plan_budget",
    "planned_otherwise",
    "side_by_side",
    "specialist_groups",
]

_NUMPY_SAMPLERS = ("ddim", "ddpm")
_SPECIALIST = 0.5  # fraction of the base's MACs of a specialist for the noisiest timesteps
_COMPARED = ("auto", "linear", "snr", "measured")


def cut_groups(
    schedule: NoiseSchedule, count: int = 5, method: str = "uniform", cuts: tuple[int, ...] | None = None
) -> TimestepGroups:
    """Timestep groups from a method that needs only the noise schedule, or from explicit cuts."""
    return cut_with_evidence(schedule, count, method, cuts).groups


def cut_with_evidence(
    schedule: NoiseSchedule, count: int = 5, method: str = "uniform", cuts: tuple[int, ...] | None = None
) -> Grouping:
    """The same groups, with the values that the method cut by.

    Raises:
        InputError: the method is unknown, or needs images or a base.
    """
    if cuts is not None:
        return Explicit(cuts)(schedule, len(cuts) + 1)
    if method not in METHODS:
        raise InputError(
            f"Got grouping method {method!r}; expected one of {', '.join(sorted(METHODS))} without images or a base."
        )
    return METHODS[method](schedule, count)


def evaluations(schedule: NoiseSchedule, sampler: str = "ddim", steps: int = 50) -> FloatArray:
    """Timestep of every network evaluation of a sampler, fractional, shape (evaluations,).

    The timesteps of DDIM and DDPM for diffusion are computed here as in diffusers. Others come from diffusers, which imports torch.
    The settings of the pipeline's scheduler are used if the schedule has some.

    Raises:
        InputError: the sampler is unknown, or cannot take this number of steps.
    """
    whole = Parameterization.usual(schedule).timeline.counts_timesteps
    if sampler in _NUMPY_SAMPLERS and whole:
        return sampler_timesteps(schedule.num_timesteps, steps, *steps_as_planned(schedule.scheduler)).astype(
            np.float64
        )
    if not 1 <= steps <= schedule.num_timesteps:
        raise InputError(
            f"Got {steps} sampling steps for {schedule.num_timesteps} training timesteps; "
            f"expected 1 … {schedule.num_timesteps}."
        )
    from prunekit.sampling import real_timesteps  # noqa: PLC0415 - imports torch and diffusers, seconds for few

    return real_timesteps(sampler, steps, schedule)


def plan_budget(
    groups: TimestepGroups,
    schedule: NoiseSchedule,
    budget: float,
    *,
    rule: str = "auto",
    sampler: str = "ddim",
    steps: int = 50,
    floor: float | None = None,
    network_floor: float = 0.0,
    frontiers: Sequence[Frontier] = (),
    sensitivity: Sensitivity | None = None,
) -> Allocation:
    """Allocate a budget over a sampler's actual steps, see :func:`prunekit.allocation.allocate`."""
    real = evaluations(schedule, sampler, steps)
    return allocate(
        groups,
        schedule,
        budget,
        real,
        rule,
        floor=floor,
        network_floor=network_floor,
        sampler=sampler,
        frontiers=frontiers,
        sensitivity=sensitivity,
    )


def specialist_groups(schedule: NoiseSchedule, budget: float, sampler: str = "ddim", steps: int = 50) -> TimestepGroups:
    """Two timestep groups: the base keeps the cleaner one, and one pruned specialist serves the noisiest timesteps.

    The border follows from the budget: the noisy group has as few of the sampler's evaluations as it can, so that the specialist
    keeps at least half of the base's MACs. Evaluations at the same timestep, such as Heun's two, are in the same group. With rule
    ``auto`` the mean over the evaluations is then exactly the budget.

    Args:
        schedule: the noise schedule.
        budget: mean fraction of the base's MACs over the sampler's steps.
        sampler: name of the sampler.
        steps: its number of steps.

    Raises:
        BudgetError: the budget leaves nothing to prune, or no step for the base; ``feasible`` has the range.

    Example:
        >>> [(group.start, group.stop) for group in specialist_groups(NoiseSchedule.linear(1000), 0.8)]
        [(0, 591), (591, 1000)]
    """
    times = np.sort(evaluations(schedule, sampler, steps))[::-1]
    smallest = max(_SPECIALIST, own_floor("auto", budget, None))
    places = np.floor(times)  # evaluations at one place cannot be in different groups
    least = 1 - (1 - _SPECIALIST) * int((places > places[-1]).sum()) / len(times)
    noisy = math.ceil((1 - budget) * len(times) / (1 - smallest) - 1e-9)
    while 0 < noisy < len(times) and places[noisy - 1] == places[noisy]:
        noisy += 1
    if not 0 < noisy < len(times):
        raise BudgetError(
            f"Got budget {budget:g} for the base and one specialist of at least {_SPECIALIST:g} of its MACs; expected "
            f"{least:.4g} … {1 - 1e-4:g}: choose a budget in that range, or experts for all timestep groups.",
            (least, 1 - 1e-4),
        )
    cut = min(math.floor((times[noisy - 1] + times[noisy]) / 2) + 1, int(places[noisy - 1]))
    return cut_groups(schedule, cuts=(cut,))


def planned_otherwise(allocation: Allocation, schedule: NoiseSchedule) -> str:
    """A warning if an allocation was made for other sampling steps than those of the base's pipeline; empty if not."""
    if not schedule.scheduler or allocation.sampler not in _NUMPY_SAMPLERS:
        return ""
    real = evaluations(schedule, allocation.sampler, allocation.sampler_steps)
    shares = allocation.timestep_groups.shares(real)
    if np.allclose(shares, [group.share for group in allocation.groups], rtol=0, atol=1e-9):
        return ""
    found = ", ".join(f"{share:.3f}" for share in shares)
    settings = settings_text(schedule.scheduler) or "here"
    return (
        f"The allocation was made for other steps than {allocation.sampler} takes {settings}: its groups "
        f"have shares {found} of them. Make the groups for the base again, and then the allocation."
    )


def side_by_side(
    allocation: Allocation, schedule: NoiseSchedule, steps: int, floor: float | None = None
) -> dict[str, Allocation | None]:
    """Allocations by rules ``auto``, ``linear``, ``snr`` and ``measured`` for an allocation's budget, groups and frontiers.

    Args:
        allocation: must have frontiers.
        schedule: the noise schedule of the allocation.
        steps: the number of sampling steps of the allocation.
        floor: the smallest ratio for rules ``auto`` and ``snr``; their own if missing.

    Returns:
        The allocation by rule; None if the rule cannot reach the budget.
    """
    real = evaluations(schedule, allocation.sampler, steps)
    found: dict[str, Allocation | None] = {}
    for rule in _COMPARED:
        try:
            found[rule] = allocate(
                allocation.timestep_groups,
                schedule,
                allocation.budget,
                real,
                rule,
                floor=floor,
                network_floor=allocation.network_floor or 0.0,
                sampler=allocation.sampler,
                frontiers=allocation.frontiers,
                sensitivity=allocation.sensitivity,
            )
        except BudgetError:
            found[rule] = None
    return found
