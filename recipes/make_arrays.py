"""Convert a folder of pictures to arrays that trainings map into memory, so that each picture is decoded only once.

    python recipes/make_arrays.py ILSVRC/train data/imagenet64 --resolution 64 --held-out ILSVRC/val

The folder has a subfolder for each class; use ``--no-labels`` if there are no classes. The output has ``train.npy``, uint8 of shape
(count, side, side, channels), ``train-labels.npy``, int64, the same two files for ``held-out``, and ``classes.json`` with the
classes' names in the order of their numbers. Without ``--held-out``, the folder's split ``validation`` or ``test`` is held out, or
a share of the pictures by a fixed draw. Pictures are found, turned, cropped and resized as in ``prunekit.data.load_images``.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from prunekit._files import atomic_folder, write_json
from prunekit.data.picture_sets import find_picture_set
from prunekit.data.pictures import read_picture
from prunekit.errors import FileFormatError


def write_part(
    folder: Path, stem: str, files: Sequence[Path], labels: np.ndarray | None, side: int, channels: int
) -> None:
    """Pictures and their classes as two files, one picture in memory at a time."""
    images = open_memmap(folder / f"{stem}.npy", "w+", np.uint8, (len(files), side, side, channels))
    for index, file in enumerate(files):
        images[index] = read_picture(file, side)  # a grey picture among colour ones gets three equal channels
    images.flush()
    if labels is not None:
        np.save(folder / f"{stem}-labels.npy", labels)


def channels_of(files: Iterable[Path]) -> int:
    """3 if any of the pictures is in colour, otherwise 1."""
    return next((3 for file in files if read_picture(file, 2).shape[-1] == 3), 1)


def split(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows that are held out, both sorted."""
    order = np.random.default_rng(0).permutation(count)
    held_out = max(1, round(share * count))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


Part = tuple[list[Path], np.ndarray | None]
"""Pictures and their classes."""


def parts_of(source: Path, held_out: Path | None, share: float, labelled: bool) -> tuple[list[str], Part, Part]:
    """Names of the classes, what to train on, and what is held out.

    Raises:
        MissingFileError: there are no pictures.
        FileFormatError: the held-out pictures have other classes.
    """
    own = find_picture_set(source, labelled)
    count = len(own.train)
    train, rest = (None if own.labels is None else own.labels[rows] for rows in (slice(count), slice(count, None)))
    if held_out is not None:
        other = find_picture_set(held_out, labelled)
        if other.classes != own.classes:
            raise FileFormatError(
                f"{held_out} has {len(other.classes)} classes and {source} {len(own.classes)}, or of other names; expected the "
                "same."
            )
        return list(own.classes), (own.train, train), (other.train, other.labels)
    if own.held_out:
        return list(own.classes), (own.train, train), (own.held_out, rest)
    first, second = split(count, share)
    return list(own.classes), *(
        ([own.train[i] for i in rows], None if train is None else train[rows]) for rows in (first, second)
    )


def parser_of(description: str) -> argparse.ArgumentParser:
    """Arguments that say which pictures, and where to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("source", type=Path, help="folder of pictures, with a folder for each class")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--resolution", type=int, required=True, help="side of the square pictures")
    parser.add_argument("--held-out", type=Path, help="folder of pictures that no training step sees")
    parser.add_argument("--share", type=float, default=0.02, help="held out where no folder is given")
    parser.add_argument("--no-labels", action="store_true", help="the pictures have no classes")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write."""
    args = parser_of("Write a folder of pictures as arrays that trainings map.").parse_args(arguments)
    names, *parts = parts_of(args.source, args.held_out, args.share, not args.no_labels)
    with atomic_folder(args.output) as folder:
        channels = channels_of(file for files, _ in parts for file in files)
        for stem, (files, labels) in zip(("train", "held-out"), parts, strict=True):
            write_part(folder, stem, files, labels, args.resolution, channels)
        write_json(folder / "classes.json", {"classes": names})


if __name__ == "__main__":
    main()
