"""A loss weight that is learnt: more where the loss is small, so that all timesteps count alike."""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.training.timesteps import learnable
from prunekit.training.wrapping import Wrapped

__all__ = ["LEARNT_WEIGHTS", "InverseLoss"]

LEARNT_WEIGHTS = {"inverse-loss": 1.0, "inverse-root-loss": 0.5}
"""The power of the inverse loss that each learnt loss weight is."""


@dataclass(frozen=True, eq=False)
class InverseLoss(Wrapped):
    r"""Any timestep sampler, with each timestep's loss weighted by an inverse power of its usual size.

    .. math:: w_t = L_b^{-p} \Big/ \frac{1}{n}\sum_{b'} L_{b'}^{-p},

    where :math:`L_b` is the mean of the latest losses in the bin of t, one of the equal parts of all T timesteps, and n the number
    of bins that have had ``patience`` losses; others have weight 1. With p = 1 every bin contributes the same to the loss, as with
    the uncertainty that EDM2 learns by a small network (arXiv:2312.02696, after arXiv:1705.07115). The running mean over bins is
    this project's.

    A :class:`~prunekit.training.LearningSampler`. A sampler within it that learns from losses gets them as they are.

    Args:
        sampler: draws the timesteps.
        num_timesteps: T.
        power: p; 1 makes all timesteps count alike, 0 changes nothing.
        bins: number of parts of the timesteps.
        patience: losses of a bin before its mean counts.
        decay: of the running mean, per loss.

    Raises:
        InputError: a number is out of its range.
    """

    num_timesteps: int
    power: float = 1.0
    bins: int = 100
    patience: int = 10
    decay: float = 0.99
    state: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_timesteps < 1 or self.bins < 1 or self.patience < 1:
            raise InputError(
                f"Got {self.num_timesteps} timesteps, {self.bins} bins and patience {self.patience}; expected at least 1 of each."
            )
        if not (0 <= self.power < math.inf and 0 <= self.decay < 1):
            raise InputError(
                f"Got power {self.power:g} and decay {self.decay:g}; expected at least 0, and 0 to below 1."
            )
        count = min(self.bins, self.num_timesteps)
        zeros = torch.zeros(count, dtype=torch.float64)
        object.__setattr__(self, "state", {"means": zeros, "seen": torch.zeros(count, dtype=torch.int64)})

    @property
    def learns(self) -> bool:
        """True: :meth:`learn` uses the losses."""
        return True

    def weights(self) -> Tensor:
        """The weight of each bin now, float64, shape (bins,)."""
        means, weights = self.state["means"], torch.ones_like(self.state["means"])
        known = (self.state["seen"] >= self.patience) & (means > 0)
        if known.any():
            inverse = means[known] ** -self.power
            weights[known] = inverse / inverse.mean()
        return weights

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`."""
        timesteps, weights = self.sampler.sample(batch, train_step, generator)
        return timesteps, (weights.double() * self.weights()[self._places(timesteps)]).float()

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """See :class:`~prunekit.training.LearningSampler`."""
        values = learnable(timesteps, losses)
        places, means, seen = self._places(timesteps), self.state["means"], self.state["seen"]
        count = torch.bincount(places, minlength=len(means))
        own = torch.zeros_like(means).scatter_add_(0, places, values) / count.clamp(min=1)
        # the mean of the first losses is a plain one, later ones count less the older they are
        kept = torch.minimum(self.decay ** count.double(), seen / (seen + count).clamp(min=1))
        self.state["means"] = torch.where(count > 0, kept * means + (1 - kept) * own, means)
        self.state["seen"] = seen + count
        super().learn(timesteps, losses)

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws and the weights, JSON-able."""
        return {
            **super().describe(),
            "power": self.power,
            "bins": self.bins,
            "patience": self.patience,
            "decay": self.decay,
        }

    def state_dict(self) -> StateDict:
        """The state for a checkpoint."""
        return {**{key: value.clone() for key, value in self.state.items()}, "sampler": super().state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state from a checkpoint.

        Raises:
            InputError: the state has another number of bins.
        """
        for key, value in self.state.items():
            if state[key].shape != value.shape:
                raise InputError(f"Got a state of {len(state[key])} bins; expected {len(value)}.")
            self.state[key] = state[key].to(value.dtype).clone()
        super().load_state_dict(state["sampler"])

    def _places(self, timesteps: Tensor) -> Tensor:
        """The bins of some timesteps."""
        at = timesteps.detach().cpu().long()
        if bool(((at < 0) | (at >= self.num_timesteps)).any()):
            raise InputError(f"Got timestep {int(at.max())} of {self.num_timesteps}; expected one below that.")
        return at * len(self.state["means"]) // self.num_timesteps
