"""A recipe as a resumable run: a finished stage is kept, and runs again only when its inputs change."""

from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from prunekit import nets
from prunekit._files import json_hash, sha256_file, write_json
from prunekit._missing import EMBEDDED
from prunekit.allocation import shared_steps
from prunekit.errors import FileFormatError
from prunekit.ledger import LedgerRow, spent_on_training
from prunekit.recipe import (
    AllocationOptions,
    EvaluationOptions,
    ExpertsRecipe,
    FinetuneOptions,
    PruneOptions,
)
from prunekit.results.expert_results import Assembled, BaseResult, Expert
from prunekit.results.model import plain
from prunekit.results.predicted_time import PredictedTime
from prunekit.results.reading_manifests import read_manifest
from prunekit.results.stage_files import StageFacts
from prunekit.runs.based_run import parameters_of, spent
from prunekit.runs.manifest import manifest_of, write_manifest
from prunekit.runs.planned_run import PlannedRun
from prunekit.runs.resumable import Stage
from prunekit.slim import load_slim, save_slim
from prunekit.steps.assembling import assemble
from prunekit.steps.bases import scheduler_file
from prunekit.steps.budgets import evaluations
from prunekit.steps.cutting import check_budget
from prunekit.steps.finetuning import finetune_slim, needs_teacher
from prunekit.steps.sample_quality import check_extractor, judges, measure_all, save_images
from prunekit.steps.spending import base_training, spent_on_losses, spent_on_sampling
from prunekit.training.tracking import open_tracking

__all__ = ["Run"]

Last = Literal["prune", "assemble", "evaluate"]
_CHECKPOINT_SUFFIXES = (".json", ".safetensors", ".bin")  # of the files that are read in a diffusers folder


class Run(PlannedRun):
    """A recipe that makes timestep experts from a base, in one folder. Arguments are those of :class:`PlannedRun`."""

    def execute(self) -> Path:
        """Run every stage that the recipe has a section for; returns the manifest's path."""
        manifest = self.make_all()
        self._write_report(read_manifest(self.folder))
        return manifest

    def make_all(self, last: Last = "evaluate") -> Path:
        """:meth:`execute` without a report, for a run that is part of another run.

        Args:
            last: the kind of stage to end with. Sections for later stages still say how recoveries are trained and how a
                sensitivity is sampled.
        """
        recipe = self.recipe
        check_extractor(self.images, recipe.evaluation)
        if isinstance(recipe, ExpertsRecipe):
            check_budget(recipe)  # before the base is trained
        inputs: dict[str, object] = {"base": recipe.base, "data": recipe.data, "images": self._data_hash()}
        if recipe.base.checkpoint is not None and not recipe.base.checkpoint.startswith(EMBEDDED):
            inputs["checkpoint"] = _files_hash(Path(recipe.base.checkpoint).expanduser())
        if self.pipeline is not None and scheduler_file(self.pipeline).is_file():
            inputs["scheduler"] = sha256_file(scheduler_file(self.pipeline))
        self._stage("base", inputs, ["base.pt"], self._base, extras=["base.safetensors"])
        if isinstance(recipe, ExpertsRecipe):
            self._experts(recipe, last)
        return self._manifest()

    def _experts(self, recipe: ExpertsRecipe, last: Last) -> None:
        """Run the stages after the base for which the recipe has sections."""
        self._plan(recipe)
        if recipe.prune is not None:
            if "importance" not in self.planned:
                self._score(recipe.prune)
            self._specialists(recipe, recipe.prune, last)

    def _specialists(self, recipe: ExpertsRecipe, options: PruneOptions, last: Last) -> None:
        """Prune and fine-tune every group, then assemble the experts and measure them."""
        tune = None if last == "prune" else recipe.finetune
        self._apart({f"group {group.index}": self._specialist(group.index, options, tune) for group in self.groups})
        if tune is None:
            return
        self._stage(
            "assemble", {}, ["experts"], self._assemble, [f"finetune group {group.index}" for group in self.groups]
        )
        if recipe.evaluation and last == "evaluate":
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
        rows = self._searching(f"search, group {index}", options, result, slim)
        return StageFacts.joined(spent(*rows), expert=expert)

    def _finetune(self, index: int, options: FinetuneOptions) -> StageFacts:
        name = f"group-{index}"
        slim = load_slim(self.folder / "pruned" / name)
        if self.leaves(options, index, slim.is_whole):
            save_slim(slim, self.folder / "slim" / name)
            return StageFacts()
        if options.share_steps:
            options = options.with_steps(self._steps(options)[index])
        teacher = self.bench if needs_teacher(slim, options) else None
        with self._tracked(f"group {index}", options.train_of(index)) as told:
            tuned, result = finetune_slim(slim, self.images.train, options, self._checkpoints(name), told, teacher)
        save_slim(tuned, self.folder / "slim" / name)
        stage, batch_size = f"fine-tuning, group {index}", options.train.batch_size
        taught = 0 if teacher is None else self.bench.macs
        return spent(
            *spent_on_training(stage, result.samples, slim.macs, parameters_of(tuned.model), batch_size, taught)
        )

    def leaves(self, options: FinetuneOptions, index: int, whole: bool) -> bool:
        """Whether a timestep group's network is not trained, such as the base beside a specialist."""
        return options.leaves_group(index, whole) or (whole and self.has_specialist)

    def _steps(self, options: FinetuneOptions) -> tuple[int, ...]:
        """Train steps of every timestep group, shared by the allocation's sensitivity."""
        allocation = self.allocation
        macs = self.bench.macs
        trained = [not self.leaves(options, one.index, (one.target_macs or 0) >= macs) for one in allocation.groups]
        return shared_steps(allocation, options.train.steps, trained)

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
        costs = [spent_on_losses("evaluation", setting, by_group)]
        if results.metrics is None:
            return StageFacts.joined(spent(*costs), losses=results.losses)
        costs.append(spent_on_sampling("evaluation", setting, macs))
        return StageFacts.joined(spent(*costs), losses=results.losses, metrics=results.metrics)

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
        seed = base.provenance.get("seed")
        return write_manifest(self.folder, manifest_of(self.recipe, self.done, about, allocation, seed))


def _slim_files(folder: str) -> list[str]:
    """The files of a slim model's folder."""
    return [f"{folder}/{name}" for name in ("config.json", "model.safetensors", "README.md")]


def _files_hash(path: Path) -> str | None:
    """Hash of a checkpoint's file, or of the files in a diffusers folder; None if there is no file."""
    folders = [path / name for name in ("", "unet", "transformer", "scheduler")]  # a pipeline's folders that are read
    found = [file for folder in folders for file in folder.glob("*") if file.suffix in _CHECKPOINT_SUFFIXES]
    files = [file for file in (sorted(found) if path.is_dir() else [path]) if file.is_file()]  # skips pipes and devices
    return json_hash([[file.name, sha256_file(file)] for file in files]) if path.exists() else None
