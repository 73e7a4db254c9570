"""Similarity of pairs of images: SSIM, correlation of the pixels, mean squared difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prunekit._json import JsonObject
from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.evaluation import mean_and_standard_error

__all__ = ["Likeness", "image_likeness", "pixel_mse", "ssim_window", "state_likeness", "summary"]

_SIGMA = 1.5  # σ of the window in SSIM's paper; torchmetrics cuts it off at 3.5 σ, which gives 11×11 pixels


@dataclass(frozen=True, eq=False)
class Likeness:
    """Measurements on pairs of images.

    Args:
        values: measure → its value for each pair, float64, shape (pairs,); NaN where it is undefined.
    """

    values: Mapping[str, FloatArray]

    def mean(self, name: str) -> float | None:
        """Mean over the pairs for which the measure is defined; None if there are none."""
        mean: float | None = summary(self.values[name])["mean"]
        return mean

    def to_json(self) -> JsonObject:
        """Mean, standard error and number of omitted pairs of each measure, see :func:`summary`."""
        return {name: summary(values) for name, values in self.values.items()}

    @classmethod
    def joined(cls, parts: Sequence["Likeness"]) -> "Likeness":
        """Join the pairs of several batches."""
        return cls({name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values})


def summary(values: FloatArray) -> JsonObject:
    """``mean``, standard error ``se`` and ``undefined``, the number of NaN values, which both omit.

    The standard error assumes independent pairs. In a shuffled baseline every image is in two pairs, so it is only approximate.

    Example:
        >>> summary(np.array([1.0, 3.0, np.nan]))
        {'mean': 2.0, 'se': 1.0, 'undefined': 1}
        >>> summary(np.array([np.nan]))
        {'mean': None, 'se': None, 'undefined': 1}
    """
    defined = values[~np.isnan(values)]
    mean, error = mean_and_standard_error(defined) if len(defined) else (None, None)
    return {"mean": mean, "se": error, "undefined": len(values) - len(defined)}


def ssim_window(height: int, width: int) -> tuple[float, int]:
    """Standard deviation and width, both in pixels, of SSIM's Gaussian window for images of this size.

    σ = 1.5 on 11×11 pixels (Wang et al., doi:10.1109/TIP.2003.819861, section III-C), which torchmetrics cuts off at 3.5 σ. For
    sides below 11 the window is the largest odd number of pixels that fits, and σ shrinks with it. This is this project's choice,
    so SSIM of images below 11 pixels is only comparable with SSIM from this function at the same size.

    Raises:
        InputError: a side is below three pixels.

    Example:
        >>> ssim_window(32, 32), ssim_window(8, 8)
        ((1.5, 11), (0.8571428571428571, 7))
    """
    side = min(height, width)
    if side < 3:
        raise InputError(f"Got images of {height}×{width} pixels; expected at least 3×3 for SSIM.")
    radius = min(5, (side - 1) // 2)
    return (_SIGMA if radius == 5 else radius / 3.5), 2 * radius + 1


def image_likeness(a: Tensor, b: Tensor) -> Likeness:
    """``ssim``, ``correlation`` and ``mse`` of images, in float64; images are clamped and scaled to 0 … 1 first.

    SSIM has data range 1 and the window of :func:`ssim_window`, reflected at the border, mean over pixels and channels. The
    correlation is Pearson's over all pixels and channels of a pair; NaN if one of the two is constant.

    Args:
        a: float images in −1 … 1, shape (pairs, channels, height, width).
        b: the same.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415 - takes seconds

    a, b = _unit(a), _unit(b)
    sigma, _ = ssim_window(*a.shape[-2:])
    ssim = structural_similarity_index_measure(a, b, sigma=sigma, data_range=1.0, reduction="none")
    return Likeness({"ssim": ssim.reshape(-1).numpy(), "correlation": _correlation(a, b), "mse": _mse(a, b)})


def state_likeness(a: Tensor, b: Tensor) -> Likeness:
    """``correlation`` and ``mse`` of noisy states x_t, unscaled; they have no pixel range, so there is no SSIM.

    Args:
        a: shape (pairs, channels, height, width).
        b: the same.
    """
    a, b = a.double().cpu(), b.double().cpu()
    return Likeness({"correlation": _correlation(a, b), "mse": _mse(a, b)})


def pixel_mse(a: Tensor, b: Tensor) -> FloatArray:
    """Mean squared difference of each pair of images in −1 … 1, clamped and scaled to 0 … 1 first, shape (pairs,)."""
    return _mse(_unit(a), _unit(b))


def _unit(images: Tensor) -> Tensor:
    return images.double().cpu().clamp(-1, 1).add(1).div(2)


def _mse(a: Tensor, b: Tensor) -> FloatArray:
    mse: FloatArray = (a - b).square().flatten(1).mean(1).numpy()
    return mse


def _correlation(a: Tensor, b: Tensor) -> FloatArray:
    """Pearson's, shape (pairs,); exactly 1 for equal images, since √(s·s) = s in floating point."""
    a, b = a.flatten(1), b.flatten(1)
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    found: FloatArray = ((a * b).sum(1) / spread).masked_fill(constant, float("nan")).numpy()
    return found
