"""MNIST's idx files."""

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.errors import FileFormatError
from prunekit.limits import check_unpacked

__all__ = ["find_idx", "read_idx", "read_idx_labels"]

_PIECE = 2**20


def find_idx(folder: Path, stem: str, sides: int = 3) -> Path | None:
    """A folder's idx file of a name such as ``train-images``, gzipped or not."""
    kind = f"idx{sides}-ubyte"
    names = [f"{stem}-{kind}", f"{stem}-{kind}.gz", f"{stem}.{kind}", f"{stem}.{kind}.gz"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """MNIST's idx3, uint8 (count, height, width, 1): magic 0x00000803, three big-endian sizes, then the pixels.

    Raises:
        FileFormatError: it is broken, or no idx3 file.
    """
    magic, sizes, pixels = _read(path, 3)
    if magic != 0x803 or len(pixels) != math.prod(sizes) or not pixels:
        raise FileFormatError(
            f"{path} has magic {magic:#x} and {len(pixels)} bytes of pixels for {'×'.join(map(str, sizes))}; "
            "expected an idx3 file of unsigned bytes (magic 0x803) that is complete."
        )
    return np.frombuffer(pixels, dtype=np.uint8).reshape(*sizes, 1)


def read_idx_labels(path: Path) -> NDArray[np.int64]:
    """MNIST's idx1, int64 (count,): magic 0x00000801, the number of labels, then a byte for each.

    Raises:
        FileFormatError: it is broken, or no idx1 file.
    """
    magic, (count,), labels = _read(path, 1)
    if magic != 0x801 or len(labels) != count:
        raise FileFormatError(
            f"{path} has magic {magic:#x} and {len(labels)} labels for {count}; expected an idx1 file (magic 0x801)."
        )
    return np.frombuffer(labels, dtype=np.uint8).astype(np.int64)


def _read(path: Path, sides: int) -> tuple[int, tuple[int, ...], bytes | bytearray]:
    """Magic number, sizes and content."""
    opener: Callable[[Path, str], gzip.GzipFile] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    try:
        with opener(path, "rb") as handle:
            magic, *sizes = struct.unpack(f">{1 + sides}I", handle.read(4 + 4 * sides))
            if magic not in (0x801, 0x803):
                return magic, tuple(sizes), b""
            check_unpacked(path.stat().st_size, math.prod(sizes), str(path))
            return (
                magic,
                tuple(sizes),
                _pieces(handle, math.prod(sizes) + 1),
            )  # one more byte shows whether it is too long
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise FileFormatError(f"{path} is no readable idx file ({error}).") from error


def _pieces(handle: gzip.GzipFile, most: int) -> bytearray:
    """At most ``most`` bytes, read piece by piece: a single read would allocate all memory even if the file is shorter."""
    content = bytearray()
    while len(content) < most and (piece := handle.read(min(_PIECE, most - len(content)))):
        content += piece
    return content
