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
from typing import Any, NotRequired

import torch
from typing_extensions import TypedDict

import prunekit
from prunekit._files import json_hash, sha256_file, write_json
from prunekit._json import Amount, Named, Positive, Whole, checked, read_json
from prunekit.errors import FileFormatError

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

_FORMAT = "prunekit-stage/2"
_WITHOUT_HASHES = "prunekit-stage/1"
_ALWAYS_READ = 64 * 2**20  # bytes


class _MarkForm(TypedDict):
    """A file that a stage wrote."""

    sha256: str
    size: Whole
    mtime_ns: int
    extra: NotRequired[bool]


class _RecordForm(TypedDict):
    """A stage's record in the folder; version 1 does not have the last three keys."""

    name: str
    key: str
    seconds: Amount
    threads: NotRequired[Positive]
    facts: dict[str, Any]
    versions: NotRequired[Named[str]]
    outputs: NotRequired[Named[_MarkForm]]
    inputs: NotRequired[Named[str]]


Marks = Mapping[str, Mapping[str, Any]]
"""For each file: ``sha256``, ``size`` in bytes, ``mtime_ns``, and ``extra`` if it may be deleted."""


@dataclass(frozen=True)
class Change:
    """A recorded file that has changed since."""

    path: str
    deleted: bool


def versions() -> dict[str, str]:
    """The versions that influence a stage's numbers."""
    return {"prunekit": prunekit.__version__, "torch": str(torch.__version__)}


def read_record(path: Path) -> tuple[str, dict[str, Any]] | None:
    """A stage's name and record; None if the file is damaged or was edited.

    A record of an earlier version has no ``outputs``.

    Raises:
        FileFormatError: a later version wrote it.
    """
    try:
        record = read_json(path)
    except FileFormatError:
        return None
    kind, seal = record.pop("format", None), record.pop("sha256", None)
    if kind not in (_FORMAT, _WITHOUT_HASHES):
        if isinstance(kind, str) and kind.startswith("prunekit-stage/"):
            raise FileFormatError(
                f"{path} has format {kind!r}; expected {_FORMAT!r}: go on with the version that wrote it, or remove the file to "
                "run that stage again."
            )
        return None
    if kind == _FORMAT and seal != json_hash(record):
        return None
    try:
        name = checked(_RecordForm, record, str(path))["name"]
    except FileFormatError:
        return None
    del record["name"]
    return name, record


def write_record(path: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a stage's record, with a hash of its own content; returns the record as :func:`read_record` will."""
    kept: dict[str, Any] = json.loads(json.dumps({"name": name, **record}, allow_nan=False))
    write_json(path, {"format": _FORMAT, **kept, "sha256": json_hash(kept)})
    del kept["name"]
    return kept


def marks_of(folder: Path, outputs: Sequence[str], extras: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Size, time and hash of every output file; for a folder, of every file in it that is not hidden.

    Args:
        folder: the folder that outputs are relative to.
        outputs: files and folders.
        extras: further outputs, which may be deleted later.
    """
    marks: dict[str, dict[str, Any]] = {}
    for output in (*outputs, *extras):
        path = folder / output
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden:
                about = file.stat()
                marks[file.relative_to(folder).as_posix()] = {
                    "sha256": sha256_file(file),
                    "size": about.st_size,
                    "mtime_ns": about.st_mtime_ns,
                    **({"extra": True} if output in extras else {}),
                }
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
            if not mark.get("extra"):
                found.append(Change(path, deleted=True))
            continue
        alike = about.st_size == mark["size"]
        trusted = about.st_size > _ALWAYS_READ and about.st_mtime_ns == mark["mtime_ns"] and not read_all
        if not alike or not (folder / path).is_file() or (not trusted and sha256_file(folder / path) != mark["sha256"]):
            found.append(Change(path, deleted=False))
    return found


def marks_digest(marks: Marks) -> str:
    """One hash for the contents of all files; it does not depend on their times."""
    return json_hash({path: mark["sha256"] for path, mark in marks.items()})


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
