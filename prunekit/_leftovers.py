"""Leftovers of a killed process's unfinished write: their names, how they are cleaned up, and how a folder is restored.

A file or folder is written next to its target under the name ``.NAME.HOST-PID-NUMBER.part``, and renamed when it is complete.
A folder that is being replaced is called ``.NAME.old.part`` between the two renames. This name is fixed, so that the next process,
even one that only reads, finds it and restores it.
"""

import errno
import hashlib
import itertools
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "alone",
    "is_leftover",
    "part_of",
    "put_back",
    "replace_folder",
    "restore",
    "restore_within",
    "sweep",
    "sync",
    "sync_tree",
]

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # process numbers are valid on their own host only
_PART = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,10})-\d+\.part", re.DOTALL)
_OLD = re.compile(r"\.(.+)\.old\.part", re.DOTALL)
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.EBADF, errno.ENOTSUP}
_numbers = itertools.count()


def part_of(target: Path) -> Path:
    """A name next to ``target`` that no other write uses."""
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{next(_numbers)}.part")


def is_leftover(path: Path) -> bool:
    """Whether a name belongs to an unfinished write."""
    return bool(_PART.fullmatch(path.name) or _OLD.fullmatch(path.name))


def sweep(folder: Path) -> None:
    """Remove leftovers of unfinished writes by ended processes of this machine from a folder; ignores errors."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name) if entry.name.endswith(".part") else None
            if match is None or match[1] != _HOST or _is_alive(int(match[2])):
                continue
            _remove(Path(entry.path))


def restore(target: Path) -> None:
    """Restore a folder if a process was killed while replacing it; otherwise do nothing.

    Raises:
        OSError: it cannot be renamed.
    """
    if not os.path.lexists(target) and _old_of(target).is_dir():
        with alone(target.parent):
            put_back(target)


def restore_within(folder: Path) -> None:
    """:func:`restore` every folder in a folder."""
    for old in sorted(folder.glob(".*.old.part")):
        match = _OLD.fullmatch(old.name)
        if match is not None:
            restore(folder / match[1])


def replace_folder(part: Path, target: Path, check: Callable[[], None]) -> None:
    """Rename a complete folder onto ``target``; a folder there is removed afterwards.

    Args:
        part: the complete folder, next to ``target``.
        target: its final path.
        check: called right before a folder at ``target`` is moved aside; raises if that must not happen.
    """
    old, discarded = _old_of(target), [part_of(target), part_of(target)]
    with alone(target.parent):
        put_back(target)
        if target.exists():
            check()
            shutil.copymode(target, part)
            if old.exists():  # left by a process that was killed after its replacement
                old.rename(discarded[0])
            target.rename(old)
        try:
            part.rename(target)
        finally:
            put_back(target)
        sync(target.parent)
        if old.exists():
            old.rename(discarded[1])
    for folder in discarded:
        _remove(folder)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_FOLDER_SYNC):  # not every system can do this for folders
            raise


def sync_tree(folder: Path) -> None:
    """:func:`sync` everything in a folder, then the folder."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(place) / name)
        sync(Path(place))


def _old_of(target: Path) -> Path:
    return target.parent / f".{target.name}.old.part"


def put_back(target: Path) -> None:
    """:func:`restore` for a caller that is :func:`alone` in the folder already."""
    old = _old_of(target)
    if old.is_dir() and not os.path.lexists(target):
        old.rename(target)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # other systems have no signal that only checks for a process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block no other process renames in this folder. The lock is the folder's own, so it leaves no file."""
    try:
        import fcntl  # noqa: PLC0415 - not on every system
    except ImportError:
        yield
        return
    if not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network filesystems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
