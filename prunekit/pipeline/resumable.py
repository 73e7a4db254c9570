"""A run of a recipe: a folder, and stages that are kept once they are finished and run again when their inputs change.

Every stage has a file of its own, ``stages/<name>.json``, and a lock beside it while it runs: several processes can work in one
folder, and two that come to the same stage make it once.
"""

import logging
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NotRequired

import torch
from filelock import FileLock, Timeout
from typing_extensions import TypedDict

import prunekit
from prunekit._files import atomic_path, json_hash, read_json, write_json
from prunekit._json import Amount, Named, Positive, read_document
from prunekit.data import ImageSplit, load_images
from prunekit.pipeline.executors import Executor, fan_out
from prunekit.pipeline.jobs import Job
from prunekit.pipeline.observing import Observer, Silent
from prunekit.pipeline.run_folder import check_links
from prunekit.recipe import Recipe
from prunekit.training.checkpoints import drop_checkpoints

__all__ = ["ResumableRun", "Stage"]

_FORMAT = "prunekit-stage/1"
_log = logging.getLogger(__name__)


class _StageForm(TypedDict):
    """What a finished stage leaves in the folder."""

    key: str
    seconds: Amount
    threads: NotRequired[Positive]
    facts: dict[str, Any]


class _RecordForm(_StageForm):
    name: str


class _StateForm(TypedDict):
    stages: Named[_StageForm]


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Args:
        name: what it is called in the folder and by observers.
        key: hash of all that it is made from, the keys of the stages before it included.
        outputs: files that it writes, relative to the folder.
        action: makes them and returns the stage's facts, JSON-able.
    """

    name: str
    key: str
    outputs: tuple[str, ...]
    action: Callable[[], dict[str, Any]]


class ResumableRun(ABC):
    """One recipe in one folder. Pickled, it is recipe and folder: a process that unpickles it begins with what the folder holds.

    Args:
        recipe: what to do.
        folder: where everything is written; a folder of an earlier run of the recipe is gone on with.
        observer: told what happens.
        executor: runs stages that do not need each other at the same time; one after the other in this process if absent.
        peers: folders of other runs; what they have made of the same inputs is copied rather than made again.

    Raises:
        InputError: the recipe asks for an endpoint that nobody has confirmed, or a link in the folder leads out of it.
    """

    def __init__(
        self,
        recipe: Recipe,
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
        self.key = ""  # of the stage that runs
        self.keys: dict[str, str] = {}  # of the stages that are part of this run
        self.state: dict[str, dict[str, Any]] = {}  # every stage that ever finished here
        self.done: dict[str, dict[str, Any]] = {}  # those that are part of this run
        before = folder / "state.json"  # all stages in one file: how folders were written once
        if before.is_file():
            mend = "remove it to run every stage again"
            stages: Any = read_document(before, _StateForm, "prunekit-state/1", mend)["stages"]
            self.state = dict(stages)
        for file in sorted((folder / "stages").glob("*.json")):
            self._read(file)

    def __reduce__(self) -> tuple[type["ResumableRun"], tuple[Recipe, Path]]:
        return type(self), (self.recipe, self.folder.resolve())

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
        inputs: dict[str, Any],
        outputs: Sequence[str],
        action: Callable[[], dict[str, Any]],
        after: str | Sequence[str] = (),
    ) -> Stage:
        """A stage of this run with its key; those before it must be planned or done.

        An action that is to run in another process is a method of this run, or a ``partial`` of one, and needs files only.
        """
        before = [after] if isinstance(after, str) else after
        described = self.recipe.deciding(inputs)
        extra = {key: value for key, value in inputs.items() if key not in Recipe.model_fields}
        self.keys[name] = json_hash(
            {
                "stage": name,
                "prunekit": prunekit.__version__,
                "inputs": described,
                "extra": extra,
                "after": [self.keys[stage] for stage in before],
            }
        )
        return Stage(name, self.keys[name], tuple(outputs), action)

    def _stage(
        self,
        name: str,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        action: Callable[[], dict[str, Any]],
        after: str | Sequence[str] = (),
    ) -> None:
        """Run ``action`` unless its outputs are there and were made from the same inputs."""
        self.make(self._planned(name, inputs, outputs, action, after))

    def _apart(self, chains: Mapping[str, Sequence[Stage]]) -> None:
        """Make chains of stages, by the executor where there is one. No chain needs what another makes.

        Raises:
            UnfinishedError: chains failed; what the others made is kept.
        """
        stages = [stage for rank in zip_longest(*chains.values()) for stage in rank if stage is not None]
        if self.executor is None:
            for stage in stages:
                self.make(stage)
            return
        missing = {name: [s for s in chain if not self._is_kept(s)] for name, chain in chains.items()}
        for stage in stages:
            if self._is_kept(stage):
                self.observer.stage(stage.name, True)
        jobs = [Job(self, name, tuple(chain)) for name, chain in missing.items() if chain]
        fan_out(self.executor, jobs, self.folder / "jobs", self.observer)
        for stage in stages:
            self._read(self._file(stage.name))
            self.done[stage.name] = self.state[stage.name]

    def make(self, stage: Stage) -> None:
        """Run a stage unless it is kept from before, or another process makes it meanwhile."""
        kept = self._is_kept(stage)
        if kept:
            self.observer.stage(stage.name, True)
        else:
            with self._alone(stage):
                self._make_alone(stage)
        self.done[stage.name] = self.state[stage.name]

    def _make_alone(self, stage: Stage) -> None:
        if self._file(stage.name).is_file():
            self._read(self._file(stage.name))  # as whoever held the lock has left it
        kept = self._is_kept(stage)
        if not kept and stage.name in self.state:  # should it stop midway, what it has written is nobody's output
            self._write(stage.name, "", 0.0, {})
        kept = kept or any(self._take(stage, peer) for peer in self.peers)
        self.observer.stage(stage.name, kept)
        if kept:
            return
        started, self.key = time.perf_counter(), stage.key
        facts = stage.action()
        self._write(stage.name, stage.key, round(time.perf_counter() - started, 3), facts)

    def _is_kept(self, stage: Stage) -> bool:
        made = self.state.get(stage.name, {}).get("key") == stage.key
        return made and all((self.folder / path).exists() for path in stage.outputs)

    def _take(self, stage: Stage, peer: Path) -> bool:
        """Copy what a peer has made of the same inputs; whether there was such."""
        file = peer / "stages" / self._file(stage.name).name

        def record() -> dict[str, Any]:
            return read_json(file, _FORMAT) if file.is_file() else {}

        before = record()
        if before.get("key") != stage.key or not all((peer / path).is_file() for path in stage.outputs):
            return False
        for path in stage.outputs:
            with atomic_path(self.folder / path) as part:
                shutil.copyfile(peer / path, part)
        if record() != before:  # the peer began to make it anew meanwhile
            return False
        write_json(self._file(stage.name), before)
        self._read(self._file(stage.name))
        return True

    @contextmanager
    def _alone(self, stage: Stage) -> Iterator[None]:
        """Within the block no other process makes this stage."""
        file = self._file(stage.name)
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
            if new and not file.exists():  # nothing came of a folder's first stage
                Path(lock.lock_file).unlink(missing_ok=True)
                for folder in new:
                    with suppress(OSError):  # others may have written there
                        folder.rmdir()

    def _file(self, name: str) -> Path:
        return self.folder / "stages" / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"

    def _read(self, file: Path) -> None:
        record: Any = read_document(file, _RecordForm, _FORMAT, "remove it to run that stage again")
        self.state[record.pop("name")] = record

    def _write(self, name: str, key: str, seconds: float, facts: dict[str, Any]) -> None:
        made = {"key": key, "seconds": seconds, "threads": torch.get_num_threads(), "facts": facts}
        write_json(self._file(name), {"format": _FORMAT, "name": name, **made})
        self.state[name] = made

    def _ledger(self) -> list[dict[str, Any]]:
        """The rows of every stage of this run."""
        return [row for stage in self.done.values() for row in stage["facts"].get("ledger", [])]

    def _checkpoints(self, name: str) -> Path:
        """Folder for a training's checkpoints: another for other options, so that a changed recipe starts it anew."""
        return self.folder / "checkpoints" / f"{_slug(name)}-{self.key[:16]}"

    def _drop_checkpoints(self, name: str) -> None:
        """Remove a training's checkpoints, those for other options too."""
        for folder in (self.folder / "checkpoints").glob(f"{_slug(name)}-*"):
            if re.fullmatch("[0-9a-f]{16}", folder.name.removeprefix(f"{_slug(name)}-")):
                drop_checkpoints(folder)


def _slug(name: str) -> str:
    """A training's name as a folder's."""
    return name.replace(", ", "-").replace(" ", "-")
