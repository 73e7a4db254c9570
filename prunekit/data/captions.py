"""Pictures with their captions or classes, which are decoded some at a time: folders with metadata or text files, and datasets.

Captions are found as in Hugging Face's image folders (a column ``text`` of ``metadata.jsonl`` or ``metadata.csv``), or as trainers
of adapters keep them (``cat.txt`` next to ``cat.png``).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit._files import json_hash, sha256_file
from prunekit._messages import did_you_mean
from prunekit._names import split_source
from prunekit._progress import told
from prunekit.data.hub_datasets import dataset_rows, is_saved_dataset, parquet_files
from prunekit.data.labelling import check_listed, metadata_file, metadata_rows, resolved
from prunekit.data.picture_folders import several
from prunekit.data.picture_sets import PictureSet, find_picture_set, sentence
from prunekit.data.pictures import PictureReader, Source
from prunekit.data.sizes import Size
from prunekit.data.splitting import drawn_order
from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["CAPTIONS", "Captioned", "CaptionedPart", "Subject", "captioned_pictures"]

CAPTIONS = ("text", "caption")
"""Columns that are taken for captions if none is named."""
_LONGEST = 100_000  # characters of a caption

Subject = str | int
"""What a picture shows: its caption or its class."""


@dataclass(frozen=True, eq=False)
class CaptionedPart:
    """Some pictures with what they show.

    Args:
        sources: the pictures, still encoded.
        subjects: a caption or class for each.
        reader: counts what is converted.
    """

    sources: Sequence[Source]
    subjects: Sequence[Subject]
    reader: PictureReader = field(default_factory=PictureReader)

    def __len__(self) -> int:
        return len(self.subjects)

    def pictures(self, start: int, stop: int, size: Size) -> Tensor:
        """Some of the pictures, uint8, shape (stop − start, channels, height, width), channels 1 or 3.

        Raises:
            FileFormatError: pictures are broken; the message names them.
        """
        rows = [self.sources[row] for row in range(start, stop)]
        self.reader.size = size
        return torch.from_numpy(self.reader.read(rows, len(rows)).transpose(0, 3, 1, 2).copy())

    def names(self) -> Iterator[str]:
        """The pictures' names, in order."""
        return (source.name for source in self.sources)


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures with captions or classes to train on, and others that are held out.

    Args:
        train: to train on.
        held_out: the others.
        source: as the user named it; empty for captions alone.
        skipped: which pictures were skipped, in words.
        reader: of the pictures of both parts.
    """

    train: CaptionedPart
    held_out: CaptionedPart
    source: str
    skipped: str = ""
    reader: PictureReader = field(default_factory=PictureReader)

    @classmethod
    def of_subjects(cls, subjects: Sequence[Sequence[Subject]]) -> "Captioned":
        """Captions or classes alone, for training and held out."""
        train, held_out = (CaptionedPart((), own) for own in subjects)
        return cls(train, held_out, "")

    @property
    def report(self) -> str:
        """A sentence about what was read; what was converted is known when the pictures are read."""
        what = "classes" if isinstance(self.train.subjects[0], int) else "captions"
        one, number = len(self.train) == 1, f"{len(self.train):,}"
        if not self.source:
            alone = {"classes": "class", "captions": "caption"}[what] if one else what
            return f"{number} {alone} to train on, {len(self.held_out):,} held out."
        with_what = "picture with a class" if what == "classes" else "picture with a caption"
        said = with_what if one else f"pictures with {what}"
        counts = f"{number} {said} to train on, {len(self.held_out):,} held out"
        return sentence(self.source, counts, self.reader, self.skipped)

    def listed(self) -> str:
        """Hash of the pictures' names in their order."""
        return json_hash([list(part.names()) for part in (self.train, self.held_out)])

    def contents(self) -> list[tuple[str, str]]:
        """Name of each picture and SHA-256 of its file, 64 hex digits, of the training pictures and then of the others."""
        sources = chain(self.train.sources, self.held_out.sources)
        whole = len(self.train.sources) + len(self.held_out.sources)
        return [(source.name, _content_hash(source)) for source in told("comparing pictures", sources, whole)]


@contextmanager
def captioned_pictures(source: str, classes: bool = False, column: str | None = None) -> Iterator[Captioned]:
    """Within the block, the pictures of a source with their captions or classes.

    One picture in six is held out by a fixed draw, unless the source has a split ``validation`` or ``test``.

    Args:
        source: a folder of pictures, a parquet file, or a dataset's folder (``::`` and the name of a split may follow).
        classes: whether classes are wanted, in place of captions.
        column: of the captions; ``text`` or ``caption`` if missing.

    Raises:
        MissingFileError: there is no such file or folder, or it has no pictures.
        FileFormatError: a picture has no caption or class.
        InputError: it is of another kind, or has no column of captions.
    """
    name, split = split_source(source)
    path = Path(name).expanduser()
    if not path.exists():
        raise MissingFileError(f"{source} does not exist; expected a folder of pictures with captions, or a .parquet.")
    saved = path.is_dir() and is_saved_dataset(path)
    if path.suffix.lower() == ".parquet" or saved or (path.is_dir() and _only_parquet(path)):
        with dataset_rows(path, split, classes, column, CAPTIONS) as parts:
            yield _split([CaptionedPart(sources, own) for sources, own in parts], source)
        return
    if not path.is_dir():
        raise InputError(
            f"Got {source}; expected a folder of pictures with captions, a .parquet, or a dataset's folder."
        )
    if split is not None:
        raise InputError(f"Got {source}; expected a split's name after :: for datasets only: give {path / split}.")
    found = find_picture_set(path, labels=classes)
    subjects = _classes(found) if classes else _captions(found, path, column)
    both = [CaptionedPart(files, own) for files, own in zip((found.train, found.held_out), subjects, strict=True)]
    yield _split([part for part in both if len(part)], source, found.skipped())


def _only_parquet(folder: Path) -> bool:
    try:
        find_picture_set(folder)
    except MissingFileError:
        return bool(parquet_files(folder))
    return False


def _content_hash(source: Source) -> str:
    return sha256_file(source) if isinstance(source, Path) else hashlib.sha256(source.content).hexdigest()


def _split(parts: list[CaptionedPart], source: str, skipped: str = "") -> Captioned:
    """Training and held-out pictures, by a fixed draw if there is one part."""
    if len(parts) == 1:
        whole = parts[0]
        order, held_out = drawn_order(len(whole), source)
        rows = [np.sort(order[held_out:]).tolist(), np.sort(order[:held_out]).tolist()]
        parts = [CaptionedPart(_Chosen(whole.sources, own), [whole.subjects[row] for row in own]) for own in rows]
    reader = PictureReader()
    train, held_out_part = (replace(part, reader=reader) for part in parts)
    return Captioned(train, held_out_part, source, skipped, reader)


@dataclass(frozen=True, eq=False)
class _Chosen(Sequence[Source]):
    """Some of a sequence, which may read them one by one."""

    whole: Sequence[Source]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Source:  # type: ignore[override]
        return self.whole[self.rows[index]]


def _classes(found: PictureSet) -> tuple[list[Subject], list[Subject]]:
    numbers = [] if found.labels is None else [int(number) for number in found.labels]
    return list(numbers[: len(found.train)]), list(numbers[len(found.train) :])


def _captions(found: PictureSet, folder: Path, column: str | None) -> tuple[list[Subject], list[Subject]]:
    """The captions of training and held-out pictures: of metadata in the pictures' folders, or of text files next to them.

    Raises:
        FileFormatError: a picture has none.
        InputError: metadata has no column of captions, and a picture no text file.
    """
    files = [*found.train, *found.held_out]
    places = resolved(files)
    tops = {folder, *(folder / file.relative_to(folder).parts[0] for file in files if file.parent != folder)}
    tables = [path for top in sorted(tops) if (path := metadata_file(top)) is not None]
    every = set(resolved(found.found.files))
    known: dict[Path, str] = {}
    without: InputError | None = None
    for table in tables:
        own, lacking = _of_table(table, column, every)
        known |= own
        without = without or lacking
    if column is None:
        both = zip(places, files, strict=True)
        known |= {place: text for place, file in both if place not in known and (text := _beside(file)) is not None}
    missing = [file for place, file in zip(places, files, strict=True) if place not in known]
    if missing and without is not None:
        raise without
    if missing:
        raise FileFormatError(
            f"{folder} has no caption for {several(missing)}; expected a column text in metadata.jsonl (with file_name), or a .txt "
            "next to each picture."
        )
    captions: list[Subject] = [known[place] for place in places]
    return captions[: len(found.train)], captions[len(found.train) :]


def _of_table(table: Path, column: str | None, every: Set[Path]) -> tuple[dict[Path, str], InputError | None]:
    """The captions of a metadata file by the picture's path, and what is wrong with the first row that has none.

    Raises:
        FileFormatError: a caption is no text, or a picture is missing.
    """
    listed: list[Path] = []
    found: dict[Path, str] = {}
    lacking: InputError | None = None
    for number, (file, row) in enumerate(metadata_rows(table), 1):
        listed.append(file)
        name = next((name for name in ([column] if column else CAPTIONS) if name in row), None)
        if name is None:
            lacking = lacking or _no_column(row, column, table)
            continue
        text = row[name]
        if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
            raise FileFormatError(f"Row {number} of {table} has {str(text)[:40]!r} as {name}; expected a caption.")
        found[file] = text
    check_listed(table, listed, every)
    return found, lacking


def _no_column(row: Mapping[str, object], column: str | None, table: Path) -> InputError:
    others = ", ".join(name for name in row if name != "file_name") or "none"
    wanted = column or " or ".join(CAPTIONS)
    meant = did_you_mean(column, list(row)) if column else ""
    return InputError(f"{table} has no column {wanted}{meant} but {others}; name the one with the captions.")


def _beside(file: Path) -> str | None:
    """The text next to a picture."""
    path = file.with_suffix(".txt")
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return None
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no text in UTF-8; write it again.") from error
