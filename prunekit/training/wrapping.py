"""A base class for wrappers around a timestep sampler that do not change its draws."""

from dataclasses import dataclass

from torch import Generator, Tensor

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.training.timesteps import (
    LearningSampler,
    StatedSampler,
    StatefulSampler,
    TimestepSampler,
    described,
)

__all__ = ["Wrapped"]


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A timestep sampler that passes on another's draws, and passes the losses to it.

    Args:
        sampler: the sampler that draws.
    """

    sampler: TimestepSampler

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`."""
        return self.sampler.sample(batch, train_step, generator)

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`~prunekit.training.StatedSampler`.

        Raises:
            InputError: the wrapped sampler states no probabilities.
        """
        if not isinstance(self.sampler, StatedSampler):
            raise InputError(f"{type(self.sampler).__name__} states no probabilities; expected a sampler that does.")
        return self.sampler.probabilities(train_step)

    @property
    def learns(self) -> bool:
        """See :class:`~prunekit.training.LearningSampler`."""
        return isinstance(self.sampler, LearningSampler) and self.sampler.learns

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """See :class:`~prunekit.training.LearningSampler`."""
        if isinstance(self.sampler, LearningSampler):
            self.sampler.learn(timesteps, losses)

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able."""
        return {"sampler": [type(self.sampler).__qualname__, described(self.sampler)]}

    def state_dict(self) -> StateDict:
        """The sampler's state; empty if it has none."""
        return self.sampler.state_dict() if isinstance(self.sampler, StatefulSampler) else {}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state from a checkpoint."""
        if isinstance(self.sampler, StatefulSampler):
            self.sampler.load_state_dict(state)
