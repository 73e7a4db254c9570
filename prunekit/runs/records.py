"""The record of a finished stage: its inputs, the versions used, and the hash of every file that it wrote.

A file counts as unchanged if its content has the recorded SHA-256. A file above 64 MiB is read only if its size or its time of
modification has changed: reading the weights of large networks on every start would take minutes, and a change by mistake
changes the time too.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import prunekit
from prunekit._files import json_hash, sha256_file, write_json
from prunekit._json import read_json
from prunekit.errors import FileFormatError
from prunekit.results.formats import STAGE, STAGE_WITHOUT_HASHES
from prunekit.results.stage_files import Mark, StageRecord

__all__ = [
    "Change",
    "Marks",
    "changes",
    "covered",
    "discard",
    "marks_digest",
    "marks_of",
    "read_record",
    "write_record",
]

_ANY_VERSION = STAGE.partition("/")[0] + "/"
_ALWAYS_READ = 64 * 2**20  # bytes


Marks = Mapping[str, Mark]
"""The recorded files by their path."""


@dataclass(frozen=True)
class Change:
    """A recorded file that has changed since."""

    path: str
    deleted: bool


def versions() -> dict[str, str]:
    """The versions that influence a stage's numbers."""
    return {"prunekit": prunekit.__version__, "torch": str(torch.__version__)}


def read_record(path: Path) -> tuple[str, StageRecord] | None:
    """A stage's name and record; None if the file is damaged or was edited.

    A record of an earlier version has no ``outputs``.

    Raises:
        FileFormatError: a later version wrote it.
    """
    try:
        data = read_json(path)
    except FileFormatError:
        return None
    kind, seal = data.pop("format", None), data.pop("sha256", None)
    if kind not in (STAGE, STAGE_WITHOUT_HASHES):
        if isinstance(kind, str) and kind.startswith(_ANY_VERSION):
            raise FileFormatError(
                f"{path} has format {kind!r}; expected {STAGE!r}: go on with the version that wrote it, or remove the file to "
                "run that stage again."
            )
        return None
    if kind == STAGE and seal != json_hash(data):
        return None
    name = data.pop("name", None)
    try:
        return (name, StageRecord.of(data, str(path))) if isinstance(name, str) else None
    except FileFormatError:
        return None


def write_record(path: Path, name: str, record: StageRecord) -> StageRecord:
    """Write a stage's record, with a hash of its own content; returns the record as :func:`read_record` will."""
    kept: dict[str, object] = json.loads(json.dumps({"name": name, **record.to_json()}, allow_nan=False))
    write_json(path, {"format": STAGE, **kept, "sha256": json_hash(kept)})
    del kept["name"]
    return StageRecord.of(kept, str(path))


def marks_of(folder: Path, outputs: Sequence[str], extras: Sequence[str] = ()) -> dict[str, Mark]:
    """Size, time and hash of every output file; for a folder, of every file in it that is not hidden.

    Args:
        folder: the folder that outputs are relative to.
        outputs: files and folders.
        extras: further outputs, which may be deleted later.
    """
    marks: dict[str, Mark] = {}
    for output in (*outputs, *extras):
        path = folder / output
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                about = file.stat()
                mark = Mark(sha256=sha256_file(file), size=about.st_size, mtime_ns=about.st_mtime_ns)
                as_extra = mark.model_copy(update={"extra": True})
                marks[file.relative_to(folder).as_posix()] = as_extra if output in extras else mark
    return marks


def covered(path: str, outputs: Iterable[str]) -> bool:
    """Whether a file is one of the outputs, or is inside one."""
    return any(path == output or path.startswith(f"{output}/") for output in outputs)


def changes(folder: Path, marks: Marks, read_all: bool = False) -> list[Change]:
    """The recorded files that have been changed or deleted.

    Args:
        folder: the folder that the marks are relative to.
        marks: the recorded files.
        read_all: whether to read even large files with unchanged size and time.
    """
    found = []
    for path, mark in marks.items():
        try:
            about = os.stat(folder / path)
        except OSError:
            if not mark.extra:
                found.append(Change(path, deleted=True))
            continue
        alike = about.st_size == mark.size
        trusted = about.st_size > _ALWAYS_READ and about.st_mtime_ns == mark.mtime_ns and not read_all
        if not alike or not (folder / path).is_file() or (not trusted and sha256_file(folder / path) != mark.sha256):
            found.append(Change(path, deleted=False))
    return found


def marks_digest(marks: Marks, extras: bool = False) -> str:
    """One hash for the contents of the files; it does not depend on their times.

    Args:
        marks: the recorded files.
        extras: whether files that may be deleted count, as they did in earlier versions.
    """
    return json_hash({path: mark.sha256 for path, mark in marks.items() if extras or not mark.extra})


def discard(folder: Path, paths: Iterable[str]) -> None:
    """Remove files that a stage wrote, and folders that are then empty; other files stay."""
    for path in paths:
        file = folder / path
        if file.is_file() or file.is_symlink():
            file.unlink()
        for parent in file.parents:
            if parent == folder:
                break
            with suppress(OSError):  # it does not exist, or has other files in it
                parent.rmdir()
