"""The memory bank on disk: JSON lines, appended as they come, so that a search that was killed goes on where it was."""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from prunekit._files import check_file
from prunekit._json import Many, Ratio, Whole, checked, parse_json
from prunekit._leftovers import sync
from prunekit.errors import FileFormatError, LimitError

__all__ = ["Journal"]

_FORMAT = "prunekit-search/1"
_log = logging.getLogger(__name__)


class _SaidForm(TypedDict):
    """What a language model said, or how it failed."""

    round: int
    ratios: NotRequired[dict[str, Ratio]]
    failed: NotRequired[str]


class _MeasuredForm(TypedDict):
    """A measured candidate, or a choice."""

    round: int
    steps: Many[Whole]
    macs: Whole
    loss: float
    spent: NotRequired[Whole]
    chosen: NotRequired[Any]


class Journal:
    """What a search has measured and decided, from its beginning.

    A search is deterministic but for what it measures and what it is told. A search that starts again asks here first, gets the
    same answers, and so comes to where it was. The first line is a header with the search's key. Measured candidates are
    ``{"round", "steps", "macs", "loss"}`` (``"spent"`` too, where the target is not of MACs), choices
    ``{"round", "chosen", "steps", "macs", "loss"}``, what a language model said ``{"round", "ratios"}`` or ``{"round", "failed"}``.

    Args:
        path: where lines are appended; nowhere when absent.
        key: of the search.
        entries: what is there already.
    """

    def __init__(self, path: Path | None = None, key: str = "", entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path, self.key = path, key
        self.entries = [dict(entry) for entry in entries]
        self._written = {_line(entry) for entry in self.entries}

    @classmethod
    def open(cls, path: Path | str, key: str) -> "Journal":
        """The journal at ``path``, begun where there is none.

        A last line that was torn by a kill is dropped, as is everything after a line that cannot be read. A journal with another
        key (another network, target, option or version), or a file that is no journal, is never used: it is moved aside to a name
        that is free (``<name>.old``, ``<name>.old-2``, …), which is said.

        Raises:
            InputError: no file can be written there.
        """
        path = check_file(Path(path))  # behind symbolic links
        path.parent.mkdir(parents=True, exist_ok=True)
        *lines, torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        header = json.dumps({"format": _FORMAT, "key": key}).encode()
        if lines[0] != header if lines else not header.startswith(torn):
            aside = _free_name(path)
            path.rename(aside)
            _log.warning("%s is the journal of another search; it is now %s, and the search starts anew.", path, aside)
            lines = []
        entries = _readable(lines[1:])
        kept = b"".join(line + b"\n" for line in (header, *lines[1 : 1 + len(entries)]))
        if not lines:
            path.write_bytes(kept)
        else:
            with path.open("r+b") as file:
                file.truncate(len(kept))
        if len(entries) < len(lines) - 1:
            _log.warning("%s, line %d cannot be read; the search goes on from the line before.", path, len(entries) + 2)
        elif entries:
            _log.info("The search goes on from %d entries of %s.", len(entries), path)
        return cls(path, key, entries)

    def sync(self) -> None:
        """Have the system write what is there to the disk."""
        if self.path is not None:
            sync(self.path)
            sync(self.path.parent)

    def losses(self) -> dict[tuple[int, ...], float]:
        """The loss of every measured candidate, by its steps."""
        return {tuple(e["steps"]): float(e["loss"]) for e in self.entries if "steps" in e and "chosen" not in e}

    def answer(self, search_round: int) -> dict[str, Any] | None:
        """What a language model answered in a round, or how it failed; None where it was not asked."""
        said = (e for e in self.entries if e["round"] == search_round and ("ratios" in e or "failed" in e))
        return next(said, None)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, unless an earlier start of this search did."""
        line = _line(entry)
        if self.path is None or line in self._written:
            return
        self._written.add(line)
        with self.path.open("ab", buffering=0) as file:  # one write: a kill tears at most the last line
            file.write(line.encode() + b"\n")


def _free_name(path: Path) -> Path:
    """A name for a journal that is moved aside, at which nothing is."""
    names = (f"{path.name}.old{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    return next(aside for aside in map(path.with_name, names) if not os.path.lexists(aside))


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False)


def _readable(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The entries up to the first line that is none."""
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = parse_json(line, "A line")
            checked(_MeasuredForm if isinstance(entry, dict) and "steps" in entry else _SaidForm, entry, "A line")
        except LimitError:
            raise
        except FileFormatError:
            break
        if not entry.keys() & {"steps", "ratios", "failed"}:
            break
        entries.append(entry)
    return entries
