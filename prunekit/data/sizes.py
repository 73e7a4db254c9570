"""Sizes of images: a side for squares, otherwise height and width."""

from collections.abc import Sequence

from prunekit.errors import InputError

__all__ = ["Resolution", "Size", "as_resolution", "read_size", "size_text"]

Resolution = int | tuple[int, int] | Sequence[int]
"""Side of square images in pixels, or height and width."""

Size = tuple[int, int]
"""Height and width in pixels."""

_LEAST, _MOST = 2, 4096


def read_size(resolution: Resolution | None) -> Size | None:
    """Height and width that a user asked for; None if nothing was asked for.

    Raises:
        InputError: it is not one or two numbers of 2 … 4096.
    """
    if resolution is None:
        return None
    sides = [resolution, resolution] if isinstance(resolution, int) else list(resolution)
    if len(sides) != 2 or not all(type(side) is int and _LEAST <= side <= _MOST for side in sides):
        raise InputError(
            f"Got `resolution` {resolution}; expected {_LEAST} … {_MOST} pixels: a side, or height and width."
        )
    return sides[0], sides[1]


def as_resolution(size: Size) -> int | Size:
    """The side of a square, otherwise height and width."""
    return size[0] if size[0] == size[1] else size


def size_text(size: Resolution) -> str:
    """A size in words, height first.

    Example:
        >>> size_text(8), size_text([8, 12])
        ('8×8', '8×12')
    """
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height}×{width}"
