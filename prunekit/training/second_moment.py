"""Importance sampling by the losses' second moment: timesteps with large losses are drawn more often, with lower weights."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.training.timesteps import DrawnSampler, RangeTimesteps, learnable

__all__ = ["LossSecondMoment"]


@dataclass(eq=False)
class LossSecondMoment(DrawnSampler):
    r"""Draws t in proportion to the root mean square of its latest losses (improved DDPM, arXiv:2102.09672, eq. 18).

    .. math:: p_t \propto \sqrt{E[L_t^2]}, \qquad w_t = 1 / (n\, p_t),

    over the n timesteps of ``within``. The weighted loss always has the same mean as under a uniform draw, and the least variance
    if the history is accurate. Draws are uniform until every timestep has a full history. Ten losses per timestep come from the
    paper, the mix with a thousandth of uniform from its public code; p and w over a part of the timesteps are this project's.

    A :class:`~prunekit.training.LearningSampler`: without :meth:`learn` it stays uniform. Memory is n·history numbers.

    Args:
        within: the timesteps to draw from, with their T.
        history: number of losses that are kept for each timestep.
        uniform: share of the uniform distribution in the mix, in (0, 1], so that every weight is at most 1/uniform.

    Attributes:
        losses: the latest losses, shape (n, history), float64; the oldest is overwritten first.
        seen: number of losses of each timestep so far, shape (n,), int64.

    Raises:
        InputError: the history is below 1, or the uniform share not in (0, 1].
    """

    within: RangeTimesteps
    history: int = 10
    uniform: float = 0.001
    losses: Tensor = field(init=False, repr=False)
    seen: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.history < 1 or not 0 < self.uniform <= 1:
            raise InputError(
                f"Got a history of {self.history} losses and a uniform share of {self.uniform:g}; expected at least 1 and a share "
                "in (0, 1]."
            )
        self.losses = torch.zeros(len(self.within), self.history, dtype=torch.float64)
        self.seen = torch.zeros(len(self.within), dtype=torch.int64)

    @property
    def learns(self) -> bool:
        """True: :meth:`learn` uses the losses."""
        return True

    @property
    def warmed_up(self) -> bool:
        """Whether every timestep has a full history."""
        return bool((self.seen >= self.history).all())

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`; depends on the losses so far, not on the train step."""
        even = self.within.probabilities(train_step)
        if not self.warmed_up:
            return even
        size = self.losses.square().mean(1).sqrt()
        if not size.any():
            return even
        learnt = torch.zeros_like(even)
        learnt[self.within.start : self.within.stop] = size / size.sum()
        return (1 - self.uniform) * learnt + self.uniform * even

    def _weights(self, probabilities: Tensor) -> Tensor:
        return (1 / (len(self.within) * probabilities)).float()

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """See :class:`~prunekit.training.LearningSampler`.

        Raises:
            InputError: a timestep is not one that is drawn here.
        """
        values = learnable(timesteps, losses)
        place = timesteps.detach().cpu().long() - self.within.start
        if bool(((place < 0) | (place >= len(self.within))).any()):
            raise InputError(
                f"Got losses of timesteps {int(timesteps.min())} to {int(timesteps.max())}; expected only such as are drawn here, "
                f"{self.within.start} to {self.within.stop - 1}."
            )
        order = torch.argsort(place, stable=True)  # puts the losses of one timestep together, in their order
        place, values = place[order], values[order]
        count = torch.bincount(place, minlength=len(self.within))
        rank = torch.arange(len(place)) - (count.cumsum(0) - count)[place]
        kept = rank >= count[place] - self.history  # if a batch has more losses than the history holds, the latest
        place, rank, values = place[kept], rank[kept], values[kept]
        self.losses[place, (self.seen[place] + rank) % self.history] = values
        self.seen += count

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able."""
        return {"within": self.within.describe(), "history": self.history, "uniform": self.uniform}

    def state_dict(self) -> StateDict:
        """The state for a checkpoint."""
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state from a checkpoint.

        Raises:
            InputError: the state has another shape.
        """
        losses, seen = state["losses"], state["seen"]
        if losses.shape != self.losses.shape or seen.shape != self.seen.shape:
            raise InputError(
                f"Got a state with losses of shape {tuple(losses.shape)}; expected {tuple(self.losses.shape)}."
            )
        self.losses, self.seen = losses.to(torch.float64).clone(), seen.to(torch.int64).clone()
