"""Folders of PNG and JPEG: their files, the class of each, and their pixels at one size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunekit._messages import one_line
from prunekit.errors import FileFormatError, MissingFileError, PrunekitError
from prunekit.limits import check_limit

__all__ = ["classes_of", "picture_files", "read_picture", "read_pictures", "resized"]

_PICTURES = {".png", ".jpg", ".jpeg"}
_GREY = {"1", "L", "LA", "I", "I;16", "I;16B"}


def picture_files(folder: Path) -> list[Path]:
    """Every PNG and JPEG at any depth of a folder, sorted.

    Raises:
        MissingFileError: there is none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES and file.is_file())
    if not files:
        raise MissingFileError(f"{folder} has no .png or .jpg pictures; expected at least two.")
    return files


def classes_of(files: list[Path], folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Classes of a folder with one subfolder per class, sorted by name, and the class of each picture.

    Returns:
        Names; number of each file's class, shape (files,).

    Raises:
        FileFormatError: a picture is not in the folder of a class.
    """
    loose = next((file for file in files if file.parent == folder), None)
    if loose is not None:
        raise FileFormatError(f"{loose} lies in no class's folder; expected {folder}/<class>/{loose.name}.")
    own = [file.relative_to(folder).parts[0] for file in files]
    names = sorted(set(own))
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[name] for name in own], dtype=np.int64)


def read_picture(file: Path, side: int | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 (side, side, 1 or 3): centre-cropped to a square and resized to ``side`` (default: its shorter side).

    Raises:
        FileFormatError: it is broken.
    """
    try:
        with _unlimited(), Image.open(file, formats=("PNG", "JPEG")) as picture:
            check_limit("picture-pixels", picture.width * picture.height, str(file))
            if picture.format == "JPEG":
                check_limit("jpeg-scans", _scans(file), str(file))
            picture.load()
            pixels = np.asarray(_square(_eight_bit(picture), side or min(picture.size)))
    except PrunekitError:
        raise
    except Exception as error:  # a damaged picture makes Pillow raise errors of every kind
        raise FileFormatError(f"{file} is a broken picture ({one_line(error)}); mend or remove it.") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def read_pictures(files: list[Path], side: int | None = None) -> NDArray[np.uint8]:
    """Pictures as one array (files, side, side, channels); the default side is the first one's shorter side.

    Raises:
        FileFormatError: one is broken, or some are grey and others in colour.
    """
    first = read_picture(files[0], side)
    pictures = np.empty((len(files), *first.shape), np.uint8)
    pictures[0] = first
    for index, file in enumerate(files[1:], 1):
        pixels = read_picture(file, len(first))
        if pixels.shape != first.shape:
            raise FileFormatError(
                f"{file} is {_mode(pixels)} and {files[0].name} is {_mode(first)}; expected all grey or all colour."
            )
        pictures[index] = pixels
    return pictures


def resized(images: NDArray[np.uint8], resolution: int | None) -> NDArray[np.uint8]:
    """Images (count, height, width, channels) as squares with this side (default: the shorter side)."""
    height, width = images.shape[1:3]
    side = min(height, width) if resolution is None else resolution
    if height == width == side:
        return images
    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    made = np.stack([np.asarray(_square(Image.fromarray(image), side)) for image in squeezed])
    return made if made.ndim == 4 else made[..., None]


def _mode(pixels: NDArray[np.uint8]) -> str:
    return "L" if pixels.shape[-1] == 1 else "RGB"


def _scans(file: Path) -> int:
    """Number of scans of a JPEG, counted by their markers, which cannot occur within the coded pixels."""
    count, last = 0, b""
    with file.open("rb") as handle:
        while piece := handle.read(2**20):
            count += (last + piece).count(b"\xff\xda")
            last = piece[-1:]
    return count


@contextmanager
def _unlimited() -> Iterator[None]:
    """Within the block, turn off Pillow's own limit of pixels, which only warns at first and cannot be raised by name."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A picture as ``L`` or ``RGB``; a 16-bit grey one is scaled to 8 bits (Pillow itself would clip it at 255)."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture)
        grey = np.empty(deep.shape, np.uint8)
        for row in range(len(deep)):  # row by row: all at once would take eight bytes for each pixel
            grey[row] = np.round(deep[row] / 257.0).clip(0, 255)
        return Image.fromarray(grey)
    mode = "L" if picture.mode in _GREY else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """Centre crop to a square, then area average (BOX) down, or bicubic up, to ``side``."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    filter_ = Image.Resampling.BOX if side <= short else Image.Resampling.BICUBIC
    return picture.resize((side, side), filter_, box=(left, top, left + short, top + short))
