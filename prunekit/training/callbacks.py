"""Callbacks of the training loop: they look at the network during training, and can end it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.graph.copying import copied

__all__ = ["Callback", "Snapshots", "with_weights"]


class Callback(Protocol):
    """Looks at the network every so many train steps. The training's checkpoints save its state."""

    @property
    def every(self) -> int:
        """Number of train steps between two looks, at least 1."""
        ...

    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Look at the moving average after ``train_step`` steps, the same on every process; False ends the training."""
        ...

    def describe(self) -> dict[str, object]:
        """The settings that decide the result, JSON-able, without the state."""
        ...

    def state_dict(self) -> StateDict:
        """The state, for a checkpoint: tensors and plain values only."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state from a checkpoint."""
        ...


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with other weights of the same shapes."""
    made = copied(model)
    made.load_state_dict(weights)
    return made


@dataclass(frozen=True, eq=False)
class Snapshots:
    """A :class:`Callback` that keeps the moving average's weights, for learning curves.

    Args:
        every: number of train steps between two snapshots.
        kept: (train step, state dict), oldest first.

    Raises:
        InputError: ``every`` is below 1.
    """

    every: int
    kept: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"Got snapshots every {self.every} steps; expected at least 1.")

    @torch.no_grad()
    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Keep the weights; the training continues."""
        self.kept.append((train_step, {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}))
        return True

    def networks(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies of a network with each snapshot's weights in turn, in eval mode, oldest first."""
        for _, weights in self.kept:
            yield with_weights(model, weights).eval()

    def describe(self) -> dict[str, object]:
        """The interval."""
        return {"every": self.every}

    def state_dict(self) -> StateDict:
        """The snapshots."""
        return {"kept": [[step, state] for step, state in self.kept]}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the snapshots from a checkpoint."""
        self.kept[:] = [(int(step), dict(weights)) for step, weights in state["kept"]]
