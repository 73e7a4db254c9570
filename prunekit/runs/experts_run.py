"""A recipe as a resumable run: a finished stage is kept, and runs again only when its inputs change."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from prunekit import nets, report
from prunekit._files import json_hash, sha256_file, write_json
from prunekit._json import read_json
from prunekit._missing import EMBEDDED
from prunekit._names import name_of
from prunekit.allocation import Allocation, Sensitivity, read_frontier
from prunekit.checkpoint import Base, save_base
from prunekit.cost import count_macs
from prunekit.errors import FileFormatError
from prunekit.groups import TimestepGroups
from prunekit.importance import ImportanceMap
from prunekit.ledger import BASE_TRAINING, LedgerRow, both_ways, forwards, spent_on_training
from prunekit.recipe import (
    AllocationOptions,
    EvaluationOptions,
    ExpertsRecipe,
    FinetuneOptions,
    GroupOptions,
    PruneOptions,
    Recipe,
)
from prunekit.results.expert_results import Assembled, BaseResult, Expert
from prunekit.results.model import plain
from prunekit.results.predicted_time import PredictedTime
from prunekit.results.stage_files import StageFacts
from prunekit.runs.executors import Executor
from prunekit.runs.manifest import manifest_of, write_manifest
from prunekit.runs.observing import Observer
from prunekit.runs.resumable import ResumableRun, Stage
from prunekit.runs.run_folder import check_places, inside, own_or_elsewhere
from prunekit.search import DEFAULT_MULTIPLE, SearchResult, default_multiples, is_tiny
from prunekit.slim import SlimModel, load_slim, save_slim
from prunekit.steps.assembling import assemble
from prunekit.steps.bases import open_base, sampled_by, scheduler_file, train_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.budgets import evaluations, plan_budget
from prunekit.steps.cutting import method_of, spent_on_grouping
from prunekit.steps.data_shapes import as_encoded
from prunekit.steps.finetuning import finetune_slim, needs_teacher
from prunekit.steps.image_choice import check_images, is_by_place
from prunekit.steps.measuring_sensitivity import measured_in_a_run, passes_of, sampled_as, write_sensitivity
from prunekit.steps.placing import placed
from prunekit.steps.reach import Reach
from prunekit.steps.sample_quality import check_extractor, judges, measure_all, save_images
from prunekit.steps.setting import Setting
from prunekit.steps.spending import base_training, spent_on_losses, spent_on_sampling, spent_on_search
from prunekit.training import Tally
from prunekit.training.tracking import open_tracking

__all__ = ["Run"]

_CHECKPOINT_SUFFIXES = (".json", ".safetensors", ".bin")  # of the files that are read in a diffusers folder


class Run(ResumableRun):
    """A recipe that makes timestep experts from a base, in one folder.

    Args:
        recipe: see :class:`ResumableRun`, also for ``folder``, ``observer``, ``executor`` and ``peers``.
        home: folder for files that the recipe names; several runs may share it. The run's own folder if missing.
        pipeline: folder of the pipeline that samples; the one that the recipe's evaluation names if missing.

    Raises:
        InputError: see :class:`ResumableRun`; or the recipe wants a file written outside ``home``.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        observer: Observer | None = None,
        executor: Executor | None = None,
        peers: Sequence[Path] = (),
        home: Path | None = None,
        pipeline: str | None = None,
    ) -> None:
        super().__init__(recipe, folder, observer, executor, peers)
        self.home = folder if home is None else home
        self.pipeline = recipe.evaluation.pipeline if pipeline is None and recipe.evaluation else pipeline
        if recipe.prune is not None:
            check_places(recipe.prune, self.home)

    def execute(self) -> Path:
        """Run every stage that the recipe has a section for; returns the manifest's path."""
        manifest = self.make_all()
        if "importance" in self.done:
            self.observer.stage("report", False)
            report.write_report(self.folder)
        return manifest

    def make_all(self) -> Path:
        """:meth:`execute` without a report, for a run that is part of another run."""
        recipe = self.recipe
        check_extractor(self.images, recipe.evaluation)
        inputs: dict[str, object] = {"base": recipe.base, "data": recipe.data, "images": self._data_hash()}
        if recipe.base.checkpoint is not None and not recipe.base.checkpoint.startswith(EMBEDDED):
            inputs["checkpoint"] = _files_hash(Path(recipe.base.checkpoint).expanduser())
        if self.pipeline is not None and scheduler_file(self.pipeline).is_file():
            inputs["scheduler"] = sha256_file(scheduler_file(self.pipeline))
        self._stage("base", inputs, ["base.pt"], self._base, extras=["base.safetensors"])
        if isinstance(recipe, ExpertsRecipe):
            self._experts(recipe)
        return self._manifest()

    def _experts(self, recipe: ExpertsRecipe) -> None:
        """Run the stages after the base for which the recipe has sections."""
        prune, allocation, evidence = recipe.prune, recipe.allocation, list[str]()
        action = partial(self._groups, recipe.groups, allocation)
        inputs: dict[str, object] = {"groups": recipe.groups}
        if recipe.groups.experts == "noisy":  # the border follows from the budget
            inputs["allocation"] = allocation
        self._stage("groups", inputs, ["groups.json"], action, "base", extras=["groups.png"])
        if allocation.sensitivity:
            evidence += self._sensitivity(allocation, recipe.evaluation)
        if prune is not None and allocation.rule == "measured":
            evidence += self._frontiers(prune, allocation.frontier_floor)
        action = partial(self._allocate, allocation)
        reach = {} if prune is None else {"reach": _reach_of(prune), **self._times}
        self._stage("allocate", {"allocation": allocation, **reach}, ["allocation.json"], action, ["groups", *evidence])
        if prune is not None:
            if "importance" not in self.planned:
                self._score(prune)
            self._specialists(recipe, prune)

    def _score(self, prune: PruneOptions) -> None:
        self._stage("importance", {"prune": prune}, ["importance.json"], partial(self._importance, prune), "groups")

    def _sensitivity(self, options: AllocationOptions, evaluation: EvaluationOptions | None) -> list[str]:
        """Measure what the sampler makes of an error in each group; returns the stage's name."""
        keys = ("sampler", "steps", "sensitivity_in", "sensitivity_samples", "sensitivity_size")
        asked = {key: getattr(options, key) for key in keys}
        inputs = {"asked": asked, "sampled": sampled_as(evaluation, options.sensitivity_in)}
        action = partial(self._measure_sensitivity, options, evaluation or EvaluationOptions())
        self._stage("sensitivity", inputs, ["sensitivity.json"], action, "groups", extras=["sensitivity.png"])
        return ["sensitivity"]

    def _frontiers(self, prune: PruneOptions, floor: float) -> list[str]:
        """Search every group down to the floor, before its target is known; returns the stages' names."""
        self._score(prune)
        inputs = {"frontier_floor": floor, **self._times, **self._widths}
        chains = {}
        for group in self.groups:
            i, name = group.index, f"frontier group {group.index}"
            action = partial(self._frontier, i, prune, floor)
            chains[f"group {i}"] = [self._planned(name, inputs, [_frontier_file(i)], action, "importance")]
        self._apart(chains)
        return [stage.name for chain in chains.values() for stage in chain]

    def _specialists(self, recipe: ExpertsRecipe, options: PruneOptions) -> None:
        """Prune and fine-tune every group, then assemble the experts and measure them."""
        tune = recipe.finetune
        self._apart({f"group {group.index}": self._specialist(group.index, options, tune) for group in self.groups})
        if tune is None:
            return
        last = [f"finetune group {group.index}" for group in self.groups]
        self._stage("assemble", {}, ["experts"], self._assemble, last)
        if recipe.evaluation:
            shown = not self.images.train.latent or recipe.evaluation.pipeline is not None
            samples = [] if not shown else ["samples/base.npz", "samples/experts.npz"]
            outputs = ["evaluation.json", *samples]
            action = partial(self._evaluate, recipe.allocation, recipe.evaluation)
            self._stage(
                "evaluate", {"evaluation": recipe.evaluation, **judges(recipe.evaluation)}, outputs, action, "assemble"
            )

    def _specialist(self, i: int, options: PruneOptions, finetune: FinetuneOptions | None) -> list[Stage]:
        """The stages that make one group's expert."""
        outputs = [*_slim_files(f"pruned/group-{i}"), f"search/group-{i}.jsonl"]
        prune = self._planned(
            f"prune group {i}",
            {**self._times, **self._widths},
            outputs,
            partial(self._prune, i, options),
            ("importance", "allocate"),
        )
        if finetune is None:
            return [prune]
        inputs, outputs = {"finetune": finetune}, _slim_files(f"slim/group-{i}")
        tune = partial(self._finetune, i, finetune)
        return [prune, self._planned(f"finetune group {i}", inputs, outputs, tune, prune.name)]

    @cached_property
    def base(self) -> Base:
        """The base; its stage must be done."""
        return open_base(str(self.folder / "base.pt"))

    @cached_property
    def bench(self) -> Bench:
        """The base with its channel groups and costs."""
        options = self.recipe.prune or PruneOptions()
        return Bench.of(self.base, options.norm_mode, options.head_mode, options.constraints, options.shrink)

    @cached_property
    def timed_bench(self) -> Bench:
        """The bench with the layer times that a target of latency needs."""
        if self._table is None:
            return self.bench
        path, own = self._table
        size = None if self.recipe.prune is None else self.recipe.prune.latency_batch_size
        return self.bench.timed(path, size) if own else self.bench.with_times(path, size)

    @cached_property
    def reach(self) -> Reach:
        """How far the base can be pruned by the recipe's options."""
        return Reach.of(self.timed_bench, self.recipe.prune or PruneOptions())

    @property
    def _table(self) -> tuple[Path, bool] | None:
        """The file of layer times that a target of latency needs, and whether it is the run's own."""
        options = self.recipe.prune
        if options is None or options.search.target_of != "latency" or options.latency_table is None:
            return None
        return own_or_elsewhere(self.home, options.latency_table, "latency_table")

    @cached_property
    def _times(self) -> dict[str, str]:
        """The hash of the layer times. Missing ones are measured now, before jobs run at the same time and slow each other down."""
        if self._table is None:
            return {}
        if not self._table[0].is_file():
            _ = self.timed_bench
        return {"times": sha256_file(self._table[0])}

    @cached_property
    def _widths(self) -> dict[str, int]:
        """The default multiple of the widths, if the recipe sets none and the default for this network is not 1."""
        options = self.recipe.prune
        if options is None or options.multiples is not None:
            return {}
        if is_tiny(ImportanceMap.load(self.folder / "importance.json").channels.values()):
            return {}  # checked first, so that a finished run need not trace the base
        held = any(group.multiple > 1 for group in default_multiples(self.bench.graph))
        return {"default_multiple": DEFAULT_MULTIPLE} if held else {}

    @property
    def groups(self) -> TimestepGroups:
        """The timestep groups; their stage must be done."""
        return TimestepGroups.from_json(read_json(self.folder / "groups.json"), self.folder / "groups.json")

    @property
    def allocation(self) -> Allocation:
        """The allocation; its stage must be done."""
        return Allocation.from_json(read_json(self.folder / "allocation.json"), self.folder / "allocation.json")

    def _as_sampled(self, base: Base) -> Base:
        """The base as its pipeline samples it, if there is one, and as the images were encoded."""
        return as_encoded(base if self.pipeline is None else sampled_by(base, self.pipeline), self.images.train)

    def _base(self) -> StageFacts:
        options, ledger = self.recipe.base, list[LedgerRow]()
        if options.checkpoint is not None:
            base = open_base(options.checkpoint, asked=options.asked)
            check_images(self.images, base.spec)
            unnamed = not base.data or (
                is_by_place(base.data) and name_of(base.data["source"]) == name_of(self.recipe.data.source)
            )
            if not options.checkpoint.startswith(EMBEDDED) and unnamed:
                base = replace(base, data=self.images.about(), sha256="", notes=())
            base = self._as_sampled(base)
        else:
            checkpoints = self._checkpoints("base")
            with self._tracked("base", options.train) as told:
                base, result = train_base(options, self.images, checkpoints, told)
            base = self._as_sampled(base)
            macs = count_macs(base.model, base.spec.example_inputs()).macs
            ledger = spent_on_training(
                BASE_TRAINING, result.samples, macs, _parameters(base.model), options.train.batch_size
            )
            save_base(base, self.folder / "base.safetensors")
        save_base(base, self.folder / "base.pt")
        self.__dict__.pop("base", None)
        self._drop_checkpoints("base")
        return _spent(*ledger)

    def _groups(self, options: GroupOptions, allocation: AllocationOptions) -> StageFacts:
        method = method_of(options, self.images.train, self.base, allocation)
        with placed(self.base.model):
            grouping = method(self.base.schedule, options.number)
        write_json(self.folder / "groups.json", grouping.to_json())
        if grouping.evidence.matrix is not None:
            report.grouping_png(grouping, self.folder / "groups.png")
        samples = spent_on_grouping(method, self.base.schedule)
        if not samples:
            return StageFacts()
        return _spent(both_ways("groups", "grouping", samples, self.bench.macs))

    def _allocate(self, options: AllocationOptions) -> StageFacts:
        measured = self.groups if options.rule == "measured" else ()
        frontiers = [read_frontier(self.folder / _frontier_file(group.index)) for group in measured]
        allocation = plan_budget(
            self.groups,
            self.base.schedule,
            options.budget,
            rule=options.rule,
            sampler=options.sampler,
            steps=options.steps,
            floor=options.floor,
            network_floor=0.0 if self.recipe.prune is None else self.reach.floor,
            frontiers=frontiers,
            sensitivity=self._weighed if options.sensitivity else None,
        ).for_model(self.bench.macs)
        if self.recipe.prune is not None:
            targets = {group.index: group.target_macs or 0 for group in allocation.groups}
            self.reach.check(targets, "choose a higher budget or another rule, or cut other groups")
        write_json(self.folder / "allocation.json", allocation.to_json())
        return StageFacts()

    @property
    def _weighed(self) -> Sensitivity:
        """The sensitivity; its stage must be done."""
        path = self.folder / "sensitivity.json"
        return Sensitivity.from_json(read_json(path), path)

    def _measure_sensitivity(self, options: AllocationOptions, evaluation: EvaluationOptions) -> StageFacts:
        macs = self.bench.macs  # traced before the base may be moved to a GPU
        setting = self._setting(options, evaluation)
        found = measured_in_a_run(self.base, setting)
        write_sensitivity(found, self.folder / "sensitivity.json")
        passes = passes_of(found, setting.sampler.passes)
        return _spent(forwards("sensitivity", "sampling", passes, passes * macs))

    def _setting(self, allocation: AllocationOptions, evaluation: EvaluationOptions) -> Setting:
        """How all models are sampled and measured: through the pipeline that the evaluation names, if it does."""
        base, through = self.base, None
        if evaluation.pipeline is not None:
            from prunekit.steps.sampling_pipeline import SamplingPipeline  # noqa: PLC0415 - it imports diffusers

            through = SamplingPipeline.asked_for(evaluation, self.images, allocation)
        return Setting(
            self.images, self.groups, base.parameterization, allocation, evaluation, base.spec, pipeline=through
        )

    def _importance(self, options: PruneOptions) -> StageFacts:
        tally = Tally()
        scores = score_groups(self.bench, self.images.train, self.groups, options, tally)
        write_json(self.folder / "importance.json", scores.to_json())
        return _spent(tally.row("importance", "importance", self.bench.macs))

    def _search(self, index: int, target: int, journal: str, options: PruneOptions) -> tuple[SlimModel, SearchResult]:
        """Prune a group to a target of MACs."""
        scores = ImportanceMap.load(self.folder / "importance.json")
        images, group = self.images.train, self.groups[index]
        if options.search.study is not None:
            study = str(inside(self.home, options.search.study, "study"))
            options = replace(options, search=replace(options.search, study=study))
        return prune_group(self.timed_bench, images, scores, group, target, options, self.folder / journal)

    def _frontier(self, index: int, options: PruneOptions, floor: float) -> StageFacts:
        target = max(int(floor * self.bench.macs), math.ceil(self.reach.floor * self.bench.macs))
        slim, result = self._search(index, target, _frontier_file(index), options)
        read_frontier(self.folder / _frontier_file(index))  # refuses a proposer that records no frontier
        return _spent(*spent_on_search(f"frontier, group {index}", options, result, slim, self.bench.macs))

    def _prune(self, index: int, options: PruneOptions) -> StageFacts:
        target = self.allocation.groups[index].target_macs
        if target is None:
            raise FileFormatError(
                f"{self.folder / 'allocation.json'} has no target_macs for group {index}; delete it, and the run makes it again."
            )
        slim, result = self._search(index, target, f"search/group-{index}.jsonl", options)
        save_slim(slim, self.folder / "pruned" / f"group-{index}")
        time = PredictedTime.from_provenance(slim.about["provenance"])
        expert = Expert.joined(
            group=index,
            target_macs=target if options.search.target_of == "macs" else None,
            macs=slim.macs,
            params=slim.params,
            widths={name: list(pair) for name, pair in result.widths.items()},
            **({} if time is None else {"time": time}),
            **({"removed": list(result.plan.removed)} if result.plan.removed else {}),
        )
        rows = spent_on_search(f"search, group {index}", options, result, slim, self.bench.macs)
        return StageFacts.joined(_spent(*rows), expert=expert)

    def _finetune(self, index: int, options: FinetuneOptions) -> StageFacts:
        name = f"group-{index}"
        slim = load_slim(self.folder / "pruned" / name)
        specialist = isinstance(self.recipe, ExpertsRecipe) and self.recipe.groups.experts == "noisy"
        if options.leaves(slim) or (specialist and slim.is_whole):
            save_slim(slim, self.folder / "slim" / name)
            return StageFacts()
        teacher = self.bench if needs_teacher(slim, options) else None
        with self._tracked(f"group {index}", options.train_of(index)) as told:
            tuned, result = finetune_slim(slim, self.images.train, options, self._checkpoints(name), told, teacher)
        save_slim(tuned, self.folder / "slim" / name)
        self._drop_checkpoints(name)
        stage, batch_size = f"fine-tuning, group {index}", options.train.batch_size
        taught = 0 if teacher is None else self.bench.macs
        return _spent(
            *spent_on_training(stage, result.samples, slim.macs, _parameters(tuned.model), batch_size, taught)
        )

    def _assemble(self) -> StageFacts:
        assemble(self.folder / "slim", self.folder / "experts", len(self.groups))
        experts, allocation = nets.load_experts(self.folder / "experts"), self.allocation
        steps = evaluations(self.base.schedule, allocation.sampler, allocation.sampler_steps)
        mean = experts.mean_macs(steps)
        assembled = Assembled(mean_macs=mean, mean_mac_ratio=mean / self.bench.macs, params=experts.stored_params)
        return StageFacts(assembled=assembled)

    def _evaluate(self, allocation: AllocationOptions, evaluation: EvaluationOptions) -> StageFacts:
        base = self.bench.base  # traced before it may be moved to a GPU
        experts = nets.load_experts(self.folder / "experts")
        pruned = nets.TimestepExperts(
            self.groups, [load_slim(self.folder / "pruned" / f"group-{g.index}") for g in self.groups]
        )
        setting = self._setting(allocation, evaluation)
        by_group = [[self.bench.macs] * len(self.groups), list(pruned.macs), list(experts.macs)]
        assembled = Assembled.of(self.done["assemble"].results.assembled, "The record of stage assemble")
        macs = {"base": float(self.bench.macs), "experts": assembled.mean_macs}

        def told(name: str, done: int, total: int) -> None:
            self.observer.progress("sampling", done, total, name)

        models: dict[str, nn.Module] = {"base": base.model, "pruned": pruned, "expert": experts}
        sampled: dict[str, nn.Module] = {"base": base.model, "experts": experts}
        if setting.pipeline is not None:
            setting.pipeline.fit(pruned, experts)
        results, grids = measure_all(setting, models, sampled, macs, told)
        if (tracked := self.recipe.tracking) is not None:
            tracking = open_tracking(tracked.report_to, f"{self.recipe.name}-samples", self.folder / "logs")
            for name, images in grids.items():
                tracking.images(name, images, 0)
            tracking.finish()
        for name, images in grids.items():
            save_images(images, self.folder / "samples" / f"{name}.npz")
        write_json(self.folder / "evaluation.json", results.to_json())
        spent = [spent_on_losses("evaluation", setting, by_group)]
        if results.metrics is None:
            return StageFacts.joined(_spent(*spent), losses=results.losses)
        spent.append(spent_on_sampling("evaluation", setting, macs))
        return StageFacts.joined(_spent(*spent), losses=results.losses, metrics=results.metrics)

    def _manifest(self) -> Path:
        """Write ``manifest.json`` from the stages' facts."""
        base, bench = self.base, self.bench
        about = BaseResult(
            macs=bench.macs,
            params=int(bench.cost.params(bench.graph.full_widths)),
            sha256=base.sha256,
            data=plain(base.data),
            noise_schedule=plain(base.schedule.to_config()),
            training=base_training(
                self.recipe.base.checkpoint, base, bench.macs, list(map(LedgerRow.from_json, self._ledger()))
            ),
        )
        allocation = self.allocation if "allocate" in self.done else None
        return write_manifest(self.folder, manifest_of(self.recipe, self.done, about, allocation))


def _spent(*rows: LedgerRow) -> StageFacts:
    """The ledger's rows as facts of a stage, without empty ones."""
    return StageFacts(ledger=[row.entry for row in rows if row.macs])


def _reach_of(options: PruneOptions) -> dict[str, object]:
    """The options that decide how far the base can be pruned."""
    names = ("norm_mode", "head_mode", "width_multiples", "floor")
    own = {"constraints": options.constraints.to_json(), "target_of": options.search.target_of}
    return {name: getattr(options, name) for name in names} | own


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _frontier_file(index: int) -> str:
    """Journal of the search that records a timestep group's frontier."""
    return f"frontier/group-{index}.jsonl"


def _slim_files(folder: str) -> list[str]:
    """The files of a slim model's folder."""
    return [f"{folder}/{name}" for name in ("config.json", "model.safetensors", "README.md")]


def _files_hash(path: Path) -> str | None:
    """Hash of a checkpoint's file, or of the files in a diffusers folder; None if there is no file."""
    folders = [path / name for name in ("", "unet", "transformer", "scheduler")]  # a pipeline's folders that are read
    found = [file for folder in folders for file in folder.glob("*") if file.suffix in _CHECKPOINT_SUFFIXES]
    files = [file for file in (sorted(found) if path.is_dir() else [path]) if file.is_file()]  # skips pipes and devices
    return json_hash([[file.name, sha256_file(file)] for file in files]) if path.exists() else None
