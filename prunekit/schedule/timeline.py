"""The scheduler's own time: the number that a diffusers scheduler has for every place on the grid of training timesteps."""

from dataclasses import dataclass

import numpy as np

from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.schedule.time_unit import TimeUnit

__all__ = ["Timeline"]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The scheduler's time at every place of the grid.

    A place is a training timestep, whole or fractional, in [0, T]. The scheduler's time is given at some places and lies on a
    straight line between them: it is t itself for diffusion, T·u for flow matching, and ¼·ln σ for networks that are told noise
    levels (EDM, arXiv:2206.00364, table 1).

    Args:
        places: shape (points,), rising.
        times: the scheduler's times at these places, shape (points,), rising.
        middle: where in the bin [t, t + 1) a training on timestep t takes place: 0.5 for flow matching, else 0.
        counts: whether times count from 0 to T, so that a number in 0 … 1 may be meant in another unit.

    Example:
        >>> flow = Timeline(np.array([0.0, 10]), np.array([0.0, 10]), middle=0.5)
        >>> flow.trained[:3].tolist(), flow.place_of(np.array([9.75])).tolist()
        ([0.5, 1.5, 2.5], [9.75])
    """

    places: FloatArray
    times: FloatArray
    middle: float = 0.0
    counts: bool = True

    @classmethod
    def of_counts(cls, num_timesteps: int, middle: float = 0.0) -> "Timeline":
        """Times that are the places themselves, 0 … T."""
        ends = np.array([0.0, num_timesteps])
        return cls(ends, ends, middle)

    @classmethod
    def of_flow(cls, noise_share: FloatArray) -> "Timeline":
        """Times T·u of flow matching.

        Args:
            noise_share: u of every training timestep, shape (T,), rising, each in (0, 1).
        """
        count = len(noise_share)
        middles = np.arange(count) + 0.5
        if np.allclose(noise_share * count, middles, rtol=0, atol=1e-9):
            return cls.of_counts(count, middle=0.5)
        return cls(np.array([0.0, *middles, count]), np.array([0.0, *(count * noise_share), count]), middle=0.5)

    @classmethod
    def of_noise_levels(cls, sigma: FloatArray) -> "Timeline":
        """Times ¼·ln σ.

        Args:
            sigma: of every training timestep, shape (T,), rising, positive.
        """
        return cls(np.arange(len(sigma), dtype=np.float64), np.log(sigma) / 4, counts=False)

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps T."""
        return int(self.places[-1]) + (0 if self.counts else 1)

    @property
    def counts_timesteps(self) -> bool:
        """Whether the scheduler's times are the training timesteps themselves."""
        return self.counts and self.middle == 0

    @property
    def trained(self) -> FloatArray:
        """The scheduler's time of every training timestep, shape (T,)."""
        return self.time_of(np.arange(self.num_timesteps, dtype=np.float64) + self.middle)

    def time_of(self, places: FloatArray) -> FloatArray:
        """The scheduler's times at places, such as the cuts of timestep groups, same shape."""
        return np.interp(np.asarray(places, dtype=np.float64), self.places, self.times)

    def place_of(self, times: FloatArray) -> FloatArray:
        """Places of the scheduler's times, same shape; times beyond the ends get the ends."""
        return np.interp(np.asarray(times, dtype=np.float64), self.times, self.places)

    def place_of_told(self, told: FloatArray, unit: TimeUnit | None = None, eps: float = 0.0) -> FloatArray:
        """Places of the numbers that a network is told, same shape; of rounded numbers the noisiest that they may stand for.

        Args:
            told: any shape.
            unit: of these numbers; None for the scheduler's times, where numbers between 0 and 1 are refused if the times count to
                T: they may come from a pipeline that divides by the number of timesteps.
            eps: by which share of itself a number may be rounded.

        Raises:
            InputError: a number is out of range, or it fits two units.
        """
        values = np.asarray(told, dtype=np.float64)
        if unit is None and self.counts and ((values > 0) & (values < 1)).any():
            raise InputError(
                f"Got the timestep {values[(values > 0) & (values < 1)].flat[0]:g}, which may be in the unit 0 … 1 or "
                f"0 … {self.num_timesteps}; expected networks that store their pipeline's time unit: set it by `with_time_unit`."
            )
        unit = unit or TimeUnit()
        times = unit.time_of(values)
        slack = (self.times[-1] - self.times[0]) / self.num_timesteps  # schedulers may step over the ends
        outside = ~((times >= self.times[0] - slack) & (times <= self.times[-1] + slack))
        if outside.any():
            low, high = sorted(unit.told(self.times[[0, -1]]).tolist())
            raise InputError(
                f"Got the timestep {values[outside].flat[0]:g}; expected a number from {low:g} to {high:g}, the unit of "
                "the pipeline that these networks were made for."
            )
        size = np.abs(values) + (0 if self.counts else 1)  # a logarithm has the rounding of its argument
        return self.place_of(times + size * eps / abs(unit.scale))
