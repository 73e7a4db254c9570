r"""The distribution of the next cleaner state, given a noisy one and the clean sample.

Between neighbouring timesteps s = t − 1 and t of :math:`x_t = a_t x_0 + b_t \varepsilon` it is Gaussian (arXiv:2006.11239, eq. 6
and 7; for any a and b: arXiv:2107.00630, appendix A):

.. math::
    \tilde\mu = \frac{a_s \beta}{b_t^2} x_0 + \frac{a_t}{a_s} \frac{b_s^2}{b_t^2} x_t, \qquad
    \tilde\beta = \beta \frac{b_s^2}{b_t^2}, \qquad \beta = b_t^2 - \frac{a_t^2}{a_s^2} b_s^2

where :math:`a_{-1} = 1` and :math:`b_{-1} = 0`. Networks with learned variances choose between the logarithms of the two variances.
"""

from dataclasses import dataclass

import numpy as np

from prunekit._types import FloatArray
from prunekit.schedule.noise import NoiseSchedule

__all__ = ["Posterior"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Coefficients of the posterior at every timestep.

    Args:
        of_clean: the mean's coefficient of x_0, shape (T,), float64.
        of_state: the mean's coefficient of x_t, shape (T,), float64.
        log_lower: ln β̃, shape (T,), float64; at t = 0, where β̃ is 0, its value at t = 1 (arXiv:2102.09672, section 3.1, as in its
            code).
        log_upper: ln β, shape (T,), float64.

    Example:
        >>> posterior = Posterior.of(NoiseSchedule.linear(10))
        >>> bool((posterior.log_lower[1:] < posterior.log_upper[1:]).all())
        True
    """

    of_clean: FloatArray
    of_state: FloatArray
    log_lower: FloatArray
    log_upper: FloatArray

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> "Posterior":
        """The posterior of a noise schedule."""
        signal, noise = schedule.signal, schedule.noise
        cleaner_signal, cleaner_noise = np.append(1.0, signal[:-1]), np.append(0.0, noise[:-1])
        ratio = signal / cleaner_signal
        added = noise**2 - (ratio * cleaner_noise) ** 2
        shrunk = (cleaner_noise / noise) ** 2
        lower = added * shrunk
        lower[0] = lower[1]
        return cls(cleaner_signal * added / noise**2, ratio * shrunk, np.log(lower), np.log(added))
