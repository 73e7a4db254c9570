"""Early stops of the stages of a multi-stage training (arXiv:2312.09181)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.groups import TimestepGroup, TimestepGroups

__all__ = ["EarlyStop"]


@dataclass(eq=False)
class EarlyStop:
    """A :class:`~prunekit.training.Callback` that stops stages whose held-out loss no longer falls; they resume if it then rises.

    With a shared encoder a stopped stage can get worse, since the other stages keep changing the encoder. Resuming it is this
    project's choice; the paper stops only stages of separate networks. The training ends when all stages are stopped. Give the same
    object to :class:`~prunekit.training.StageTimesteps`, which draws the active stages only.

    Args:
        groups: the stages; some of them if others are trained elsewhere.
        loss: held-out loss of a network on a timestep group; it must be the same for equal weights.
        every: number of train steps between two checks.
        patience: number of checks without an improvement after which a stage is stopped.
        improvement: smallest fall of the loss that counts as an improvement, as a share of the best loss so far; and smallest
            rise above its loss when it was stopped that resumes a stage, which then has ``patience`` checks again.
        history: for every check, (train step, loss of every stage, whether the stage is still trained).

    Raises:
        InputError: ``every`` or ``patience`` is below 1, or ``improvement`` is outside [0, 1).
    """

    groups: TimestepGroups | Sequence[TimestepGroup]
    loss: Callable[[nn.Module, TimestepGroup], float]
    every: int = 500
    patience: int = 3
    improvement: float = 0.002
    history: list[tuple[int, list[float], list[bool]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 1 or not 0 <= self.improvement < 1:
            raise InputError(
                f"Got looks every {self.every} steps, patience {self.patience} and improvement {self.improvement:g}; "
                "expected at least 1, at least 1 and a share in [0, 1)."
            )

    @property
    def active(self) -> list[int]:
        """Indices of the stages that are still trained."""
        trained = self.history[-1][2] if self.history else [True] * len(self.groups)
        return [index for index, on in enumerate(trained) if on]

    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Check every stage's held-out loss; False if no stage is left to train."""
        losses = [self.loss(model, group) for group in self.groups]
        seen = [past for _, past, _ in self.history]
        trained = [self._goes_on([past[i] for past in seen] + [loss]) for i, loss in enumerate(losses)]
        self.history.append((train_step, losses, trained))
        return any(trained)

    def _goes_on(self, losses: list[float]) -> bool:
        """Whether a stage with these held-out losses, oldest first, is trained further."""
        best, waited, stopped_at = math.inf, 0, math.inf
        for loss in losses:
            if loss > stopped_at * (1 + self.improvement):  # the other stages made it worse
                best, waited, stopped_at = loss, 0, math.inf
            elif stopped_at == math.inf:
                waited = 0 if loss < best * (1 - self.improvement) else waited + 1
                best = min(best, loss)
                stopped_at = loss if waited >= self.patience else math.inf
        return stopped_at == math.inf

    def describe(self) -> dict[str, object]:
        """The settings that decide when a stage is stopped, JSON-able."""
        return {"every": self.every, "patience": self.patience, "improvement": self.improvement}

    def state_dict(self) -> StateDict:
        """The history."""
        return {"history": [[step, list(losses), list(on)] for step, losses, on in self.history]}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the history from a checkpoint."""
        self.history[:] = [(int(step), list(losses), list(on)) for step, losses, on in state["history"]]
