"""Cuts timesteps into groups by measurements on images or a network."""

from prunekit.checkpoint import Base
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.groups import METHODS, Explicit, GroupingMethod
from prunekit.importance import GradientSimilarity
from prunekit.recipe import AllocationOptions, GroupOptions
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import specialist_groups
from prunekit.steps.objectives import objective_for

__all__ = ["method_of", "spent_on_grouping"]


def method_of(
    options: GroupOptions,
    images: ImageData | None = None,
    base: Base | None = None,
    allocation: AllocationOptions | None = None,
) -> GroupingMethod:
    """The grouping method that the options name.

    Args:
        options: the method and its settings.
        images: needed for ``similarity`` and ``gradient``.
        base: needed for ``gradient``, and for one specialist.
        allocation: the budget and the sampler; needed for one specialist.

    Raises:
        BudgetError: one specialist cannot meet the budget.
        InputError: the method needs images, a base or a budget that are not given.
    """
    if options.experts == "noisy":
        if allocation is None or base is None:
            raise InputError("Groups for one specialist got no budget or no network; expected both.")
        made = specialist_groups(base.schedule, allocation.budget, allocation.sampler, allocation.steps)
        return Explicit(tuple(made.cuts))
    if options.cuts is not None:
        return Explicit(options.cuts)
    if options.method in METHODS:
        return METHODS[options.method]
    if images is None:
        raise InputError(f"Grouping method {options.method} got no images; name some by `data`.")
    if options.method == "similarity":
        return options.similarity(images.images.numpy())  # latents are compared by their own values, like pixels
    if base is None:
        raise InputError("Grouping method gradient got no network; name one by `base`.")
    objective = objective_for(images, base.spec, base.parameterization)
    return GradientSimilarity(base.model, objective, seed=options.seed, **options.looks)


def spent_on_grouping(method: GroupingMethod, schedule: NoiseSchedule) -> int:
    """Number of samples that the method passed through the network, forwards and backwards."""
    if not isinstance(method, GradientSimilarity):
        return 0
    return method.samples * len(method.bins(schedule.num_timesteps))
