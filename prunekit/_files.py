"""Atomic writing of files and folders: they are complete or missing, and flushed to the disk; and hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunekit._json import JsonDict
from prunekit._kinds import FolderKind, contents
from prunekit._leftovers import alone, part_of, put_back, replace_folder, sweep, sync, sync_tree
from prunekit.errors import InputError, PrunekitError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "canonical_json",
    "check_file",
    "check_folder",
    "json_hash",
    "sha256_file",
    "write_json",
]

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors' wording of a system error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and rename it onto ``target`` when the block succeeds.

    If the block raises, nothing is left behind; a reader never sees a half-written file. After the block, the file and its folder's
    list of names are flushed to the disk. A symbolic link is followed: its file is replaced and the link stays.

    Raises:
        InputError: ``target`` exists and is not a regular file, may not be written, or its folder cannot be created.
        OSError: the system cannot write there; it names ``target``.
    """
    place = check_file(target)
    with _parent_of(place, target), _system_errors(place, target):
        part = part_of(place)
        try:
            yield part
            if place.exists():
                shutil.copymode(place, part)
            sync(part)
            part.replace(place)
            sync(place.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, kind: FolderKind | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``target`` when the block succeeds.

    A folder at ``target`` is replaced only after the new one is complete and on the disk, and only if it is empty or an earlier
    output of the same kind; it stays if the replacement fails. A symbolic link to a folder is followed: the link stays.

    Args:
        target: the folder's name.
        kind: kind of folder that is written; if missing, ``target`` must be missing or an empty folder.

    Raises:
        InputError: something is at ``target`` that prunekit did not write, or its folder cannot be created.
        OSError: the system cannot write there; it names ``target``.
    """
    place = check_folder(target, kind)
    with _parent_of(place, target), _system_errors(place, target):
        part = part_of(place)
        part.mkdir()
        try:
            yield part
            unknown = None if kind is None else kind.foreign(part)
            if unknown is not None:
                raise AssertionError(f"{unknown} is missing from the kind {kind}, so it could never be replaced")
            sync_tree(part)
            replace_folder(part, place, lambda: _check_content(place, target, kind))
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_file(target: Path) -> Path:
    """Refuse a path that no file can be written to; returns the file behind symbolic links. Writes nothing.

    Raises:
        InputError: it is a folder, a device, a link to nothing or a file without write permission, or its folder cannot be one.
    """
    place = _followed(target)
    if place.is_dir():
        raise InputError(f"{target} is a folder; expected the name of a file to write.")
    if place.exists() and not place.is_file():
        raise InputError(f"{target} is a device or a pipe; expected the name of a file to write.")
    if place.exists() and not os.access(place, os.W_OK):
        raise InputError(f"{target} is write-protected; give another name, or permission to write it.")
    _check_above(place, target)
    return place


def check_folder(target: Path, kind: FolderKind | None = None) -> Path:
    """Refuse a path that a folder of results cannot be written to; returns the folder behind symbolic links.

    A folder that a killed process had moved aside is put back first.

    Raises:
        InputError: see :func:`atomic_folder`.
    """
    place = _followed(target)
    _check_above(place, target)
    with alone(place.parent):  # no other process is between its two renames
        put_back(place)
        _check_standing(place, target, kind)
    return place


def _check_standing(place: Path, target: Path, kind: FolderKind | None) -> None:
    """Refuse to replace anything at ``place`` that is not an earlier output."""
    if place.exists() and not place.is_dir():
        raise InputError(
            f"{target} exists and holds no earlier {_name(kind)}: it is a file; expected a new name, or a folder."
        )
    if place.is_dir():
        _check_content(place, target, kind)
        _check_replaceable(place, target)


def _followed(target: Path) -> Path:
    """The place behind symbolic links.

    Raises:
        InputError: a link leads to nothing.
    """
    place = Path(os.path.realpath(target))
    if target.is_symlink() and not target.exists():
        raise InputError(
            f"{target} is a symbolic link to {place}, which does not exist; remove the link, or make that."
        )
    return place


def _check_above(place: Path, target: Path) -> None:
    """Refuse a place if its parent is not a folder, or a folder without write permission."""
    above = next((folder for folder in place.parents if os.path.lexists(folder)), place)
    if not above.is_dir():
        raise InputError(f"{target} cannot be written: {above} is no folder; expected another place to write to.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{target} cannot be written: {above} is read-only for this user; write to another place.")


def _check_replaceable(place: Path, target: Path) -> None:
    """Refuse folders that cannot be renamed without harm."""
    with suppress(FileNotFoundError):  # the current folder may have been removed
        if place in (here := Path.cwd(), *here.parents):
            raise InputError(f"{target} is the folder that this command runs in, or one above it; name a folder in it.")
    if str(place) == os.path.realpath(os.path.expanduser("~")) or os.path.ismount(place):
        raise InputError(f"{target} is a home folder or a mounted disk; expected a folder in it to write to.")


def _check_content(place: Path, target: Path, kind: FolderKind | None) -> None:
    """Refuse a folder that contains anything that prunekit did not write."""
    found = contents(place)
    if not found:
        return
    if kind is None or not kind.recognises(place):
        marker = "" if kind is None else f", or one with prunekit's {kind.marker}"
        raise InputError(
            f"{target} exists and holds no earlier {_name(kind)}, but {found[0].name}; expected a new or empty folder{marker}."
        )
    foreign = kind.foreign(place)
    if foreign is not None:
        raise InputError(
            f"{target} holds an earlier {kind.name} and also {foreign.relative_to(place)}, which is not part of it; "
            "move that elsewhere, where it is not lost, or write to another folder."
        )


def _name(kind: FolderKind | None) -> str:
    return "output of prunekit" if kind is None else kind.name


@contextmanager
def _parent_of(place: Path, target: Path) -> Iterator[None]:
    """Create the parent folder of ``place``, or clean it of leftovers; a new folder is removed again if the block raises."""
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror} ({place.parent}).") from error
    for folder in made:
        sync(folder.parent)
    sweep(place.parent)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # others may have written there
                folder.rmdir()
        raise


@contextmanager
def _system_errors(place: Path, target: Path) -> Iterator[None]:
    """Make system errors of a write name ``target``, whichever library raises them.

    Raises:
        OSError: in place of disk errors that a library raises as its own.
    """
    try:
        yield
    except PrunekitError:
        raise
    except OSError as error:
        named = isinstance(error.filename, str) and error.filename.startswith(str(place.with_name(f".{place.name}.")))
        if named or (error.filename is None and error.errno in _OF_THE_DISK):
            error.filename, error.filename2 = str(target), None
        raise
    except Exception as error:
        code = _RUST_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(target)) from error


def canonical_json(data: object) -> str:
    """One text for equal data: sorted keys, no spaces, shortest float form."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_hash(data: object) -> str:
    """SHA-256 of :func:`canonical_json`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, data: JsonDict) -> None:
    """Write indented JSON atomically; NaN and infinities are refused, since JSON cannot express them."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
