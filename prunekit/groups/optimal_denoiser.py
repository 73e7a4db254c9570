r"""The optimal denoiser of a finite set of images: the prediction of a network that has memorised its training set.

With noisy :math:`x = a\,y + b\,\varepsilon` and images :math:`y_i` (arXiv:2312.09181, section 3),

.. math:: \varepsilon^*(x) = \frac{1}{b}\Big[x - a \sum_i w_i y_i\Big], \qquad
          w = \mathrm{softmax}_i\big(-\lVert x - a\,y_i\rVert^2 / 2b^2\big).

After division by a, everything depends on :math:`\sigma = b/a` alone, so variance-preserving, variance-exploding and flow
schedules share one formula.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunekit._types import FloatArray
from prunekit.errors import InputError

__all__ = ["OptimalDenoiser"]

_LEAST = -700.0  # exp of anything lower is a denormal number, and processors are slow with those
_Logits = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True, eq=False)
class OptimalDenoiser:
    """Posterior means over images, computed in float64, one chunk of images at a time.

    Distances are expanded about the images' mean, so that they become matrix products. The sum over images is a log-sum-exp that is
    carried from chunk to chunk.

    Args:
        images: shape (count, …): uint8 in 0 … 255, scaled to −1 … 1 chunk by chunk, or floats, used unchanged.
        memory: bytes for everything that is computed, not counting the images.

    Raises:
        InputError: there are no images, or some are not finite.

    Example:
        >>> two = OptimalDenoiser(np.array([[-1.0], [1.0]]))
        >>> two.posterior_mean(np.array([[0.0], [0.5]]), 0.5).round(4).tolist()
        [[0.0], [0.964]]
    """

    images: NDArray[np.uint8] | FloatArray
    memory: int = 256 * 2**20

    def __post_init__(self) -> None:
        if self.images.ndim < 2 or not self.images.size:
            raise InputError(f"The optimal denoiser got images of shape {self.images.shape}; expected (count, …).")
        if self.images.dtype != np.uint8 and not np.isfinite(self.images).all():
            raise InputError("The optimal denoiser got images with NaN or infinity; expected finite numbers.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Numbers per image."""
        return int(self.images[0].size)

    @cached_property
    def mean_image(self) -> FloatArray:
        """Mean of the images, shape (pixels,): the posterior mean at infinite noise."""
        chunk = self._chunk(1)
        total = np.zeros(self.pixels)
        for start in range(0, len(self), chunk):
            total += self.take(slice(start, start + chunk)).sum(axis=0)
        return total / len(self)

    def take(self, which: slice | NDArray[np.int64]) -> FloatArray:
        """The selected images, shape (taken, pixels), float64, scaled as for denoising."""
        part = self.images[which].reshape(-1, self.pixels).astype(np.float64)
        if self.images.dtype == np.uint8:
            part /= 127.5
            part -= 1.0
        return part

    def posterior_mean(self, noisy: FloatArray, sigma: float | FloatArray) -> FloatArray:
        """Expected image given the noisy observation image + σ·ε.

        Args:
            noisy: shape (rows, pixels).
            sigma: noise level of each row, shape (rows,), or one for all rows.

        Returns:
            Shape (rows, pixels).

        Raises:
            InputError: the noisy images have another shape, or a noise level is not positive.
        """
        sigmas = np.broadcast_to(np.asarray(sigma, dtype=np.float64), len(noisy))
        if noisy.ndim != 2 or noisy.shape[1] != self.pixels or not (sigmas > 0).all():
            raise InputError(
                f"Got noisy images of shape {noisy.shape}; expected (rows, {self.pixels}), and sigmas above 0."
            )
        means = np.empty(noisy.shape)
        block = self._rows()
        for start in range(0, len(noisy), block):
            rows = slice(start, start + block)
            means[rows] = self._softmax_mean(self._logits_of(noisy[rows], sigmas[rows]), len(noisy[rows]))
        return means

    def noise(self, noisy: FloatArray, signal: float, spread: float) -> FloatArray:
        """ε* at x = signal·y + spread·ε (arXiv:2312.09181, section 3), shape (rows, pixels) for ``noisy`` of the same shape."""
        return (noisy - signal * self.posterior_mean(noisy / signal, spread / signal)) / spread

    def noise_along(
        self, clean: FloatArray, noise: FloatArray, sigmas: FloatArray
    ) -> Iterator[tuple[slice, FloatArray]]:
        r"""ε* of the same pairs of image and noise at every σ: :math:`\varepsilon + (x_0 - \sum_i w_i y_i)/\sigma`.

        The products with the images are computed once for all σ, since :math:`x\cdot y/\sigma^2 = x_0\cdot y/\sigma^2 +
        \varepsilon\cdot y/\sigma`. One product of 2·pairs·σs·images·pixels operations remains.

        Args:
            clean: x0, shape (pairs, pixels).
            noise: ε, shape (pairs, pixels).
            sigmas: shape (σs,), positive.

        Yields:
            The slice of pairs and their ε*, shape (pairs in the slice, σs, pixels); as many pairs at once as memory allows.
        """
        block = max(1, self._rows() // len(sigmas))
        for start in range(0, len(clean), block):
            pairs = slice(start, min(start + block, len(clean)))
            logits = self._logits_along(clean[pairs], noise[pairs], sigmas)
            means = self._softmax_mean(logits, (pairs.stop - start) * len(sigmas)).reshape(-1, len(sigmas), self.pixels)
            np.subtract(clean[pairs, None], means, out=means)
            means /= sigmas[:, None]
            means += noise[pairs, None]
            yield pairs, means

    def _logits_of(self, noisy: FloatArray, sigmas: FloatArray) -> _Logits:
        centred = noisy - self.mean_image
        inverse = (1 / sigmas**2)[:, None]

        def logits(chunk: FloatArray, halves: FloatArray) -> FloatArray:
            return np.asarray((centred @ chunk.T - halves) * inverse)

        return logits

    def _logits_along(self, clean: FloatArray, noise: FloatArray, sigmas: FloatArray) -> _Logits:
        centred = clean - self.mean_image
        inverse = (1 / sigmas)[:, None]

        def logits(chunk: FloatArray, halves: FloatArray) -> FloatArray:
            found = ((centred @ chunk.T - halves)[:, None] * inverse) + (noise @ chunk.T)[:, None]
            found *= inverse
            return np.asarray(found.reshape(-1, len(chunk)))

        return logits

    def _softmax_mean(self, logits: _Logits, rows: int) -> FloatArray:
        """Mean of the images weighted by the softmax of their logits, shape (rows, pixels)."""
        highest, total = np.full(rows, -np.inf), np.zeros(rows)
        mean = np.zeros((rows, self.pixels))
        size = self._chunk(rows)
        for start in range(0, len(self), size):
            chunk = self.take(slice(start, start + size)) - self.mean_image
            weights = logits(chunk, 0.5 * np.einsum("ij,ij->i", chunk, chunk))
            higher = np.maximum(highest, weights.max(axis=1))
            weights -= higher[:, None]
            np.maximum(weights, _LEAST, out=weights)
            np.exp(weights, out=weights)
            kept = np.exp(np.maximum(highest - higher, _LEAST))
            highest = higher
            total = total * kept + weights.sum(axis=1)
            mean *= kept[:, None]
            mean += weights @ chunk
        mean /= total[:, None]
        mean += self.mean_image
        return mean

    def _rows(self) -> int:
        """Number of rows to denoise at once: a third of the memory is for arrays that do not depend on the images."""
        return max(1, self.memory // 8 // 3 // (3 * self.pixels))

    def _chunk(self, rows: int) -> int:
        """Images per chunk, so that ``rows`` rows stay within the memory.

        Raises:
            InputError: not even one image fits.
        """
        fixed, each = 3 * rows * self.pixels + self.pixels, 3 * self.pixels + 3 * rows
        chunk = (self.memory // 8 - fixed) // each
        if chunk < 1:
            raise InputError(
                f"Got {self.memory:,} bytes of memory for the optimal denoiser; expected {8 * (fixed + each):,} or more for {rows} "
                f"timesteps at once and images of {self.pixels} numbers: allow more, or use smaller images or fewer timesteps."
            )
        return min(chunk, len(self))
