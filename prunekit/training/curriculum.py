r"""Curriculum timestep samplers: easy, high-noise timesteps are trained less and less over time (CLTS, arXiv:2404.07946).

Both forms go from uniform to an end distribution q over the first ``target_step`` train steps,

.. math:: p_i(t) = \lambda_i\, q(t) + (1 - \lambda_i) / T, \qquad \lambda_i = \min(1, i / i_{target}),

and every loss has weight 1, so noisy timesteps count less by design. The paper measures the difficulty by the noise rate and trains
easy timesteps less over time. The mixture with a Gaussian q at 0.3·T comes from public code. The Gaussian's width, the noise-rate
form's q and the cosine pace are this project's choices.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from prunekit._chosen import check_choice
from prunekit.choices import Pace
from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule
from prunekit.training.timesteps import DrawnSampler, RangeTimesteps, mixture

__all__ = ["GaussianCurriculum", "NoiseRateCurriculum", "Pace", "paced"]

_NARROWEST = 1e-6  # times T: with a smaller width, squared distances overflow


def paced(pace: Pace, train_step: int, target_step: int) -> float:
    """λ in [0, 1] after ``train_step`` steps: x = min(1, i/i_target), or (1 − cos πx)/2, which starts and ends slowly."""
    done = min(1.0, train_step / target_step)
    return done if pace == "linear" else 0.5 * (1 - math.cos(math.pi * done))


def _check_pace(pace: str, target_step: int) -> None:
    if target_step < 1:
        raise InputError(f"Got a curriculum that is through after {target_step} train steps; expected at least 1.")
    check_choice("pace", pace, get_args(Pace))


@dataclass(frozen=True)
class GaussianCurriculum(DrawnSampler):
    """From uniform to a Gaussian over the timesteps, q(t) ∝ exp(−(t − μ)²/(2s²)), normalised on the integers 0 … T−1.

    For an expert the mixture is restricted to its range: uniform at first, in the end the Gaussian normalised on the range.

    Args:
        num_timesteps: T.
        target_step: i_target, the train step from which on it is q alone.
        mean: μ as a share of T; 0.3 in public code.
        width: s as a share of T. The paper's value is not known. With this project's 0.3 the noisiest timesteps keep a tenth of
            their uniform share, and the cleanest keep all of it.
        pace: how λ rises to 1.
        within: the timesteps to draw from; all if missing.

    Raises:
        InputError: mean, width or pace are out of their range.
    """

    num_timesteps: int
    target_step: int
    mean: float = 0.3
    width: float = 0.3
    pace: Pace = "linear"
    within: RangeTimesteps | None = None

    def __post_init__(self) -> None:
        _check_pace(self.pace, self.target_step)
        if not 0 <= self.mean <= 1 or not _NARROWEST <= self.width < math.inf:
            raise InputError(
                f"Got a Gaussian of mean {self.mean:g} and width {self.width:g}; expected shares of T, the mean in [0, 1] and the "
                f"width at least {_NARROWEST:g}."
            )
        self.probabilities(0)  # refuses a range outside 0 … T

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`."""
        distance = torch.arange(self.num_timesteps, dtype=torch.float64) - self.mean * self.num_timesteps
        logits = -0.5 * (distance / (self.width * self.num_timesteps)).square()
        return mixture(logits, self.within, paced(self.pace, train_step, self.target_step))


@dataclass(frozen=True, eq=False)
class NoiseRateCurriculum(DrawnSampler):
    """From uniform to a distribution that falls with the noise rate ν_t = √(1 − ᾱ_t), q(t) ∝ 1 − (1 − floor)·ν_t.

    ν_t is the coefficient of ε in x_t, from 0 (clean) to 1 (pure noise); a schedule that does not preserve the variance is
    converted at the same SNR. The noise rate as measure comes from the paper. The linear q is this project's choice: easier
    timesteps are rarer.

    Args:
        schedule: its noise rate orders the timesteps.
        target_step: i_target, the train step from which on it is q alone.
        floor: probability of pure noise in the end, relative to that of a clean timestep; above 0, so that no timestep is left out.
        pace: how λ rises to 1.
        within: the timesteps to draw from; all if missing.

    Raises:
        InputError: floor or pace are out of their range.
    """

    schedule: NoiseSchedule
    target_step: int
    floor: float = 0.2
    pace: Pace = "linear"
    within: RangeTimesteps | None = None

    def __post_init__(self) -> None:
        _check_pace(self.pace, self.target_step)
        if not 0 < self.floor <= 1:
            raise InputError(f"Got floor {self.floor:g} of a noise-rate curriculum; expected a share in (0, 1].")
        self.probabilities(0)  # refuses a range outside 0 … T

    @property
    def noise_rate(self) -> Tensor:
        """ν_t, shape (T,), float64, rising."""
        return torch.from_numpy(np.sqrt(1 / (1 + self.schedule.snr)))

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`."""
        logits = torch.log1p(-(1 - self.floor) * self.noise_rate)
        return mixture(logits, self.within, paced(self.pace, train_step, self.target_step))

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able; the noise rates by their hash."""
        return {
            "noise_rate": hashlib.sha256(self.noise_rate.numpy().tobytes()).hexdigest(),
            "target_step": self.target_step,
            "floor": self.floor,
            "pace": self.pace,
            "within": self.within and self.within.describe(),
        }
