r"""Loss weights by timestep, as tables of shape (T,), and the wrapper that adds one to any timestep sampler.

The squared errors of all prediction types are one error on different scales, see
:attr:`prunekit.schedule.Parameterization.error_scale`: snr·L_x0 for ε, and (snr + 1)·L_x0 for v if the variance is preserved. So a
weight that was published for one type is given for all types: it weights the denoising error equally for any prediction type.

The tables are as published and not scaled to mean 1. Under AdamW only their ratios matter, but gradient clipping depends on their
size. ``table / table.mean()`` has mean 1 under a uniform draw.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.schedule import Parameterization
from prunekit.training.wrapping import Wrapped

__all__ = ["LOSS_WEIGHTS", "LossWeight", "Weighted", "change_aware", "min_snr", "p2", "unweighted"]

LossWeight = Callable[[Parameterization], Tensor]


def unweighted(parameterization: Parameterization) -> Tensor:
    """1 for the loss of any prediction type, shape (T,), float64 (DDPM's L_simple, arXiv:2006.11239, eq. 14, for ``epsilon``)."""
    return torch.ones(parameterization.schedule.num_timesteps, dtype=torch.float64)


def min_snr(parameterization: Parameterization, gamma: float = 5.0) -> Tensor:
    """Min-SNR-γ (arXiv:2303.09556): min(snr, γ) for x0, so min(snr, γ)/snr for ε and min(snr, γ)/(snr + 1) for v.

    Args:
        parameterization: snr and prediction type; the paper gives all three types.
        gamma: 5 in the paper.

    Returns:
        Shape (T,), float64, positive.
    """
    _check_positive(gamma=gamma)
    return torch.from_numpy(np.minimum(parameterization.schedule.snr, gamma) / parameterization.error_scale)


def p2(parameterization: Parameterization, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """P2 (arXiv:2204.00227, eq. 8): 1/(k + snr)^γ for the ε loss, on top of the weights that give L_simple.

    Args:
        parameterization: snr and prediction type. ``epsilon`` is the paper's; for ``sample`` and ``v_prediction`` it is derived,
            ·snr and ·snr/(snr + 1).
        k: 1 in the paper.
        gamma: 1 in the paper; 0 means no weight.

    Returns:
        Shape (T,), float64, positive.

    Raises:
        InputError: k is not positive, or gamma is negative.
    """
    _check_positive(k=k)
    if not 0 <= gamma < np.inf:
        raise InputError(f"Got gamma {gamma!r} of a P2 weight; expected at least 0.")
    return _of_epsilon((k + parameterization.schedule.snr) ** -gamma, parameterization)


def change_aware(parameterization: Parameterization, ceiling: float = 0.6) -> Tensor:
    """SpeeD's change-aware weight (arXiv:2405.17403): more where the noising process changes faster.

    The variance of the increment x_{t+1} − x_t is 2 − ᾱ_t − ᾱ_{t+1}, which grows at the rate −2·dᾱ/dt. That rate is mapped linearly
    to [1 − λ, λ]: the smallest rate to 1 − λ and the largest to λ.

    Args:
        parameterization: gives ᾱ; a schedule that does not preserve the variance is converted at the same SNR. ``epsilon`` is
            the paper's; for ``sample`` and ``v_prediction`` it is derived, ·snr and ·snr/(snr + 1).
        ceiling: λ in [0.5, 1]; 0.6 in the paper. Taking the rate by central differences is this project's choice; the paper takes
            the rate of a bound. The paper's public code uses P2's weight instead.

    Returns:
        Shape (T,), float64; 0 at the slowest timestep if λ is 1.

    Raises:
        InputError: the ceiling is not in [0.5, 1].
    """
    if not 0.5 <= ceiling <= 1:
        raise InputError(f"Got ceiling {ceiling!r} of a change-aware weight; expected a number in [0.5, 1].")
    rate = -np.gradient(parameterization.schedule.alphas_cumprod)
    span = float(rate.max() - rate.min())
    even = span <= 1e-9 * float(rate.max())  # then timesteps differ by rounding only
    relative = np.ones_like(rate) if even else (rate - rate.min()) / span
    return _of_epsilon((1 - ceiling) + (2 * ceiling - 1) * relative, parameterization)


LOSS_WEIGHTS: dict[str, LossWeight] = {
    "none": unweighted,
    "min-snr": min_snr,
    "p2": p2,
    "change-aware": change_aware,
}


def _of_epsilon(weight: FloatArray, parameterization: Parameterization) -> Tensor:
    """Convert a weight of the ε loss to the loss of another prediction type; shape (T,)."""
    return torch.from_numpy(weight * (parameterization.schedule.snr / parameterization.error_scale))


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < np.inf:
            raise InputError(f"Got {name} {number!r} of a loss weight; expected a number above 0.")


@dataclass(frozen=True, eq=False)
class Weighted(Wrapped):
    """Any timestep sampler with its loss weights multiplied by a table; the draws are unchanged.

    A sampler that looks at the network or learns from losses still does so. It learns the losses times the table, since its draws
    should reduce the noise of their mean.

    Args:
        sampler: draws the timesteps.
        table: factor of each timestep's loss, shape (T,), finite and ≥ 0.

    Raises:
        InputError: the table is not 1-D and finite, has negative weights, or only zeros.
    """

    table: Tensor

    def __post_init__(self) -> None:
        table = self.table
        if table.ndim != 1 or not bool((table.isfinite() & (table >= 0)).all()) or not bool(table.any()):
            raise InputError(
                f"Got a table of loss weights of shape {tuple(table.shape)}; expected shape (T,), finite, ≥ 0 and not all 0."
            )

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`."""
        timesteps, weights = self.sampler.sample(batch, train_step, generator)
        return timesteps, (weights.double() * self._factors(timesteps)).float()

    def _factors(self, timesteps: Tensor) -> Tensor:
        """The table's values at some timesteps, float64."""
        timesteps = timesteps.detach().cpu()
        if bool((timesteps >= len(self.table)).any()):
            raise InputError(
                f"Got timestep {int(timesteps.max())} for {len(self.table)} loss weights; expected a weight for every timestep."
            )
        return self.table.double()[timesteps]

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """See :class:`~prunekit.training.LearningSampler`."""
        if self.learns:
            super().learn(timesteps, losses.detach().to("cpu", torch.float64) * self._factors(timesteps))

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws and the weights, JSON-able; the table by its hash."""
        table = hashlib.sha256(self.table.double().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {**super().describe(), "table": table}
