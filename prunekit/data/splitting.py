"""Splits images into training images and images that are held out."""

import numpy as np
import torch
from numpy.typing import NDArray

from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.sizes import as_resolution
from prunekit.errors import FileFormatError
from prunekit.training.columns import in_parts
from prunekit.training.objective import check_finite_rows

__all__ = ["Labelled", "drawn_order", "drawn_split", "in_memory", "labelled_data", "of_parts"]

_HELD_OUT = 6  # one image in six is held out if the source has no part for it

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64] | None]
"""Pictures of shape (count, height, width, channels), and their classes if they are wanted."""


def drawn_split(images: Labelled, name: str, source: str, report: str = "") -> ImageSplit:
    """Pictures of which one in six is held out by a fixed draw."""
    pixels, _ = images
    order, held_out = drawn_order(len(pixels), source)
    parts = [
        labelled_data(images, f"{name}/train", np.sort(order[held_out:])),
        labelled_data(images, f"{name}/held-out", np.sort(order[:held_out])),
    ]
    return of_parts(parts, source, report)


def drawn_order(count: int, source: str) -> tuple[NDArray[np.int64], int]:
    """All images in a fixed random order, and how many of the first are held out.

    Raises:
        FileFormatError: there are fewer than two.
    """
    if count < 2:
        raise FileFormatError(f"{source} holds {count} image; expected at least 2, one of them to be held out.")
    return np.random.default_rng(0).permutation(count), max(1, count // _HELD_OUT)


def labelled_data(images: Labelled, name: str, rows: NDArray[np.int64] | slice = slice(None)) -> ImageData:
    """Some of (count, height, width, channels), channels first, with their classes.

    Raises:
        FileFormatError: there is not one class for each image.
    """
    pixels, numbers = images
    if numbers is not None and len(numbers) != len(pixels):
        raise FileFormatError(f"{name} has {len(numbers)} classes for {len(pixels)} images; expected one for each.")
    own = None if numbers is None else torch.from_numpy(numbers[rows].astype(np.int64))
    return ImageData(torch.from_numpy(pixels[rows].transpose(0, 3, 1, 2).copy()), name, own)


def in_memory(data: ImageData, source: str, report: str = "") -> ImageSplit:
    """Images that are used unchanged, with the classes, conditions and captions that belong to them.

    Raises:
        InputError: latents are not finite.
        FileFormatError: there are fewer than two.
    """
    for part, indices in in_parts(data.images):
        check_finite_rows(part, indices, source)
    order, held_out = drawn_order(len(data), source)
    parts = [
        data.rows(torch.from_numpy(rows), f"{data.name}/{name}")
        for name, rows in (("train", np.sort(order[held_out:])), ("held-out", np.sort(order[:held_out])))
    ]
    return of_parts(parts, source, report)


def of_parts(parts: list[ImageData], source: str, report: str = "") -> ImageSplit:
    """Training and held-out images of one size.

    Raises:
        FileFormatError: their sizes differ.
    """
    shapes = [tuple(part.images.shape[1:]) for part in parts]
    if shapes[0] != shapes[1]:
        raise FileFormatError(
            f"{parts[1].name} of {source} has images of another size or type than {parts[0].name}; expected the same."
        )
    return ImageSplit(parts[0], parts[1], source, as_resolution((shapes[0][-2], shapes[0][-1])), report)
