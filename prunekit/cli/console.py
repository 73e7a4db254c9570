"""What every command shares: results on standard output, everything else on standard error, one sentence for a mistake."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import InputError, MissingFileError

__all__ = ["Bars", "chosen_allocation", "data_options", "emit", "fail", "print_table", "refuse_existing"]


def emit(as_json: bool, data: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
    """Print JSON when asked for it, else the lines."""
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        for line in lines:
            print(line)


def fail(message: str) -> int:
    """One sentence on standard error; returns the exit code of a user's mistake."""
    print(f"prunekit: {' '.join(message.split())}", file=sys.stderr)
    return 2


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table, aligned, as wide as it needs to be: it survives a pipe."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(title)
    print("  ".join(cell.rjust(width) for cell, width in zip(header, widths, strict=True)).rstrip())
    print("  ".join("─" * width for width in widths))
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Bars:
    """Progress bars with rate and time left on standard error; an observer of runs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.progress_ = Progress(*columns, console=self.console, transient=True)
        self.tasks: dict[str, Any] = {}

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`prunekit.pipeline.observing.Observer`."""
        self.console.print(f"{name}: kept from before" if kept else name, highlight=False)

    def note(self, sentence: str) -> None:
        """See :func:`prunekit.pipeline.observing.say`."""
        self.console.print(sentence, highlight=False, markup=False)

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`prunekit.pipeline.observing.Observer`."""
        if label not in self.tasks:
            self.tasks[label] = self.progress_.add_task(label, total=total, note=note)
        self.progress_.update(self.tasks[label], completed=done, total=total, note=note)
        if done >= total:
            self.progress_.remove_task(self.tasks.pop(label))

    @contextmanager
    def shown(self) -> Iterator["Bars"]:
        """Draw while the block runs."""
        with self.progress_:
            yield self


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file unless told to.

    Raises:
        InputError: it exists.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; give another --output, or --overwrite to replace it.")


def data_options(source: str | None, resolution: int | None) -> Any:
    """Data options where the user named some, else None: the model's own.

    Raises:
        InputError: a resolution without images.
    """
    from prunekit.recipe import DataOptions

    if source is None and resolution is not None:
        raise InputError("Got --resolution without --data; name the images too.")
    return None if source is None else DataOptions(source, resolution)


def chosen_allocation(path: Path | None) -> Path:
    """The allocation that was named, or the one that stands here.

    Raises:
        MissingFileError: there is none.
    """
    chosen = path or Path("allocation.json")
    if not chosen.is_file():
        raise MissingFileError(
            f"{chosen} does not exist; make one with `prunekit allocate --budget 0.8`, or give --target."
        )
    return chosen
