"""Timestep samplers: they decide which timesteps a train step uses, and with which weights."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.groups import TimestepGroup

__all__ = [
    "DrawnSampler",
    "LearningSampler",
    "RangeTimesteps",
    "StatedSampler",
    "StatefulSampler",
    "TimestepSampler",
    "described",
    "group_timesteps",
    "learnable",
    "mixture",
]


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws training timesteps. At each train step the draws follow a proper distribution over 0 … T−1."""

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
class StatedSampler(TimestepSampler, Protocol):
    """A timestep sampler that states its distribution."""

    def probabilities(self, train_step: int) -> Tensor:
        """Probability of each timestep at this train step: shape (T,), float64, ≥ 0, with sum 1."""
        ...


@runtime_checkable
class StatefulSampler(TimestepSampler, Protocol):
    """A timestep sampler with a state: its draws also depend on the training so far."""

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able, without the state."""
        ...

    def state_dict(self) -> StateDict:
        """The state, for a checkpoint: tensors and plain values only."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state from a checkpoint."""
        ...


@runtime_checkable
class LearningSampler(StatefulSampler, Protocol):
    """A timestep sampler that adapts to the losses it has seen."""

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` uses the losses; if not, a loop need not gather them."""
        ...

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """Learn from the losses of one train step, after :meth:`sample` and before the next call of it.

        With several processes every process learns from the whole global batch in the same order: the losses are gathered and put
        into the order of the timesteps from :meth:`sample`. So all processes keep drawing the same timesteps.

        Args:
            timesteps: as drawn, shape (batch,), int64.
            losses: loss of each sample, before any weight of the sampler, shape (batch,), on any device and of any float type.

        Raises:
            InputError: the shapes differ, a loss is not finite, or this sampler does not draw one of the timesteps.
        """
        ...


def learnable(timesteps: Tensor, losses: Tensor) -> Tensor:
    """The losses of a train step as :meth:`LearningSampler.learn` uses them: on the CPU, float64, shape (batch,).

    Raises:
        InputError: the shapes differ, or a loss is not finite.
    """
    if timesteps.ndim != 1 or timesteps.shape != losses.shape:
        raise InputError(
            f"Got timesteps of shape {tuple(timesteps.shape)} and losses of shape {tuple(losses.shape)}; expected (batch,)."
        )
    values = losses.detach().to("cpu", torch.float64)
    if not bool(values.isfinite().all()):
        raise InputError(
            f"Got a loss of {float(values[~values.isfinite()][0])} to learn from; expected a finite one; lower the rate."
        )
    return values


@dataclass(frozen=True)
class RangeTimesteps:
    """Uniform over ``start ≤ t < stop`` with weight 1: all timesteps for a base, the group's timesteps for an expert.

    Args:
        start: first timestep.
        stop: one after the last.
        num_timesteps: T, the length of :meth:`probabilities`; ``stop`` if missing.

    Raises:
        InputError: the range is empty, or not inside the timesteps.
    """

    start: int
    stop: int
    num_timesteps: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise InputError(f"Got timesteps [{self.start}, {self.stop}); expected 0 ≤ start < stop.")
        if self.num_timesteps is not None and self.num_timesteps < self.stop:
            raise InputError(
                f"Got timesteps [{self.start}, {self.stop}) of {self.num_timesteps}; expected stop ≤ num_timesteps."
            )

    def __len__(self) -> int:
        return self.stop - self.start

    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`StatedSampler`."""
        return mixture(torch.zeros(self.num_timesteps or self.stop, dtype=torch.float64), self)

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able."""
        return {"start": self.start, "stop": self.stop}

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`TimestepSampler`."""
        return torch.randint(self.start, self.stop, (batch,), generator=generator), torch.ones(batch)


def described(sampler: TimestepSampler) -> dict[str, object] | None:
    """The settings that decide a sampler's draws, JSON-able: from ``describe()``, or from a dataclass's fields; else None."""
    describe = getattr(sampler, "describe", None)
    if callable(describe):
        description: StateDict = describe()
        return description
    return asdict(sampler) if is_dataclass(sampler) else None


def mixture(logits: Tensor, within: RangeTimesteps | None, share: float = 1.0) -> Tensor:
    """Mix of two distributions on a range: ``share`` of it is proportional to exp(logits), the rest is uniform.

    Args:
        logits: logarithm of an unnormalised density, shape (T,), float64.
        within: the range; probabilities outside it are 0. None for all T.
        share: share of the first distribution, in [0, 1].

    Returns:
        Shape (T,), float64, a proper distribution for any finite logits.

    Raises:
        InputError: the range is not inside the logits.
    """
    start, stop = (0, len(logits)) if within is None else (within.start, within.stop)
    if stop > len(logits):
        raise InputError(f"Got timesteps [{start}, {stop}) of {len(logits)}; expected a range inside them.")
    probabilities = torch.zeros_like(logits)
    probabilities[start:stop] = share * torch.softmax(logits[start:stop], 0) + (1 - share) / (stop - start)
    return probabilities


class DrawnSampler(ABC):
    """A base class for timestep samplers that draw by their probabilities alone."""

    @abstractmethod
    def probabilities(self, train_step: int) -> Tensor:
        """See :class:`StatedSampler`."""

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`TimestepSampler`; timesteps are drawn by inverting the cumulated probabilities."""
        probabilities = self.probabilities(train_step)
        cumulated = probabilities.cumsum(0)
        uniform = torch.rand(batch, generator=generator, dtype=torch.float64) * cumulated[-1]
        timesteps = torch.searchsorted(cumulated, uniform, right=True)  # right: probability 0 is never drawn
        return timesteps, self._weights(probabilities[timesteps])

    def _weights(self, probabilities: Tensor) -> Tensor:
        """Loss weights of shape (batch,), float32, from the probabilities of the timesteps that were drawn: 1."""
        return torch.ones(len(probabilities))


def group_timesteps(group: TimestepGroup, num_timesteps: int, overlap: int) -> RangeTimesteps:
    """A group's timesteps and ``overlap`` more on each side, so that neighbours agree at the seam.

    EB-Diff-Train's regions overlap by about 20 of 1000 timesteps; that figure is this project's default too.
    """
    return RangeTimesteps(*group.widened(overlap, num_timesteps), num_timesteps)
