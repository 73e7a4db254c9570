"""Timesteps whose noise levels are log-normal, as flow matching and EDM are trained."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule
from prunekit.schedule.diffusers import shift_of
from prunekit.training.timesteps import DrawnSampler, RangeTimesteps, mixture

__all__ = ["LogNormalTimesteps"]

_LEAST = 1e-9  # probability, relative to the sum: no timestep of a range is left out for good


@dataclass(frozen=True, eq=False)
class LogNormalTimesteps(DrawnSampler):
    """Timesteps drawn so that ln σ = ln(b/a) is normal, with weight 1.

    For flow matching σ = u/(1 − u), so that u is logit-normal (arXiv:2403.03206, eq. 19). A shift s of the timesteps multiplies σ
    by s (eq. 23), which moves the mean by ln s. For EDM it is the draw of table 1 of arXiv:2206.00364.

    Args:
        schedule: the noise levels of the timesteps; each stands for the levels nearer to it than to its neighbours.
        mean: of ln σ.
        deviation: of ln σ.
        within: the timesteps to draw from; all if missing.

    Raises:
        InputError: the mean is not finite, or the deviation is not positive.
    """

    schedule: NoiseSchedule
    mean: float
    deviation: float
    within: RangeTimesteps | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.deviation) and self.deviation > 0):
            raise InputError(
                f"Got noise levels of log-mean {self.mean:g} and log-deviation {self.deviation:g}; expected finite numbers, and a "
                "deviation above 0."
            )
        self.probabilities(0)  # refuses a range outside 0 … T

    @classmethod
    def of_flow(cls, schedule: NoiseSchedule, within: RangeTimesteps | None = None) -> "LogNormalTimesteps":
        """The draw of Stable Diffusion 3: logit-normal of mean 0 and deviation 1, with the shift of the pipeline's scheduler."""
        return cls(schedule, float(np.log(shift_of(schedule.scheduler))), 1.0, within)

    @classmethod
    def of_edm(cls, schedule: NoiseSchedule, within: RangeTimesteps | None = None) -> "LogNormalTimesteps":
        """EDM's draw: log-mean −1.2 and log-deviation 1.2."""
        return cls(schedule, -1.2, 1.2, within)

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`."""
        levels = np.log(self.schedule.sigma)
        edges = np.array([-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf])
        mass = torch.special.ndtr(torch.from_numpy((edges - self.mean) / self.deviation)).diff()
        return mixture(torch.log(mass + _LEAST), self.within)

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able; the noise levels by their hash."""
        return {
            "noise_levels": hashlib.sha256(self.schedule.sigma.tobytes()).hexdigest(),
            "mean": self.mean,
            "deviation": self.deviation,
            "within": self.within and self.within.describe(),
        }
