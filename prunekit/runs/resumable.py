"""A run of a recipe in a folder. Finished stages are kept as long as their inputs and outputs are unchanged.

Every stage has its own file, ``stages/<name>.json``, and next to it a lock while it runs, so that several processes can work in
one folder and make every stage only once. The file has the hashes of all files that the stage wrote, and of those that it read from
earlier stages (:mod:`prunekit.runs.records`). A stage is made again if these files have changed.
"""

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Generic

from filelock import FileLock, Timeout
from typing_extensions import TypeVar

from prunekit import report
from prunekit._files import json_hash
from prunekit._kinds import contents
from prunekit.data import ImageSplit, load_images, note_place
from prunekit.recipe import Recipe
from prunekit.results.manifest_head import LedgerEntry
from prunekit.results.reading_manifests import Manifest
from prunekit.results.stage_files import StageRecord
from prunekit.runs.book import Book, Facts, Stage
from prunekit.runs.executors import Executor, fan_out
from prunekit.runs.jobs import Job
from prunekit.runs.manifest import write_manifest
from prunekit.runs.observing import Observer, Silent, say, training_reporter
from prunekit.runs.run_folder import check_links
from prunekit.training import Reporter, TrainOptions
from prunekit.training.checkpoints import drop_checkpoints
from prunekit.training.tracking import open_tracking

__all__ = ["ResumableRun", "Stage"]

_KEY_SCHEME = "0.1.0"  # part of every key: changing it makes every stage of every folder run again
RecipeT_co = TypeVar("RecipeT_co", bound=Recipe, covariant=True, default=Recipe)
_log = logging.getLogger(__name__)


class ResumableRun(ABC, Generic[RecipeT_co]):
    """One recipe in one folder. Its pickle has only these two and the peers; a process that unpickles it reads the rest there.

    Args:
        recipe: the recipe to run.
        folder: where everything is written. A run resumes from the files of an earlier run of the recipe.
        observer: is told what happens.
        executor: runs independent stages at the same time; if missing, they run one after the other in this process.
        peers: folders of other runs; their stages with the same inputs are copied rather than made again.

    Raises:
        InputError: the recipe asks for an endpoint that is not confirmed, or a link in the folder leads out of it.
        FileFormatError: the folder's ``state.json`` cannot be read, or a later version wrote a stage's record.
    """

    def __init__(
        self,
        recipe: RecipeT_co,
        folder: Path,
        observer: Observer | None = None,
        executor: Executor | None = None,
        peers: Sequence[Path] = (),
    ) -> None:
        recipe.check_confirmed()
        check_links(folder)
        self.recipe = recipe
        self.folder = folder
        self.observer = observer or Silent()
        self.executor = executor
        self.peers = tuple(peers)
        self.key = ""  # of the stage that runs, including its inputs
        self._earlier_keys: tuple[str, ...] = ()  # by which earlier versions named its checkpoints
        self._trainings: set[str] = set()  # names of its trainings
        self.planned: dict[str, Stage] = {}  # the stages that are part of this run
        self.done: dict[str, StageRecord] = {}  # their records
        self._book = Book(folder)
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[type["ResumableRun"], tuple[object, ...]]:
        return type(self), (self.recipe, self.folder.resolve(), None, None, [peer.resolve() for peer in self.peers])

    @abstractmethod
    def execute(self) -> Path:
        """Run every stage that the recipe has a section for; returns the manifest's path."""

    @cached_property
    def images(self) -> ImageSplit:
        """The recipe's images."""
        data = self.recipe.data
        return load_images(data.source, data.resolution, data.labels)

    def _data_hash(self) -> str:
        return json_hash([self.images.train.sha256, self.images.held_out.sha256])

    def _planned(
        self,
        name: str,
        inputs: Mapping[str, object],
        outputs: Sequence[str],
        action: Callable[[], Facts],
        after: str | Sequence[str] = (),
        *,
        reads: Sequence[str] = (),
        extras: Sequence[str] = (),
    ) -> Stage:
        """A stage of this run with its key; the stages before it must be planned or done.

        An action that may run in another process must be a method of this run, or a ``partial`` of one, and read only files.
        """
        direct = [self.planned[stage] for stage in ([after] if isinstance(after, str) else after)]
        described = self.recipe.deciding(inputs)
        extra = {key: value for key, value in inputs.items() if key not in Recipe.model_fields}
        key = json_hash(
            {
                "stage": name,
                "prunekit": _KEY_SCHEME,
                "inputs": described,
                "extra": extra,
                "after": [stage.key for stage in direct],
            }
        )
        before = dict.fromkeys(each for stage in direct for each in (*stage.before, stage.name))
        read = dict.fromkeys([*reads, *(path for stage in direct for path in stage.reads)])
        stage = Stage(name, key, tuple(outputs), action, tuple(before), tuple(read), tuple(extras))
        self.planned[name] = stage
        return stage

    def _stage(
        self,
        name: str,
        inputs: Mapping[str, object],
        outputs: Sequence[str],
        action: Callable[[], Facts],
        after: str | Sequence[str] = (),
        *,
        reads: Sequence[str] = (),
        extras: Sequence[str] = (),
    ) -> None:
        """Run ``action``, unless its outputs are unchanged and were made from the same inputs."""
        self.make(self._planned(name, inputs, outputs, action, after, reads=reads, extras=extras))

    def _apart(self, chains: Mapping[str, Sequence[Stage]]) -> None:
        """Make chains of stages, with the executor if there is one. The chains must not depend on each other.

        Raises:
            UnfinishedError: chains failed; the results of the others are kept.
        """
        stages = [stage for rank in zip_longest(*chains.values()) for stage in rank if stage is not None]
        if self.executor is None:
            for stage in stages:
                self.make(stage)
            return
        jobs = [Job(self, name, left) for name, chain in chains.items() if (left := self._left(chain))]
        at_work = {stage.name for job in jobs for stage in job.stages}
        for stage in stages:
            if stage.name not in at_work:
                self._keep(stage)
        fan_out(self.executor, jobs, self.folder / "jobs", self.observer)
        for stage in stages:
            self._book.read(stage.name)
            self.done[stage.name] = self._book.records[stage.name]

    def _left(self, chain: Sequence[Stage]) -> tuple[Stage, ...]:
        """The first stage of a chain that is not kept, and all after it, since their inputs may change."""
        for index, stage in enumerate(chain):
            if not self._is_kept(stage):
                return tuple(chain[index:])
        return ()

    def make(self, stage: Stage) -> None:
        """Run a stage, unless it is kept from an earlier run or another process makes it in the meantime."""
        if self._is_kept(stage):
            self._keep(stage)
        else:
            with self._alone(stage):
                self._make_alone(stage)
        self.done[stage.name] = self._book.records[stage.name]

    def _make_alone(self, stage: Stage) -> None:
        book = self._book
        book.read(stage.name)  # the process that held the lock may have written it
        fault = book.fault(stage)
        if fault is None:
            self._keep(stage)
            return
        if fault:
            say(self.observer, fault)
        book.disown(stage)
        inputs = book.inputs(stage)
        if any(book.take(stage, peer, inputs) for peer in self.peers):
            self._keep(stage)
            return
        self.observer.stage(stage.name, False)
        started = time.perf_counter()
        self.key = json_hash([stage.key, inputs]) if inputs else stage.key
        self._earlier_keys = json_hash([stage.key, book.as_before(stage, inputs)]), stage.key
        self._trainings = set()
        facts = stage.action()
        book.finish(stage, round(time.perf_counter() - started, 3), facts, inputs)
        for name in self._trainings:
            self._drop_checkpoints(name)
        if "images" in self.__dict__:
            note_place(self.images, self.folder)

    def _is_kept(self, stage: Stage) -> bool:
        if self._book.is_without_hashes(stage):
            with self._alone(stage):
                adopted = self._book.adopt(stage)
            if adopted:
                self._say_once(
                    f"{self.folder} was written by a version that recorded no hashes; its files are taken as they are now, "
                    "and checked from now on."
                )
        return self._book.fault(stage) is None

    def _keep(self, stage: Stage) -> None:
        """Report that a stage is kept and, once, that it was made with other versions or threads than this process's."""
        if difference := self._book.difference(stage):
            self._say_once(
                f"{difference}; it is kept, so {self.folder} holds results of both.", f"Stage {stage.name} was made "
            )
        self.observer.stage(stage.name, True)

    def _say_once(self, sentence: str, beginning: str = "") -> None:
        """Report a sentence only once, even if its ``beginning`` differs the next time."""
        if sentence not in self._told:
            self._told.add(sentence)
            say(self.observer, f"{beginning}{sentence}")

    @contextmanager
    def _alone(self, stage: Stage) -> Iterator[None]:
        """Within the block no other process makes this stage."""
        file = self._book.file(stage.name)
        new = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_name(f".{file.stem}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info("Another process is at stage %s in %s; this one waits for it.", stage.name, self.folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
            begun = {path.name for path in contents(self.folder)} - {
                file.parent.name,
                "jobs",
            }  # a training's checkpoints
            if new and not file.exists() and not begun:  # the first stage in a new folder has failed
                Path(lock.lock_file).unlink(missing_ok=True)
                for folder in new:
                    with suppress(OSError):  # other processes may have written files there
                        folder.rmdir()

    @contextmanager
    def _tracked(self, label: str, options: TrainOptions) -> Iterator[Reporter]:
        """A reporter for a training: it tells the observer and, if the recipe asks for them, the trackers."""
        told, asked = training_reporter(self.observer, label), self.recipe.tracking
        if asked is None:
            yield told
            return
        name, logs = f"{self.recipe.name}-{_slug(label)}", self.folder / "logs"
        tracking = open_tracking(asked.report_to, name, logs, asdict(options), options.learning_rate_at)
        try:
            yield tracking.reporter(told)
        finally:
            tracking.finish()

    def _finish(self, manifest: Manifest) -> Path:
        """Write the manifest, and the report of a kind of run that has one; returns the manifest's path."""
        path = write_manifest(self.folder, manifest)
        self._write_report(manifest)
        return path

    def _write_report(self, manifest: Manifest) -> None:
        if (write := report.report_writer(manifest)) is not None:
            self.observer.stage("report", False)
            write(self.folder)

    def _ledger(self) -> list[LedgerEntry]:
        """The rows of every stage of this run."""
        return [row for stage in self.done.values() for row in stage.results.ledger or ()]

    def _seconds(self) -> dict[str, float]:
        """Wall time of every stage of this run."""
        return {name: stage.seconds for name, stage in self.done.items()}

    def _checkpoints(self, name: str) -> Path:
        """Folder for a training's checkpoints. It depends on options and inputs, so that a changed recipe starts a new training.

        What a training has finished may be kept beside it, under its name with ``.json``. Both are dropped once the stage is
        recorded: an interruption before that loses no training.
        """
        self._trainings.add(name)
        own, *before = (
            self.folder / "checkpoints" / f"{_slug(name)}-{key[:16]}" for key in (self.key, *self._earlier_keys)
        )
        for folder in before:
            if folder.is_dir() and not own.exists():
                folder.rename(own)
        return own

    def _drop_checkpoints(self, name: str) -> None:
        """Remove a training's checkpoints and what it has finished, including those for other options."""
        for path in (self.folder / "checkpoints").glob(f"{_slug(name)}-*"):
            if re.fullmatch(r"[0-9a-f]{16}(\.json)?", path.name.removeprefix(f"{_slug(name)}-")):
                for part in path.glob("part-*"):  # of a training in parts, one for each network
                    drop_checkpoints(part)
                if path.is_file():
                    path.unlink(missing_ok=True)
                drop_checkpoints(path)


def _slug(name: str) -> str:
    """A training's name as the name of a folder."""
    return name.replace(", ", "-").replace(" ", "-")
