"""A recipe's experts compared with baselines and ablations at equal training MACs, as a resumable run.

Every entry is a run of its own in ``entries/<name>``: the recipe with a few keys changed. All entries start from the same base and
may spend the same MACs. An entry is fine-tuned, once for each seed, with the MACs that its search has left.
"""

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from prunekit._files import atomic_folder, atomic_path
from prunekit.checkpoint import Base, ModelSpec
from prunekit.cost import count_macs
from prunekit.errors import BudgetError, InputError
from prunekit.groups import make_groups
from prunekit.ledger import BASE_TRAINING, LedgerRow, making_macs
from prunekit.nets import TimestepExperts, load_experts
from prunekit.nets.experts_files import FOLDER as EXPERTS
from prunekit.recipe import (
    EntryRecipe,
    EvidenceOptions,
    EvidenceRecipe,
    FinetuneOptions,
    slug,
)
from prunekit.results.evidence_results import EvidenceManifest, EvidenceRow
from prunekit.results.expert_results import BaseManifest, ExpertsManifest
from prunekit.results.reading_manifests import Manifest, of_kind, read_manifest
from prunekit.results.stage_files import StageFacts
from prunekit.runs.experts_run import Run
from prunekit.runs.manifest import environment
from prunekit.runs.observing import Within
from prunekit.runs.resumable import ResumableRun, Stage
from prunekit.runs.run_folder import check_places
from prunekit.search import check_available
from prunekit.steps.bases import complete_spec, open_base
from prunekit.steps.bench import Traces
from prunekit.steps.budgets import evaluations
from prunekit.steps.cutting import check_budget
from prunekit.steps.image_choice import check_comparison
from prunekit.steps.sample_quality import check_extractor, judges
from prunekit.steps.setting import Setting
from prunekit.studies.shown_images import show_images
from prunekit.studies.side_by_side import SideBySide, at_scale, shown_at_scale

__all__ = ["EvidenceRun"]

_SEED = replace(EXPERTS, files=(*EXPERTS.files, "manifest.json"))
"""Folder of the experts of one seed, with the manifest of the run that made them."""


class EvidenceRun(ResumableRun[EvidenceRecipe]):
    """A recipe with an ``evidence`` section, in one folder."""

    def execute(self) -> Path:
        """Train the base, make and measure every entry; returns the manifest's path.

        Raises:
            BudgetError: an entry's budget cannot be met; this is checked before the base is trained, unless the groups or the rule
                need the base.
            InputError: the recipe names a checkpoint that does not say how long it was trained.
        """
        base = self.recipe.base
        spec = complete_spec(base) if base.checkpoint is None else open_base(base.checkpoint, asked=base.asked).spec
        check_comparison(self.images, spec, self.recipe.evaluation.pipeline)
        check_extractor(self.images, self.recipe.evaluation)
        for name in self.options.entries:
            recipe = self.recipe.entry(name)
            try:
                check_budget(recipe)
            except BudgetError as error:
                raise BudgetError(f"Entry {name}: {error}", error.feasible) from error
            check_places(recipe.prune, self.folder)
            check_available(recipe.prune.search.proposer)
        pipeline = self.recipe.evaluation.pipeline
        observer, bases = Within(self.observer, "base"), [peer / "base" for peer in self.peers]
        Run(self.recipe.only(), self.folder / "base", observer, peers=bases, pipeline=pipeline).make_all()
        outputs = [Path(_SHOWN), Path(_IMAGES)]
        for scale in self.recipe.evaluation.other_guidance_scales:
            outputs += [shown_at_scale(Path(_SHOWN), scale), at_scale(Path(_IMAGES), scale)]
        names = [path.as_posix() for path in outputs]
        self._stage("base", self._common(), names, self._measure_base, reads=["base/base.pt"])
        every = [(name, seed) for name in self.options.entries for seed in self.options.seeds_of(name)]
        planned = {(name, seed): self._planned_entry(name, seed) for name, seed in every}
        # Seeds run one after the other: an entry's seeds share its folder, and all entries at one seed can be compared.
        for seed in dict.fromkeys(seed for _, seed in every):
            self._apart({name: [stage] for (name, own), stage in planned.items() if own == seed})
        stages = [stage.name for stage in planned.values()]
        self._stage("wall time", {"timed": self.options.timed_images}, [], self._time, ["base", *stages])
        self._show_images()
        manifest = self._manifest(stages)
        with atomic_path(self.folder / "importance.json") as part:
            shutil.copyfile(self._entry_folder(self.options.headline) / "importance.json", part)
        return self._finish(manifest)

    @property
    def options(self) -> EvidenceOptions:
        """The recipe's section."""
        return self.recipe.evidence

    @cached_property
    def base(self) -> Base:
        """The base; its run must be done."""
        return open_base(str(self.folder / "base" / "base.pt"))

    @cached_property
    def base_macs(self) -> int:
        """MACs per sample of the base."""
        spec: ModelSpec = self.base.spec
        return count_macs(self.base.model, spec.example_inputs()).macs

    @cached_property
    def setting(self) -> Setting:
        """The settings for all measurements."""
        allocation, evaluation = self.recipe.allocation, self.recipe.evaluation
        groups = make_groups(self.base.schedule, count=self.options.loss_groups)
        one_noise = replace(evaluation, seeds=evaluation.seeds[:1])
        base, folder, through = self.base, evaluation.pipeline, None
        if folder is not None:
            from prunekit.steps.sampling_pipeline import SamplingPipeline  # noqa: PLC0415 - it imports diffusers

            through = SamplingPipeline.asked_for(evaluation, self.images, allocation)
        return Setting(self.images, groups, base.parameterization, allocation, one_noise, base.spec, pipeline=through)

    @cached_property
    def _traces(self) -> Traces:
        """Channel groups of the base, which all entries share."""
        return Traces()

    @cached_property
    def scales(self) -> SideBySide:
        """The object that measures the networks."""
        return SideBySide(self.setting, self.folder / _IMAGES)

    def _common(self) -> dict[str, object]:
        """Everything that all figures depend on."""
        sections: dict[str, object] = {name: getattr(self.recipe, name) for name in ("base", "data", "evaluation")}
        sections |= judges(self.recipe.evaluation)
        sampling = [self.recipe.allocation.sampler, self.recipe.allocation.steps]
        return {**sections, "images": self._data_hash(), "shared": [*sampling, self.options.loss_groups]}

    def _planned_entry(self, name: str, seed: int) -> Stage:
        recipe = self.recipe.entry(name)
        sections = recipe.deciding(("groups", "allocation", "prune", "finetune"))
        inputs = {**self._common(), "entry": sections, "training": self.options.training, "seed": seed}
        own = f"entries/{slug(name)}"
        outputs, extras = [f"{own}/seed-{seed}", f"{own}/importance.json"], [f"{own}/images-{seed}"]
        action = partial(self._entry, name, seed)
        return self._planned(f"{name}, seed {seed}", inputs, outputs, action, "base", extras=extras)

    def _measure_base(self) -> StageFacts:
        model, macs = self.base.model, float(self.base_macs)
        shown = self.folder / _SHOWN
        figures, rows = self.scales.of("base", model, [self.base_macs] * len(self.setting.groups), macs, shown)
        spent = {"base": self._base_training, "search": 0, "fine-tuning": 0}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        row = EvidenceRow.joined(
            figures,
            entry="base",
            group="base",
            seed=None,
            sampling_macs=macs,
            params=parameters,
            training_macs=spent,
            experts=[],
        )
        return StageFacts(evidence=row, ledger=[each.entry for each in rows])

    @cached_property
    def _base_training(self) -> int:
        """MACs of the base's training.

        Raises:
            InputError: they are not known.
        """
        found = of_kind(BaseManifest, read_manifest(self.folder / "base")).base
        if found is None or found.training is None or not found.training.macs:
            raise InputError(
                f"{self.recipe.base.checkpoint} does not say how long it was trained, so no entry can get a share of its training; "
                "give a base that the run trains, or one that prunekit trained."
            )
        return int(found.training.macs)

    def _entry(self, name: str, seed: int) -> StageFacts:
        folder, recipe = self._entry_folder(name), self.recipe.entry(name)
        others = [self._entry_folder(other) for other in self.options.entries if other != name]
        run = partial(
            Run,
            folder=folder,
            observer=Within(self.observer, f"{name}, seed {seed}"),
            peers=[self.folder / "base", *others],  # all share the base; entries with the same search do it once
            home=self.folder,  # so that all share one table of layer times
            pipeline=self.recipe.evaluation.pipeline,
            traces=self._traces,
        )
        pruned = run(recipe.only("groups", "allocation", "prune", "finetune", "evaluation"))
        pruned.make_all("prune")
        tuning = self._tuning(name, seed, recipe, pruned)
        tuned = run(pruned.recipe.model_copy(update={"finetune": tuning}))
        manifest = of_kind(ExpertsManifest, read_manifest(tuned.make_all("assemble").parent))
        experts = self._opened(folder / "experts")
        mean = experts.mean_macs(
            evaluations(self.base.schedule, self.setting.allocation.sampler, self.setting.allocation.steps)
        )
        macs = self._macs_by_group(experts)
        figures, rows = self.scales.of(slug(name), experts, macs, mean, self._images_of(name, seed))
        with atomic_folder(folder / f"seed-{seed}", _SEED) as part:
            shutil.copytree(folder / "experts", part, dirs_exist_ok=True)
            shutil.copy2(folder / "manifest.json", part)  # other seeds overwrite it
        made = list(map(LedgerRow.from_json, manifest.ledger or ()))
        row = EvidenceRow.joined(
            figures,
            entry=name,
            group=self.options.entries[name].kind,
            seed=seed,
            sampling_macs=mean,
            params=experts.stored_params,
            training_macs=_spent(made, self._base_training if recipe.needs_base else 0),
            experts=manifest.experts,
        )
        once = [
            each
            for each in made
            if each.stage != BASE_TRAINING and (seed == self.options.seeds_of(name)[0] or _is_tuning(each))
        ]
        spent = [replace(each, stage=f"{name}, seed {seed}: {each.stage}") for each in once]
        return StageFacts(evidence=row, ledger=[each.entry for each in (*spent, *rows)])

    def _tuning(self, name: str, seed: int, recipe: EntryRecipe, pruned: Run) -> FinetuneOptions:
        """The fine-tuning options with as many steps as the search has left MACs for.

        Raises:
            InputError: the search has left less than one step.
        """
        base, options = self._base_training, recipe.finetune
        spent = making_macs(map(LedgerRow.from_json, read_manifest(pruned.folder).ledger or ()))[1]
        whole = self.options.training * base + (0 if recipe.needs_base else base)
        taught = self.base_macs if options.distillation else 0
        found = [stage.results.expert for stage in pruned.done.values()]
        experts = [expert for expert in found if expert is not None]
        macs = [one.macs for one in experts if not pruned.leaves(options, one.group, one.macs == self.base_macs)]
        step = options.train.batch_size * sum(3 * each + taught for each in macs)
        if step == 0:  # all experts stay as they are
            return replace(options, train=replace(options.train, seed=seed))
        steps = int((whole - spent) // step)
        if steps < 1:
            raise InputError(
                f"Entry {name} may spend {whole:.3g} MACs and its search has spent {spent:.3g}, which leaves no step of "
                "fine-tuning; raise evidence.training, or search with fewer samples or rounds."
            )
        return replace(options, train=replace(options.train, seed=seed)).with_steps(steps)

    def _opened(self, folder: Path) -> TimestepExperts:
        """Experts that know in which unit the pipeline tells the timestep."""
        experts = load_experts(folder)
        if self.setting.pipeline is not None:
            self.setting.pipeline.fit(experts)
        return experts

    def _macs_by_group(self, experts: TimestepExperts) -> list[int]:
        """Mean MACs per sample over the timesteps of each group for which losses are reported."""
        return [round(experts.mean_macs(list(range(group.start, group.stop)))) for group in self.setting.groups]

    def _time(self) -> StageFacts:
        """Measure wall time per image of the base and one seed of every entry, in turn; an entry's seeds have the same widths."""
        networks: dict[str, nn.Module] = {"base": self.base.model}
        for name in self.options.entries:
            networks[name] = self._opened(self._last_of(name))
        return StageFacts(seconds_per_image=self.scales.seconds(networks, self.options.timed_images))

    def _entry_folder(self, name: str) -> Path:
        return self.folder / "entries" / slug(name)

    def _images_of(self, name: str, seed: int) -> Path:
        """The file of a seed's first images; those at other guidance scales are in the same folder."""
        return self._entry_folder(name) / f"images-{seed}" / f"{slug(name)}.npz"

    def _show_images(self) -> None:
        """Copy the images of every entry's last seed to where the report looks for them."""
        for name in self.options.entries:
            for file in sorted(self._images_of(name, self.options.seeds_of(name)[-1]).parent.glob("*.npz")):
                show_images(self.folder, file, file.stem)

    def _last_of(self, name: str) -> Path:
        """Folder of an entry's experts for its last seed."""
        return self._entry_folder(name) / f"seed-{self.options.seeds_of(name)[-1]}"

    def _method(self) -> Manifest:
        """The manifest of the headline's last seed; earlier versions wrote only one for all seeds."""
        last = self._last_of(self.options.headline)
        return read_manifest(last if (last / "manifest.json").is_file() else self._entry_folder(self.options.headline))

    def _manifest(self, stages: list[str]) -> EvidenceManifest:
        base = of_kind(BaseManifest, read_manifest(self.folder / "base"))
        seconds = self.done["wall time"].results.seconds_per_image or {}
        rows = [row for stage in ("base", *stages) if (row := self.done[stage].results.evidence) is not None]
        return EvidenceManifest.joined(
            environment(self.recipe, self.done),
            seeds={
                **{use: seed for use, seed in (base.seeds or {}).items() if use == "base"},
                "finetune": list(self.options.seeds),
                "sampling": list(self.setting.options.seeds),
            },
            seconds={f"base: {name}": took for name, took in (base.seconds or {}).items()} | self._seconds(),
            base=base.base,
            reference="base",
            headline=self.options.headline,
            method=self._method(),
            groups=[group.start for group in self.setting.groups][1:],
            metrics=self.scales.describe(),
            evidence=[row.model_copy(update={"seconds_per_image": seconds[row.entry]}) for row in rows],
            ledger=[*(base.ledger or ()), *self._ledger()],
        )


_TUNING = "fine-tuning"  # how the rows of these stages begin
_IMAGES = "base/images.npz"
_SHOWN = "samples/base.npz"


def _is_tuning(row: LedgerRow) -> bool:
    """Whether a row is of the entry's fine-tuning, and not of the recoveries, which all seeds share."""
    return row.stage.startswith(_TUNING)


def _spent(rows: list[LedgerRow], base: int) -> dict[str, int]:
    """MACs for making an entry, by use; the training of the base that it needs took ``base``."""
    rest = making_macs(rows)[1]
    tuning = sum(row.macs for row in rows if _is_tuning(row) and row.kind in ("training", "teacher"))
    return {
        "base": base,
        "search": rest - tuning,
        "fine-tuning": tuning,
    }
