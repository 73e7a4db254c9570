"""Checks of array containers before a library reads them: zip archives, npy and safetensors headers.

Each check reads a few kilobytes and compares the sizes that the file declares with its real size and with the limits of
:mod:`prunekit.limits`, so that a small hostile file can use up neither memory nor time.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from prunekit._messages import one_line
from prunekit.errors import FileFormatError
from prunekit.limits import check_limit, check_unpacked

__all__ = ["check_npy_header", "check_safetensors", "open_archive", "read_npz"]

_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"
_NPY_HEADER = 2**16  # bytes; numpy itself refuses headers of more than 10,000
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error)
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive if its directory is not too large, its members have distinct names, and numpy can read them.

    Raises:
        LimitError: the directory is larger than the limit ``zip-directory-bytes``.
        FileFormatError: it is not a zip archive, or has encrypted members, duplicate names, or an unusual compression.
    """
    check_limit("zip-directory-bytes", _directory_bytes(path), f"The list of files in {path}")
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise FileFormatError(f"{path} is no readable archive ({error}); copy it again.") from error
    with archive:
        members = archive.infolist()
        names = {member.filename.lower() for member in members}
        if len(names) < len(members):
            raise FileFormatError(f"{path} has two files of one name; expected an archive that its library wrote.")
        for member in members:
            if member.flag_bits & 0x1 or member.compress_type not in _PLAIN:
                raise FileFormatError(
                    f"{member.filename[:80]!r} in {path} is encrypted or of an unusual compression; expected it plain or deflated."
                )
        yield archive


def read_npz(path: Path, wanted: Callable[[Sequence[str]], Sequence[str]] = tuple) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` by name, each checked before it is unpacked.

    Args:
        path: the file.
        wanted: chooses among the names of its arrays; all if missing.

    Raises:
        LimitError: all together are beyond the limits ``unpacked-bytes`` and ``unpacked-ratio``.
        FileFormatError: it is damaged, or holds Python objects.
    """
    with open_archive(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = wanted(list(members))
        sizes = [sum(getattr(members[name], size) for name in names) for size in ("compress_size", "file_size")]
        check_unpacked(sizes[0], sizes[1], str(path))
        for name in names:
            what = f"{name[:80]!r} in {path}"
            try:
                with archive.open(members[name]) as handle:
                    check_npy_header(handle, members[name].file_size, what)
            except _DAMAGED as error:
                raise FileFormatError(f"{what} is no readable array ({one_line(error)}).") from error
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # numpy raises errors of any kind on damaged files
        raise FileFormatError(f"{path} is no readable .npz ({one_line(error)}).") from error


def _directory_bytes(path: Path) -> int:
    """Size of a zip archive's directory, from its end record; 0 if there is none, which causes an error later."""
    with path.open("rb") as handle:
        handle.seek(0, 2)
        length = min(handle.tell(), 66_000)
        handle.seek(-length, 2)
        tail = handle.read(length)
    place = tail.rfind(_END)
    if place < 0 or place + 22 > len(tail):
        return 0
    size = int(struct.unpack_from("<I", tail, place + 12)[0])
    large = tail.rfind(_END_64)
    if large >= 0 and large + 48 <= len(tail):
        size = max(size if size != 2**32 - 1 else 0, int(struct.unpack_from("<Q", tail, large + 40)[0]))
    return size


def check_npy_header(handle: IO[bytes], size: int, what: str) -> None:
    """Refuse an array in numpy's format if its header declares another size than the file has.

    Args:
        handle: the file, at its beginning.
        size: size of the file in bytes.
        what: name of the file in messages.

    Raises:
        FileFormatError: it is not such an array, is a pickle, or is longer or shorter than its header says.
    """
    try:
        head = io.BytesIO(handle.read(_NPY_HEADER))
        version = np.lib.format.read_magic(head)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(head)
        begin = head.tell()
    except Exception as error:  # the header is a Python literal; parsing it can raise many errors
        raise FileFormatError(f"{what} is no readable array ({one_line(error)}).") from error
    if dtype.hasobject:
        raise FileFormatError(
            f"{what} holds Python objects; expected plain numbers, which run no code when they are read."
        )
    count = 1
    for length in shape:  # Python integers do not overflow
        count *= int(length)
    if any(length < 0 for length in shape) or count * dtype.itemsize != size - begin:
        raise FileFormatError(
            f"{what} has {size - begin:,} bytes for an array of {dtype} and shape {str(shape)[:80]}; copy it again."
        )


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file with a header above the limits ``safetensors-header-bytes`` and ``safetensors-tensors``.

    Raises:
        LimitError: the header is above a limit.
        FileFormatError: it is shorter than its header.
    """
    with path.open("rb") as handle:
        first = handle.read(8)
        length = int.from_bytes(first, "little")
        whole = handle.seek(0, 2)
        if len(first) < 8 or length > whole - 8:
            raise FileFormatError(f"{path} is no readable safetensors file (it ends within its header); copy it again.")
        check_limit("safetensors-header-bytes", length, f"The header of {path}")
        handle.seek(8)
        objects = handle.read(length).count(b"{")  # the header, and one for each tensor
        check_limit("safetensors-tensors", objects - 1, str(path))
