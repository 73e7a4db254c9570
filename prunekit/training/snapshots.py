"""The moving average on the way: what a learning curve is measured on."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.training.wrapping import Wrapped

__all__ = ["Snapshots", "with_weights"]


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with other weights of the same shapes."""
    made = copy.deepcopy(model)
    made.load_state_dict(weights)
    return made


@dataclass(frozen=True, eq=False)
class Snapshots(Wrapped):
    """A timestep sampler that draws as another does, and keeps the weights of the moving average on the way.

    Args:
        sampler: whose draws are taken; it looks at the network when snapshots are taken, if at all.
        interval: train steps between two snapshots.
        kept: (train step, state dict), oldest first.

    Raises:
        InputError: there is no step between two snapshots, or the sampler looks at other times.
    """

    interval: int
    kept: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InputError(f"Got snapshots every {self.interval} steps; expected at least 1.")
        if super().every not in (0, self.interval):
            raise InputError(
                f"Got snapshots every {self.interval} steps around a sampler that looks every {super().every}; expected the same."
            )

    @property
    def every(self) -> int:
        """See :class:`~prunekit.training.ObservingSampler`."""
        return self.interval

    @torch.no_grad()
    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Keep the weights; the training goes on unless the sampler ends it."""
        self.kept.append((train_step, {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}))
        return super().observe(model, train_step)

    def networks(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies of a network with each snapshot's weights in turn, in eval mode, oldest first."""
        for _, weights in self.kept:
            yield with_weights(model, weights).eval()

    def describe(self) -> dict[str, Any]:
        """What decides the draws and the snapshots, JSON-able."""
        return {"interval": self.interval, **super().describe()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"kept": [[step, state] for step, state in self.kept], "sampler": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.kept[:] = [(int(step), dict(weights)) for step, weights in state["kept"]]
        super().load_state_dict(state["sampler"])
