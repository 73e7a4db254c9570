"""Weights that are not finite: found in one pass, and refused by name."""

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from prunekit.errors import FileFormatError

__all__ = ["check_finite", "first_not_finite"]


def first_not_finite(model: nn.Module) -> str | None:
    """The first parameter with NaN or an infinity, or buffer with NaN, as ``conv_in.weight holds nan``; None where there is none.

    Buffers may hold infinities: masks of attentions do.
    """
    for name, tensor in model.named_parameters():
        for value in _extremes(tensor):
            if not math.isfinite(value):
                return f"{name} holds {value}"
    for name, buffer in model.named_buffers():
        if any(math.isnan(value) for value in _extremes(buffer)):
            return f"{name} holds nan"
    return None


def check_finite(model: nn.Module, path: Path) -> None:
    """Refuse a network that was read from a file with weights that are not finite.

    Raises:
        FileFormatError: a weight is NaN or an infinity; the message names its tensor.
    """
    found = first_not_finite(model)
    if found is not None:
        raise FileFormatError(
            f"{found} in {path}; expected finite weights: take a checkpoint from before its training diverged, or convert it again."
        )


def _extremes(tensor: Tensor) -> Iterator[float]:
    """The smallest and the largest number of a floating-point tensor, both NaN where one is; one pass that needs no memory."""
    if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
        wide = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
        yield from (float(value) for value in wide.aminmax())
