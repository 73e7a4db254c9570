"""Training one network for several timestep groups, so that each gets enough training (multi-stage framework, arXiv:2312.09181)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup, TimestepGroups

__all__ = ["EarlyStop", "StageDraw", "StageTimesteps"]

StageDraw = Literal["uniform", "proportional", "mixed"]


@dataclass(frozen=True)
class EarlyStop:
    """Stops drawing stages when their held-out loss no longer falls, and resumes them if it rises again.

    With a shared encoder a stopped stage can get worse, since the other stages keep changing the encoder. Resuming it is this
    project's choice; the paper stops only stages of separate networks.

    Args:
        loss: held-out loss of a network on a timestep group; it must be the same for equal weights.
        every: number of train steps between two checks.
        patience: number of checks without an improvement after which a stage is stopped.
        improvement: smallest fall of the loss that counts as an improvement, as a share of the best loss so far.
    """

    loss: Callable[[nn.Module, TimestepGroup], float]
    every: int = 500
    patience: int = 3
    improvement: float = 0.002

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 1 or not 0 <= self.improvement < 1:
            raise InputError(
                f"Got looks every {self.every} steps, patience {self.patience} and improvement {self.improvement:g}; "
                "expected at least 1, at least 1 and a share in [0, 1)."
            )


@dataclass(eq=False)
class StageTimesteps:
    """Draws batches for a multi-decoder network.

    Args:
        groups: the stages.
        draw: ``uniform``: each batch belongs to one stage, and all stages are equally likely. ``proportional``: each batch belongs
            to one stage, with a probability proportional to its number of timesteps (as for a network trained on all timesteps;
            short stages get little training). ``mixed``: each batch contains all stages, in numbers that differ by at most one, and
            each stage has the same weight in the loss. Within a stage, timesteps are equally likely. The first two come from the
            public code, ``mixed`` is this project's choice.
        stop: stops stages during training; None trains all of them to the end.
        history: for every check, (train step, loss of every stage, whether the stage is still trained).
    """

    groups: TimestepGroups
    draw: StageDraw = "uniform"
    stop: EarlyStop | None = None
    history: list[tuple[int, list[float], list[bool]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.draw not in get_args(StageDraw):
            raise InputError(f"Unknown draw of stages {self.draw!r}; expected one of {', '.join(get_args(StageDraw))}.")

    @property
    def active(self) -> list[int]:
        """Stages that batches are drawn for."""
        trained = self.history[-1][2] if self.history else [True] * len(self.groups)
        return [index for index, on in enumerate(trained) if on]

    @property
    def every(self) -> int:
        """Number of train steps between two checks; 0 for no checks."""
        return self.stop.every if self.stop else 0

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`."""
        active = torch.tensor(self.active)
        sizes = torch.tensor([len(self.groups[int(index)]) for index in active])
        if self.draw == "mixed":
            place = (torch.arange(batch) + train_step) % len(
                active
            )  # the stages with one more sample change from step to step
            counts = torch.bincount(place, minlength=len(active))
            weights = (batch / (counts > 0).sum() / counts.clamp(min=1))[place].float()
        else:
            odds = torch.ones(len(active)) if self.draw == "uniform" else sizes.float()
            place = torch.multinomial(odds, 1, generator=generator).expand(batch)
            weights = torch.ones(batch)
        starts = torch.tensor([self.groups[int(index)].start for index in active])
        within = (torch.rand(batch, generator=generator, dtype=torch.float64) * sizes[place]).long()
        return starts[place] + within, weights

    def probabilities(self, train_step: int) -> Tensor:
        """Probability of each timestep for a sample of a batch, shape (T,), float64; samples of one batch are not independent.

        For ``mixed`` it holds at each train step if the number of stages divides the batch, else on average over train steps.
        """
        density = torch.zeros(self.groups.num_timesteps, dtype=torch.float64)
        for group in (self.groups[index] for index in self.active):
            density[group.start : group.stop] = 1.0 if self.draw == "proportional" else 1 / len(group)
        return density / density.sum()

    def observe(self, model: nn.Module, train_step: int) -> bool:
        """Check every stage's held-out loss; False if no stage is left to train. Without ``stop`` no stage is stopped."""
        if self.stop is None:
            return True
        losses = [self.stop.loss(model, group) for group in self.groups]
        seen = [past for _, past, _ in self.history]
        trained = [self._goes_on([past[i] for past in seen] + [loss], self.stop) for i, loss in enumerate(losses)]
        self.history.append((train_step, losses, trained))
        return any(trained)

    @staticmethod
    def _goes_on(losses: list[float], stop: EarlyStop) -> bool:
        """Whether a stage with these held-out losses, oldest first, is trained further."""
        best, waited = math.inf, 0
        for loss in losses:
            waited = 0 if loss < best * (1 - stop.improvement) else waited + 1
            best = min(best, loss)
        return waited < stop.patience or losses[-1] > best * (1 + stop.improvement)

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able."""
        stop = self.stop and [self.stop.every, self.stop.patience, self.stop.improvement]
        return {"groups": [self.groups.num_timesteps, list(self.groups.cuts)], "draw": self.draw, "stop": stop}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"history": [[step, list(losses), list(on)] for step, losses, on in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.history[:] = [(int(step), list(losses), list(on)) for step, losses, on in state["history"]]
