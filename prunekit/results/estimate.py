"""A measured number and its error."""

import numpy as np

from prunekit._json import Amount, Distance, Number
from prunekit._types import FloatArray
from prunekit.results.model import Model

__all__ = ["Estimate", "FidEstimate", "LossEstimate"]

_INSIDE = 0.975  # 2.5 % lie above, and as many below
_NORMAL = 1.96


class Estimate(Model):
    """A mean and its standard error.

    Args:
        mean: the mean.
        se: its standard error; None if the error is unknown, as for one seed.
        df: degrees of freedom of ``se``, if it is the spread of few values, such as a mean over seeds; None if of many.
    """

    mean: Number
    se: Amount | None = None
    df: Amount | None = None

    @classmethod
    def over(cls, values: FloatArray) -> "Estimate":
        """Mean and standard error over seeds, from one value for each.

        Example:
            >>> Estimate.over(np.array([1.0, 3.0])), Estimate.over(np.array([2.0]))
            (Estimate(mean=2.0, se=1.0, df=1.0), Estimate(mean=2.0, se=None, df=None))
        """
        if len(values) < 2:
            return cls(mean=float(values.mean()), se=None)
        return cls(mean=float(values.mean()), se=float(values.std(ddof=1) / np.sqrt(len(values))), df=len(values) - 1.0)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval: Student's with the degrees of freedom, or the normal one; None without an error."""
        if self.se is None or not self.df:
            return None if self.se is None else _NORMAL * self.se
        from scipy.special import stdtrit  # noqa: PLC0415 - takes half a second, and only few seeds need it

        return float(stdtrit(self.df, _INSIDE)) * self.se


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
