"""The passes that a comparison takes: of trainings and the looks at them, or of entries beside their base."""

from prunekit.checkpoint import ModelSpec
from prunekit.ledger import LedgerRow, both_ways, forwards, spent_on_training
from prunekit.recipe import CurriculumRecipe, EvidenceRecipe, MultistageRecipe
from prunekit.steps.bases import open_base
from prunekit.steps.budgets import evaluations
from prunekit.steps.sample_quality import loss_draws
from prunekit.steps.spending import base_training
from prunekit.studies.expert_costs import passes_of_sampler, steps_of
from prunekit.studies.multistage_study import trainings_of

__all__ = ["base_macs", "names_of_trainings", "passes_of_entries", "passes_of_trainings", "sampled_in_entries"]


def names_of_trainings(recipe: CurriculumRecipe | MultistageRecipe) -> list[str]:
    """The stages that train a network, of which each takes about the same."""
    if isinstance(recipe, MultistageRecipe):
        return trainings_of(recipe.multistage)
    options = recipe.curriculum
    return [f"{entry}, seed {seed}" for entry in options.settings(recipe.base.train) for seed in options.seeds]


def passes_of_trainings(
    recipe: CurriculumRecipe | MultistageRecipe, macs: int, params: int
) -> list[tuple[LedgerRow, str]]:
    """Passes of all trainings, and of the losses and samples at every look, as if every network had the base's MACs.

    Args:
        recipe: the comparison.
        macs: MACs per sample of the base's network.
        params: its parameters.
    """
    train, evaluation, count = recipe.base.train, recipe.evaluation, len(names_of_trainings(recipe))
    options = recipe.multistage if isinstance(recipe, MultistageRecipe) else recipe.curriculum
    samples = count * train.steps * train.batch_size
    rows = [
        (row, train.mixed_precision) for row in spent_on_training("trainings", samples, macs, params, train.batch_size)
    ]
    batches, batch_size = loss_draws(evaluation)
    groups = 1 + (len(recipe.multistage.widths) if isinstance(recipe, MultistageRecipe) else 0)
    losses = count * options.looks * groups * batches * batch_size
    steps = len(evaluations(recipe.base.schedule, options.sampler, options.sampling_steps))
    images = count * options.looks * evaluation.samples * len(evaluation.seeds) * steps
    rows.append((forwards("losses", "evaluation", losses, losses * macs), "no"))
    rows.append((forwards("sampling", "sampling", images, images * macs), "no"))
    if isinstance(recipe, MultistageRecipe) and (checked := _checks(recipe)):
        rows.append((forwards("early stops", "training", checked, checked * macs), "no"))
    return rows


def _checks(recipe: MultistageRecipe) -> int:
    """Samples on which early stops measure losses, if nothing is stopped."""
    stop, stages = recipe.multistage.early_stop, len(recipe.multistage.widths)
    if stop is None:
        return 0
    alone = recipe.base.train.steps // stages // stop.every  # of each separate network, which has one stage
    together = recipe.base.train.steps // stop.every
    names = [name.partition(",")[0] for name in names_of_trainings(recipe)]
    checks = {"unified": 0, "separate": alone * stages, "equal": together * stages, "tailored": together * stages}
    return sum(checks[name] for name in names) * recipe.evaluation.loss_samples


def base_macs(recipe: EvidenceRecipe, macs: int) -> int:
    """MACs of the training of a comparison's base; 0 if they are not known."""
    base = recipe.base
    if base.checkpoint is None:
        return both_ways("base", "training", base.train.steps * base.train.batch_size, macs).macs
    known = base_training(base.checkpoint, open_base(base.checkpoint), macs, ())
    return 0 if known is None else int(known.macs)


def sampled_in_entries(recipe: EvidenceRecipe, spec: ModelSpec) -> int:
    """Evaluations of a network for the images of one entry."""
    return recipe.evaluation.samples * steps_of(recipe) * passes_of_sampler(recipe.evaluation, spec)


def passes_of_entries(recipe: EvidenceRecipe, macs: int, spec: ModelSpec) -> list[tuple[LedgerRow, str]]:
    """Passes of all entries, search and fine-tuning together, and of the base's and their losses and samples.

    Args:
        recipe: the comparison.
        macs: MACs per sample of the base.
        spec: the base's network.
    """
    options, trained = recipe.evidence, base_macs(recipe, macs)
    entries = [name for name in options.entries for _ in options.seeds_of(name)]
    scratch = sum(not recipe.entry(name).needs_base for name in entries)
    making = round(options.training * trained) * len(entries) + trained * scratch
    budgets = [recipe.entry(name).allocation.budget for name in entries]
    networks = macs * (1 + sum(budgets))  # MACs of one sample in all of them
    batches, batch_size = loss_draws(recipe.evaluation)
    losses, images = options.loss_groups * batches * batch_size, sampled_in_entries(recipe, spec)
    count = 1 + len(entries)
    precision = recipe.finetune.train.mixed_precision
    return [
        (LedgerRow("entries", "training", making // (3 * macs), making, making // 3), precision),
        (forwards("losses", "evaluation", count * losses, round(losses * networks)), "no"),
        (forwards("sampling", "sampling", count * images, round(images * networks)), "no"),
    ]
