"""Timestep samplers: which timesteps a train step sees, and with which weight."""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup

__all__ = ["ObservingSampler", "RangeTimesteps", "TimestepSampler", "described", "group_timesteps"]


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws training timesteps. At each train step it is a proper distribution over 0 … T−1."""

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw one batch.

        Args:
            batch: number of timesteps.
            train_step: how many train steps came before, from 0.
            generator: the only source of randomness.

        Returns:
            Timesteps of shape (batch,), int64, and loss weights of shape (batch,), float32.
        """
        ...


@runtime_checkable
class ObservingSampler(TimestepSampler, Protocol):
    """A timestep sampler that looks at the network on the way, and changes what it draws."""

    @property
    def every(self) -> int:
        """Train steps between looks; 0 for none."""
        ...

    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Look at the moving average after ``train_step`` steps, the same on every process; False ends the training."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides the draws, JSON-able and without what was observed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was observed, for a checkpoint: plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        ...


@dataclass(frozen=True)
class RangeTimesteps:
    """Uniform over ``start ≤ t < stop`` with weight 1: all timesteps for a base, a group's own for an expert."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise InputError(f"Got timesteps [{self.start}, {self.stop}); expected 0 ≤ start < stop.")

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`TimestepSampler`."""
        return torch.randint(self.start, self.stop, (batch,), generator=generator), torch.ones(batch)


def described(sampler: TimestepSampler) -> dict[str, Any] | None:
    """What decides a sampler's draws, JSON-able, as far as it says so; a dataclass says it by its fields."""
    if isinstance(sampler, ObservingSampler):
        return sampler.describe()
    return asdict(sampler) if is_dataclass(sampler) else None


def group_timesteps(group: TimestepGroup, num_timesteps: int, overlap: int) -> RangeTimesteps:
    """A group's timesteps and ``overlap`` more on each side, so that neighbours agree at the seam.

    EB-Diff-Train's regions overlap by about 20 of 1000 timesteps; that figure is this project's default too.
    """
    return RangeTimesteps(*group.widened(overlap, num_timesteps))
