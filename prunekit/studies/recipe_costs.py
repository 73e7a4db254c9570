"""Estimates a recipe's cost before it runs: MACs by stage, memory of a train step, hours on a kind of GPU or on this machine."""

from dataclasses import dataclass
from pathlib import Path

from prunekit._json import JsonObject
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.shaped_inputs import at_shapes
from prunekit.cost import StepCost
from prunekit.data import load_images
from prunekit.data.encoded import HEAD
from prunekit.importance import branch_passes
from prunekit.ledger import LedgerRow, spent_on_training
from prunekit.recipe import (
    CurriculumRecipe,
    EvidenceRecipe,
    ExpertsRecipe,
    MultistageRecipe,
    Recipe,
)
from prunekit.steps.bases import open_base
from prunekit.steps.data_shapes import at_shapes_of
from prunekit.studies.expert_costs import passes_of_experts
from prunekit.studies.machines import Gpus, Machine, count_said, size_said
from prunekit.studies.study_costs import (
    base_macs,
    names_of_trainings,
    passes_of_entries,
    passes_of_trainings,
    sampled_in_entries,
)
from prunekit.training import TrainOptions

__all__ = ["Estimate", "estimate", "work_by_stage"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """The estimated cost of a recipe.

    Args:
        spec: the base's network.
        step: the base's MACs and activations.
        rows: passes by stage, with their precision.
        trainings: options by kind of training.
        machine: where it will run.
        notes: what is not counted, in sentences.
    """

    spec: ModelSpec
    step: StepCost
    rows: list[tuple[LedgerRow, str]]
    trainings: dict[str, TrainOptions]
    machine: Machine
    notes: tuple[str, ...] = ()

    def memory(self, training: str) -> dict[str, int]:
        """Bytes for a train step on one GPU, see :meth:`prunekit.cost.StepCost.memory`; an expert needs less than its base."""
        options = self.trainings[training]
        batch = -(-options.batch_size // (self.machine.count * options.gradient_accumulation_steps))
        return self.step.memory(batch, options.gradient_checkpointing, options.use_8bit_adam)

    def hours(self) -> dict[str, float]:
        """Hours of every stage, summed over all GPUs."""
        hours: dict[str, float] = {}
        for row, precision in self.rows:
            hours[row.stage] = hours.get(row.stage, 0.0) + self.machine.hours(row.macs, precision)
        return hours

    def sentences(self) -> list[str]:
        """The figures in words: the network, the memory of each kind of training, and the hours."""
        count, machine, hours = self.step.count, self.machine, self.hours()
        said = [f"{count_said(count.macs)}MACs per sample and evaluation, {count.params / 1e6:.3g} million parameters."]
        for name, options in self.trainings.items():
            parts, memory = options.gradient_accumulation_steps, self.memory(name)
            how = (f" in {parts} parts" if parts > 1 else "") + (
                f" on {machine.count} GPUs" if machine.count > 1 else ""
            )
            how += " with gradient checkpointing" if options.gradient_checkpointing else ""
            how += " and 8-bit AdamW" if options.use_8bit_adam else ""
            what = f"A train step of {name}, {options.batch_size} images{how}"
            said.append(
                f"{what}: {size_said(memory['total'])} in float32, {size_said(memory['activations'])} of them activations."
            )
        said.append(machine.said({stage.replace("search", "search at most"): own for stage, own in hours.items()}))
        return [*said, *self.notes]

    def to_json(self) -> JsonObject:
        """The base's counts as for ``prunekit cost``, and the estimates."""
        macs: dict[str, int] = {}
        for row, _ in self.rows:
            macs[row.stage] = macs.get(row.stage, 0) + row.macs
        return {
            **self.step.count.to_json(),
            "activations_per_sample": self.step.activations,
            "memory": {name: self.memory(name) for name in self.trainings},
            "stages": [{"stage": stage, "macs": macs[stage], "hours": hours} for stage, hours in self.hours().items()],
            "machine": self.machine.to_json(),
        }


def estimate(recipe: Recipe, machine: Machine | None = None, spec: ModelSpec | None = None) -> Estimate:
    """Count the work of a recipe's stages, without its images.

    For searches the count is an upper bound: every round measures the whole short list. Experts are assumed to meet the budget
    exactly.

    Args:
        recipe: a recipe that makes experts or a base.
        machine: where it will run; one A100 if absent.
        spec: the network, if the recipe names a checkpoint that is not available.

    Raises:
        InputError: the machine's values are out of range.
        MissingFileError: there is no such checkpoint.
    """
    base, rows, trainings = recipe.base, list[tuple[LedgerRow, str]](), dict[str, TrainOptions]()
    spec, step = _network(recipe, spec)
    macs, params = step.count.macs, step.count.params
    if isinstance(recipe, CurriculumRecipe | MultistageRecipe):
        rows = passes_of_trainings(recipe, macs, params)
        return Estimate(spec, step, rows, {"each network": base.train}, machine or Gpus())
    if base.checkpoint is None:
        trainings["base"] = base.train
        samples = base.train.steps * base.train.batch_size
        spent = spent_on_training("base", samples, macs, params, base.train.batch_size)
        rows += [(row, base.train.mixed_precision) for row in spent]
    if isinstance(recipe, ExpertsRecipe):
        if recipe.finetune:
            trainings["fine-tuning"] = recipe.finetune.train
        rows += (
            passes_of_entries(recipe, macs, spec)
            if isinstance(recipe, EvidenceRecipe)
            else passes_of_experts(recipe, macs, params, spec)
        )
    return Estimate(spec, step, rows, trainings, machine or Gpus(), _not_counted(recipe))


def _network(recipe: Recipe, spec: ModelSpec | None) -> tuple[ModelSpec, StepCost]:
    """The base's network and its costs at the shapes of the recipe's data."""
    base = recipe.base
    if spec is None:
        spec = base.spec() if base.checkpoint is None else open_base(base.checkpoint, asked=base.asked).spec
        spec.check_size()
    spec = _at_data(spec, recipe)
    return spec, StepCost.of(spec.build, spec.example_inputs)


def _not_counted(recipe: Recipe) -> tuple[str, ...]:
    """What depends on the network's branches and blocks of channels, which only a trace tells."""
    prune = recipe.prune if isinstance(recipe, ExpertsRecipe) else None
    if prune is None:
        return ()
    draws = branch_passes(prune.criterion, prune.samples)
    parts = ["block of channels"] if prune.criterion == "proxy" else []
    parts += ["residual branch"] if prune.shrink != "width" and draws else []
    if not parts:
        return ()
    each = " and for each ".join(parts)
    return (f"Not counted: scoring takes another {draws} forward passes per timestep group for each {each}.",)


def _at_data(spec: ModelSpec, recipe: Recipe) -> ModelSpec:
    """The network at the shapes of the recipe's encoded images; at those that it states if the images are not there."""
    source = Path(recipe.data.source).expanduser()
    if (source / HEAD).is_file():
        return at_shapes_of(spec, load_images(source, recipe.data.resolution, recipe.data.labels).train)
    return at_shapes(spec, recipe.data.shapes or {})


def work_by_stage(recipe: Recipe) -> dict[str, float]:
    """Work of every stage of a run by the stages' names: MACs, or for comparisons of trainings one for each training."""
    match recipe:
        case EvidenceRecipe():
            return _work_of_evidence(recipe)
        case CurriculumRecipe() | MultistageRecipe():
            return dict.fromkeys(names_of_trainings(recipe), 1.0)
        case ExpertsRecipe():
            return _work_of_experts(recipe)
    return {}


def _work_of_evidence(recipe: EvidenceRecipe) -> dict[str, float]:
    """MACs of the base's training, and of each entry's training and samples."""
    options = recipe.evidence
    spec, step = _network(recipe, None)
    macs, images = step.count.macs, sampled_in_entries(recipe, spec)
    base = float(base_macs(recipe, macs))
    work = {"base: base": base if recipe.base.checkpoint is None else 0.0, "base": float(images * macs)}
    for name in options.entries:
        each = options.training * base + images * macs
        work |= {f"{name}, seed {seed}": each for seed in options.seeds_of(name)}
    return work


def _work_of_experts(recipe: ExpertsRecipe) -> dict[str, float]:
    """MACs of every stage."""
    found: dict[str, float] = {}
    groups = range(recipe.groups.number)
    for row, _ in estimate(recipe).rows:
        match row.stage:
            case "search" | "fine-tuning" | "frontier" | "recovery":
                kind = {"search": "prune", "fine-tuning": "finetune"}.get(row.stage, row.stage)
                names = [f"{kind} group {index}" for index in groups]
            case "losses" | "sampling":
                names = ["evaluate"]
            case _:
                names = [row.stage]
        for name in names:
            found[name] = found.get(name, 0.0) + row.macs / len(names)
    return found
