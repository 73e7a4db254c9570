"""Cuts timesteps into groups by measurements on images or a network."""

from prunekit.checkpoint import Base
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.groups import METHODS, Explicit, GroupingMethod
from prunekit.importance import GradientSimilarity
from prunekit.recipe import MEASURED_METHODS, AllocationOptions, ExpertsRecipe, GroupOptions
from prunekit.sampling import PIPELINE
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import evaluations, plan_budget, specialist_groups
from prunekit.steps.objectives import objective_for

__all__ = ["check_budget", "method_of", "spent_on_grouping"]


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


def check_budget(recipe: ExpertsRecipe) -> None:
    """Refuse a budget, or a number of sampling steps, that a recipe's plan could not meet, as far as it is known without the base.

    Nothing is checked of a checkpoint whose noise schedule the recipe does not state, and no budget where the groups or the rule
    need the base.

    Raises:
        BudgetError: the rule cannot meet the budget.
        InputError: the sampler cannot take this number of steps.
    """
    groups, allocation, base = recipe.groups, recipe.allocation, recipe.base
    if base.checkpoint is not None and base.noise_schedule is None:
        return
    if allocation.sampler != PIPELINE:
        evaluations(base.schedule, allocation.sampler, allocation.steps)
    needs_base = (groups.cuts is None and groups.method in MEASURED_METHODS) or allocation.rule == "measured"
    if needs_base or recipe.has_specialist:  # a specialist's groups follow from the budget
        return
    plan_budget(
        method_of(groups)(base.schedule, groups.number).groups,
        base.schedule,
        allocation.budget,
        rule=allocation.rule,
        sampler=allocation.sampler,
        steps=allocation.steps,
        floor=allocation.floor,
    )


def spent_on_grouping(method: GroupingMethod, schedule: NoiseSchedule) -> int:
    """Number of samples that the method passed through the network, forwards and backwards."""
    if not isinstance(method, GradientSimilarity):
        return 0
    return method.samples * len(method.bins(schedule.num_timesteps))
