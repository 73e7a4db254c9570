"""Timestep samplers: which timesteps a train step sees, and with which weight."""

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup

__all__ = [
    "LearningSampler",
    "ObservingSampler",
    "RangeTimesteps",
    "StatedSampler",
    "StatefulSampler",
    "TimestepSampler",
    "described",
    "drawn",
    "group_timesteps",
    "mixture",
]


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
class StatedSampler(TimestepSampler, Protocol):
    """A timestep sampler that states its distribution."""

    def probabilities(self, train_step: int) -> Tensor:
        """How likely a draw at this train step is of each timestep: shape (T,), float64, ≥ 0, of sum 1."""
        ...


@runtime_checkable
class StatefulSampler(TimestepSampler, Protocol):
    """A timestep sampler whose draws follow from what it met on the way, too."""

    def describe(self) -> dict[str, Any]:
        """What decides the draws, JSON-able and without what was met on the way."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was met on the way, for a checkpoint: tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        ...


@runtime_checkable
class ObservingSampler(StatefulSampler, Protocol):
    """A timestep sampler that looks at the network on the way, and changes what it draws."""

    @property
    def every(self) -> int:
        """Train steps between looks; 0 for none."""
        ...

    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Look at the moving average after ``train_step`` steps, the same on every process; False ends the training."""
        ...


@runtime_checkable
class LearningSampler(StatefulSampler, Protocol):
    """A timestep sampler that wants to know the losses of what it drew, and changes what it draws."""

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` does anything, so that a loop need not gather losses for nothing."""
        ...

    def learn(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take in the losses of one train step, after :meth:`sample` and before the next one.

        With several processes every process learns the whole global batch, in one order: the losses are gathered and put back into
        the order of the timesteps that :meth:`sample` gave. Then all processes go on drawing the same.

        Args:
            timesteps: as drawn, shape (batch,), int64.
            losses: of each sample by itself, before any weight of the sampler, shape (batch,), of any device and float type.

        Raises:
            InputError: the shapes differ, a loss is not finite, or a timestep is none that is drawn here.
        """
        ...


@dataclass(frozen=True)
class RangeTimesteps:
    """Uniform over ``start ≤ t < stop`` with weight 1: all timesteps for a base, a group's own for an expert.

    Args:
        start: first timestep.
        stop: one after the last.
        num_timesteps: T, the length of :meth:`probabilities`; ``stop`` when absent.
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

    def describe(self) -> dict[str, Any]:
        """What decides the draws, JSON-able."""
        return {"start": self.start, "stop": self.stop}

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`TimestepSampler`."""
        return torch.randint(self.start, self.stop, (batch,), generator=generator), torch.ones(batch)


def described(sampler: TimestepSampler) -> dict[str, Any] | None:
    """What decides a sampler's draws, JSON-able, as far as it says so: by ``describe()``, or a dataclass by its fields."""
    describe = getattr(sampler, "describe", None)
    if callable(describe):
        description: dict[str, Any] = describe()
        return description
    return asdict(sampler) if is_dataclass(sampler) else None


def mixture(logits: Tensor, within: RangeTimesteps | None, share: float = 1.0) -> Tensor:
    """Probabilities of which ``share`` is in proportion to exp(logits) and the rest is even, inside a range; none outside of it.

    Args:
        logits: logarithm of a density that need not be normalised, shape (T,), float64.
        within: the range; None for all T.
        share: in [0, 1].

    Returns:
        Shape (T,), float64, a proper distribution for any finite logits.
    """
    start, stop = (0, len(logits)) if within is None else (within.start, within.stop)
    if stop > len(logits):
        raise InputError(f"Got timesteps [{start}, {stop}) of {len(logits)}; expected a range inside them.")
    probabilities = torch.zeros_like(logits)
    probabilities[start:stop] = share * torch.softmax(logits[start:stop], 0) + (1 - share) / (stop - start)
    return probabilities


def drawn(probabilities: Tensor, batch: int, generator: Generator) -> Tensor:
    """Timesteps of shape (batch,), int64, drawn by inverting the cumulated ``probabilities`` of shape (T,), float64."""
    cumulated = probabilities.cumsum(0)
    uniform = torch.rand(batch, generator=generator, dtype=torch.float64) * cumulated[-1]
    return torch.searchsorted(cumulated, uniform, right=True)  # right: what has no probability is never drawn


def group_timesteps(group: TimestepGroup, num_timesteps: int, overlap: int) -> RangeTimesteps:
    """A group's timesteps and ``overlap`` more on each side, so that neighbours agree at the seam.

    EB-Diff-Train's regions overlap by about 20 of 1000 timesteps; that figure is this project's default too.
    """
    return RangeTimesteps(*group.widened(overlap, num_timesteps), num_timesteps)
