"""Real images as one uint8 tensor: the embedded digits, a folder of pictures, an ``.npz``, or MNIST-style idx files.

Labels are ignored. Images are centre-cropped to a square and area-averaged down to the wanted resolution.
"""

import gzip
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["ImageData", "ImageSplit", "load_images"]

_PICTURES = {".png", ".jpg", ".jpeg"}
_GREY = {"1", "L", "LA", "I", "I;16", "I;16B"}
_HELD_OUT = 6  # one image in six is held out where the source has no test part of its own


@dataclass(frozen=True)
class ImageData:
    """Images of one size.

    Args:
        images: uint8, shape (count, channels, height, width).
        name: where they came from, for records.
    """

    images: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Hash of shape and pixels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def first(self, count: int | None) -> "ImageData":
        """The first ``count`` images (all when None)."""
        return self if count is None else ImageData(self.images[:count], self.name)


@dataclass(frozen=True)
class ImageSplit:
    """Training images and images that no training step has seen."""

    train: ImageData
    held_out: ImageData
    source: str
    resolution: int

    def about(self) -> dict[str, str | int]:
        """JSON from which the same split is loaded again: ``source`` and ``resolution``."""
        return {"source": self.source, "resolution": self.resolution}


def load_images(source: str, resolution: int | None = None) -> ImageSplit:
    """Load an image source and split it.

    Args:
        source: ``digits`` (scikit-learn's 1,797 images of 8×8), a folder of PNG/JPEG, a folder or file in MNIST's idx format
            (``.gz`` or not), or an ``.npz`` whose first array is images as (count, height, width[, channels]) uint8.
        resolution: side of the square images; the source's own when absent (a folder's first picture's shorter side).

    Returns:
        Training and held-out images: idx folders by their own train/t10k files, others one in six held out by a fixed draw.

    Raises:
        MissingFileError: no such file or folder, or a folder without pictures.
        FileFormatError: a file that is broken or of another kind; the message names it.
    """
    if resolution is not None and not 2 <= resolution <= 4096:
        raise InputError(f"Got --resolution {resolution}; expected 2 … 4096 pixels.")
    if source == "digits":
        return _split(_resized(_digits(), resolution), "digits", "digits")
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"--data {source} does not exist; expected 'digits', a folder, an .npz or an idx file.")
    if path.is_dir():
        train = _idx_in(path, "train-images")
        if train is not None:
            test = _idx_in(path, "t10k-images")
            return _idx_split(path, train, test, resolution)
        return _split(_folder(path, resolution), path.name, source)
    if path.suffix == ".npz":
        return _split(_resized(_npz(path), resolution), path.stem, source)
    if "idx" in path.name:
        return _split(_resized(_idx(path), resolution), path.name, source)
    raise FileFormatError(
        f"--data {source} is not a kind that is read; expected 'digits', a folder, an .npz or an idx file."
    )


def _split(images: NDArray[np.uint8], name: str, source: str) -> ImageSplit:
    if len(images) < 2:
        raise FileFormatError(f"{source} holds {len(images)} image; expected at least 2, one of them to be held out.")
    order = np.random.default_rng(0).permutation(len(images))
    held_out = max(1, len(images) // _HELD_OUT)
    return ImageSplit(
        _data(images[np.sort(order[held_out:])], f"{name}/train"),
        _data(images[np.sort(order[:held_out])], f"{name}/held-out"),
        source,
        images.shape[1],
    )


def _idx_split(folder: Path, train: Path, test: Path | None, resolution: int | None) -> ImageSplit:
    images = _resized(_idx(train), resolution)
    if test is None:
        return _split(images, folder.name, str(folder))
    held_out = _resized(_idx(test), resolution)
    if held_out.shape[1:] != images.shape[1:]:
        raise FileFormatError(f"{test} has images of another size than {train.name}; give --resolution.")
    return ImageSplit(
        _data(images, f"{folder.name}/train"), _data(held_out, f"{folder.name}/test"), str(folder), images.shape[1]
    )


def _data(images: NDArray[np.uint8], name: str) -> ImageData:
    """(count, height, width, channels) to channels first."""
    return ImageData(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), name)


def _digits() -> NDArray[np.uint8]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only the digits need it

    images = load_digits().images  # 0 … 16
    return np.asarray(np.round(images * (255.0 / 16.0)), dtype=np.uint8)[..., None]


def _npz(path: Path) -> NDArray[np.uint8]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is an .npy under another name")
        with archive:
            images = archive[archive.files[0]]
    except (ValueError, OSError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"{path} is no readable .npz of images ({error}).") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise FileFormatError(
            f"The first array of {path} is {images.dtype} of shape {images.shape}; "
            "expected uint8 (count, height, width) or (count, height, width, 1 or 3)."
        )
    return np.asarray(images, dtype=np.uint8)


def _idx_in(folder: Path, stem: str) -> Path | None:
    names = [f"{stem}-idx3-ubyte", f"{stem}-idx3-ubyte.gz", f"{stem}.idx3-ubyte", f"{stem}.idx3-ubyte.gz"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx(path: Path) -> NDArray[np.uint8]:
    """MNIST's idx3: magic 0x00000803, three big-endian sizes, then the pixels."""
    opener: Callable[[Path, str], gzip.GzipFile] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    try:
        with opener(path, "rb") as handle:
            magic, count, height, width = struct.unpack(">IIII", handle.read(16))
            pixels = handle.read()
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise FileFormatError(f"{path} is no readable idx file ({error}).") from error
    if magic != 0x803 or len(pixels) != count * height * width or not pixels:
        raise FileFormatError(
            f"{path} has magic {magic:#x} and {len(pixels)} bytes of pixels for {count}×{height}×{width}; "
            "expected an idx3 file of unsigned bytes (magic 0x803) that is complete."
        )
    return np.frombuffer(pixels, dtype=np.uint8).reshape(count, height, width, 1)


def _folder(folder: Path, resolution: int | None) -> NDArray[np.uint8]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES and file.is_file())
    if not files:
        raise MissingFileError(f"--data {folder} has no .png or .jpg pictures; expected at least two.")
    pictures: list[NDArray[np.uint8]] = []
    mode = ""
    for file in files:
        try:
            with Image.open(file) as picture:
                picture.load()
                own_mode = "L" if picture.mode in _GREY else "RGB"
                mode = mode or own_mode
                side = resolution if resolution is not None else min(picture.size)
                resolution = side
                pixels = np.asarray(_square(_eight_bit(picture).convert(own_mode), side))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise FileFormatError(f"{file} is a broken picture ({error}); mend or remove it.") from error
        if own_mode != mode:
            raise FileFormatError(
                f"{file} is {own_mode} and {files[0].name} is {mode}; expected all grey or all colour."
            )
        pictures.append(pixels if pixels.ndim == 3 else pixels[..., None])
    return np.stack(pictures)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture scaled to 8 bits (Pillow itself would clip it at 255), any other as it is."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray(np.round(np.asarray(picture) / 257.0).clip(0, 255).astype(np.uint8))


def _square(picture: Image.Image, side: int) -> Image.Image:
    """Centre crop to a square, then area average (BOX) down, or bicubic up, to ``side``."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    filter_ = Image.Resampling.BOX if side <= short else Image.Resampling.BICUBIC
    return picture.resize((side, side), filter_, box=(left, top, left + short, top + short))


def _resized(images: NDArray[np.uint8], resolution: int | None) -> NDArray[np.uint8]:
    height, width = images.shape[1:3]
    side = min(height, width) if resolution is None else resolution
    if height == width == side:
        return images
    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    resized = np.stack([np.asarray(_square(Image.fromarray(image), side)) for image in squeezed])
    return resized if resized.ndim == 4 else resized[..., None]
