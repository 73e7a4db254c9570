"""Estimates a recipe's cost before it runs: MACs by stage, memory of a train step, hours on a kind of GPU or on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prunekit._json import JsonObject
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.shaped_inputs import at_shapes
from prunekit.cost import MacCount, StepCost, gpu_hours, train_step_rate
from prunekit.data import load_images
from prunekit.data.encoded import HEAD
from prunekit.importance import branch_passes
from prunekit.ledger import LedgerRow, both_ways, forwards, spent_on_training
from prunekit.recipe import (
    AllocationOptions,
    CurriculumRecipe,
    EvaluationOptions,
    EvidenceRecipe,
    ExpertsRecipe,
    FinetuneOptions,
    MultistageRecipe,
    Recipe,
)
from prunekit.sampling import PIPELINE
from prunekit.search import search_samples
from prunekit.steps.bases import open_base
from prunekit.steps.budgets import evaluations
from prunekit.steps.data_shapes import at_shapes_of
from prunekit.steps.objectives import predicts_variance
from prunekit.steps.sample_quality import loss_draws
from prunekit.steps.spending import base_training
from prunekit.studies.multistage_study import trainings_of
from prunekit.training import TrainOptions

__all__ = ["Estimate", "Gpus", "Machine", "ThisMachine", "estimate", "this_machine", "work_by_stage"]

_MEASURED_MACS = 5e9  # of a timed step: a second or so on a processor
_LARGEST = 300_000_000  # parameters of the largest network that is trained to measure a rate


class Machine(Protocol):
    """Where a recipe will run."""

    @property
    def count(self) -> int:
        """Number of devices, which share a training's batch or the timestep groups."""
        ...

    def hours(self, macs: int, precision: str) -> float:
        """Hours for some MACs, summed over all devices; ``precision`` is ``no`` for float32, ``bf16`` or ``fp16``."""
        ...

    def said(self, hours: Mapping[str, float]) -> str:
        """The hours of every stage as a sentence, with where and how fast."""
        ...

    def to_json(self) -> JsonObject:
        """The machine's fields."""
        ...


_TIMES = ((24 * 365.25, "years"), (48, "days"), (1, "h"), (1 / 60, "min"))  # from so many hours on
_HOURS = {"years": 24 * 365.25, "days": 24.0, "h": 1.0, "min": 1 / 60}


def _time(hours: float) -> str:
    """Hours in the unit that suits them."""
    unit = next((unit for least, unit in _TIMES if hours >= least), None)
    return f"{hours * 3600:.2g} s" if unit is None else f"{hours / _HOURS[unit]:.3g} {unit}"


def _size(count: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _count(number: float) -> str:
    """A large number with its prefix: ``39.7 G``; the unit follows without a space."""
    prefix, scale = next(((p, s) for p, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= s), ("", 1.0))
    return f"{number / scale:.3g} {prefix}"


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind.

    Args:
        gpu: a kind of GPU, one of :data:`prunekit.cost.GPUS`.
        count: number of GPUs, which share a training's batch or the timestep groups.
        utilisation: reached share of the GPU's specified FLOP/s.
    """

    gpu: str = "A100"
    count: int = 1
    utilisation: float = 0.3

    def hours(self, macs: int, precision: str) -> float:
        """See :class:`Machine`.

        Raises:
            InputError: the GPU is not listed, or the share is invalid.
        """
        return gpu_hours(macs, self.gpu, precision, self.utilisation)

    def said(self, hours: Mapping[str, float]) -> str:
        """See :class:`Machine`."""
        stages = ", ".join(f"{stage} {_time(own)}" for stage, own in hours.items())
        share = f"{100 * self.utilisation:.0f} %"
        return f"{_time(sum(hours.values()))} of one {self.gpu} at {share} of its stated FLOP/s: {stages}."

    def to_json(self) -> JsonObject:
        """See :class:`Machine`."""
        return dict(vars(self))


@dataclass(frozen=True)
class ThisMachine:
    """The machine that the estimate is made on.

    Args:
        rate: MACs per second that it reached in train steps of the recipe's base.
    """

    rate: float
    count: int = 1

    def hours(self, macs: int, precision: str) -> float:
        """See :class:`Machine`; every precision takes as long as float32."""
        return macs / self.rate / 3600

    def said(self, hours: Mapping[str, float]) -> str:
        """See :class:`Machine`."""
        stages = ", ".join(f"{stage} {_time(own)}" for stage, own in hours.items())
        rate = f"{self.rate / 1e9:.3g} GMAC/s in a train step of the base"
        return f"About {_time(sum(hours.values()))} on this machine, which reaches {rate}: {stages}."

    def to_json(self) -> JsonObject:
        """See :class:`Machine`."""
        return {"macs_per_second": self.rate}


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
        said = [f"{_count(count.macs)}MACs per sample and evaluation, {count.params / 1e6:.3g} million parameters."]
        for name, options in self.trainings.items():
            parts, memory = options.gradient_accumulation_steps, self.memory(name)
            how = (f" in {parts} parts" if parts > 1 else "") + (
                f" on {machine.count} GPUs" if machine.count > 1 else ""
            )
            how += " with gradient checkpointing" if options.gradient_checkpointing else ""
            how += " and 8-bit AdamW" if options.use_8bit_adam else ""
            what = f"A train step of {name}, {options.batch_size} images{how}"
            said.append(
                f"{what}: {_size(memory['total'])} in float32, {_size(memory['activations'])} of them activations."
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
    base = recipe.base
    if spec is None:
        spec = base.spec() if base.checkpoint is None else open_base(base.checkpoint, asked=base.asked).spec
        spec.check_size()
    spec = _at_data(spec, recipe)
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
    return Estimate(spec, step, rows, trainings, machine or Gpus(), _not_counted(recipe))


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
        case CurriculumRecipe():
            options = recipe.curriculum
            entries = options.settings(recipe.base.train)
            return {f"{entry}, seed {seed}": 1.0 for entry in entries for seed in options.seeds}
        case MultistageRecipe():
            return dict.fromkeys(trainings_of(recipe.multistage), 1.0)
        case ExpertsRecipe():
            return _work_of_experts(recipe)
    return {}


def _work_of_evidence(recipe: EvidenceRecipe) -> dict[str, float]:
    """MACs of the base's training, and of each entry's training and samples."""
    found, options = estimate(recipe), recipe.evidence
    macs = found.step.count.macs
    base = float(sum(row.macs for row, _ in found.rows))
    if recipe.base.checkpoint is not None:
        training = base_training(recipe.base.checkpoint, open_base(recipe.base.checkpoint), macs, ())
        base = 0.0 if training is None else float(training.macs)
    images = recipe.evaluation.samples * recipe.allocation.steps * _passes(recipe.evaluation, found.spec)
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


def this_machine(spec: ModelSpec, count: MacCount) -> ThisMachine | None:
    """This machine, with a rate measured in a few train steps of a network; None for one that is too large for that.

    Args:
        spec: the network.
        count: its MACs and parameters.
    """
    if count.params > _LARGEST:
        return None
    batch_size = max(1, min(64, int(_MEASURED_MACS / (3 * count.macs))))
    return ThisMachine(train_step_rate(spec.build(), spec.example_inputs(), count.macs, batch_size))


def _of_experts(recipe: ExpertsRecipe, macs: int, params: int, spec: ModelSpec) -> list[tuple[LedgerRow, str]]:
    """Passes of all stages from scoring to evaluation."""
    groups = recipe.groups.number
    expert, rows = round(recipe.allocation.budget * macs), list[tuple[LedgerRow, str]]()
    if recipe.allocation.sensitivity:
        runs = 1 + (2 if recipe.allocation.sensitivity_clamped else 1) * groups  # clamped, noise of two sizes
        passes = 1 if recipe.evaluation is None else _passes(recipe.evaluation, spec)
        each = runs * recipe.allocation.sensitivity_samples * _steps(recipe) * passes
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
        samples = groups * tune.train.steps * tune.train.batch_size
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
            passes = evaluation.samples * len(evaluation.seeds) * _steps(recipe) * _passes(evaluation, spec)
            rows.append((forwards("sampling", "sampling", 2 * passes, passes * (macs + expert)), "no"))
    return rows


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


def _steps(recipe: ExpertsRecipe) -> int:
    """Evaluations of one sample; of a pipeline's own scheduler, which is not known here, one for each step."""
    sampler, steps = recipe.allocation.sampler, recipe.allocation.steps
    return steps if sampler == PIPELINE else len(evaluations(recipe.base.schedule, sampler, steps))


def _passes(evaluation: EvaluationOptions, spec: ModelSpec) -> int:
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
