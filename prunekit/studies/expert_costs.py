"""The passes that making and measuring timestep experts takes, stage by stage, as a recipe says."""

from prunekit.checkpoint import ModelSpec
from prunekit.ledger import LedgerRow, both_ways, forwards, spent_on_training
from prunekit.recipe import (
    AllocationOptions,
    EvaluationOptions,
    ExpertsRecipe,
    FinetuneOptions,
)
from prunekit.sampling import PIPELINE
from prunekit.search import search_samples
from prunekit.steps.budgets import evaluations
from prunekit.steps.objectives import predicts_variance
from prunekit.steps.sample_quality import loss_draws

__all__ = ["passes_of_experts", "passes_of_sampler", "steps_of"]


def passes_of_experts(recipe: ExpertsRecipe, macs: int, params: int, spec: ModelSpec) -> list[tuple[LedgerRow, str]]:
    """Passes of all stages from scoring to evaluation."""
    groups = recipe.groups.number
    expert, rows = round(recipe.allocation.budget * macs), list[tuple[LedgerRow, str]]()
    if recipe.allocation.sensitivity:
        runs = 1 + (2 if recipe.allocation.sensitivity_clamped else 1) * groups  # clamped, noise of two sizes
        passes = 1 if recipe.evaluation is None else passes_of_sampler(recipe.evaluation, spec)
        each = runs * recipe.allocation.sensitivity_samples * steps_of(recipe) * passes
        rows.append((forwards("sensitivity", "importance", each, each * macs), "no"))
    if prune := recipe.prune:
        rows.append((both_ways("importance", "importance", groups * prune.samples, macs), "no"))
        forward, backward = search_samples(prune.search, prune.samples, prune.batch_size)
        for stage, searches in _searches(recipe.allocation).items():
            each = groups * searches
            measured = each * (forward + 2 * backward) * macs
            rows.append((LedgerRow(stage, "search", each * forward, measured, each * forward * macs), "no"))
    rows += _of_recoveries(recipe, macs, params)
    if tune := recipe.finetune:
        samples = _trained(recipe, tune) * tune.train.steps * tune.train.batch_size
        taught = macs if tune.distillation or (tune.variance == "distill" and predicts_variance(spec)) else 0
        spent = spent_on_training("fine-tuning", samples, expert, params, tune.train.batch_size, taught)
        rows += [(row, tune.train.mixed_precision) for row in spent]
    if (evaluation := recipe.evaluation) and recipe.finetune:
        batches, batch_size = loss_draws(evaluation)
        each = batches * batch_size * groups
        rows.append((forwards("losses", "evaluation", 3 * each, each * (macs + 2 * expert)), "no"))
        if evaluation.pipeline is not None or spec.config.get("in_channels") in (
            1,
            3,
        ):  # others' latents are not sampled
            passes = evaluation.samples * len(evaluation.seeds) * steps_of(recipe) * passes_of_sampler(evaluation, spec)
            rows.append((forwards("sampling", "sampling", 2 * passes, passes * (macs + expert)), "no"))
    return rows


def _trained(recipe: ExpertsRecipe, tune: FinetuneOptions) -> int:
    """Number of timestep groups that are fine-tuned; at most, since which networks stay whole is not known yet."""
    groups = range(recipe.groups.number)
    named = groups if tune.groups is None else [group for group in groups if group in tune.groups]
    return min(len(named), 1) if recipe.has_specialist else len(named)


def _searches(options: AllocationOptions) -> dict[str, int]:
    """Searches of each timestep group, by stage."""
    if options.rule != "measured":
        return {"search": 1}
    return {"frontier": 1, **({"recovery": options.recoveries - 1} if options.recoveries else {}), "search": 1}


def _of_recoveries(recipe: ExpertsRecipe, macs: int, params: int) -> list[tuple[LedgerRow, str]]:
    """Passes of the short fine-tunings of networks from the smallest to the whole one, from which rule ``measured`` learns."""
    options, tune = recipe.allocation, (recipe.finetune or FinetuneOptions())
    if not options.recoveries:
        return []
    samples = recipe.groups.number * options.recoveries * options.recovery_steps * tune.train.batch_size
    mean = round((1 + options.frontier_floor) / 2 * macs)
    taught = macs if tune.distillation else 0
    spent = spent_on_training("recovery", samples, mean, params, tune.train.batch_size, taught)
    return [(row, tune.train.mixed_precision) for row in spent]


def steps_of(recipe: ExpertsRecipe) -> int:
    """Evaluations of one sample; of a pipeline's own scheduler, which is not known here, one for each step."""
    sampler, steps = recipe.allocation.sampler, recipe.allocation.steps
    return steps if sampler == PIPELINE else len(evaluations(recipe.base.schedule, sampler, steps))


def passes_of_sampler(evaluation: EvaluationOptions, spec: ModelSpec) -> int:
    """Evaluations of a network for each sample and step, over all scales of guidance.

    There are two where a pipeline guides, which it does unless it is told not to.
    """
    if evaluation.pipeline is None:
        return 1
    scales = (evaluation.guidance_scale, *evaluation.other_guidance_scales)
    told = evaluation.pipeline_arguments.get("true_cfg_scale")
    if isinstance(told, int | float) and told > 1:
        return 2 * len(scales)
    distilled = bool(spec.config.get("guidance_embeds"))
    return sum(1 if distilled or (scale or 2) <= 1 else 2 for scale in scales)
