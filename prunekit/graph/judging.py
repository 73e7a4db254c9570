"""Whether what a pruned network computes in one call is what the full one computes for the channels that stay."""

import inspect
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit._types import Args, Function, Kwargs

__all__ = ["NORMS", "agree", "is_finite", "is_random", "is_unset", "plain_norm", "ratio", "size_of_terms"]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of the largest number; measured rounding of one call in float32 is below 1e-6."""
_LOOSE = 1e-2  # on devices that may round products to TF32
_MASKED = 1e20  # numbers beyond it are masks: they have to be there too, and are no measure for the others
_TERMS = 0.05  # of the largest term; what is wrong in a sum is off by about as much as its terms
_PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "mm", "bmm")
_SUMS = ("sum", "mean")
NORMS = (F.group_norm, F.layer_norm, F.rms_norm, torch.group_norm, torch.layer_norm, torch.rms_norm)
"""Functions whose statistics may change when channels go; ``F.normalize`` needs no care: zeros add nothing to a root of squares."""
_RANDOM = (
    "rand",
    "dropout",
    "alpha_dropout",
    "bernoulli",
    "multinomial",
    "normal",
    "uniform",
    "poisson",
    "exponential",
    "empty",
)


def is_random(name: str) -> bool:
    """Whether a function draws numbers, or leaves them as memory has them."""
    name = name.strip("_").removeprefix("new_").removeprefix("feature_")
    return name in _RANDOM or name.startswith(("rand", "empty"))


def is_unset(name: str) -> bool:
    """Whether a function leaves numbers as memory has them."""
    return name.strip("_").removeprefix("new_").startswith("empty")


def agree(found: Tensor, expected: Tensor, least: float = 0.0) -> bool:
    """Whether two tensors are equal to rounding; NaN equals nothing, infinity itself; without values, their shapes decide.

    Rounding is measured by the largest number expected, or by ``least`` where that is larger.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.is_meta or expected.is_meta:
        return True
    if torch.equal(found, expected):
        return True
    if not (found.is_floating_point() or found.is_complex()):
        return False
    if found.is_complex():
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    tolerance = _TOLERANCE.get(found.dtype, _LOOSE)
    tolerance = tolerance if found.device.type == "cpu" else max(tolerance, _LOOSE)
    found, expected = (tensor.double() if tensor.itemsize > 4 else tensor.float() for tensor in (found, expected))
    scale = float(expected.abs().amax())
    if not scale < _MASKED:
        masked = ~(expected.abs() < _MASKED)
        if not torch.allclose(found[masked], expected[masked], rtol=tolerance, atol=0):
            return False
        found, expected = found.masked_fill(masked, 0), expected.masked_fill(masked, 0)
        scale = float(expected.abs().amax())
    return float((found - expected).abs().amax()) <= tolerance * max(scale, least)  # no comparison with NaN holds


def size_of_terms(name: str, given: Sequence[Tensor]) -> float:
    """How large results have to be for rounding to be measured by them, as sums of large terms may happen to be close to zero.

    A sum of n products is rounded by about √n units in the last place of the largest product; 0 for functions that sum nothing.

    Args:
        name: of a function.
        given: the tensors among its arguments, in order.
    """
    count = 2 if name in _PRODUCTS else 1 if name in _SUMS else 0
    floats = [one for one in given[:count] if one.is_floating_point() and one.numel() and not one.is_meta]
    return _TERMS * math.prod(float(one.abs().amax()) for one in floats) if count and len(floats) == count else 0.0


def ratio(found: Tensor, expected: Tensor) -> float | None:
    """The one factor that takes a tensor to another, None where there is none."""
    if found.shape != expected.shape or not found.is_floating_point() or not expected.is_floating_point():
        return None
    if found.is_meta or expected.is_meta:
        return None
    a, b = found.double(), expected.double()
    square = float((b * b).sum())
    factor = float((a * b).sum()) / square if square > 0 else math.nan
    good = math.isfinite(factor) and factor != 0 and agree(found, (b * factor).to(expected.dtype))
    return factor if good else None


def is_finite(value: Tensor | float) -> bool:
    """Whether a number, or all numbers of a tensor, are finite."""
    if not isinstance(value, Tensor):
        return math.isfinite(value)
    return value.is_meta or not (value.is_floating_point() or value.is_complex()) or bool(value.isfinite().all())


def plain_norm(func: Function, args: Args, kwargs: Kwargs) -> Tensor:
    """A norm's input with only its scale and shift applied: these must be right even if the statistics differ."""
    given = _arguments(func, args, kwargs)
    x: Tensor = given["input"]
    for name, by in (("weight", torch.mul), ("bias", torch.add)):
        vector = given.get(name)
        if vector is not None:
            grouped = func in (F.group_norm, torch.group_norm)
            x = by(x, vector.reshape((1, -1, *([1] * (x.ndim - 2))) if grouped else tuple(vector.shape)))
    return x


def _arguments(func: Function, args: Args, kwargs: Kwargs) -> Kwargs:
    known: dict[Function, Function] = {
        torch.group_norm: F.group_norm,
        torch.layer_norm: F.layer_norm,
        torch.rms_norm: F.rms_norm,
    }
    names = list(inspect.signature(known.get(func, func)).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
