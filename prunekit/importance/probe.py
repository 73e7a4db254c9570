"""A probe: the caller's loss on one timestep group, on a calibration set that is the same each time it is asked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.surgery import evaluation_mode
from prunekit.groups import TimestepGroup

__all__ = ["Loss", "Probe"]

Loss = Callable[[nn.Module, Tensor, Generator], Tensor]
"""``loss(model, timesteps, generator) -> scalar``: timesteps of shape (batch,), int64; data and noise from the generator."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Losses of a model on fixed draws from one timestep group.

    Args:
        loss: the caller's; everything random in it must come from its generator.
        group: the timesteps.
        samples: number of timesteps in the calibration set, spread evenly through the group.
        batch_size: timesteps per call of ``loss``.
        seed: of the draws.
    """

    loss: Loss
    group: TimestepGroup
    samples: int = 256
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise InputError(
                f"Got {self.samples} samples in batches of {self.batch_size}; expected at least 1 of each."
            )

    def batches(self) -> Iterator[tuple[Tensor, Generator]]:
        """Timesteps and a freshly seeded generator for each batch; equal on every call."""
        positions = (torch.arange(self.samples, dtype=torch.float64) + 0.5) / self.samples
        timesteps = self.group.start + (positions * len(self.group)).long()
        shuffle = Generator().manual_seed(self.seed)
        timesteps = timesteps[torch.randperm(self.samples, generator=shuffle)]
        for i, batch in enumerate(timesteps.split(self.batch_size)):
            yield batch, Generator().manual_seed(self.seed * 1_000_003 + self.group.index * 10_007 + i + 1)

    def losses(self, model: nn.Module) -> Iterator[tuple[Tensor, float]]:
        """Differentiable loss and weight (fraction of the samples) of each batch."""
        for timesteps, generator in self.batches():
            loss = self.loss(model, timesteps, generator)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise InputError(
                    f"The loss returned {got}; expected a tensor with one number, the mean over the batch."
                )
            yield loss.squeeze(), len(timesteps) / self.samples

    @torch.no_grad()
    def mean(self, model: nn.Module) -> float:
        """Mean loss over the calibration set, in eval mode, summed in float64."""
        with evaluation_mode(model):
            return sum(float(loss) * weight for loss, weight in self.losses(model))
