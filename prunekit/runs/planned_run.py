"""A run up to its plan: the timestep groups, and how much compute each of them gets."""

import math
from dataclasses import replace
from functools import cached_property, partial, reduce
from pathlib import Path

import numpy as np

from prunekit import report
from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.allocation import Allocation, GroupRecoveries, Recoveries, Recovery, Sensitivity, read_frontier
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance import ImportanceMap
from prunekit.ledger import LedgerRow, both_ways, forwards
from prunekit.recipe import (
    AllocationOptions,
    EvaluationOptions,
    ExpertsRecipe,
    FinetuneOptions,
    GroupOptions,
    PruneOptions,
)
from prunekit.results.stage_files import StageFacts
from prunekit.runs.based_run import BasedRun, spent
from prunekit.runs.kept_recoveries import kept_recovery
from prunekit.runs.run_folder import inside
from prunekit.search import SearchResult
from prunekit.slim import SlimModel
from prunekit.steps.bench import prune_group, score_groups, slack_of
from prunekit.steps.budgets import plan_budget
from prunekit.steps.cutting import method_of, spent_on_grouping
from prunekit.steps.finetuning import needs_teacher
from prunekit.steps.measuring_sensitivity import measured_in_a_run, passes_of, sampled_as, write_sensitivity
from prunekit.steps.placing import placed
from prunekit.steps.recovering import recover, shortened
from prunekit.steps.setting import Setting
from prunekit.steps.spending import spent_on_search
from prunekit.training import Tally

__all__ = ["PlannedRun"]


class PlannedRun(BasedRun):
    """A recipe's timestep groups, importance and allocation. Arguments are those of :class:`BasedRun`."""

    def _plan(self, recipe: ExpertsRecipe) -> None:
        """Run the stages after the base that decide how much compute each timestep group gets."""
        prune, allocation, evidence = recipe.prune, recipe.allocation, list[str]()
        action = partial(self._groups, recipe.groups, allocation)
        inputs: dict[str, object] = {"groups": recipe.groups}
        if self.has_specialist:  # the border follows from the budget
            inputs["allocation"] = allocation
        self._stage("groups", inputs, ["groups.json"], action, "base", extras=["groups.png"])
        self.__dict__.pop("groups", None)  # made or copied anew, so it is read again
        if allocation.sensitivity:
            evidence += self._sensitivity(allocation, recipe.evaluation)
        if prune is not None and allocation.rule == "measured":
            evidence += self._frontiers(prune, allocation.frontier_floor)
            if allocation.recoveries:
                evidence += self._recoveries(prune, allocation, recipe.finetune or FinetuneOptions())
        reach = {} if prune is None else {"reach": _reach_of(prune), **self._times}
        inputs, action = {"allocation": allocation, **reach}, partial(self._allocate, allocation)
        self._stage("allocate", inputs, ["allocation.json"], action, ["groups", *evidence])
        self.__dict__.pop("allocation", None)

    def _score(self, prune: PruneOptions) -> None:
        self._stage("importance", {"prune": prune}, ["importance.json"], partial(self._importance, prune), "groups")

    def _sensitivity(self, options: AllocationOptions, evaluation: EvaluationOptions | None) -> list[str]:
        """Measure what the sampler makes of an error in each group; returns the stage's name."""
        keys = ("sampler", "steps", "sensitivity_in", "sensitivity_samples", "sensitivity_size", "sensitivity_clamped")
        asked = {key: getattr(options, key) for key in keys}
        inputs = {"asked": asked, "sampled": sampled_as(evaluation, options.sensitivity_in)}
        action = partial(self._measure_sensitivity, options, evaluation or EvaluationOptions())
        self._stage("sensitivity", inputs, ["sensitivity.json"], action, "groups", extras=["sensitivity.png"])
        return ["sensitivity"]

    def _frontiers(self, prune: PruneOptions, floor: float) -> list[str]:
        """Search every group down to the floor, before its target is known; returns the stages' names."""
        self._score(prune)
        inputs = {"frontier_floor": floor, **self._times, **self._widths}
        reads = ("importance", "sensitivity") if self._is_weighed(prune) else ("importance",)
        chains = {}
        for group in self.groups:
            i, name = group.index, f"frontier group {group.index}"
            action = partial(self._frontier, i, prune, floor)
            chains[f"group {i}"] = [self._planned(name, inputs, [_frontier_file(i)], action, reads)]
        self._apart(chains)
        return [stage.name for chain in chains.values() for stage in chain]

    def _recoveries(self, prune: PruneOptions, allocation: AllocationOptions, tune: FinetuneOptions) -> list[str]:
        """Train networks of a few sizes of every group for a short time; returns the stages' names."""
        floor, sizes = allocation.frontier_floor, allocation.recoveries
        short = shortened(tune, allocation.recovery_steps, prune.seed)
        how = self.recipe.deciding(["finetune"])
        how.get("finetune", {}).pop("share_steps", None)  # the recoveries all have as many
        for key in ("steps", "warmup_steps", "seed"):  # and have their own
            how.get("finetune", {}).get("train", {}).pop(key, None)
        short_steps = {"steps": short.train.steps, "warmup_steps": short.train.warmup_steps}
        inputs = {
            "frontier_floor": floor,
            "recoveries": sizes,
            "tuned": [how, short_steps],
            **self._times,
            **self._widths,
        }
        chains = {}
        for group in self.groups:
            i, name = group.index, f"recovery group {group.index}"
            action = partial(self._recover, i, prune, floor, sizes, short)
            outputs = [_recovery_file(i)]
            chains[f"group {i}"] = [self._planned(name, inputs, outputs, action, f"frontier group {i}")]
        self._apart(chains)
        return [stage.name for chain in chains.values() for stage in chain]

    @property
    def has_specialist(self) -> bool:
        """See :attr:`~prunekit.recipe.ExpertsRecipe.has_specialist`."""
        return isinstance(self.recipe, ExpertsRecipe) and self.recipe.has_specialist

    @cached_property
    def groups(self) -> TimestepGroups:
        """The timestep groups; their stage must be done."""
        return TimestepGroups.from_json(read_json(self.folder / "groups.json"), self.folder / "groups.json")

    @cached_property
    def allocation(self) -> Allocation:
        """The allocation; its stage must be done."""
        return Allocation.from_json(read_json(self.folder / "allocation.json"), self.folder / "allocation.json")

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
        return spent(both_ways("groups", "grouping", samples, self.bench.macs))

    def _allocate(self, options: AllocationOptions) -> StageFacts:
        measured = self.groups if options.rule == "measured" else ()
        frontiers = [read_frontier(self.folder / _frontier_file(group.index)) for group in measured]
        if options.recoveries:
            found = [Recoveries.from_json(read_json(path), path) for path in map(self._recovered, self.groups)]
            known = reduce(Recoveries.joined, found).of_each(self.groups)
            frontiers = [one.corrected(points) for one, points in zip(frontiers, known, strict=True)]
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
        return spent(forwards("sensitivity", "importance", passes, passes * macs))

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
        return spent(tally.row("importance", "importance", self.bench.macs))

    def _search(self, index: int, target: int, journal: str, options: PruneOptions) -> tuple[SlimModel, SearchResult]:
        """Prune a group to a target of MACs."""
        scores = ImportanceMap.load(self.folder / "importance.json")
        images, group = self.images.train, self.groups[index]
        if options.search.study is not None:
            study = str(inside(self.home, options.search.study, "study"))
            options = replace(options, search=replace(options.search, study=study))
        known = self._weighed if self._is_weighed(options) else None
        slack = slack_of(self.bench, images, known, options)
        return prune_group(
            self.timed_bench,
            images,
            scores,
            group,
            target,
            options,
            self.folder / journal,
            slack[index] if slack else 1.0,
        )

    def _searching(self, name: str, options: PruneOptions, result: SearchResult, slim: SlimModel) -> list[LedgerRow]:
        """What a search spent."""
        weighed = len(self.groups) if self._is_weighed(options) else 0
        return spent_on_search(name, options, result, slim, self.bench.macs, weighed)

    def _is_weighed(self, options: PruneOptions) -> bool:
        """Whether what is negligible in a search depends on the sensitivity."""
        allocation = self.recipe.allocation
        return options.search.negligible > 0 and allocation is not None and allocation.sensitivity

    def _frontier(self, index: int, options: PruneOptions, floor: float) -> StageFacts:
        slim, result = self._search(index, self._lowest(floor), _frontier_file(index), options)
        read_frontier(self.folder / _frontier_file(index))  # refuses a proposer that records no frontier
        return spent(*self._searching(f"frontier, group {index}", options, result, slim))

    def _lowest(self, floor: float) -> int:
        """MACs of the smallest network that is searched for a frontier."""
        return max(int(floor * self.bench.macs), math.ceil(self.reach.floor * self.bench.macs))

    def _recover(
        self, index: int, options: PruneOptions, floor: float, sizes: int, tune: FinetuneOptions
    ) -> StageFacts:
        macs, rows, points = self.bench.macs, list[LedgerRow](), list[Recovery]()
        for target in np.linspace(self._lowest(floor), macs, sizes).round().astype(int).tolist():
            journal = _frontier_file(index) if not points else f"recovery/group-{index}-{target}.jsonl"
            slim, result = self._search(index, target, journal, options)
            if points:
                rows += self._searching(f"recovery, group {index}", options, result, slim)
            file = self._checkpoints(f"recovery-{index}-{target}").with_suffix(".json")
            point, cost = kept_recovery(file, partial(self._trained_briefly, slim, options, tune))
            points, rows = [*points, point], rows + cost
        found = GroupRecoveries(self.groups[index], tuple(points))
        known = Recoveries(self.groups.num_timesteps, macs, tune.train.steps, (found,))
        write_json(self.folder / _recovery_file(index), known.to_json())
        return spent(*rows)

    def _trained_briefly(
        self, slim: SlimModel, options: PruneOptions, tune: FinetuneOptions, checkpoints: Path
    ) -> tuple[Recovery, list[LedgerRow]]:
        """What a pruned network recovers in a short fine-tuning, and what that took."""
        index = slim.group.index
        teacher = self.bench if needs_teacher(slim, tune) and not tune.leaves(slim) else None
        with self._tracked(f"recovery of group {index}", tune.train_of(index)) as told:
            return recover(slim, self.images.train, tune, options, checkpoints, told, teacher, self.bench.macs)

    def _recovered(self, group: TimestepGroup) -> Path:
        return self.folder / _recovery_file(group.index)


def _reach_of(options: PruneOptions) -> dict[str, object]:
    """The options that decide how far the base can be pruned."""
    names = ("norm_mode", "head_mode", "width_multiples", "floor")
    own = {"constraints": options.constraints.to_json(), "target_of": options.search.target_of}
    return {name: getattr(options, name) for name in names} | own


def _frontier_file(index: int) -> str:
    """Journal of the search that records a timestep group's frontier."""
    return f"frontier/group-{index}.jsonl"


def _recovery_file(index: int) -> str:
    """What short fine-tunings recovered in a timestep group."""
    return f"recovery/group-{index}.json"
