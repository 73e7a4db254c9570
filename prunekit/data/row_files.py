"""Arrays on disk that grow by some rows at a time; an array that was cut short is found before more rows follow."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit._messages import one_line
from prunekit.choices import StoredPrecision
from prunekit.data.arrays import mapped
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.results.encoded_files import ArrayForm
from prunekit.training.columns import in_parts

__all__ = [
    "check_rows_on_disk",
    "form_of",
    "hash_with",
    "kind_of",
    "plain_array",
    "stored",
    "write_rows",
]


def form_of(array: Tensor) -> ArrayForm:
    """Shape and type of an array.

    Raises:
        InputError: its type cannot be stored.
    """
    try:
        return ArrayForm.of({"shape": list(array.shape), "dtype": kind_of(array)}, "An array")
    except FileFormatError as error:
        raise InputError(
            f"Got an array of {kind_of(array)} and shape {tuple(array.shape)}; expected floating point, int64, int32, uint8, bool "
            "or complex64, and at most 8 axes, none of them empty."
        ) from error


def kind_of(array: Tensor) -> str:
    """Name of an array's type, as numpy has it."""
    return str(array.dtype).removeprefix("torch.")


def plain_array(array: Tensor) -> Tensor:
    """A tensor on the CPU, in a type that numpy has."""
    array = array.detach().cpu()
    return array.to(torch.float32) if array.dtype == torch.bfloat16 else array


def stored(rows: Tensor, name: str, precision: StoredPrecision = "float16") -> Tensor:
    """Rows on the CPU with floating-point numbers in the precision in which they are stored; others stay.

    Args:
        rows: any shape.
        name: of the array, in messages.
        precision: of floating-point numbers.

    Raises:
        InputError: they are not finite, or too large for it.
    """
    rows = plain_array(rows)
    if not rows.is_floating_point():
        return rows
    kept = rows.to(torch.float16 if precision == "float16" else torch.float32)
    if bool(kept.isfinite().all()):
        return kept
    most = float(rows.abs().nan_to_num(torch.inf).max())
    if np.isfinite(most) and precision == "float16":
        raise InputError(
            f"Got {name} with values up to {most:.3g}, which half precision cannot hold; expected at most 65,504, or a "
            "`stored_precision` of float32."
        )
    raise InputError(f"Got {name} with values that are not finite; expected finite numbers.")


def write_rows(path: Path, rows: Tensor, first: int = 0, count: int | None = None) -> None:
    """Write an array, or some rows of it behind those that are there; they are on the disk when it returns.

    What an interrupted write left behind the first rows is overwritten.

    Args:
        path: the file.
        rows: shape (rows, …).
        first: number of rows before them.
        count: number of rows in the end; None for an array without such an axis.
    """
    array = np.ascontiguousarray(rows.numpy()).reshape(rows.shape)
    shape = array.shape if count is None else (count, *array.shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("r+b" if first else "wb") as file:
            if first:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                file.seek(first * array[:1].nbytes, os.SEEK_CUR)
                file.truncate()
            else:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data if array.ndim else array.tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise


def hash_with(rows: Tensor, before: str = "") -> str:
    """Hash of an array that grows: of each row together with the hash of the rows before it.

    It does not depend on how many rows are written at a time, and continues from a stored hash.

    Args:
        rows: shape (rows, …).
        before: hash of the rows before them; empty if there are none.

    Returns:
        SHA-256, 64 hex digits; ``before`` if there are no rows.
    """
    found = bytes.fromhex(before)
    array = np.ascontiguousarray(rows.numpy()).reshape(rows.shape)
    for row in array:
        found = hashlib.sha256(found + row.tobytes()).digest()
    return found.hex()


def check_rows_on_disk(path: Path, form: ArrayForm, done: int, count: int | None, sha256: str | None = None) -> None:
    """Refuse an unfinished array that lacks rows that were written, or has others.

    Args:
        path: the file.
        form: of a row.
        done: number of rows that must be there.
        count: number of rows in the end; None for an array without such an axis, whose ``done`` is 1.
        sha256: of the rows that must be there, see :func:`hash_with`; None to leave their numbers unread.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is shorter, has another shape or type, or holds other numbers.
    """
    again = "delete the folder and encode the pictures again."
    begin, shape, dtype = _header(path, done, again)
    expected = np.dtype(form.dtype)
    wanted = tuple(form.shape) if count is None else (count, *form.shape)
    if shape != wanted or dtype != expected:
        raise FileFormatError(
            f"{path} has {dtype} of shape {str(shape)[:80]}; expected {expected} of {wanted}: {again}"
        )
    needed = done * expected.itemsize
    for length in form.shape:
        needed *= length
    there = path.stat().st_size - begin
    if there < needed:
        raise FileFormatError(f"{path} has {there:,} bytes of rows, and {needed:,} were written; {again}")
    if sha256 is not None and _hash_of(np.memmap(path, expected, "r", begin, (done, *form.shape))) != sha256:
        raise FileFormatError(f"{path} holds other numbers than were written; {again}")


def _hash_of(rows: NDArray[Any]) -> str:
    """Hash of rows that are mapped, some megabytes at a time."""
    found = ""
    for part, _ in in_parts(mapped(rows)):
        found = hash_with(part, found)
    return found


def _header(path: Path, done: int, again: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where an array begins in its file, its shape and its type.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it has no such header.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing, and {done:,} rows of it were written; {again}")
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its header is of another version")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran:
                raise ValueError("its first axis comes last")
            return file.tell(), shape, dtype
    except OSError:
        raise
    except Exception as error:  # the header is a Python literal; parsing it can raise many errors
        raise FileFormatError(f"{path} is no readable array ({one_line(error)}); {again}") from error
