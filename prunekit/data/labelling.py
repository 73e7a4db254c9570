"""The class of each picture: its folder, or a label in ``metadata.jsonl`` or ``metadata.csv``, as in Hugging Face's imagefolder."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit._messages import one_line
from prunekit.data.picture_folders import several
from prunekit.errors import FileFormatError
from prunekit.limits import check_limit

__all__ = [
    "Metadata",
    "check_listed",
    "class_folders",
    "find_metadata",
    "metadata_file",
    "metadata_rows",
    "numbered",
    "resolved",
]

_FILES = ("metadata.jsonl", "metadata.csv")
_LABEL = "label"
_WHOLE = re.compile(r"\s*([0-9]{1,9})(?:\.0*)?\s*")  # a spreadsheet or pandas may write 3 as 3.0
_FILE = "file_name"
_MOST_LABEL = 2**24


@dataclass(frozen=True)
class Metadata:
    """What a metadata file says about pictures.

    Args:
        path: the file.
        columns: names of its columns except ``file_name``.
        labels: label of each picture, by its path as :func:`resolved` gives it; empty if there is no column ``label``, or they
            are not wanted.
    """

    path: Path
    columns: tuple[str, ...]
    labels: Mapping[Path, int | str]

    @property
    def ignored(self) -> list[str]:
        """Columns that are not used, such as captions."""
        return [name for name in self.columns if name != _LABEL]

    def labels_of(self, files: Sequence[Path], every: Iterable[Path]) -> list[int | str]:
        """The label of each picture.

        Args:
            files: the pictures whose labels are wanted.
            every: all pictures that the file may list.

        Raises:
            FileFormatError: a picture has none, the file lists pictures that are missing, or there is no column of labels.
        """
        if not self.labels:
            raise FileFormatError(
                f"{self.path} has no column {_LABEL} but {', '.join(self.columns) or 'none besides file_name'}; expected the "
                f"classes in a column called {_LABEL}, or a folder for each class."
            )
        places = resolved(files)
        if without := [file for file, place in zip(files, places, strict=True) if place not in self.labels]:
            raise FileFormatError(f"{self.path} has no {_LABEL} for {several(without)}; expected one for each picture.")
        check_listed(self.path, self.labels, set(resolved(every)))
        return [self.labels[place] for place in places]


def find_metadata(folders: Iterable[Path], labels: bool) -> Metadata | None:
    """The metadata in the first of these folders that has some; None if none has.

    Args:
        folders: where it may be.
        labels: whether the labels are wanted; otherwise they may be of any kind.

    Raises:
        FileFormatError: it cannot be read, has no column ``file_name``, or a wanted label is no class; or a folder has two.
        LimitError: it is larger than the limit ``metadata-bytes``.
    """
    for folder in folders:
        path = metadata_file(folder)
        if path is not None:
            return _read(path, labels)
    return None


def metadata_file(folder: Path) -> Path | None:
    """The metadata file of a folder, if it has one.

    Raises:
        FileFormatError: it has two, which may say different things.
    """
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise FileFormatError(
            f"{folder} has {' and '.join(path.name for path in found)}; expected one: remove the other."
        )
    return found[0] if found else None


def resolved(files: Iterable[Path]) -> list[Path]:
    """Absolute paths of files, behind links to folders: one for all spellings of a path. A file that is a link stays one."""
    folders: dict[Path, Path] = {}
    return [_resolved(file, folders) for file in files]


def _resolved(file: Path, folders: dict[Path, Path]) -> Path:
    folder = folders.get(file.parent)
    if folder is None:
        folder = folders[file.parent] = Path(os.path.realpath(file.parent))
    return folder / file.name


def check_listed(path: Path, listed: Iterable[Path], every: Set[Path]) -> None:
    """Refuse a metadata file with rows about pictures that are not there.

    Args:
        path: the metadata file.
        listed: the pictures that its rows are about, as :func:`metadata_rows` gives them.
        every: all pictures that it may list, as :func:`resolved` gives them.

    Raises:
        FileFormatError: pictures are missing.
    """
    if missing := [file for file in listed if file not in every]:
        raise FileFormatError(f"{path} lists {several(missing)}, which cannot be found; expected every picture.")


def metadata_rows(path: Path) -> Iterator[tuple[Path, Mapping[str, object]]]:
    """The picture that each row of a metadata file is about, as :func:`resolved` gives it, and the row.

    Raises:
        FileFormatError: it cannot be read, a row has no ``file_name``, or two are about one picture.
        LimitError: it is larger than the limit ``metadata-bytes``.
    """
    check_limit("metadata-bytes", path.stat().st_size, str(path))
    known, folders = set[Path](), dict[Path, Path]()
    try:
        for number, row in enumerate(_rows(path), 1):
            name = row.get(_FILE)
            if not isinstance(name, str) or not name:
                raise FileFormatError(f"Row {number} of {path} has no {_FILE}; expected the picture's path from there.")
            file = _resolved(path.parent / name, folders)
            if file in known:
                raise FileFormatError(f"{path} has two rows for {name[:100]}; expected one for each picture.")
            known.add(file)
            yield file, row
    except (UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is no readable {path.suffix} ({one_line(error)}); mend or remove it.") from error


def class_folders(files: Sequence[Path], folder: Path) -> list[int | str]:
    """The name of each picture's class: the first folder on the way to it.

    Raises:
        FileFormatError: a picture is not in the folder of a class.
    """
    loose = next((file for file in files if file.parent == folder), None)
    if loose is not None:
        raise FileFormatError(f"{loose} lies in no class's folder; expected {folder}/<class>/{loose.name}.")
    return [file.relative_to(folder).parts[0] for file in files]


def numbered(
    labels: Sequence[int | str], what: str, names: Sequence[str] | None = None
) -> tuple[list[str], NDArray[np.int64]]:
    """Classes as numbers: whole numbers stay, and names are numbered in their order.

    Args:
        labels: all numbers, or all names.
        what: where they are from, for messages.
        names: the training pictures' names, which are numbered already; empty if their classes are numbers; None before them.

    Returns:
        Names, empty for numbers; number of each label, shape (labels,).

    Raises:
        FileFormatError: numbers and names are mixed, here or with ``names``, a number is below 0 or too high, or a name is not
            among ``names``.
    """
    are_numbers = all(isinstance(label, int) for label in labels)
    if names is not None and are_numbers == bool(names):
        mine, others = ("numbers", "names") if are_numbers else ("names", "numbers")
        raise FileFormatError(
            f"The classes of {what} are {mine}, and those of the training pictures {others}; expected one kind."
        )
    if are_numbers:
        numbers = [int(label) for label in labels]
        if any(not 0 <= number <= _MOST_LABEL for number in numbers):
            raise FileFormatError(
                f"The classes of {what} are from {min(numbers)} to {max(numbers)}; expected whole numbers of 0 … {_MOST_LABEL:,}."
            )
        return [], np.array(numbers, dtype=np.int64)
    if not all(isinstance(label, str) for label in labels):
        raise FileFormatError(f"The classes of {what} are names and numbers; expected one of these kinds.")
    known = sorted({str(label) for label in labels}) if names is None else list(names)
    place = {name: number for number, name in enumerate(known)}
    if other := sorted({str(label) for label in labels} - set(known)):
        raise FileFormatError(
            f"{what} has the class {other[0]}, which the training pictures do not have; expected the same classes."
        )
    return known, np.array([place[str(label)] for label in labels], dtype=np.int64)


def _read(path: Path, wanted: bool) -> Metadata:
    columns: dict[str, None] = {}
    labels: dict[Path, int | str] = {}
    for number, (file, row) in enumerate(metadata_rows(path), 1):
        columns.update(dict.fromkeys(key for key in row if isinstance(key, str) and key != _FILE))
        if wanted and _LABEL in row:
            labels[file] = _label(row[_LABEL], f"Row {number} of {path}")
    return Metadata(path, tuple(columns), labels)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix == ".csv":
            reader = csv.DictReader(lines)
            for number, row in enumerate(reader, 1):
                _check_values(row, len(reader.fieldnames or ()), f"Row {number} of {path}")
                whole = _WHOLE.fullmatch(row.get(_LABEL) or "")
                yield {**row, _LABEL: int(whole[1])} if whole else row
            return
        for line in lines:
            if line.strip():
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise FileFormatError(f"{path} has a line that is no JSON object; expected one for each picture.")
                yield found


def _check_values(row: Mapping[str | None, Any], columns: int, what: str) -> None:
    """Refuse a row of a table that has more or fewer values than its header: texts would be cut, or move to another column."""
    values = len(row.get(None, ())) + sum(value is not None for name, value in row.items() if name is not None)
    if values > columns or None in row.values():
        how = "put texts with commas in double quotes" if values > columns else "write one for each column"
        raise FileFormatError(f"{what} has {values} value{'s' * (values != 1)}, its header {columns}: {how}.")


def _label(value: object, what: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise FileFormatError(f"{what} has the label {str(value)[:40]!r}; expected a whole number or a name.")
    return value
