"""The moving average on the way: what a learning curve is measured on."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.training.timesteps import TimestepSampler, described

__all__ = ["Snapshots"]


@dataclass(eq=False)
class Snapshots:
    """A timestep sampler that draws as another does, and keeps the weights of the moving average on the way.

    Args:
        sampler: whose draws are taken.
        every: train steps between two snapshots.
        kept: (train step, state dict), oldest first.

    Raises:
        InputError: there is no step between two snapshots.
    """

    sampler: TimestepSampler
    every: int
    kept: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"Got snapshots every {self.every} steps; expected at least 1.")

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`."""
        return self.sampler.sample(batch, train_step, generator)

    @torch.no_grad()
    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Keep the weights; the training goes on."""
        self.kept.append((train_step, {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}))
        return True

    def describe(self) -> dict[str, Any]:
        """What decides the draws and the snapshots, JSON-able."""
        return {"every": self.every, "of": type(self.sampler).__qualname__, "draws": described(self.sampler)}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kept": [[step, state] for step, state in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.kept[:] = [(int(step), dict(weights)) for step, weights in state["kept"]]
