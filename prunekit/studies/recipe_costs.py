"""Estimates a recipe's cost before it runs: MACs by stage, memory of a train step, hours on a kind of GPU."""

from dataclasses import dataclass

from prunekit._json import JsonObject
from prunekit.checkpoint import ModelSpec
from prunekit.cost import StepCost, gpu_hours
from prunekit.ledger import LedgerRow, both_ways, forwards, spent_on_training
from prunekit.recipe import ExpertsRecipe, Recipe
from prunekit.search import proxy_samples
from prunekit.steps.bases import open_base
from prunekit.steps.budgets import evaluations
from prunekit.steps.sample_quality import loss_draws
from prunekit.training import TrainOptions

__all__ = ["Estimate", "Machine", "estimate"]


@dataclass(frozen=True)
class Machine:
    """The GPUs that a recipe will run on.

    Args:
        gpu: a kind of GPU, one of :data:`prunekit.cost.GPUS`.
        count: number of GPUs, which share a training's batch or the timestep groups.
        utilisation: reached share of the GPU's specified FLOP/s.
    """

    gpu: str = "A100"
    count: int = 1
    utilisation: float = 0.3


@dataclass(frozen=True, eq=False)
class Estimate:
    """The estimated cost of a recipe.

    Args:
        step: the base's MACs and activations.
        rows: passes by stage, with their precision.
        trainings: options by kind of training.
        machine: the GPUs to run on.
    """

    step: StepCost
    rows: list[tuple[LedgerRow, str]]
    trainings: dict[str, TrainOptions]
    machine: Machine

    def memory(self, training: str) -> dict[str, int]:
        """Bytes for a train step on one GPU, see :meth:`prunekit.cost.StepCost.memory`; an expert needs less than its base."""
        options = self.trainings[training]
        return self.step.memory(-(-options.batch_size // (self.machine.count * options.gradient_accumulation_steps)))

    def hours(self) -> dict[str, float]:
        """GPU hours of every stage, summed over all GPUs."""
        hours: dict[str, float] = {}
        for row, precision in self.rows:
            own = gpu_hours(row.macs, self.machine.gpu, precision, self.machine.utilisation)
            hours[row.stage] = hours.get(row.stage, 0.0) + own
        return hours

    def sentences(self) -> list[str]:
        """The figures in words: the network, the memory of each kind of training, and the hours."""
        count, machine, hours = self.step.count, self.machine, self.hours()
        said = [f"{count.macs / 1e9:.2f} GMACs per sample and evaluation, {count.params / 1e6:.1f} million parameters."]
        for name, options in self.trainings.items():
            parts, memory = options.gradient_accumulation_steps, self.memory(name)
            how = (f" in {parts} parts" if parts > 1 else "") + (
                f" on {machine.count} GPUs" if machine.count > 1 else ""
            )
            total, kept = memory["total"] / 2**30, memory["activations"] / 2**30
            what = f"A train step of {name}, {options.batch_size} images{how}"
            said.append(f"{what}: {total:.1f} GiB in float32, {kept:.1f} of them activations.")
        stages = ", ".join(f"{stage} {own:.1f}" for stage, own in hours.items()).replace("search", "search at most")
        share = f"{100 * machine.utilisation:.0f} %"
        said.append(f"{sum(hours.values()):.0f} {machine.gpu} hours at {share} of its stated FLOP/s: {stages}.")
        return said

    def to_json(self) -> JsonObject:
        """The base's counts as for ``prunekit cost``, and the estimates."""
        macs: dict[str, int] = {}
        for row, _ in self.rows:
            macs[row.stage] = macs.get(row.stage, 0) + row.macs
        return {
            **self.step.count.to_json(),
            "activations_per_sample": self.step.activations,
            "memory": {name: self.memory(name) for name in self.trainings},
            "stages": [
                {"stage": stage, "macs": macs[stage], "gpu_hours": hours} for stage, hours in self.hours().items()
            ],
            "machine": vars(self.machine),
        }


def estimate(recipe: Recipe, machine: Machine | None = None, spec: ModelSpec | None = None) -> Estimate:
    """Count the work of a recipe's stages, without its images.

    For searches the count is an upper bound: every round measures the whole short list. Experts are assumed to meet the budget
    exactly.

    Args:
        recipe: a recipe that makes experts or a base.
        machine: the GPUs to run on.
        spec: the network, if the recipe names a checkpoint that is not available.

    Raises:
        InputError: the machine's values are out of range.
        MissingFileError: there is no such checkpoint.
    """
    base = recipe.base
    if spec is None:
        spec = base.spec() if base.checkpoint is None else open_base(base.checkpoint, asked=base.asked).spec
        spec.check_size()
    step = StepCost.of(spec.build, spec.example_inputs)
    macs, params, trainings = step.count.macs, step.count.params, dict[str, TrainOptions]()
    rows: list[tuple[LedgerRow, str]] = []
    if base.checkpoint is None:
        trainings["base"] = base.train
        samples = base.train.steps * base.train.batch_size
        spent = spent_on_training("base", samples, macs, params, base.train.batch_size)
        rows += [(row, base.train.mixed_precision) for row in spent]
    if isinstance(recipe, ExpertsRecipe):
        if recipe.finetune:
            trainings["fine-tuning"] = recipe.finetune.train
        rows += _of_experts(recipe, macs, params, spec)
    return Estimate(step, rows, trainings, machine or Machine())


def _of_experts(recipe: ExpertsRecipe, macs: int, params: int, spec: ModelSpec) -> list[tuple[LedgerRow, str]]:
    """Passes of all stages from scoring to evaluation."""
    groups = recipe.groups.number
    expert, rows = round(recipe.allocation.budget * macs), list[tuple[LedgerRow, str]]()
    if prune := recipe.prune:
        rows.append((both_ways("importance", "importance", groups * prune.samples, macs), "no"))
        forward, backward = proxy_samples(prune.search.proxy, prune.samples, prune.batch_size)
        candidates = groups * prune.search.rounds * prune.search.shortlist
        measured = candidates * (forward + 2 * backward) * macs
        rows.append((LedgerRow("search", "search", candidates * forward, measured, candidates * forward * macs), "no"))
    if tune := recipe.finetune:
        samples, taught = groups * tune.train.steps * tune.train.batch_size, macs if tune.distillation else 0
        spent = spent_on_training("fine-tuning", samples, expert, params, tune.train.batch_size, taught)
        rows += [(row, tune.train.mixed_precision) for row in spent]
    if (evaluation := recipe.evaluation) and recipe.finetune:
        batches, batch_size = loss_draws(evaluation)
        each = batches * batch_size * groups
        rows.append((forwards("losses", "evaluation", 3 * each, each * (macs + 2 * expert)), "no"))
        if spec.config.get("in_channels") in (1, 3):  # latents are not sampled
            schedule = recipe.base.schedule
            steps = len(evaluations(schedule, recipe.allocation.sampler, recipe.allocation.steps))
            images = evaluation.samples * len(evaluation.seeds) * steps
            rows.append((forwards("sampling", "sampling", 2 * images, images * (macs + expert)), "no"))
    return rows
