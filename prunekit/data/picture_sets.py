"""Folders of pictures as training and held-out pictures with their classes, and a sentence about what was read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.data.labelling import Metadata, class_folders, find_metadata, numbered
from prunekit.data.picture_folders import PictureFolder, find_pictures
from prunekit.data.pictures import PictureReader
from prunekit.data.sizes import Size

__all__ = ["PictureSet", "Pixels", "find_picture_set", "sentence"]

_HELD_OUT = ("validation", "test")  # the first of these splits that a folder has is held out


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures.

    Args:
        pixels: uint8, shape (count, height, width, channels).
        labels: int64, shape (count,); None if not wanted.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PictureSet:
    """The pictures of a folder before they are decoded.

    Args:
        found: all of the folder's pictures.
        train: pictures to train on.
        held_out: pictures that are held out; empty if the folder has no split for them.
        held_out_split: the name of their split.
        classes: names of the classes in the order of their numbers; empty if they are not wanted, or are numbers themselves.
        labels: class of each of ``train`` and then of ``held_out``; None if not wanted.
        notes: what else to say about them.
    """

    found: PictureFolder
    train: list[Path]
    held_out: list[Path]
    held_out_split: str = ""
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def read(self, size: Size | None = None) -> tuple[Pixels, Pixels | None, str]:
        """Training and held-out pictures of one size, and a sentence about what was read.

        Raises:
            FileFormatError: pictures are broken; the message names them.
        """
        reader = PictureReader(size)
        files = [*self.train, *self.held_out]
        pixels, count = reader.read(files, len(files)), len(self.train)
        labels = self.labels
        parts = [
            Pixels(pixels[rows], None if labels is None else labels[rows])
            for rows in (slice(count), slice(count, None))
        ]
        return parts[0], parts[1] if self.held_out else None, self._sentence(reader)

    def _sentence(self, reader: PictureReader) -> str:
        what = f"{len(self.train):,} pictures"
        if self.held_out:
            what = f"{len(self.train):,} training pictures and {len(self.held_out):,} of {self.held_out_split} held out"
        if self.labels is not None:
            number = len(self.classes) or len(np.unique(self.labels))
            what = f"{what}, in {number:,} classes"
        return sentence(str(self.found.root), what, reader, self.skipped(), self.notes)

    def skipped(self) -> str:
        """What was skipped, in words; empty if nothing was."""
        return self.found.skipped(len(self.found.files) - len(self.train) - len(self.held_out))


def sentence(source: str, what: str, reader: PictureReader, skipped: str = "", notes: Sequence[str] = ()) -> str:
    """One sentence about what was read.

    Args:
        source: the images' source.
        what: how many pictures, and of how many classes.
        reader: has converted some of them.
        skipped: what was not read.
        notes: what else to say.
    """
    skips = [f"skipped: {skipped}"] if skipped else []
    return f"{source}: {'; '.join([what, *reader.converted(), *skips, *notes])}."


def find_picture_set(folder: Path, labels: bool = False) -> PictureSet:
    """The pictures of a folder by the rules of torchvision's and Hugging Face's image folders.

    Args:
        folder: with pictures at any depth; or with a folder ``train`` of such, and maybe ``validation`` or ``test``.
        labels: whether classes are wanted: a column ``label`` of ``metadata.jsonl`` or ``metadata.csv``, otherwise the folders.

    Raises:
        MissingFileError: there are no pictures.
        InputError: folders of splits and of classes are mixed.
        FileFormatError: classes are wanted and a picture has none, or the splits have different classes.
    """
    found = find_pictures(folder)
    splits = found.splits()
    train = splits.get("train", found.files)
    held_out_split = next((name for name in _HELD_OUT if name in splits), "")
    held_out = splits.get(held_out_split, [])
    roots = [_root(folder, part) if splits else folder for part in (train, held_out) if part]
    metadata = [find_metadata(dict.fromkeys((root, folder)), labels) for root in roots]
    ignored = dict.fromkeys(name for each in metadata if each is not None for name in each.ignored)
    notes = [f"the metadata's {', '.join(ignored)} {'are' if len(ignored) > 1 else 'is'} not used"] if ignored else []
    if not labels:
        return PictureSet(found, train, held_out, held_out_split, notes=tuple(notes))
    names: list[str] | None = None
    numbers = []
    for root, files, each in zip(roots, (train, held_out), metadata, strict=False):
        known, part = numbered(_labels(files, root, each, found.files), str(root), names)
        names = known if names is None else names
        numbers.append(part)
    return PictureSet(found, train, held_out, held_out_split, tuple(names or ()), np.concatenate(numbers), tuple(notes))


def _root(folder: Path, files: Sequence[Path]) -> Path:
    """The folder of a split."""
    return folder / files[0].relative_to(folder).parts[0]


def _labels(files: Sequence[Path], root: Path, metadata: Metadata | None, every: Sequence[Path]) -> list[int | str]:
    """The metadata's labels; the folders' names if it has none and all pictures are in folders."""
    if metadata is not None and (metadata.labels or any(file.parent == root for file in files)):
        return metadata.labels_of(files, every)
    return class_folders(files, root)
