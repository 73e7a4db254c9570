"""Timestep groups that are cut where the sampler's sensitivity changes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunekit._types import FloatArray
from prunekit.allocation.sensitivity import Sensitivity
from prunekit.errors import InputError
from prunekit.groups import Evidence, Grouping, TimestepGroups
from prunekit.groups.segmentation import best_intervals
from prunekit.schedule import NoiseSchedule

__all__ = ["BySensitivity"]


@dataclass(frozen=True, eq=False)
class BySensitivity:
    r"""Joins the many small groups of a sensitivity into a few, in each of which the amplification is as even as possible.

    With :math:`a_k = A_k/n_k` the amplification of group k for one of its :math:`n_k` evaluations, the cost of a range is
    :math:`\sum_k n_k(\log a_k - \bar{a})^2` about the range's mean, and the sum over ranges is the least (exact, by
    :func:`prunekit.groups.segmentation.best_intervals`). Groups without evaluations cost nothing. The method is this project's.

    Args:
        sensitivity: measured on more groups than are to be made, such as 20 or 25 uniform ones.
    """

    name: ClassVar[str] = "sensitivity"
    sensitivity: Sensitivity

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """The groups, each with a step of the sensitivity's sampler, with the amplification of one evaluation as evidence.

        Raises:
            InputError: the sensitivity is of another number of timesteps, or of fewer groups than are to be made, counting those
                with a step of the sampler.
        """
        parts = self.sensitivity.groups
        if schedule.num_timesteps != self.sensitivity.num_timesteps:
            raise InputError(
                f"The sensitivity is of {self.sensitivity.num_timesteps} timesteps and the noise schedule has "
                f"{schedule.num_timesteps}; measure it for this model."
            )
        if not 1 <= count <= len(parts):
            raise InputError(
                f"Got {count} groups to make of the {len(parts)} that the sensitivity was measured on; expected 1 … {len(parts)}: "
                "measure it on more groups, such as `prunekit groups --groups 25`."
            )
        steps = np.array([part.evaluations for part in parts], dtype=np.float64)
        values = np.array([part.amplification for part in parts]) / np.maximum(steps, 1)
        known = (steps > 0) & (values > 0)
        if not known.any():
            raise InputError("The sensitivity has no group with an amplification; expected one or more.")
        if count > (most := int((steps > 0).sum())):
            raise InputError(
                f"Got {count} groups to make of {most} in which the sensitivity's sampler has a step; expected 1 … {most}: measure "
                "the sensitivity with more sampling steps."
            )
        places = np.arange(len(parts))
        logs = np.interp(places, places[known], np.log(values[known]))
        inner = best_intervals(_costs(logs, np.where(known, steps, 0.0), steps), count)
        cuts = [parts[i].start for i in inner]
        middles = np.array([(part.start + part.stop) // 2 for part in parts], dtype=np.int64)
        facts = {"measured_groups": len(parts), "in": self.sensitivity.measured_in}
        evidence = Evidence(middles, {"log10_amplification": logs / np.log(10)}, facts=facts)
        return Grouping(TimestepGroups.from_cuts(schedule.num_timesteps, cuts, self.name), evidence)


def _costs(values: FloatArray, weights: FloatArray, steps: FloatArray) -> FloatArray:
    """Weighted squares of the values of each range about its mean, shape (n + 1, n + 1); infinite for a range without steps."""

    def sums(numbers: FloatArray) -> FloatArray:
        total = np.concatenate([[0.0], np.cumsum(numbers)])
        return np.asarray(total[None, :] - total[:, None])

    mass, first, second = sums(weights), sums(weights * values), sums(weights * values**2)
    spread = np.maximum(second - first**2 / np.where(mass > 0, mass, 1.0), 0.0)
    return np.asarray(np.where(sums(steps) > 0, spread, np.inf))
