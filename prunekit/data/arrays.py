"""Arrays of pictures or latents with their classes: ``.npy``, mapped and not read; ``.npz``; ``.safetensors``. Never a pickle."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from prunekit._containers import check_npy_header, check_safetensors, read_npz
from prunekit._messages import one_line
from prunekit.errors import FileFormatError, MissingFileError, PrunekitError

__all__ = ["SUFFIXES", "find_array", "read_array"]

_MAX_CLASS = 2**24  # a network has a row of weights for each class
_ROWS = 4096  # images that are checked at a time
SUFFIXES = (".npy", ".npz", ".safetensors")


def find_array(folder: Path, stem: str) -> Path | None:
    """The file of arrays in a folder with a name such as ``train``."""
    return next((folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)


def read_array(path: Path, labels: bool = False) -> tuple[Tensor, Tensor | None]:
    """Images of a file, and their classes if these are wanted.

    An ``.npy`` is mapped, so unused images take no memory. Its classes are in ``<stem>-labels.npy`` next to it; those of an
    ``.npz`` or ``.safetensors`` are under the key ``labels``. Images are the first array under any other key.

    Args:
        path: uint8 pictures of shape (count, height, width) or (count, height, width, 1 or 3), or float16, float32 or float64
            latents of shape (count, channels, height, width).
        labels: whether classes are wanted.

    Returns:
        Images of shape (count, channels, height, width); labels of shape (count,), int64.

    Raises:
        FileFormatError: it is broken, a pickle, or holds something else.
        MissingFileError: there are no classes.
    """
    images, own = _read(path, labels)
    if labels and own is None:
        where = f"{path.stem}-labels.npy beside it" if path.suffix == ".npy" else "the key labels"
        raise MissingFileError(f"{path} has no classes; expected them in {where}, or a model without classes.")
    if images.ndim == 3 and images.dtype == np.uint8:
        images = images[..., None]
    latent = images.dtype in (np.float16, np.float32, np.float64)
    picture = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3)
    if not (picture or (latent and images.ndim == 4)) or 0 in images.shape:
        raise FileFormatError(
            f"The first array of {path} is {images.dtype} of shape {images.shape}; "
            "expected uint8 (count, height, width) or (count, height, width, 1 or 3), "
            "or latents of float16 or float32 (count, channels, height, width)."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to images
        tensor = torch.from_numpy(images)
    if (
        latent and path.suffix != ".npy"
    ):  # a mapped file may be larger than memory: its rows are checked where they are used
        _check_finite(tensor, path)
    tensor = tensor if latent else tensor.permute(0, 3, 1, 2)
    return tensor, None if own is None else _checked(own, len(tensor), path)


def _read(path: Path, labels: bool) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """The images' array and the labels' where they are there and wanted."""
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    try:
        return readers[path.suffix](path, labels)
    except PrunekitError:
        raise
    except Exception as error:  # numpy and safetensors raise errors of any kind on damaged files
        raise FileFormatError(f"{path} is no readable {path.suffix} of images ({one_line(error)}).") from error


def _read_npy(path: Path, labels: bool) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    beside = path.with_name(f"{path.stem}-labels.npy")
    wanted = [path, beside] if labels and beside.is_file() else [path]
    for file in wanted:
        with file.open("rb") as handle:
            check_npy_header(handle, file.stat().st_size, str(file))
    own = np.load(beside, allow_pickle=False) if len(wanted) > 1 else None
    return np.load(path, mmap_mode="r", allow_pickle=False), own


def _read_npz(path: Path, labels: bool) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    def wanted(names: Sequence[str]) -> list[str]:
        images = next((name for name in names if name != "labels"), None)
        return [name for name in (images, "labels" if labels and "labels" in names else None) if name is not None]

    arrays = read_npz(path, wanted)
    images = next((array for name, array in arrays.items() if name != "labels"), None)
    if images is None:
        raise FileFormatError(f"{path} is no readable .npz of images: it has no array of pictures or latents.")
    return images, arrays.get("labels")


def _read_safetensors(path: Path, labels: bool) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    check_safetensors(path)
    with safe_open(path, framework="np") as handle:
        names = list(handle.keys())
        images = handle.get_tensor(next(name for name in names if name != "labels"))
        return images, handle.get_tensor("labels") if labels and "labels" in names else None


def _check_finite(latents: Tensor, path: Path) -> None:
    """Refuse latents that are NaN or infinite, by the first row that is."""
    for start in range(0, len(latents), _ROWS):
        finite = latents[start : start + _ROWS].isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0, 0])
            raise FileFormatError(f"Row {row} of {path} is not finite; encode it again, or remove it.")


def _checked(labels: NDArray[np.generic], count: int, path: Path) -> Tensor:
    """Labels as int64.

    Raises:
        FileFormatError: they are not whole numbers from 0, or not one for each image.
    """
    whole = np.issubdtype(labels.dtype, np.integer)
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
