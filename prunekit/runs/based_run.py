"""A run that starts from a base, which it trains or reads, with the base's channel groups, costs and layer times."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import nn

from prunekit._files import sha256_file
from prunekit._missing import EMBEDDED
from prunekit._names import name_of
from prunekit.checkpoint import Base, save_base
from prunekit.cost import count_macs
from prunekit.importance import ImportanceMap
from prunekit.ledger import BASE_TRAINING, LedgerRow, spent_on_training
from prunekit.recipe import (
    PruneOptions,
    Recipe,
)
from prunekit.results.stage_files import StageFacts
from prunekit.runs.executors import Executor
from prunekit.runs.observing import Observer
from prunekit.runs.resumable import ResumableRun
from prunekit.runs.run_folder import check_places, own_or_elsewhere
from prunekit.search import DEFAULT_MULTIPLE, check_available, default_multiples, is_tiny
from prunekit.steps.bases import open_base, sampled_by, train_base
from prunekit.steps.bench import Bench, Traces
from prunekit.steps.data_shapes import as_encoded
from prunekit.steps.image_choice import check_images, is_by_place
from prunekit.steps.reach import Reach

__all__ = ["BasedRun", "parameters_of", "spent"]


class BasedRun(ResumableRun):
    """A recipe's base, in one folder.

    Args:
        recipe: see :class:`ResumableRun`, also for ``folder``, ``observer``, ``executor`` and ``peers``.
        home: folder for files that the recipe names; several runs may share it. The run's own folder if missing.
        pipeline: folder of the pipeline that samples; the one that the recipe's evaluation names if missing.
        traces: of the bases of other runs, which may be this run's.

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
        traces: Traces | None = None,
    ) -> None:
        super().__init__(recipe, folder, observer, executor, peers)
        self.home = folder if home is None else home
        self._traces = Traces() if traces is None else traces
        self.pipeline = recipe.evaluation.pipeline if pipeline is None and recipe.evaluation else pipeline
        if recipe.prune is not None:
            check_places(recipe.prune, self.home)
            check_available(recipe.prune.search.proposer)

    @cached_property
    def base(self) -> Base:
        """The base; its stage must be done."""
        return open_base(str(self.folder / "base.pt"))

    @cached_property
    def bench(self) -> Bench:
        """The base with its channel groups and costs."""
        return self._traces.bench(self.base, self.recipe.prune or PruneOptions())

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

    def _as_sampled(self, base: Base) -> Base:
        """The base as its pipeline samples it, if there is one, and as the images were encoded."""
        return as_encoded(base if self.pipeline is None else sampled_by(base, self.pipeline), self.images.train)

    def _base(self) -> StageFacts:
        options, ledger, checkpoints = self.recipe.base, list[LedgerRow](), self._checkpoints("base")
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
            with self._tracked("base", options.train) as told:
                base, result = train_base(options, self.images, checkpoints, told)
            base = self._as_sampled(base)
            macs = count_macs(base.model, base.spec.example_inputs()).macs
            ledger = spent_on_training(
                BASE_TRAINING, result.samples, macs, parameters_of(base.model), options.train.batch_size
            )
            save_base(base, self.folder / "base.safetensors")
        save_base(base, self.folder / "base.pt")
        self.__dict__.pop("base", None)
        return spent(*ledger)


def spent(*rows: LedgerRow) -> StageFacts:
    """The ledger's rows as facts of a stage, without empty ones."""
    return StageFacts(ledger=[row.entry for row in rows if row.macs])


def parameters_of(model: nn.Module) -> int:
    """Number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
