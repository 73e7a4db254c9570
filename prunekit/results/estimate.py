"""A measured number and its error."""

import numpy as np

from prunekit._json import Amount, Distance, Number
from prunekit._types import FloatArray
from prunekit.results.model import Model

__all__ = ["Estimate", "FidEstimate", "LossEstimate"]


class Estimate(Model):
    """A mean and its standard error.

    Args:
        mean: the mean.
        se: its standard error; None if the error is unknown, as for one seed.
    """

    mean: Number
    se: Amount | None = None

    @classmethod
    def over(cls, values: FloatArray) -> "Estimate":
        """Mean and standard error over seeds, from one value for each.

        Example:
            >>> Estimate.over(np.array([1.0, 3.0])), Estimate.over(np.array([2.0]))
            (Estimate(mean=2.0, se=1.0), Estimate(mean=2.0, se=None))
        """
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return cls(mean=float(values.mean()), se=se)


class LossEstimate(Estimate):
    """A loss, which is not negative, and its standard error.

    Args:
        mean: the mean.
        se: its standard error; None if the error is unknown.
    """

    mean: Amount


class FidEstimate(Estimate):
    """A Fréchet distance, which except for rounding is not negative, and its standard error.

    Args:
        mean: the mean.
        se: its standard error; None if the error is unknown, as for one seed.
    """

    mean: Distance
