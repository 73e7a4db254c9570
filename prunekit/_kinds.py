"""Kinds of output, and how to tell an earlier output from a user's files: only an earlier output may be replaced."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from prunekit._leftovers import is_leftover

__all__ = ["PICTURE", "SOFTWARE", "FileKind", "FolderKind", "contents", "has_format"]

SOFTWARE = "prunekit"
"""Mark in the pictures that commands write next to their results."""
_MARKED = 1024  # bytes at the start of a PNG that contain the mark
_MAX_BYTES = 128 * 2**20
"""No prunekit JSON that marks an output is larger; a larger file is somebody else's."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes.

    Args:
        name: its name in messages, such as ``allocation``.
        recognises: whether an existing file is one.
    """

    name: str
    recognises: Callable[[Path], bool]


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that is written and replaced as a whole.

    Args:
        name: its name in messages, such as ``slim model``.
        files: names of all files that prunekit writes into it; ``*`` and ``[0-9]`` are patterns.
        folders: the same for the folders in it, with their kinds.
        marker: the file that identifies the kind; empty for a part of another folder.
        is_ours: whether the marker's content is prunekit's.
    """

    name: str
    files: tuple[str, ...]
    folders: Mapping[str, "FolderKind"] = field(default_factory=dict)
    marker: str = ""
    is_ours: Callable[[Path], bool] = os.path.isfile

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is an earlier output of this kind."""
        return not self.marker or self.is_ours(folder / self.marker)

    def knows(self, name: str) -> bool:
        """Whether prunekit writes a file of this name into the folder."""
        return any(fnmatchcase(name, pattern) for pattern in (*self.files, self.marker))

    def foreign(self, folder: Path) -> Path | None:
        """The first file, folder or link in an earlier output that prunekit did not write; None if there is none."""
        for path in contents(folder):
            if path.is_symlink():
                return path
            if not path.is_dir():
                if not path.is_file() or not self.knows(path.name):
                    return path
                continue
            inner = next((kind for name, kind in self.folders.items() if fnmatchcase(path.name, name)), None)
            if inner is None or (contents(path) and not inner.recognises(path)):
                return path
            found = inner.foreign(path)
            if found is not None:
                return found
        return None


def contents(folder: Path) -> list[Path]:
    """The contents of a folder, sorted by name, without leftovers of killed processes."""
    return sorted(path for path in folder.iterdir() if not is_leftover(path))


def has_format(expected: str) -> Callable[[Path], bool]:
    """A function that tells whether a file is a JSON object of this ``format``; it never raises."""

    def check(path: Path) -> bool:
        try:
            if path.stat().st_size > _MAX_BYTES:
                return False
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(data, dict) and data.get("format") == expected

    return check


def _is_picture(path: Path) -> bool:
    """Whether a file is a PNG that is marked as prunekit's; the mark comes before the pixels."""
    try:
        with path.open("rb") as file:
            head = file.read(_MARKED)
    except OSError:
        return False
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"tEXtSoftware\0" + SOFTWARE.encode() in head


PICTURE = FileKind("picture of prunekit", _is_picture)
"""A picture that a command wrote next to its result."""
