"""Arrays of pictures in the forms that other programs write, as uint8 with channels first; and latents, which stay unchanged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit.errors import FileFormatError

__all__ = ["EXPECTED", "Form", "channels_first"]

_ROWS = 1024  # images that are converted at a time
_LOOKED_AT = 64  # images of which the range is looked at before
_COLOURS = (1, 3)
_RGBA = 4
EXPECTED = (
    "expected uint8 (count, height, width), (count, height, width, 1, 3 or 4) or (count, 1, 3 or 4, height, width), "
    "or latents of float16 or float32 (count, channels, height, width)"
)
_DOUBTFUL = 2.0  # floats from 0 to a number between 1 and this may be pictures of either range


@dataclass(frozen=True)
class Form:
    """Images with channels first.

    Args:
        images: uint8 pictures, or latents; shape (count, channels, height, width).
        notes: what was converted, in words.
    """

    images: NDArray[Any]
    notes: tuple[str, ...] = ()

    @property
    def latent(self) -> bool:
        """Whether these are a codec's latents, not pictures."""
        return self.images.dtype != np.uint8


def channels_first(array: NDArray[Any], path: Path, name: str = "") -> Form:
    """Images of any known form.

    Pictures may have their channels last or first. Alpha is laid over white. Floating point without negative values is no latents:
    from 0 to 1 or to 255 it is converted to uint8 if it has the shape of pictures.

    Args:
        array: maybe mapped; it is only copied where it must be converted.
        path: the file, for messages.
        name: the array's key there.

    Raises:
        FileFormatError: it is of another type or shape, or its range is of neither pictures nor latents.
    """
    what = f"{name!r} in {path}" if name else str(path)
    refused = FileFormatError(f"{what} is {array.dtype} of shape {array.shape}; {EXPECTED}.")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise refused
    narrow = array.ndim == 3 and array.shape[2] in (*_COLOURS, _RGBA)
    if narrow and (array.shape[2] != _RGBA or min(array.shape[:2]) > 2 * _RGBA):  # pictures of 4×4 may be grey ones
        raise FileFormatError(
            f"{what} is {array.dtype} of shape {array.shape}, a single picture of {array.shape[2]} channels; expected several "
            "of one size, as (count, height, width, channels)."
        )
    if array.dtype == np.uint8:
        if array.ndim == 3 and array.shape[0] in (3, _RGBA) and min(array.shape[1:]) > 2 * _RGBA:
            raise FileFormatError(
                f"{what} is {array.dtype} of shape {array.shape}, a single picture of {array.shape[0]} channels or as many grey "
                "ones; expected several of one size, as (count, height, width, channels)."
            )
        axis = _channel_axis(array.shape)
        if axis is None:
            raise refused
        return _pictures(array, axis, what)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise refused
    return _floats(array, what, refused)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels, −1 for pictures without; None for no pictures, or where both ends could be channels."""
    if len(shape) == 3:
        return -1
    last, first = shape[3], shape[1]
    if last in _COLOURS:
        return 3
    if last == _RGBA:
        return None if first in (*_COLOURS, _RGBA) else 3
    return 1 if first in (*_COLOURS, _RGBA) and last > _RGBA else None


def _pictures(array: NDArray[Any], axis: int, what: str, notes: tuple[str, ...] = ()) -> Form:
    if axis == -1:
        return Form(array[:, None], notes)
    first = np.moveaxis(array, axis, 1)
    notes = (*notes, f"{what} has its channels first") if axis == 1 else notes
    if first.shape[1] != _RGBA:
        return Form(first, notes)
    laid = np.empty((len(first), 3, *first.shape[2:]), np.uint8)
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS].astype(np.uint16)
        colour, alpha = rows[:, :3], rows[:, 3:]
        laid[start : start + _ROWS] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return Form(laid, (*notes, f"the transparent parts of {what} are laid over white"))


def _floats(array: NDArray[Any], what: str, refused: FileFormatError) -> Form:
    looked_at = array[np.unique(np.linspace(0, len(array) - 1, _LOOKED_AT).astype(int))]
    least, most = float(np.nanmin(looked_at, initial=np.inf)), float(np.nanmax(looked_at, initial=-np.inf))
    axis = _channel_axis(array.shape)
    positive = least >= 0 and 0 < most < np.inf
    if axis is not None and axis > 0 and array.shape[axis] == _RGBA:
        axis = None  # four channels may as well be latents
    if axis == 3 and array.shape[1] > _RGBA and not (positive and most <= 255):
        raise FileFormatError(
            f"{what} is {array.dtype} of shape {array.shape} from {least:g} to {most:g}, pictures with channels last; expected "
            "uint8: scale them to 0 … 255 and round."
        )
    if positive and axis is not None and 1 < most < _DOUBTFUL:
        raise FileFormatError(
            f"{what} is {array.dtype} from {least:g} to {most:g}, which may be pictures from 0 to 1 or to 255; expected uint8."
        )
    if positive and axis is not None and most <= 255:
        return _rounded(array, axis, 255 if most <= 1 else 1, what)
    if array.ndim != 4:
        raise refused
    if positive:
        raise FileFormatError(
            f"{what} is {array.dtype} of shape {array.shape} from {least:g} to {most:g}; expected latents of both signs: "
            "subtract their mean and divide by their deviation; or pictures as uint8, scaled to 0 … 255 and rounded."
        )
    if axis == 1 and least >= -1 and most <= 1:  # one channel or three
        return Form(
            array,
            (
                f"{what} is {array.dtype} from {least:g} to {most:g}, read as latents and not as pictures; if they are pictures "
                "from -1 to 1, write them as uint8",
            ),
        )
    return Form(array)


def _rounded(array: NDArray[Any], axis: int, scale: int, what: str) -> Form:
    """Floats from 0 to 1 or to 255 as uint8."""
    whole = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _ROWS):
        rows = np.asarray(array[start : start + _ROWS], np.float32) * scale
        if not (rows.min() >= 0 and rows.max() <= 255):  # also refuses NaN
            raise FileFormatError(
                f"{what} has values from {rows.min() / scale:g} to {rows.max() / scale:g} among pictures from 0 to {255 // scale}; "
                "expected them as uint8."
            )
        whole[start : start + _ROWS] = np.round(rows)
    return _pictures(
        whole, axis, what, (f"{what} is {array.dtype} from 0 to {255 // scale}, read as pictures and not as latents",)
    )
