"""Snapshots of the moving average during training, for learning curves."""

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
    """A timestep sampler that passes on another's draws and keeps snapshots of the moving average's weights.

    Args:
        sampler: the sampler that draws; if it looks at the network, it must do so when snapshots are taken.
        interval: number of train steps between two snapshots.
        kept: (train step, state dict), oldest first.

    Raises:
        InputError: the interval is below one step, or the sampler looks at the network at other times.
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
        """Keep the weights; the training continues unless the sampler ends it."""
        self.kept.append((train_step, {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}))
        return super().observe(model, train_step)

    def networks(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies of a network with each snapshot's weights in turn, in eval mode, oldest first."""
        for _, weights in self.kept:
            yield with_weights(model, weights).eval()

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws and the snapshots, JSON-able."""
        return {"interval": self.interval, **super().describe()}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"kept": [[step, state] for step, state in self.kept], "sampler": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.kept[:] = [(int(step), dict(weights)) for step, weights in state["kept"]]
        super().load_state_dict(state["sampler"])
