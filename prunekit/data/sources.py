"""Image sources: shipped pictures, pictures in folders, zips and datasets, arrays, and MNIST-style idx files.

Pictures are cropped in their middle and area-averaged down to the wanted resolution. Classes are read only on request.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit._missing import is_shipped
from prunekit._names import split_source
from prunekit.data.arrays import SUFFIXES, find_array, read_array
from prunekit.data.encoded import find_encoded, load_encoded
from prunekit.data.hub_datasets import is_saved_dataset, parquet_files, read_dataset
from prunekit.data.idx import find_idx, read_idx, read_idx_labels
from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.picture_sets import Pixels, find_picture_set
from prunekit.data.pictures import resized
from prunekit.data.shipped import load_shipped
from prunekit.data.sizes import Resolution, Size, read_size, size_text
from prunekit.data.splitting import Labelled, drawn_split, in_memory, labelled_data, of_parts
from prunekit.data.zips import unpacked
from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["as_images", "load_images"]

_KINDS = "'digits', 'embedded:fashion', a folder, a .zip, an .npz, .npy or .safetensors, a .parquet, or an idx file"
_log = logging.getLogger(__name__)


def as_images(images: object, resolution: Resolution | None = None, labels: bool = False) -> ImageSplit:
    """Images from any of the accepted forms.

    Args:
        images: an image source as for :func:`load_images`, an :class:`ImageSplit`, or images of shape
            (count, channels, height, width) as :class:`ImageData`, tensor or array: uint8, or floating point, used unchanged;
            latents of videos have frames after the channels. Conditions and captions of an :class:`ImageData` stay with their
            images.
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
    if data.latent and data.images.ndim == 3:
        raise InputError(
            f"Got latents of shape {tuple(data.images.shape)}, tokens without height and width; give an ImageSplit, whose "
            "`resolution` has them, or the folder of the encoded images."
        )
    video = data.latent and data.images.ndim == 5
    if not video and (data.images.ndim != 4 or not (data.images.dtype == torch.uint8 or data.latent)):
        raise InputError(
            f"Got images of shape {tuple(data.images.shape)} and type {data.images.dtype}; expected uint8 or floating point of "
            "shape (count, channels, height, width)."
        )
    return in_memory(data, data.name)


def load_images(source: Path | str, resolution: Resolution | None = None, labels: bool = False) -> ImageSplit:
    """Load an image source and split it.

    Args:
        source: ``digits`` (scikit-learn's 1,797 images of 8×8), ``embedded:fashion`` (9,216 pictures of Fashion-MNIST at 16×16,
            see :func:`prunekit.data.shipped.load_shipped`), a folder or a zip of pictures
            (:mod:`prunekit.data.picture_folders`), a folder of encoded images with their conditions
            (:mod:`prunekit.data.encoded`), a folder of arrays (``train.npy`` and ``held-out.npy``, which are mapped),
            a folder or file in MNIST's idx format (``.gz`` or not), a file of arrays
            (:func:`prunekit.data.arrays.read_array`), or, with the extra ``datasets``, a parquet file or a dataset's folder.
            After ``::`` may be the key of an array, as in ``x.npz::images``, or the name of a split, as in ``dataset::test``.
        resolution: side of the square images, or height and width; default: the source's (for pictures, the shorter side of the
            first one).
        labels: whether classes are wanted.

    Returns:
        Training and held-out images. If the source has a part for it, that one is held out (the split ``validation`` or ``test``,
        the test part of idx files and arrays); otherwise one image in six is, by a fixed draw. A sentence about what was read is in
        ``report`` and in the log (level INFO).

    Raises:
        MissingFileError: the file or folder does not exist, the folder has no pictures, or the classes are missing.
        FileFormatError: a file is broken or of another kind; the message names it.
        InputError: the source can be understood in several ways; the message says how to name one.
    """
    split = _loaded(str(source), read_size(resolution), labels)
    if split.report:
        _log.info(split.report)
    return split


def _loaded(source: str, size: Size | None, labels: bool) -> ImageSplit:
    if is_shipped(source):
        return load_shipped(source, size, labels)
    name, key = split_source(source)
    path = Path(name).expanduser()
    if not path.exists():
        raise MissingFileError(f"{source} does not exist; expected {_KINDS}.")
    if path.is_dir():
        return _folder(path, source, size, labels, key)
    if not path.is_file():
        raise FileFormatError(f"{source} is neither a file nor a folder; expected {_KINDS}.")
    return _file(path, source, size, labels, key)


def _file(path: Path, source: str, size: Size | None, labels: bool, key: str | None) -> ImageSplit:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return _array(path, source, size, labels, key)
    if suffix == ".parquet":
        return _dataset(path, source, size, labels, key)
    if key is not None:
        raise InputError(
            f"Got {source}; expected a key after :: for an .npz or .safetensors, or a split of a .parquet."
        )
    if suffix == ".zip":
        return _zip(path, source, size, labels)
    if "idx" in path.name and not labels:
        return drawn_split((resized(read_idx(path), size), None), path.name, source)
    if "idx" in path.name:
        raise MissingFileError(f"{path} has no classes; give the folder with its labels' idx1 file.")
    raise FileFormatError(f"{source} is not a kind that is read; expected {_KINDS}.")


def _folder(path: Path, source: str, size: Size | None, labels: bool, key: str | None) -> ImageSplit:
    """A folder of encoded images, of a dataset, of idx files, of arrays or of pictures."""
    if find_encoded(path) is not None:
        if key is not None:
            raise InputError(f"Got {source}; a folder of encoded images has no key: leave ::{key} out.")
        return load_encoded(path, source, size, labels)
    if is_saved_dataset(path):
        return _dataset(path, source, size, labels, key)
    named = next((read for find, read in _NAMED if find(path) is not None), None)
    if named is None:
        try:
            found = find_picture_set(path, labels)
        except MissingFileError:
            if parquet_files(path):
                return _dataset(path, source, size, labels, key)
            raise
    if key is not None:
        raise InputError(f"Got {source}; expected a key after :: for one file, or {path / key} for a folder in it.")
    return _parted(path.name, source, *found.read(size)) if named is None else named(path, size, labels)


def _zip(path: Path, source: str, size: Size | None, labels: bool) -> ImageSplit:
    with unpacked(path) as inner:
        train, held_out, report = find_picture_set(inner, labels).read(size)
    return _parted(path.stem, source, train, held_out, report.replace(str(inner), source))


def _dataset(path: Path, source: str, size: Size | None, labels: bool, key: str | None) -> ImageSplit:
    return _parted(path.stem, source, *read_dataset(path, size, labels, key))


def _parted(name: str, source: str, train: Pixels, held_out: Pixels | None, report: str) -> ImageSplit:
    """Pictures with a part that is held out, or without, which are then split."""
    first = (train.pixels, train.labels)
    if held_out is None:
        return drawn_split(first, name, source, report)
    second = (held_out.pixels, held_out.labels)
    return of_parts([labelled_data(first, f"{name}/train"), labelled_data(second, f"{name}/held-out")], source, report)


def _idx_folder(path: Path, size: Size | None, labels: bool) -> ImageSplit:
    train, test = (find_idx(path, f"{stem}-images") for stem in ("train", "t10k"))
    if train is None:
        raise MissingFileError(f"{path} has no train-images idx file.")
    own = (resized(read_idx(train), size), _idx_labels(path, "train", labels))
    if test is None:
        return drawn_split(own, path.name, str(path))
    held_out = (resized(read_idx(test), size), _idx_labels(path, "t10k", labels))
    return _idx_split(path, own, held_out, (train.name, test))


def _idx_split(folder: Path, train: Labelled, held_out: Labelled, names: tuple[str, Path]) -> ImageSplit:
    if held_out[0].shape[1:] != train[0].shape[1:]:
        raise FileFormatError(f"{names[1]} has images of another size than {names[0]}; give `resolution`.")
    return of_parts(
        [labelled_data(train, f"{folder.name}/train"), labelled_data(held_out, f"{folder.name}/test")], str(folder)
    )


def _idx_labels(folder: Path, stem: str, labels: bool) -> NDArray[np.int64] | None:
    if not labels:
        return None
    path = find_idx(folder, f"{stem}-labels", sides=1)
    if path is None:
        raise MissingFileError(f"{folder} has no classes; expected {stem}-labels-idx1-ubyte beside the images.")
    return read_idx_labels(path)


def _array(path: Path, source: str, size: Size | None, labels: bool, key: str | None) -> ImageSplit:
    """One file of arrays, which is split unless it has a part that is held out."""
    found = read_array(path, labels, key)
    own = [(found.images, found.labels), *([found.held_out] if found.held_out is not None else [])]
    if found.images.is_floating_point():
        for images, _ in own:
            _check_size(images, size, path)
    else:
        own = [(_sized(images, size), numbers) for images, numbers in own]
    report = f"{'; '.join(found.notes)}." if found.notes else ""
    if len(own) == 1:
        return in_memory(ImageData(own[0][0], path.stem, own[0][1]), source, report)
    names = (f"{path.stem}/train", f"{path.stem}/held-out")
    return of_parts(
        [ImageData(images, name, numbers) for name, (images, numbers) in zip(names, own, strict=True)], source, report
    )


def _sized(images: Tensor, size: Size | None) -> Tensor:
    """Pictures of shape (count, channels, height, width), cropped and resized."""
    if tuple(images.shape[2:]) == (size or (min(images.shape[2:]),) * 2):
        return images
    made = resized(images.permute(0, 2, 3, 1).numpy(), size)
    return torch.from_numpy(made).permute(0, 3, 1, 2)


def _array_split(folder: Path, size: Size | None, labels: bool) -> ImageSplit:
    """Two files of arrays, mapped without conversion."""
    train, test = find_array(folder, "train"), find_array(folder, "held-out")
    if train is None or test is None:
        there = train or folder
        raise MissingFileError(
            f"{folder} has {there.name} and no held-out images; expected held-out{there.suffix} beside it."
        )
    parts: list[ImageData] = []
    notes: list[str] = []
    for path in (train, test):
        found = read_array(path, labels)
        if found.held_out is not None:
            raise InputError(f"{path} has a part that is held out; give the file itself, or one array in each file.")
        _check_size(found.images, size, path)
        parts.append(ImageData(found.images, f"{folder.name}/{path.stem}", found.labels))
        notes += found.notes
    if parts[0].latent != parts[1].latent:
        raise FileFormatError(f"{test} has images of another size or type than {train.name}; expected the same.")
    return of_parts(parts, str(folder), f"{'; '.join(notes)}." if notes else "")


def _check_size(images: Tensor, size: Size | None, path: Path) -> None:
    """Refuse arrays that would need resizing: this would load them into memory, and is meaningless for latents."""
    own = tuple(images.shape[-2:])
    if size not in (None, own):
        raise InputError(
            f"The images of {path} are {size_text(own)} and stay as they are; expected {size_text(size)}: write the array anew."
        )


_NAMED: Sequence[tuple[Callable[[Path], Path | None], Callable[[Path, Size | None, bool], ImageSplit]]] = (
    (lambda folder: find_idx(folder, "train-images"), _idx_folder),
    (lambda folder: find_array(folder, "train"), _array_split),
)
"""Kinds of folders that are recognised by the name of a file, and what reads them."""
