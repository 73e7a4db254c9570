"""A recipe's comparison of ways to train one network, as a resumable run (after arXiv:2404.07946, "up to 2.6 times faster")."""

from functools import cached_property, partial
from pathlib import Path

from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.ledger import forwards, spent_on_training
from prunekit.recipe import CurriculumOptions, CurriculumRecipe
from prunekit.recipe.comparisons import slug
from prunekit.results.learning_results import CurriculumManifest, CurriculumRow, Network
from prunekit.results.stage_files import StageFacts
from prunekit.runs.manifest import environment
from prunekit.runs.resumable import ResumableRun
from prunekit.steps.bases import complete_spec, seeded_weights
from prunekit.steps.budgets import evaluations
from prunekit.steps.image_choice import check_comparison
from prunekit.steps.sample_quality import check_extractor, judges
from prunekit.steps.spending import spent_on_losses, spent_on_sampling
from prunekit.studies.judge import Judge
from prunekit.studies.shown_images import show_images
from prunekit.training import DenoisingObjective, Snapshots, TrainOptions, timestep_sampler, train

__all__ = ["CurriculumRun"]


class CurriculumRun(ResumableRun[CurriculumRecipe]):
    """A recipe with a ``curriculum`` section, in one folder: trains every entry, one seed after the other."""

    def execute(self) -> Path:
        """Train and measure every entry; returns the manifest's path.

        Raises:
            UnfinishedError: trainings in other processes failed; the results of the others are kept.
        """
        check_extractor(self.images, self.recipe.evaluation)
        evaluations(self.recipe.base.schedule, self.options.sampler, self.options.sampling_steps)
        trainings = {}
        for entry, settings in self.options.settings(self.recipe.base.train).items():
            for seed in self.options.seeds:
                name = f"{entry}, seed {seed}"
                action = partial(self._train, name, entry, settings, seed)
                extras = [_images(entry, seed)]
                trainings[name] = [self._planned(name, self._inputs(entry), [], action, extras=extras)]
        self._apart(trainings)
        for entry in self.options.entries:
            show_images(self.folder, self.folder / _images(entry, self.options.seeds[0]), slug(entry))
        return self._finish(self._manifest(list(trainings)))

    @property
    def options(self) -> CurriculumOptions:
        """The recipe's section."""
        return self.recipe.curriculum

    @cached_property
    def spec(self) -> ModelSpec:
        """The network, with the class's defaults for arguments that the recipe leaves out."""
        spec = complete_spec(self.recipe.base)
        check_comparison(self.images, spec)
        return spec

    @cached_property
    def macs(self) -> int:
        """MACs per sample of the network."""
        return count_macs(self.spec.build(), self.spec.example_inputs()).macs

    @cached_property
    def judge(self) -> Judge:
        """The judge that measures all entries."""
        recipe, options = self.recipe, self.options
        kind = recipe.base.parameterization
        return Judge(self.images, kind, options.sampler, options.sampling_steps, recipe.evaluation)

    def _inputs(self, entry: str) -> dict[str, object]:
        """Everything that decides an entry's results; seeds and entries may be added later."""
        options = self.options
        sections: dict[str, object] = {name: getattr(self.recipe, name) for name in ("base", "data", "evaluation")}
        sections |= judges(self.recipe.evaluation)
        changes = {key: value for key, value in options.entries[entry].items() if key != "checkpoint_minutes"}
        shared = {"looks": options.looks, "sampler": options.sampler, "sampling_steps": options.sampling_steps}
        return {**sections, "images": self._data_hash(), "shared": shared, "changes": changes}

    def _train(self, name: str, entry: str, settings: TrainOptions, seed: int) -> StageFacts:
        judge, looks = self.judge, self.options.looks
        steps = max(1, round(settings.steps / looks)) * looks  # so that the last look is at the end of the training
        settings = TrainOptions(**{**vars(settings), "steps": steps, "seed": seed})
        with seeded_weights(seed):
            model = self.spec.build()
        objective = DenoisingObjective(self.images.train.images, judge.parameterization)
        sampler, snapshots = timestep_sampler(settings, judge.parameterization), Snapshots(steps // looks)
        with self._tracked(name, settings) as told:
            train(model, objective, sampler, settings, self._checkpoints(name), told, [snapshots])
        kept = self.folder / _images(entry, seed)
        curve = [
            judge(
                network,
                images=kept if done == steps else None,
                steps=done,
                training_macs=3 * self.macs * settings.batch_size * done,
            )
            for (done, _), network in zip(snapshots.kept, snapshots.networks(model), strict=True)
        ]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows = spent_on_training(name, steps * settings.batch_size, self.macs, parameters, settings.batch_size)
        looked = [spent_on_losses(name, judge.setting, [[self.macs]])]
        looked.append(spent_on_sampling(name, judge.setting, {entry: self.macs}))
        rows += [forwards(name, row.kind, looks * row.samples, looks * row.macs) for row in looked]
        row = CurriculumRow(entry=entry, seed=seed, curve=curve)
        return StageFacts(curriculum=row, ledger=[each.entry for each in rows])

    def _manifest(self, names: list[str]) -> CurriculumManifest:
        evaluation = self.judge.evaluation
        return CurriculumManifest.joined(
            environment(self.recipe, self.done),
            seeds={"training": list(self.options.seeds), "sampling": list(evaluation.seeds)},
            seconds=self._seconds(),
            base=Network(macs=self.macs),
            ledger=self._ledger(),
            curriculum=[self.done[name].results.curriculum for name in names],
        )


def _images(entry: str, seed: int) -> str:
    """The file of a training's first images."""
    return f"images/{slug(entry)}-seed-{seed}.npz"
