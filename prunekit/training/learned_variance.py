r"""Networks that predict variances too (IDDPM, arXiv:2102.09672; ADM; DiT): their output has twice the channels of their samples.

The first half of the channels is the usual prediction; it stands for the mean of the next cleaner state, and every loss, score and
sampler here uses it. The second half, v, is the variance: :math:`\Sigma = \exp(f \ln\beta + (1 - f) \ln\tilde\beta)` with
:math:`f = (v + 1) / 2` (eq. 15). It is recognised by the number of channels of the output, so nothing has to be recorded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.posterior import Posterior
from prunekit.training.checkpoints import weights_hash

__all__ = [
    "BoundedVariance",
    "DistilledVariance",
    "Halves",
    "VarianceLoss",
    "VariationalBound",
    "has_bound",
    "mean_half",
    "split_output",
]

BOUND_WEIGHT = 0.001
"""λ of the variational bound (arXiv:2102.09672, section 3.1)."""
DISTILLATION_WEIGHT = 0.1
"""Weight of the distance from the base's variances; this project's choice."""
_BIN = 1 / 255  # half the distance of two brightnesses of a picture in −1 … 1
_LEAST = 1e-12  # probability
_BOUNDED = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, eq=False)
class Halves:
    """A network's output.

    Args:
        mean: the prediction, the shape of the samples.
        variance: v, same shape; None for a network without learned variances.
    """

    mean: Tensor
    variance: Tensor | None = None


def split_output(output: Tensor, samples: Tensor) -> Halves:
    """Split a network's output into its prediction and, if it has twice the samples' channels, its variances.

    Args:
        output: of the network.
        samples: what the network was given, shape (batch, channels, …), or (batch, tokens, channels).

    Raises:
        InputError: the output has neither the shape of the samples nor twice its channels.

    Example:
        >>> halves = split_output(torch.arange(4.0).reshape(1, 4, 1, 1), torch.zeros(1, 2, 1, 1))
        >>> halves.mean.flatten().tolist(), halves.variance.flatten().tolist()
        ([0.0, 1.0], [2.0, 3.0])
    """
    shape = tuple(samples.shape[1:])
    if tuple(output.shape[1:]) == shape:
        return Halves(output)
    for axis in (0, 1) if len(shape) == 2 else (0,):  # channels are the last axis of tokens
        if shape and tuple(output.shape[1:]) == (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]):
            mean, variance = output.chunk(2, axis + 1)
            return Halves(mean, variance)
    raise InputError(
        f"The network gives {tuple(output.shape[1:])} for a sample of {shape}; expected the same shape, or "
        "twice the channels where it predicts variances too."
    )


def mean_half(output: Tensor, samples: Tensor) -> Tensor:
    """The prediction in a network's output without its variances; see :func:`split_output`."""
    return split_output(output, samples).mean


class VarianceLoss(Protocol):
    """How a training keeps the variances of a network."""

    def __call__(
        self,
        halves: Halves,
        clean: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        evaluated: Callable[[nn.Module], Halves],
    ) -> Tensor:
        """Weighted loss of the variances, shape (batch,).

        Args:
            halves: what the network gives.
            clean: x_0, shape (batch, …).
            noisy: x_t, same shape.
            timesteps: shape (batch,).
            evaluated: what another network gives at the same inputs, without gradients.
        """
        ...

    def described(self) -> list[object]:
        """What decides the loss, JSON-able, for fingerprints."""
        ...


@dataclass(frozen=True, eq=False)
class DistilledVariance:
    """Mean squared difference of v from another network's.

    Args:
        teacher: the base; it is only evaluated, in eval mode and without gradients.
        weight: of the difference in the loss.

    Raises:
        InputError: the weight is negative or not finite.
    """

    teacher: nn.Module
    weight: float = DISTILLATION_WEIGHT

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(
        self,
        halves: Halves,
        clean: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        evaluated: Callable[[nn.Module], Halves],
    ) -> Tensor:
        """Weighted difference, shape (batch,); arguments as for :class:`VarianceLoss`.

        Raises:
            InputError: the teacher predicts no variances.
        """
        own, wanted = halves.variance, evaluated(self.teacher).variance
        if own is None or wanted is None:
            raise InputError(
                "The teacher predicts no variances, and the network does; give the base that it was pruned from."
            )
        return self.weight * (own - wanted).square().flatten(1).mean(1)

    def described(self) -> list[object]:
        """Weight and the teacher's hash."""
        return ["distill", self.weight, self._teacher_hash]

    @cached_property
    def _teacher_hash(self) -> str:
        return weights_hash(self.teacher)


@dataclass(frozen=True, eq=False)
class BoundedVariance:
    """The variational bound with a fixed mean: λ·L_vlb of L_hybrid (arXiv:2102.09672, eq. 16).

    Args:
        parameterization: noise schedule and prediction type.
        weight: λ; L_vlb is the sum over all timesteps, in bits per dimension.

    Raises:
        InputError: the weight is negative or not finite, or the bound is not defined for the prediction or the schedule.
    """

    parameterization: Parameterization
    weight: float = BOUND_WEIGHT

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not has_bound(self.parameterization):
            raise InputError(
                "The variational bound is for predictions of ε, x0 or v on a variance-preserving noise schedule; keep "
                "the variances by `distill`."
            )

    def __call__(
        self,
        halves: Halves,
        clean: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        evaluated: Callable[[nn.Module], Halves],
    ) -> Tensor:
        """λ·T·L_t, shape (batch,), whose gradient reaches v alone; arguments as for :class:`VarianceLoss`."""
        steps = self.parameterization.schedule.num_timesteps
        fixed = Halves(halves.mean.detach(), halves.variance)
        return self.weight * steps * self._bound.terms(fixed, clean, noisy, timesteps)

    def described(self) -> list[object]:
        """Weight and the meaning of v."""
        return ["vlb", self.weight, self._bound.is_direct]

    @cached_property
    def _bound(self) -> "VariationalBound":
        return VariationalBound(self.parameterization)


@dataclass(frozen=True, eq=False)
class VariationalBound:
    """Terms L_t of the variational bound on the negative log-likelihood (arXiv:2006.11239, eq. 5; arXiv:2102.09672, eq. 4 to 8).

    For t > 0, L_t is the Kullback-Leibler divergence of the network's Gaussian from the posterior. L_0 is the negative
    log-likelihood of the clean sample in bins of 2/255, as for pictures with 256 brightnesses; DiT trained on latents with the same
    bins. The prior's term, which no network changes, is left out.

    Args:
        parameterization: noise schedule and prediction type. If its scheduler says ``variance_type`` learned, v is the variance
            itself, as diffusers takes it; otherwise it chooses between ln β̃ and ln β.
    """

    parameterization: Parameterization
    _tables: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def is_direct(self) -> bool:
        """Whether v is the variance itself."""
        return self.parameterization.schedule.scheduler.get("variance_type") == "learned"

    def terms(self, halves: Halves, clean: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """L_t in bits per dimension, float32, shape (batch,).

        Args:
            halves: what the network gives, with variances.
            clean: x_0, shape (batch, …).
            noisy: x_t, same shape.
            timesteps: t, shape (batch,).

        Raises:
            InputError: the network predicts no variances.
        """
        if halves.variance is None:
            raise InputError(
                "The network predicts no variances; expected an output with twice the channels of its samples."
            )
        clean, noisy, mean, variance = (x.float() for x in (clean, noisy, halves.mean, halves.variance))
        shape = (-1, *([1] * (clean.ndim - 1)))
        every = (table[timesteps].float().reshape(shape) for table in self._tables_on(clean.device))
        signal, noise, of_clean, of_state, lower, upper = every
        # the mean's formula is linear, so x_0 and its prediction differ by their distance times one coefficient
        predicted = self.parameterization.clean(mean, noisy, signal, noise)  # type: ignore[arg-type]  # they broadcast
        log_variance = self._log_variance(variance, lower, upper)
        divergence = 0.5 * (
            log_variance
            - lower
            - 1
            + (lower - log_variance).exp()
            + (of_clean * (clean - predicted)).square() * (-log_variance).exp()
        )
        likelihood = _log_likelihood(clean, of_clean * predicted + of_state * noisy, log_variance)
        found = torch.where(timesteps.reshape(shape) == 0, -likelihood, divergence)
        return found.flatten(1).mean(1) / math.log(2)

    def _log_variance(self, variance: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        if self.is_direct:
            return variance.clamp(min=1e-20).log()
        share = (variance + 1) / 2
        return share * upper + (1 - share) * lower

    def _tables_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """a_t, b_t and the posterior's coefficients, each of shape (T,), float64, copied to a device once."""
        if device not in self._tables:
            schedule = self.parameterization.schedule
            posterior = Posterior.of(schedule)
            tables = (schedule.signal, schedule.noise, *vars(posterior).values())
            self._tables[device] = tuple(torch.from_numpy(np.array(table)).to(device) for table in tables)
        return self._tables[device]


def has_bound(parameterization: Parameterization) -> bool:
    """Whether the variational bound can be computed: for ε, x0 and v on variance-preserving noise schedules."""
    schedule: NoiseSchedule = parameterization.schedule
    levels = np.stack(parameterization.input_levels)
    given = np.allclose(levels, np.stack([schedule.signal, schedule.noise]))
    preserved = np.allclose(schedule.signal**2 + schedule.noise**2, 1, atol=1e-4)
    return given and preserved and parameterization.prediction_type in _BOUNDED


def _log_likelihood(clean: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of the probability of a bin around each number; the outermost bins are open."""
    scale = (-0.5 * log_variance).exp()
    upper = torch.special.ndtr(((clean - mean) + _BIN) * scale)
    lower = torch.special.ndtr(((clean - mean) - _BIN) * scale)
    beyond = torch.special.ndtr((mean - clean + _BIN) * scale)  # 1 − lower, without cancellation
    inside = torch.where(clean < -0.999, upper, torch.where(clean > 0.999, beyond, upper - lower))
    return inside.clamp(min=_LEAST).log()


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"Got a weight of {weight:g} for the variances; expected a finite number of at least 0.")
