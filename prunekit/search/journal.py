"""The memory bank on disk: JSON lines, appended as they come, so that a killed search resumes where it stopped."""

import itertools
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prunekit._files import check_file
from prunekit._json import JsonDict, JsonObject, parse_json
from prunekit._leftovers import sync
from prunekit.errors import FileFormatError, LimitError
from prunekit.results.formats import SEARCH

__all__ = ["Journal", "Measured"]

_log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What a measurement depends on.

    Attributes:
        steps: steps of every channel group.
        draws: number of draws of a screening; 0 for all draws.
        sliced: whether the screening started from the repaired network of another plan.
    """

    steps: tuple[int, ...]
    draws: int = 0
    sliced: bool = False

    @classmethod
    def of(cls, entry: JsonDict) -> "Measured":
        """What an entry of the journal measured."""
        return cls(tuple(entry["steps"]), entry.get("draws") or 0, bool(entry.get("sliced")))

    @property
    def about(self) -> JsonObject:
        """The entry's keys that say that it was a screening."""
        return {**({"draws": self.draws} if self.draws else {}), **({"sliced": True} if self.sliced else {})}


class Journal:
    """All measurements and decisions of a search, from its beginning.

    A search is deterministic except for its measurements and a language model's answers. A restarted search looks these up here
    first, gets the same values, and so returns to the point where it stopped. The first line is a header with the search's key.
    Measured candidates are ``{"round", "steps", "macs", "loss"}`` (with ``"spent"`` if the target is not in MACs, ``"draws"`` if
    it was a screening, ``"sliced"`` if that started from the repaired network of another plan), choices are
    ``{"round", "chosen", "steps", "macs", "loss"}``, a language model's answers are ``{"round", "ratios"}`` or
    ``{"round", "failed"}``.

    Args:
        path: file that lines are appended to; if missing, nothing is written.
        key: the search's key.
        entries: entries that exist already.
    """

    def __init__(self, path: Path | None = None, key: str = "", entries: Iterable[JsonDict] = ()) -> None:
        self.path, self.key = path, key
        self.entries = [dict(entry) for entry in entries]
        self._written = {_line(entry) for entry in self.entries}

    @classmethod
    def open(cls, path: Path | str, key: str) -> "Journal":
        """Open the journal at ``path``, or create it.

        A last line that was torn by a kill is dropped, as is everything after a line that cannot be read. A journal with another
        key (another network, target, option or version), or a file that is not a journal, is never used: it is moved aside to a
        free name (``<name>.old``, ``<name>.old-2``, …), and a message gives that name.

        Raises:
            InputError: no file can be written there.
        """
        path = check_file(Path(path))  # behind symbolic links
        path.parent.mkdir(parents=True, exist_ok=True)
        *lines, torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        header = json.dumps({"format": SEARCH, "key": key}).encode()
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
            _log.info("%d entries of %s are used again.", len(entries), path)
        return cls(path, key, entries)

    def sync(self) -> None:
        """Flush the file to the disk."""
        if self.path is not None:
            sync(self.path)
            sync(self.path.parent)

    def losses(self) -> dict[Measured, float]:
        """The loss of every measured candidate, by what was measured."""
        measured = (entry for entry in self.entries if "steps" in entry and "chosen" not in entry)
        return {Measured.of(entry): float(entry["loss"]) for entry in measured}

    def answer(self, search_round: int) -> JsonObject | None:
        """A language model's answer in a round, or its failure; None if it was not asked."""
        said = (e for e in self.entries if e["round"] == search_round and ("ratios" in e or "failed" in e))
        return next(said, None)

    def write(self, entry: JsonDict) -> None:
        """Append an entry, unless an earlier run of this search already did."""
        line = _line(entry)
        if self.path is None or line in self._written:
            return
        self._written.add(line)
        with self.path.open("ab", buffering=0) as file:  # one write: a kill tears at most the last line
            file.write(line.encode() + b"\n")


def _free_name(path: Path) -> Path:
    """A free name for a journal that is moved aside."""
    names = (f"{path.name}.old{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    return next(aside for aside in map(path.with_name, names) if not os.path.lexists(aside))


def _line(entry: JsonDict) -> str:
    return json.dumps(entry, allow_nan=False)


def _readable(lines: Iterable[bytes]) -> list[JsonObject]:
    """The entries before the first line that is not an entry."""
    from prunekit.results.working_files import JournalAnswer, JournalEntry  # noqa: PLC0415 - loads pydantic

    entries: list[JsonObject] = []
    for line in lines:
        try:
            entry = parse_json(line, "A line")
            form = JournalEntry if isinstance(entry, dict) and "steps" in entry else JournalAnswer
            form.of(entry, "A line")
        except LimitError:
            raise
        except FileFormatError:
            break
        if not entry.keys() & {"steps", "ratios", "failed"}:
            break
        entries.append(entry)
    return entries
