"""Output of all commands: results go to standard output, everything else to standard error, and a mistake gets one sentence."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit._files import check_file
from prunekit._kinds import FileKind
from prunekit._messages import printable
from prunekit._names import split_source
from prunekit.errors import InputError, MissingFileError
from prunekit.steps.standing import command

__all__ = [
    "chosen_allocation",
    "columns",
    "data_options",
    "emit",
    "fail",
    "print_table",
    "refuse_existing",
    "refuse_inputs",
    "resolution_of",
    "tell",
]


def emit(as_json: bool, data: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
    """Print JSON if asked for, otherwise the lines."""
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        for line in lines:
            tell(line)


def fail(message: str, error: BaseException, code: int = 2) -> int:
    """Print one sentence to standard error, and with ``--json`` also an object to standard output.

    Args:
        message: the sentence.
        error: what was raised; figures that it carries, such as the feasible range, are in the object.
        code: the exit code.

    Returns:
        The exit code.
    """
    sentence = printable(" ".join(message.split()))
    print(f"prunekit: {sentence}", file=sys.stderr)
    if "--json" in sys.argv[1:]:
        about = {name: getattr(error, name) for name in _CARRIED if getattr(error, name, None) is not None}
        kind = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        print(json.dumps({"error": {"type": kind, "message": sentence, "exit_code": code, **about}}, indent=2))
    return code


_CARRIED = ("feasible", "limit", "found", "failures")
"""Attributes of errors that other programs can use."""


def columns() -> int | None:
    """Width that lines are fitted to: the terminal's, or ``COLUMNS`` if it is set; None in a pipe, which takes whole lines."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return None
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def tell(text: str) -> None:
    """Print a sentence; in a terminal it is broken between words."""
    width = columns()
    print(text if width is None else "\n".join(textwrap.wrap(text, width, **_WHOLE_WORDS)) or text)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain, aligned table. In a pipe it is complete.

    In a terminal that is too narrow, long names lose their beginning, and then the table is continued below, each part with the
    first column.
    """
    tell(title)
    width = columns()
    cells = [list(header), *map(list, rows)]
    if width is not None:
        cells = _with_short_names(cells, width)
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for part in _parts(widths, width):
        taken = [widths[i] for i in part]
        print("  ".join(cells[0][i].rjust(widths[i]) for i in part).rstrip())
        print("  ".join("─" * width for width in taken))
        for row in cells[1:]:
            print("  ".join(row[i].rjust(widths[i]) for i in part).rstrip())


def _with_short_names(cells: list[list[str]], width: int) -> list[list[str]]:
    """The cells with names cut from the left, as far as the table needs to fit and they stay readable."""
    over = sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) - 2 - width
    for at, column in enumerate(zip(*cells, strict=True)):
        longest = max(map(len, column))
        if (
            over > 0
            and longest > _SHORT_NAME
            and any(text[:1].isalpha() and len(text) == longest for text in column[1:])
        ):
            allowed = max(_SHORT_NAME, longest - over)
            over -= longest - allowed
            for row in cells:
                row[at] = row[at] if len(row[at]) <= allowed else f"…{row[at][1 - allowed :]}"
    return cells


def _parts(widths: Sequence[int], width: int | None) -> Iterator[list[int]]:
    """Columns that are printed together; every part begins with the first column."""
    part = [0]
    for at in range(1, len(widths)):
        if width is not None and len(part) > 1 and sum(widths[i] + 2 for i in (*part, at)) - 2 > width:
            yield part
            part = [0]
        part.append(at)
    yield part


_NARROWEST = 40
_SHORT_NAME = 20
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


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


def chosen_allocation(path: Path | None, **told: object) -> Path:
    """The given allocation file, or ``allocation.json`` in the current folder.

    Args:
        path: the file that was named.
        told: options of the allocation that would make it, such as ``base``; None for those that were not typed.

    Raises:
        MissingFileError: there is no such file.
    """
    chosen = path or Path("allocation.json")
    if not chosen.is_file():
        again = command("allocate", budget=0.8, **told, output=path)
        raise MissingFileError(f"{chosen} does not exist; make one with `{again}`, or give --target.")
    return chosen
