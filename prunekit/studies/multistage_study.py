"""A recipe's comparison of one network, networks for stages and multi-decoder networks, as a resumable run."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

from prunekit import report
from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.checkpoint import Base, save_base
from prunekit.groups import TimestepGroups
from prunekit.ledger import both_ways
from prunekit.recipe import MultistageOptions, MultistageRecipe
from prunekit.recipe.comparisons import slug
from prunekit.report.multistage import network_title
from prunekit.results.formats import GROUPS
from prunekit.results.learning_results import MultistageManifest, Unified
from prunekit.results.planning_files import GroupsFile
from prunekit.results.stage_files import StageFacts
from prunekit.runs.manifest import environment
from prunekit.runs.resumable import ResumableRun, Stage
from prunekit.steps.bases import complete_spec, open_base
from prunekit.steps.budgets import evaluations
from prunekit.steps.cutting import method_of, spent_on_grouping
from prunekit.steps.image_choice import check_comparison
from prunekit.steps.sample_quality import check_extractor, judges
from prunekit.steps.spending import spent_on_looks
from prunekit.studies.contest import Contest
from prunekit.studies.shown_images import show_images
from prunekit.training import weights_hash

__all__ = ["MultistageRun"]


def trainings_of(options: MultistageOptions) -> list[str]:
    """Names of the stages that train a network, in order."""
    unified = [_name_of("unified", 0, seed) for seed in options.seeds]
    groupings = range(len(options.groupings))
    return [*unified, *(_name_of(network, g, seed) for g in groupings for network, seed in _entries(options, g))]


def _entries(options: MultistageOptions, grouping: int) -> Iterator[tuple[str, int]]:
    for network in options.networks:
        if network != "unified" and (grouping == 0 or network == "tailored"):
            yield from ((network, seed) for seed in options.seeds)


def _name_of(network: str, grouping: int, seed: int) -> str:
    return f"unified, seed {seed}" if network == "unified" else f"{network}, grouping {grouping}, seed {seed}"


class MultistageRun(ResumableRun[MultistageRecipe]):
    """A recipe with a ``multistage`` section, in one folder. Unified networks come first: grouping by gradients needs one."""

    def execute(self) -> Path:
        """Train and measure every network; returns the manifest's path.

        Raises:
            UnfinishedError: trainings in other processes failed; the results of the others are kept.
        """
        options = self.options
        check_extractor(self.images, self.recipe.evaluation)
        evaluations(self.contest.schedule, options.sampler, options.sampling_steps)
        unified = [self._competing("unified", 0, seed) for seed in options.seeds]
        self._apart({stage.name: [stage] for stage in unified})
        for grouping, cut in enumerate(options.groupings):
            after = f"unified, seed {options.seeds[0]}" if cut.method == "gradient" else ()
            outputs = [_groups_file(grouping)]
            self._stage(
                f"grouping {grouping}",
                {**self._inputs, "grouping": asdict(cut)},
                outputs,
                partial(self._cut, grouping),
                after,
                extras=[_picture_file(grouping)],
            )
        groupings = range(len(options.groupings))
        others = [self._competing(network, g, seed) for g in groupings for network, seed in self._entries(g)]
        self._apart({stage.name: [stage] for stage in others})
        self._show_images()
        return self._finish(self._manifest([stage.name for stage in (*unified, *others)]))

    @property
    def options(self) -> MultistageOptions:
        """The recipe's section."""
        return self.recipe.multistage

    @cached_property
    def contest(self) -> Contest:
        """The settings that all networks share."""
        recipe, start = self.recipe, self.start
        if start is not None:
            spec, kind = start.spec, start.parameterization
        else:
            spec = complete_spec(recipe.base)
            kind = recipe.base.parameterization
        check_comparison(self.images, spec)
        model = start.model if start else None
        train, options, evaluation = recipe.base.train, self.options, recipe.evaluation
        return Contest(spec, self.images, kind, train, options, evaluation, model)

    @cached_property
    def start(self) -> Base | None:
        """The trained base from which all networks continue, if the recipe names one."""
        checkpoint = self.recipe.base.checkpoint
        return None if checkpoint is None else open_base(checkpoint, asked=self.recipe.base.asked)

    @property
    def _inputs(self) -> dict[str, object]:
        """Everything that decides all results; seeds, networks and groupings may be added later."""
        shared = asdict(self.options)
        for later in ("seeds", "networks", "groupings"):
            del shared[later]
        sections: dict[str, object] = {name: getattr(self.recipe, name) for name in ("base", "data", "evaluation")}
        sections |= judges(self.recipe.evaluation)
        start = {"start": weights_hash(self.start.model)} if self.start else {}
        return {**sections, "images": self._data_hash(), "shared": shared, **start}

    def _entries(self, grouping: int) -> Iterator[tuple[str, int]]:
        """Networks and seeds to train on a grouping: all on the first, only tailored decoders on the others."""
        return _entries(self.options, grouping)

    def _competing(self, network: str, grouping: int, seed: int) -> Stage:
        """The stage that trains and measures one network."""
        unified = network == "unified"
        name = _name_of(network, grouping, seed)
        outputs = [f"{_UNIFIED}-{seed}.pt"] if unified else []
        after = () if unified else f"grouping {grouping}"
        action = partial(self._train, name, network, grouping, seed)
        return self._planned(name, self._inputs, outputs, action, after, extras=[_images(name)])

    def _show_images(self) -> None:
        """Copy the images of every network's first seed to where the report looks for them; of a method's first grouping."""
        first = self.options.seeds[0]
        show_images(
            self.folder, self.folder / _images(_name_of("unified", 0, first)), slug(network_title("unified", ""))
        )
        methods = [cut.method if cut.cuts is None else "explicit" for cut in self.options.groupings]
        for grouping, method in enumerate(methods):
            networks = dict.fromkeys(network for network, _ in self._entries(grouping))
            for network in networks if methods.index(method) == grouping else ():
                images = self.folder / _images(_name_of(network, grouping, first))
                show_images(self.folder, images, slug(network_title(network, method)))

    def _cut(self, grouping: int) -> StageFacts:
        options = self.options.groupings[grouping]
        base = None
        if options.method == "gradient":
            base = open_base(str(self.folder / f"{_UNIFIED}-{self.options.seeds[0]}.pt"))
        method = method_of(options, self.images.train, base)
        found = method(self.contest.schedule, len(self.options.widths))
        write_json(self.folder / _groups_file(grouping), found.to_json())
        samples = spent_on_grouping(method, self.contest.schedule)
        if found.evidence.matrix is not None:
            report.grouping_png(found, self.folder / _picture_file(grouping))
        spent = both_ways(f"grouping {grouping}", "grouping", samples, self.contest.macs)
        return StageFacts(ledger=[spent.entry] if samples else [])

    def _train(self, name: str, network: str, grouping: int, seed: int) -> StageFacts:
        contest = self.contest
        if network == "unified":
            groups = TimestepGroups.from_cuts(contest.schedule.num_timesteps, [])
        else:
            groups = TimestepGroups.from_json(read_json(self.folder / _groups_file(grouping)))
        kept = self.folder / _images(name)
        with self._tracked(name, self.recipe.base.train) as report:
            row, ledger, model = contest.run(network, groups, seed, self._checkpoints(name), report, kept)
        if network == "unified":
            base = Base(model, contest.spec, contest.parameterization, self.images.about())
            save_base(base, self.folder / f"{_UNIFIED}-{seed}.pt")
        setting = replace(contest.judge.setting, groups=groups)
        looks = spent_on_looks(name, setting, row.stage_macs, row.sampling_macs, self.options.looks)
        trained = [replace(entry, stage=name) for entry in ledger]
        return StageFacts(multistage=row, ledger=[entry.entry for entry in (*trained, *looks)])

    def _manifest(self, names: list[str]) -> MultistageManifest:
        contest = self.contest
        cut = [self.folder / _groups_file(i) for i in range(len(self.options.groupings))]
        return MultistageManifest.joined(
            environment(self.recipe, self.done),
            seeds={"training": list(self.options.seeds), "sampling": list(contest.evaluation.seeds)},
            seconds=self._seconds(),
            unified=Unified(macs=contest.macs, training_macs=contest.budget),
            groupings=[GroupsFile.of(read_json(path, GROUPS), str(path)) for path in cut],
            multistage=[self.done[name].results.multistage for name in names],
            ledger=self._ledger(),
        )


_UNIFIED = "unified"


def _images(name: str) -> str:
    """The file of a training's first images."""
    return f"images/{slug(name)}.npz"


def _groups_file(grouping: int) -> str:
    return f"groupings/{grouping}.json"


def _picture_file(grouping: int) -> str:
    return f"groupings/{grouping}.png"
