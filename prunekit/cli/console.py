"""Output of all commands: results go to standard output, everything else to standard error, and a mistake gets one sentence."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit._files import check_file
from prunekit._kinds import FileKind
from prunekit._messages import printable
from prunekit._names import split_source
from prunekit.errors import InputError, MissingFileError

__all__ = [
    "chosen_allocation",
    "data_options",
    "emit",
    "fail",
    "print_table",
    "refuse_existing",
    "refuse_inputs",
    "resolution_of",
]


def emit(as_json: bool, data: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
    """Print JSON if asked for, otherwise the lines."""
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        for line in lines:
            print(line)


def fail(message: str) -> int:
    """Print one sentence to standard error; returns the exit code for a user's mistake."""
    print(f"prunekit: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain, aligned table. Its width does not depend on the terminal, so that it is complete in a pipe."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(title)
    print("  ".join(cell.rjust(width) for cell, width in zip(header, widths, strict=True)).rstrip())
    print("  ".join("─" * width for width in widths))
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def refuse_existing(
    path: Path, overwrite: bool, kind: FileKind | None = None, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Refuse to replace a file without permission, or an input at all; called before a command starts its work.

    Args:
        path: the file that the command will write.
        overwrite: whether the user allows replacing any existing file.
        kind: earlier outputs of this kind may be replaced without permission.
        inputs: the command's inputs; None and names that are not paths are skipped.

    Raises:
        InputError: another file is there, or no file can be written there.
    """
    place = check_file(path)
    refuse_inputs(path, inputs)
    if not place.exists() or overwrite or (kind is not None and kind.recognises(place)):
        return
    what = "exists already" if kind is None else f"exists and is no earlier {kind.name}"
    raise InputError(f"{path} {what}; give another --output, or --overwrite to replace it.")


def refuse_inputs(output: Path, inputs: Iterable[str | Path | None], inside: bool = False) -> None:
    """Refuse an output that would replace one of the command's inputs.

    Args:
        output: a file or a folder.
        inputs: files and folders; names that are not paths are skipped.
        inside: whether to refuse an output inside an input folder too.

    Raises:
        InputError: the output would replace an input.
    """
    place = Path(os.path.realpath(output))
    paths = [split_source(str(name))[0] for name in inputs if name is not None]
    for name in filter(os.path.exists, paths):
        read = Path(os.path.realpath(name))
        if read == place or place in read.parents:
            raise InputError(f"{output} would replace {name}, which this command reads; give another --output.")
        if inside and read in place.parents:
            raise InputError(f"{output} is inside {name}, which this command reads; give an --output outside of it.")


def resolution_of(text: str | None) -> int | list[int] | None:
    """A resolution as it is typed: a side, or height and width as in ``32x48``.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isascii() and side.strip().isdigit() and len(side) < 9 for side in sides):
        raise InputError(f"Got --resolution {text}; expected a side in pixels, or height and width as in 32x48.")
    numbers = [int(side) for side in sides]
    return numbers[0] if len(numbers) == 1 else numbers


def data_options(source: str | None, resolution: str | None) -> Any:
    """Data options if the user gave some; None for the model's own images.

    Raises:
        InputError: a resolution was given without images.
    """
    from prunekit.recipe import DataOptions

    if source is None and resolution is not None:
        raise InputError("Got --resolution without --data; name the images too.")
    return None if source is None else DataOptions(source, resolution_of(resolution))


def chosen_allocation(path: Path | None) -> Path:
    """The given allocation file, or ``allocation.json`` in the current folder.

    Raises:
        MissingFileError: there is no such file.
    """
    chosen = path or Path("allocation.json")
    if not chosen.is_file():
        raise MissingFileError(
            f"{chosen} does not exist; make one with `prunekit allocate --budget 0.8`, or give --target."
        )
    return chosen
