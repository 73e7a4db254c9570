"""Image sources: the embedded digits, folders of pictures or arrays, single arrays, and MNIST-style idx files.

Pictures are centre-cropped to a square and area-averaged down to the wanted resolution. Classes are read only on request.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit.data.arrays import SUFFIXES, find_array, read_array
from prunekit.data.idx import find_idx, read_idx, read_idx_labels
from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.pictures import classes_of, picture_files, read_pictures, resized
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.training.objective import check_finite_rows

__all__ = ["as_images", "load_images"]

_HELD_OUT = 6  # one image in six is held out if the source has no test part
_KINDS = "'digits', a folder, an .npz, .npy or .safetensors, or an idx file"

_Labelled = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


def as_images(images: object, resolution: int | None = None, labels: bool = False) -> ImageSplit:
    """Images from any of the accepted forms.

    Args:
        images: an image source as for :func:`load_images`, an :class:`ImageSplit`, or images of shape
            (count, channels, height, width) as :class:`ImageData`, tensor or array: uint8, or floating point, used unchanged.
        resolution: as for :func:`load_images`; for sources only.
        labels: whether classes are wanted; for sources only.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(images, str | Path):
        return load_images(str(images), resolution, labels)
    if isinstance(images, ImageSplit):
        return images
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    data = ImageData(images, "images") if isinstance(images, Tensor) else images
    if not isinstance(data, ImageData):
        raise InputError(
            f"Got a {type(images).__name__} as images; expected a path, or a tensor or array of shape (count, channels, height, "
            "width)."
        )
    if data.images.ndim != 4 or not (data.images.dtype == torch.uint8 or data.images.is_floating_point()):
        raise InputError(
            f"Got images of shape {tuple(data.images.shape)} and type {data.images.dtype}; expected uint8 or floating point of "
            "shape (count, channels, height, width)."
        )
    return _in_memory(data.images, data.labels, data.name, data.name)


def load_images(source: Path | str, resolution: int | None = None, labels: bool = False) -> ImageSplit:
    """Load an image source and split it.

    Args:
        source: ``digits`` (scikit-learn's 1,797 images of 8×8), a folder of PNG/JPEG (classes: a folder for each), a folder of
            arrays (``train.npy`` and ``held-out.npy``, which are mapped), a folder or file in MNIST's idx format (``.gz`` or not),
            or one array, see :func:`prunekit.data.arrays.read_array`.
        resolution: side of the square images; default: the source's (for a folder, the first picture's shorter side).
        labels: whether classes are wanted.

    Returns:
        Training and held-out images. Folders of arrays and of idx files have a file for each; from other sources, one image in six
        is held out by a fixed draw.

    Raises:
        MissingFileError: the file or folder does not exist, the folder has no pictures, or the classes are missing.
        FileFormatError: a file is broken or of another kind; the message names it.
    """
    source = str(source)
    if resolution is not None and not 2 <= resolution <= 4096:
        raise InputError(f"Got `resolution` {resolution}; expected 2 … 4096 pixels.")
    if source == "digits":
        images, numbers = _digits()
        return _split((resized(images, resolution), numbers if labels else None), "digits", "digits")
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{source} does not exist; expected {_KINDS}.")
    if path.is_dir():
        return _folder(path, source, resolution, labels)
    if not path.is_file():
        raise FileFormatError(f"{source} is neither a file nor a folder; expected {_KINDS}.")
    if path.suffix in SUFFIXES:
        return _array(path, source, resolution, labels)
    if "idx" in path.name:
        if labels:
            raise MissingFileError(f"{path} has no classes; give the folder with its labels' idx1 file.")
        return _split((resized(read_idx(path), resolution), None), path.name, source)
    raise FileFormatError(f"{source} is not a kind that is read; expected {_KINDS}.")


def _folder(path: Path, source: str, resolution: int | None, labels: bool) -> ImageSplit:
    """A folder of idx files, of arrays or of pictures."""
    train = find_idx(path, "train-images")
    if train is not None:
        own = _idx_labels(path, "train", labels)
        test = find_idx(path, "t10k-images")
        if test is None:
            return _split((resized(read_idx(train), resolution), own), path.name, str(path))
        held_out = (resized(read_idx(test), resolution), _idx_labels(path, "t10k", labels))
        return _idx_split(path, (resized(read_idx(train), resolution), own), held_out, (train.name, test))
    arrays = find_array(path, "train")
    if arrays is not None:
        return _array_split(path, arrays, resolution, labels)
    files = picture_files(path)
    numbers = classes_of(files, path)[1] if labels else None
    return _split((read_pictures(files, resolution), numbers), path.name, source)


def _split(images: _Labelled, name: str, source: str) -> ImageSplit:
    pixels, _ = images
    order, held_out = _drawn(len(pixels), source)
    return ImageSplit(
        _data(images, f"{name}/train", np.sort(order[held_out:])),
        _data(images, f"{name}/held-out", np.sort(order[:held_out])),
        source,
        pixels.shape[1],
    )


def _drawn(count: int, source: str) -> tuple[NDArray[np.int64], int]:
    """All images in a fixed random order, and how many of the first are held out."""
    if count < 2:
        raise FileFormatError(f"{source} holds {count} image; expected at least 2, one of them to be held out.")
    return np.random.default_rng(0).permutation(count), max(1, count // _HELD_OUT)


def _idx_split(folder: Path, train: _Labelled, held_out: _Labelled, names: tuple[str, Path]) -> ImageSplit:
    if held_out[0].shape[1:] != train[0].shape[1:]:
        raise FileFormatError(f"{names[1]} has images of another size than {names[0]}; give `resolution`.")
    return ImageSplit(
        _data(train, f"{folder.name}/train"), _data(held_out, f"{folder.name}/test"), str(folder), train[0].shape[1]
    )


def _idx_labels(folder: Path, stem: str, labels: bool) -> NDArray[np.int64] | None:
    if not labels:
        return None
    path = find_idx(folder, f"{stem}-labels", sides=1)
    if path is None:
        raise MissingFileError(f"{folder} has no classes; expected {stem}-labels-idx1-ubyte beside the images.")
    return read_idx_labels(path)


def _data(images: _Labelled, name: str, rows: NDArray[np.int64] | slice = slice(None)) -> ImageData:
    """Some of (count, height, width, channels), channels first, with their classes."""
    pixels, numbers = images
    if numbers is not None and len(numbers) != len(pixels):
        raise FileFormatError(f"{name} has {len(numbers)} classes for {len(pixels)} images; expected one for each.")
    own = None if numbers is None else torch.from_numpy(numbers[rows].astype(np.int64))
    return ImageData(torch.from_numpy(pixels[rows].transpose(0, 3, 1, 2).copy()), name, own)


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only the digits need it

    digits = load_digits()
    images = np.asarray(np.round(digits.images * (255.0 / 16.0)), dtype=np.uint8)  # from 0 … 16
    return images[..., None], digits.target.astype(np.int64)


def _array(path: Path, source: str, resolution: int | None, labels: bool) -> ImageSplit:
    """One file of arrays, which is read and split."""
    images, numbers = read_array(path, labels)
    if not images.is_floating_point():
        pixels = images.permute(0, 2, 3, 1).numpy()
        return _split((resized(pixels, resolution), None if numbers is None else numbers.numpy()), path.stem, source)
    _check_size(images, resolution, path)
    return _in_memory(images, numbers, path.stem, source)


def _in_memory(images: Tensor, numbers: Tensor | None, title: str, source: str) -> ImageSplit:
    """Images of shape (count, channels, height, width) that are used unchanged."""
    if images.is_floating_point():
        check_finite_rows(images, torch.arange(len(images)), source)
    order, held_out = _drawn(len(images), source)
    parts = [
        ImageData(images[rows], f"{title}/{name}", None if numbers is None else numbers[rows])
        for name, rows in (("train", np.sort(order[held_out:])), ("held-out", np.sort(order[:held_out])))
    ]
    return ImageSplit(parts[0], parts[1], source, images.shape[-1])


def _array_split(folder: Path, train: Path, resolution: int | None, labels: bool) -> ImageSplit:
    """Two files of arrays, mapped without conversion."""
    test = find_array(folder, "held-out")
    if test is None:
        raise MissingFileError(
            f"{folder} has {train.name} and no held-out images; expected held-out{train.suffix} beside it."
        )
    parts = []
    for path in (train, test):
        images, numbers = read_array(path, labels)
        _check_size(images, resolution, path)
        parts.append(ImageData(images, f"{folder.name}/{path.stem}", numbers))
    shapes = [(tuple(part.images.shape[1:]), part.latent) for part in parts]
    if shapes[0] != shapes[1]:
        raise FileFormatError(f"{test} has images of another size or type than {train.name}; expected the same.")
    return ImageSplit(parts[0], parts[1], str(folder), parts[0].images.shape[-1])


def _check_size(images: Tensor, resolution: int | None, path: Path) -> None:
    """Refuse arrays that would need resizing: this would load them into memory, and is meaningless for latents."""
    height, width = images.shape[-2:]
    if height != width or resolution not in (None, height):
        wanted = "squares" if resolution is None else f"{resolution}×{resolution}"
        raise InputError(
            f"The images of {path} are {height}×{width} and stay as they are; expected {wanted}: write the array anew."
        )
