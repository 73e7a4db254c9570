"""The widths between which a layer's time does not fall, found by timing it.

Kernels work on blocks of channels, so time falls in stairs: on a processor with 16 numbers to a vector, a convolution of 113 to 128
channels takes one time. A :class:`Stair` has the width of a layer's blocks. :func:`multiple_of` says of a channel group, several
of whose layers have stairs, which multiples of its width pay. The stairs that are tried, and how clear one has to be, are this
project's choice.
"""

from collections.abc import Sequence

import numpy as np

from prunekit._types import FloatArray, IntArray

__all__ = ["BLOCKS", "block_of", "multiple_of", "on_stair", "probed_widths"]

BLOCKS = (1, 4, 8, 16, 32, 64)
"""Widths of blocks that are tried."""
_CUTS = (0, 3, 7, 8, 11, 15, 16, 20, 24, 28, 31, 32, 40, 47, 48, 56, 63, 64, 72, 79, 80, 96)
_TOP = 128
_FEWEST = 6  # widths that tell blocks apart
_CLEARER = 0.75  # a block's error must be below this part of the error without blocks
_FAR_OFF = 6  # one time in six may be
_LITTLE = 0.45  # of what would be saved if time fell in proportion


def probed_widths(least: int, most: int) -> IntArray:
    """Widths of an axis at which a layer is timed to find its blocks, rising; empty where the axis is too short for that.

    They are narrow ones, of which a block is a large part, if the axis has such widths.
    """
    top = min(most, max(_TOP, least))
    widths = np.unique([top - cut for cut in _CUTS if top - cut >= max(least, 1)]).astype(np.int64)
    return widths if len(widths) >= _FEWEST and top > BLOCKS[2] else widths[:0]


def on_stair(widths: FloatArray | IntArray, block: int) -> FloatArray:
    """The widths, each rounded up to a whole number of blocks; same shape."""
    wide = np.asarray(widths, dtype=float)
    return wide if block == 1 else np.asarray(np.ceil(wide / block) * block)


def block_of(widths: IntArray, seconds: FloatArray) -> int:
    """The block width that explains a layer's times best; 1 if none is clearly better than a straight line.

    Args:
        widths: shape (n,), of the axis.
        seconds: the layer's times at these widths, shape (n,).
    """
    if len(widths) < _FEWEST:
        return 1
    errors = {block: _error(on_stair(widths, block), seconds) for block in BLOCKS if block < int(widths[-1])}
    best = min(errors, key=lambda block: (errors[block], block), default=1)
    return best if errors[best] < _CLEARER * errors.get(1, 0.0) else 1


def _error(at: FloatArray, seconds: FloatArray) -> float:
    """Mean absolute error of a rising line through times, without the largest errors.

    The line is Theil and Sen's, with the median of all slopes between two times, since single times can be far off.
    """
    first, second = np.triu_indices(len(at), 1)
    apart = at[second] - at[first]
    slopes = (seconds[second] - seconds[first])[apart > 0] / apart[apart > 0]
    slope = max(float(np.median(slopes)), 0.0) if len(slopes) else 0.0
    left = seconds - slope * at
    errors = np.sort(np.abs(left - np.median(left)))
    return float(errors[: len(errors) - len(errors) // _FAR_OFF].mean())


def multiple_of(widths: IntArray, times: IntArray, candidates: Sequence[int]) -> int:
    """The largest multiple that pays: widths between two multiples save little time compared with the next larger multiple.

    Args:
        widths: legal widths of a channel group, falling, shape (n,).
        times: of the network at each of them, everything else whole, shape (n,).
        candidates: multiples to choose from, rising; the first is taken if none pays.
    """
    at = dict(zip(widths.tolist(), times.tolist(), strict=True))
    paying = [candidates[0]]
    for multiple in candidates[1:]:
        saved = proportional = 0.0
        for width in at:
            wider, narrower = -(-width // multiple) * multiple, width // multiple * multiple
            if wider != narrower and wider in at and narrower in at:
                saved += at[wider] - at[width]
                proportional += (at[wider] - at[narrower]) * (wider - width) / multiple
        if saved < _LITTLE * proportional:
            paying.append(multiple)
    return paying[-1]
