"""Short fine-tunings of all slim models in some folders: each that ends is kept, and the record is written at the end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from prunekit._files import json_hash
from prunekit.allocation import GroupRecoveries, Recoveries, Recovery
from prunekit.checkpoint import Base
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.groups import TimestepGroup
from prunekit.ledger import LedgerRow
from prunekit.recipe import DataOptions, FinetuneOptions, PruneOptions
from prunekit.runs.kept_recoveries import kept_recovery
from prunekit.runs.observing import Observer, Silent, training_reporter
from prunekit.schedule import Parameterization
from prunekit.slim import SlimModel, load_slim
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of_slim
from prunekit.steps.recovering import recover, whole_model
from prunekit.training import weights_hash
from prunekit.training.checkpoints import drop_checkpoints

__all__ = ["Recovering"]

_RECORD = "record them with `prunekit prune base.pt --target 0.3 --output frontiers`"


@dataclass(frozen=True, eq=False)
class Recovering:
    """Recoveries of every timestep group, at the sizes of some folders of slim models and at the base's own.

    Args:
        base: the base of the slim models.
        folders: folders with ``group-0``, ``group-1``, …; one for each size.
        output: the record that will be written; what is finished, and checkpoints, are kept beside it.
        options: the short fine-tuning, from :func:`~prunekit.steps.recovering.shortened`.
        probed: number, batches and seed of the draws on which losses are measured.
        data: other images than those that the base was trained on.
        observer: is told the progress.
    """

    base: Base
    folders: Sequence[Path]
    output: Path
    options: FinetuneOptions
    probed: PruneOptions
    data: DataOptions | None = None
    observer: Observer = field(default_factory=Silent)

    @cached_property
    def _bench(self) -> Bench:
        return Bench.of(self.base)

    def make(self) -> Recoveries:
        """Train every network that is not finished; the record itself is not written.

        Raises:
            InputError: a folder has no slim models, they are of another base, or the folders are of different timestep groups.
            FileFormatError: a slim model cannot be read.
        """
        slims = self._slims()
        groups = {slim.group.index: slim.group for slim in slims}
        images = images_of_slim(slims[0], self.data, self.folders[0])
        points: dict[int, list[Recovery]] = {index: [] for index in groups}
        whole = {slim.group.index for slim in slims if slim.macs == self._bench.macs}
        missing = (whole_model(self._bench, group) for index, group in groups.items() if index not in whole)
        for slim in (*slims, *missing):
            points[slim.group.index].append(self._point(slim, images))
        found = tuple(
            GroupRecoveries(groups[index], tuple(sorted(points[index], key=lambda point: point.macs)))
            for index in sorted(groups)
        )
        return Recoveries(slims[0].num_timesteps, self._bench.macs, self.options.train.steps, found, self.base.sha256)

    def drop(self) -> None:
        """Remove what is kept beside the record, once it is written."""
        for path in self._kept():
            if path.is_dir():
                drop_checkpoints(path)
            else:
                path.unlink(missing_ok=True)

    def saved(self) -> str | None:
        """What an interruption leaves behind, in words; None if there is nothing."""
        done = sum(1 for path in self._kept() if path.is_file())
        return f"trainings that ended are kept beside {self.output}: {done}" if done else None

    def _slims(self) -> list[SlimModel]:
        """The slim models of all folders, after checks that they fit together."""
        slims = list[SlimModel]()
        partition: set[TimestepGroup] = set()
        for folder in self.folders:
            found = [load_slim(config.parent) for config in folder.glob("group-*/config.json")]
            found.sort(key=lambda slim: slim.group.index)
            if not found:
                raise InputError(f"{folder} has no slim models group-0, group-1, …; {_RECORD}.")
            own = {slim.group for slim in found}
            if partition and own != partition:
                raise InputError(
                    f"{folder} has slim models of other timestep groups than {self.folders[0]}; expected the same groups in every "
                    "folder."
                )
            partition, slims = own, [*slims, *found]
        for slim in slims:
            if steps := slim.about.get("provenance", {}).get("finetuned_steps"):
                raise InputError(
                    f"The slim model of timestep group {slim.group.index} with {slim.macs:,} MACs was fine-tuned for {steps} "
                    "steps; expected networks as `prunekit prune` writes them."
                )
            known = slim.about.get("provenance", {}).get("base_sha256")
            if known and self.base.sha256 and known != self.base.sha256:
                raise InputError(
                    f"The slim models were pruned from the base with SHA-256 {known[:16]}… and the base's is "
                    f"{self.base.sha256[:16]}…; give their own base."
                )
        return slims

    def _point(self, slim: SlimModel, images: ImageSplit) -> Recovery:
        """The recovery of one network: from an earlier call if it was finished there."""
        kind = Parameterization.from_config(slim.about)
        described = [slim.group.index, slim.group.start, slim.group.stop, weights_hash(slim.model), images.train.sha256]
        predicted = [kind.prediction_type, kind.schedule.to_config()]
        probed = [self.probed.samples, self.probed.batch_size, self.probed.seed]
        key = json_hash([*described, *predicted, repr(self.options), *probed])
        finished = self.output.with_name(f".{self.output.stem}.group-{slim.group.index}-{key[:16]}.json")
        size = f"group {slim.group.index} at {slim.macs / self._bench.macs:.2g} of the MACs"

        def train(checkpoints: Path) -> tuple[Recovery, list[LedgerRow]]:
            told = training_reporter(self.observer, size)
            return recover(slim, images.train, self.options, self.probed, checkpoints, told)

        return kept_recovery(finished, train)[0]

    def _kept(self) -> list[Path]:
        """Records of finished networks, and folders of checkpoints."""
        kept = re.compile(rf"\.{re.escape(self.output.stem)}\.group-\d+-[0-9a-f]{{16}}(\.json)?")
        return sorted(path for path in self.output.absolute().parent.iterdir() if kept.fullmatch(path.name))
