"""Arrays of pictures or latents with their classes: ``.npy``, mapped and not read; ``.npz``; ``.safetensors``. Never a pickle."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from prunekit._containers import check_npy_header, check_safetensors, read_npz
from prunekit._messages import one_line
from prunekit.data.array_forms import channels_first
from prunekit.data.keys import Chosen, choose, key_of_classes, several_arrays
from prunekit.errors import FileFormatError, InputError, MissingFileError, PrunekitError

__all__ = ["SUFFIXES", "ArrayImages", "find_array", "mapped", "read_array"]

_MAX_CLASS = 2**24  # a network has a row of weights for each class
_ROWS = 4096  # images that are checked at a time
SUFFIXES = (".npy", ".npz", ".safetensors")


def find_array(folder: Path, stem: str) -> Path | None:
    """The file of arrays in a folder with a name such as ``train``."""
    return next((folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)


@dataclass(frozen=True)
class ArrayImages:
    """Images of a file.

    Args:
        images: uint8 pictures, or latents in floating point; shape (count, channels, height, width).
        labels: int64, shape (count,); None if not wanted.
        held_out: images that the file keeps apart, with their classes.
        notes: how the file was understood, where there was a choice, and what was converted.
    """

    images: Tensor
    labels: Tensor | None = None
    held_out: tuple[Tensor, Tensor | None] | None = None
    notes: tuple[str, ...] = ()


def read_array(path: Path, labels: bool = False, key: str | None = None) -> ArrayImages:
    """Images of a file, and their classes if these are wanted.

    An ``.npy`` is mapped, so unused images take no memory, unless it has to be converted. Its classes are in ``<stem>-labels.npy``
    next to it. In an ``.npz`` or ``.safetensors`` of several arrays, images and classes are found by the keys of known layouts
    (:mod:`prunekit.data.keys`), or by the key that the user names; the order of the arrays has no meaning.

    Args:
        path: pictures or latents in a form that :func:`prunekit.data.array_forms.channels_first` knows.
        labels: whether classes are wanted.
        key: of the images, and after a comma of their classes; only for files of named arrays.

    Raises:
        FileFormatError: it is broken, a pickle, or holds something else.
        InputError: it has several arrays in no known layout and no key is given, or it does not have the key.
        MissingFileError: there are no classes.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if key is not None:
            raise InputError(f"Got {path}::{key}; an .npy is one array without a key: leave the key out.")
        arrays, chosen = _guarded(path, lambda: _read_npy(path, labels))
    else:
        reader = _read_npz if suffix == ".npz" else _read_safetensors
        arrays, chosen = _guarded(path, lambda: reader(path, labels, key))
    name = chosen.images if suffix != ".npy" and (key is not None or len(arrays) > 1) else ""
    form = channels_first(arrays[chosen.images], path, name)
    images = mapped(form.images)
    if (
        form.latent and suffix != ".npy"
    ):  # a mapped file may be larger than memory: its rows are checked where they are used
        _check_finite(images, path)
    own = _labels_for(arrays, chosen.images, chosen.labels, len(images), path) if labels else None
    notes = [*form.notes] if not (note := chosen.note()) else [f"in {path}, {note}", *form.notes]
    if chosen.held_out is None:
        return ArrayImages(images, own, notes=tuple(notes))
    other = channels_first(arrays[chosen.held_out[0]], path, chosen.held_out[0])
    held_out = mapped(other.images)
    other_labels = _labels_for(arrays, *chosen.held_out, len(held_out), path) if labels else None
    return ArrayImages(images, own, (held_out, other_labels), (*notes, *other.notes))


_NUMPYS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64")  # types that numpy has
_Found = tuple[dict[str, NDArray[Any]], Chosen]


def _guarded(path: Path, read: Callable[[], _Found]) -> _Found:
    try:
        return read()
    except PrunekitError:
        raise
    except Exception as error:  # numpy and safetensors raise errors of any kind on damaged files
        raise FileFormatError(f"{path} is no readable {path.suffix} of images ({one_line(error)}).") from error


def mapped(array: NDArray[Any]) -> Tensor:
    """A tensor with an array's memory, which may be mapped from a file that may not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to images
        return torch.from_numpy(array)


def _labels_for(arrays: Mapping[str, NDArray[Any]], images: str, key: str | None, count: int, path: Path) -> Tensor:
    if key is None or key not in arrays:
        expected = key_of_classes(images)
        where = f"{path.stem}-labels.npy beside it" if path.suffix.lower() == ".npy" else f"the key {expected}"
        of = "" if expected == "labels" else f" of {images}"
        raise MissingFileError(f"{path} has no classes{of}; expected them in {where}, or a model without classes.")
    return _checked(arrays[key], count, path)


def _read_npy(path: Path, labels: bool) -> _Found:
    beside = path.with_name(f"{path.stem}-labels.npy")
    wanted = [path, beside] if labels and beside.is_file() else [path]
    for file in wanted:
        with file.open("rb") as handle:
            check_npy_header(handle, file.stat().st_size, str(file))
    arrays = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
    if len(wanted) > 1:
        arrays["labels"] = np.load(beside, allow_pickle=False)
    return arrays, Chosen("images", "labels")


def _read_npz(path: Path, labels: bool, key: str | None) -> _Found:
    chosen: list[Chosen] = []

    def wanted(names: Sequence[str]) -> list[str]:
        if not set(names) - {"labels"}:
            raise FileFormatError(f"{path} is no readable .npz of images: it has no array of pictures or latents.")
        chosen.append(choose(names, path, key))
        return _wanted(chosen[0], labels)

    arrays = read_npz(path, wanted)
    _check_sure(chosen[0], arrays, path)
    return arrays, chosen[0]


def _read_safetensors(path: Path, labels: bool, key: str | None) -> _Found:
    check_safetensors(path)
    with safe_open(path, framework="np") as handle:
        chosen = choose(list(handle.keys()), path, key)
        wanted = _wanted(chosen, labels)
        for name in wanted:
            if (kind := handle.get_slice(name).get_dtype()) not in _NUMPYS:
                raise FileFormatError(
                    f"{name} in {path} has numbers of type {kind}; expected uint8, or floats of 16, 32 or 64 bits."
                )
        arrays = {name: handle.get_tensor(name) for name in wanted}
    _check_sure(chosen, arrays, path)
    return arrays, chosen


def _wanted(chosen: Chosen, labels: bool) -> list[str]:
    """Keys of the arrays to load."""
    own = [chosen.images, *([chosen.labels] if chosen.labels and (labels or chosen.unsure) else [])]
    if chosen.held_out is not None:
        own += [name for name in (chosen.held_out[0], chosen.held_out[1] if labels else None) if name]
    return own


def _check_sure(chosen: Chosen, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Refuse a second array that is recognised by its key alone and holds no classes."""
    if chosen.unsure and chosen.labels is not None:
        second = arrays[chosen.labels]
        if second.shape != (len(arrays[chosen.images]),) or not np.issubdtype(second.dtype, np.integer):
            raise several_arrays(path, list(arrays))


def _check_finite(latents: Tensor, path: Path) -> None:
    """Refuse latents that are NaN or infinite in float32, by the first row that is."""
    for start in range(0, len(latents), _ROWS):
        finite = latents[start : start + _ROWS].float().isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0, 0])
            raise FileFormatError(f"Row {row} of {path} is not finite in float32; encode it again, or remove it.")


def _checked(labels: NDArray[np.generic], count: int, path: Path) -> Tensor:
    """Labels as int64.

    Raises:
        FileFormatError: they are not whole numbers from 0, or not one for each image.
    """
    whole = np.issubdtype(labels.dtype, np.integer)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # Keras's CIFAR has a column
    if not whole or labels.shape != (count,):
        raise FileFormatError(
            f"The classes of {path} are {labels.dtype} of shape {labels.shape} for {count} images; "
            "expected a whole number from 0 for each."
        )
    least, most = (int(labels.min()), int(labels.max())) if count else (0, 0)
    if least < 0 or most > _MAX_CLASS:
        raise FileFormatError(
            f"The classes of {path} are {labels.dtype} from {least} to {most}; "
            f"expected a whole number from 0 for each, of at most {_MAX_CLASS:,}."
        )
    return torch.from_numpy(labels.astype(np.int64))
