"""The records of finished stages in a run's folder: checks that their files are unchanged, and copies from other folders."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from prunekit._files import atomic_path
from prunekit._json import read_json
from prunekit.errors import FileFormatError
from prunekit.results.formats import STATE
from prunekit.results.model import Model, plain
from prunekit.results.stage_files import StageRecord
from prunekit.results.versions import records_of_state
from prunekit.runs.records import (
    Marks,
    changes,
    covered,
    discard,
    marks_digest,
    marks_of,
    read_record,
    versions,
    write_record,
)

__all__ = ["Book", "Facts", "Stage"]

Facts = Model | Mapping[str, object]
"""What a stage returns: usually :class:`prunekit.results.stage_files.StageFacts`, or any JSON object."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Args:
        name: its name in the folder and for observers.
        key: hash of everything that it is made from, including the keys of the stages before it.
        outputs: files and folders that it writes, relative to the folder.
        action: makes the outputs and returns the stage's facts.
        before: all stages whose outputs it may read, including indirect ones.
        reads: files in the folder that no stage of this run writes, but that this stage or one before it reads.
        extras: outputs that it writes only in some cases, and that may be deleted.
    """

    name: str
    key: str
    outputs: tuple[str, ...]
    action: Callable[[], Facts]
    before: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


class Book:
    """The records of all stages that have finished in a folder.

    Args:
        folder: the run's folder.

    Raises:
        FileFormatError: the folder's ``state.json`` cannot be read, or a later version wrote a stage's record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, StageRecord] = {}
        self._damaged: set[Path] = set()  # records that cannot be read
        before = folder / "state.json"  # earlier versions wrote all stages into this one file
        if before.is_file():
            self.records = records_of_state(read_json(before, STATE), str(before))
        for file in sorted((folder / "stages").glob("*.json")):
            self._read(file)

    def file(self, name: str) -> Path:
        """The file of a stage's record."""
        return self.folder / "stages" / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"

    def read(self, name: str) -> None:
        """Read a stage's record again, since another process may have written it."""
        if self.file(name).is_file():
            self._read(self.file(name))

    def _read(self, file: Path) -> None:
        found = read_record(file)
        if found is None:
            self._damaged.add(file)
            for name in [name for name in self.records if self.file(name) == file]:
                del self.records[name]
            return
        self._damaged.discard(file)
        name, record = found
        self.records[name] = record

    def _write(self, name: str, record: StageRecord) -> None:
        self.records[name] = write_record(self.file(name), name, record)
        self._damaged.discard(self.file(name))

    def finish(self, stage: Stage, seconds: float, facts: Facts, inputs: Mapping[str, str]) -> None:
        """Record a stage after its outputs are written; ``inputs`` is the result of :meth:`inputs` before the stage began."""
        made = StageRecord(
            key=stage.key,
            seconds=seconds,
            threads=torch.get_num_threads(),
            versions=versions(),
            facts=plain(facts.to_json() if isinstance(facts, Model) else facts),
            outputs=marks_of(self.folder, stage.outputs, stage.extras),
            inputs=dict(inputs),
        )
        self._write(stage.name, made)

    def is_without_hashes(self, stage: Stage) -> bool:
        """Whether the stage's record was written by an earlier version, without hashes."""
        record = self.records.get(stage.name)
        return record is not None and record.outputs is None

    def adopt(self, stage: Stage) -> bool:
        """Add the hashes of the present files to a record without hashes; returns False if it does not match the planned stage."""
        self.read(stage.name)
        record = self.records.get(stage.name)
        as_planned = record is not None and record.outputs is None and record.key == stage.key
        if record is None or not as_planned or not all((self.folder / path).exists() for path in stage.outputs):
            return False
        marks = marks_of(self.folder, stage.outputs, stage.extras)
        self._write(stage.name, record.model_copy(update={"outputs": marks, "inputs": self._hashes(stage)}))
        return True

    def fault(self, stage: Stage) -> str | None:
        """None if the stage can be kept; otherwise a sentence that says why not, or an empty text if no record matches the plan."""
        record = self.records.get(stage.name)
        if record is None or record.outputs is None:
            file = self.file(stage.name)
            damaged = f"{file.relative_to(self.folder)} is damaged or was edited; {stage.name} is made again."
            return damaged if file in self._damaged else ""
        marks = record.outputs
        if record.key != stage.key or not _complete(stage, marks):
            return ""
        if changed := changes(self.folder, marks):
            paths = ", ".join(f"{change.path} was {'deleted' if change.deleted else 'changed'}" for change in changed)
            return (
                f"{paths} since stage {stage.name} finished; {stage.name} is made again, and so is every later stage whose "
                "inputs come out different."
            )
        if other := self._differing(stage, self._hashes(stage), record.inputs or {}):
            return f"Stage {stage.name} was made from other files of {', '.join(other)}; {stage.name} is made again."
        return None

    def difference(self, stage: Stage) -> str:
        """How versions and threads of the stage differ from this process's, as part of a sentence; empty if they are the same."""
        record, now = self.records[stage.name], {**versions(), "threads": torch.get_num_threads()}
        made = {**(record.versions or {}), "threads": record.threads or now["threads"]}
        other = [name for name, value in made.items() if name in now and value != now[name]]
        then, here = (", ".join(f"{name} {values[name]}" for name in other) for values in (made, now))
        return f"with {then}, and this is {here}" if other else ""

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Hashes of the files that the stage reads, by the earlier stage that wrote them.

        Raises:
            FileFormatError: an earlier stage's output has changed since this process checked it.
        """
        for name in stage.before:
            if changed := changes(self.folder, self._marks(name)):
                raise FileFormatError(
                    f"{self.folder / changed[0].path} was changed while the run was going on, after stage {name} had "
                    "finished; start the run again."
                )
        return self._hashes(stage)

    def _marks(self, name: str) -> Marks:
        record = self.records.get(name)
        return (record.outputs if record else None) or {}

    def _hashes(self, stage: Stage) -> dict[str, str]:
        written = {name: marks_digest(self._marks(name)) for name in stage.before}
        return written | {path: mark.sha256 for path, mark in marks_of(self.folder, stage.reads).items()}

    def as_before(self, stage: Stage, inputs: Mapping[str, str]) -> dict[str, str]:
        """The result of :meth:`inputs` as earlier versions hashed it: with outputs that may be deleted."""
        return {**inputs, **{name: marks_digest(self._marks(name), extras=True) for name in stage.before}}

    def _differing(self, stage: Stage, inputs: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
        """The earlier stages and files of which a record knows other hashes than ``inputs``, as any version hashed them."""
        before = self.as_before(stage, inputs)
        return [name for name in {**inputs, **known} if known.get(name) not in (inputs.get(name), before.get(name))]

    def disown(self, stage: Stage) -> None:
        """Forget a stage's outputs before it is made again, so that they do not count as finished if it stops midway.

        Files that were changed are removed, a folder as a whole, so that nothing of them gets into the new outputs.
        """
        record = self.records.get(stage.name)
        if record is None:
            if self.file(stage.name) not in self._damaged:
                return
            bad = {path for path in stage.outputs if (self.folder / path).is_file()}  # no record says which are intact
        else:
            marks = self._marks(stage.name)
            bad = {change.path for change in changes(self.folder, marks)} if record.key == stage.key else set()
            homes = {Path(path).parent.as_posix() for path in bad} - {"."}
            bad |= {path for path in marks if covered(path, homes)}
        discard(self.folder, sorted(bad))
        self._write(stage.name, StageRecord(key="", seconds=0.0, facts={}, outputs={}, inputs={}))

    def take(self, stage: Stage, peer: Path, inputs: Mapping[str, str]) -> bool:
        """Copy the stage's outputs from another folder if they were made from the same inputs; returns whether they were.

        The files are compared with their hashes before they are copied, and the copies afterwards.
        """
        file = peer / "stages" / self.file(stage.name).name

        def recorded() -> StageRecord | None:
            found = read_record(file) if file.is_file() else None
            return None if found is None else found[1]

        before = recorded()
        if before is None or before.key != stage.key:
            return False
        if before.inputs is not None and self._differing(stage, inputs, before.inputs):
            return False
        marks = marks_of(peer, stage.outputs) if before.outputs is None else before.outputs
        marks = {path: mark for path, mark in marks.items() if not mark.extra or (peer / path).is_file()}
        if not _complete(stage, marks) or changes(peer, marks, read_all=True):
            return False
        for path in marks:
            with atomic_path(self.folder / path) as part:
                shutil.copyfile(peer / path, part)
                shutil.copystat(peer / path, part)
        if recorded() != before or changes(self.folder, marks, read_all=True):  # made again in the meantime
            discard(self.folder, marks)
            return False
        self._write(stage.name, before.model_copy(update={"outputs": marks, "inputs": dict(inputs)}))
        return True


def _complete(stage: Stage, marks: Marks) -> bool:
    """Whether the record has files of every output."""
    return all(any(covered(path, [output]) for path in marks) for output in stage.outputs)
