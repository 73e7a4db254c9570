"""Files that are either whole or absent: atomic writes, checked reads, hashes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit._json import read_json
from prunekit._types import JsonDict
from prunekit.errors import InputError

__all__ = ["atomic_folder", "atomic_path", "canonical_json", "json_hash", "read_json", "sha256_file", "write_json"]


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and rename it onto ``target`` when the block succeeds.

    Nothing is left behind when the block raises; a reader never sees a half-written file.

    Raises:
        InputError: a folder stands at ``target``, or its own folder cannot be made.
    """
    if target.is_dir():
        raise InputError(f"{target} is a folder; expected the name of a file to write.")
    _make_parent(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``target`` when the block succeeds.

    An existing ``target`` is replaced only after the new one is complete, and stays if the replacement fails.

    Raises:
        InputError: a file stands at ``target``, or its own folder cannot be made.
    """
    if not target.name or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} cannot become a folder of results; expected a new name, or a folder to replace.")
    _make_parent(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    old = target.with_name(f".{target.name}.{os.getpid()}.old.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if target.exists():
            target.replace(old)
        part.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror} ({target.parent}).") from error


def canonical_json(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, shortest float form."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_hash(data: Any) -> str:
    """SHA-256 of :func:`canonical_json`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, data: JsonDict) -> None:
    """Write indented JSON atomically; NaN and infinities are refused, since JSON has no word for them."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
