"""A measured number and its error."""

from dataclasses import dataclass

import numpy as np

from prunekit._types import FloatArray, JsonDict

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; ``se`` is None if the error is unknown, as for one seed."""

    mean: float
    se: float | None = None

    @classmethod
    def from_json(cls, data: JsonDict | None) -> "Estimate | None":
        """Read ``{"mean", "se"}``; None if there is no mean."""
        if data is None or data.get("mean") is None:
            return None
        se = data.get("se")
        return cls(float(data["mean"]), None if se is None else float(se))

    @classmethod
    def over(cls, values: FloatArray) -> "Estimate":
        """Mean and standard error over seeds, from one value for each.

        Example:
            >>> Estimate.over(np.array([1.0, 3.0])), Estimate.over(np.array([2.0]))
            (Estimate(mean=2.0, se=1.0), Estimate(mean=2.0, se=None))
        """
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(values.mean()), se)
