"""Pictures that prunekit ships or that come with a package: Fashion-MNIST at 16×16, and scikit-learn's digits."""

from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from prunekit._missing import EMBEDDED
from prunekit.data.arrays import read_array
from prunekit.data.images import ImageSplit
from prunekit.data.pictures import resized
from prunekit.data.sizes import Size
from prunekit.data.splitting import Labelled, drawn_split, labelled_data, of_parts
from prunekit.errors import InputError

__all__ = ["DIGITS", "FASHION", "load_shipped", "pictures_file"]

DIGITS = "digits"
FASHION = f"{EMBEDDED}fashion"


def pictures_file(name: str) -> str:
    """Name of the file in ``prunekit/assets`` with the pictures of a data set."""
    return f"{name}-pictures.npz"


def load_shipped(source: str, size: Size | None, labels: bool) -> ImageSplit:
    """The pictures behind a shipped name.

    Args:
        source: ``digits`` or ``embedded:digits``: scikit-learn's 1,797 digits of 8×8 pixels, one in six of them held out.
            ``embedded:fashion``: 8,192 pictures of Fashion-MNIST's training part and 1,024 of its test part, which are held out,
            averaged down to 16×16 (Xiao et al., arXiv:1708.07747, MIT licence).
        size: height and width; their own if missing.
        labels: whether classes are wanted.

    Raises:
        InputError: there are no shipped pictures of that name.
    """
    if source in (DIGITS, f"{EMBEDDED}{DIGITS}"):
        images, numbers = _digits()
        return drawn_split((resized(images, size), numbers if labels else None), DIGITS, DIGITS)
    if source != FASHION:
        raise InputError(f"There are no shipped pictures {source!r}; expected {DIGITS} or {FASHION}, or a path.")
    name = source.removeprefix(EMBEDDED)
    train, held_out = (_sized(part, size, labels) for part in _fashion())
    return of_parts([labelled_data(train, f"{name}/train"), labelled_data(held_out, f"{name}/test")], source)


def _fashion() -> tuple[Labelled, Labelled]:
    with as_file(files("prunekit") / "assets" / pictures_file("fashion")) as path:
        found = read_array(path, labels=True)
    images, classes = found.held_out or (found.images, found.labels)
    parts = ((found.images, found.labels), (images, classes))
    train, test = ((one.permute(0, 2, 3, 1).numpy(), None if own is None else own.numpy()) for one, own in parts)
    return train, test


def _sized(part: Labelled, size: Size | None, labels: bool) -> Labelled:
    pixels, classes = part
    return resized(pixels, size), classes if labels else None


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only the digits need it

    digits = load_digits()
    images = np.asarray(np.round(digits.images * (255.0 / 16.0)), dtype=np.uint8)  # from 0 … 16
    return images[..., None], digits.target.astype(np.int64)
