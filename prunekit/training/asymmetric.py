"""Asymmetric timestep sampling: the noisiest timesteps, where little happens, are drawn less often (SpeeD, arXiv:2405.17403)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.training.timesteps import DrawnSampler, RangeTimesteps, mixture

__all__ = ["AsymmetricTimesteps"]


@dataclass(frozen=True)
class AsymmetricTimesteps(DrawnSampler):
    """Timesteps below τ are drawn k times as often as those from τ on: k/(T + τ(k−1)) and 1/(T + τ(k−1)) each, with weight 1.

    SpeeD's other half is a loss weight: ``Weighted(AsymmetricTimesteps(T), change_aware(schedule))``. The two-level distribution,
    k = 5 and τ = 0.7·T come from the paper. It gives τ for the linear schedule, as the point from which x_t hardly changes. The
    public code finds τ by a threshold on the slope of √(1−ᾱ) instead, also draws 5 : 1, and mirrors half of each batch.

    Args:
        num_timesteps: T.
        boundary: τ as a share of T.
        intensity: k, at least 1.
        within: the timesteps to draw from; all if missing. A range on one side of τ is drawn from evenly.

    Raises:
        InputError: the boundary is not in (0, 1], or the intensity is below 1.
    """

    num_timesteps: int
    boundary: float = 0.7
    intensity: float = 5.0
    within: RangeTimesteps | None = None

    def __post_init__(self) -> None:
        if not 0 < self.boundary <= 1 or not 1 <= self.intensity < math.inf:
            raise InputError(
                f"Got boundary {self.boundary:g} and intensity {self.intensity:g}; expected a share of T in (0, 1] and at least 1."
            )
        self.probabilities(0)  # refuses a range outside 0 … T

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`."""
        often = torch.arange(self.num_timesteps) < self.boundary * self.num_timesteps
        return mixture(often.double() * math.log(self.intensity), self.within)
