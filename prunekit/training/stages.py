"""Timesteps for training one network on several timestep groups (multi-stage framework, arXiv:2312.09181)."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Generator, Tensor

from prunekit._chosen import check_choice
from prunekit.choices import StageDraw
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.training.early_stop import EarlyStop

__all__ = ["StageDraw", "StageTimesteps"]


@dataclass(frozen=True, eq=False)
class StageTimesteps:
    """Draws batches for a multi-decoder network.

    Args:
        groups: the stages.
        draw: ``uniform``: each batch belongs to one stage, and all stages are equally likely. ``proportional``: each batch belongs
            to one stage, with a probability proportional to its number of timesteps (as for a network trained on all timesteps;
            short stages get little training). ``mixed``: each batch contains all stages, in numbers that differ by at most one, and
            each stage has the same weight in the loss. Within a stage, timesteps are equally likely. The first two come from the
            public code, ``mixed`` is this project's choice.
        stop: stops stages during training, and has to be a callback of that training; None trains all stages to the end.

    Raises:
        InputError: the draw is unknown.
    """

    groups: TimestepGroups
    draw: StageDraw = "uniform"
    stop: EarlyStop | None = None

    def __post_init__(self) -> None:
        check_choice("draw", self.draw, get_args(StageDraw))

    @property
    def active(self) -> list[int]:
        """Stages that batches are drawn for."""
        return list(range(len(self.groups))) if self.stop is None else self.stop.active

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~prunekit.training.TimestepSampler`.

        Raises:
            InputError: the early stop has not looked at the network when it should have.
        """
        if self.stop is not None and train_step >= self.stop.every and not self.stop.history:
            raise InputError("The early stop of these stages is no callback of the training; give it to both.")
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

    def describe(self) -> dict[str, object]:
        """The settings that decide the draws, JSON-able."""
        stop = self.stop and self.stop.describe()
        return {"groups": [self.groups.num_timesteps, list(self.groups.cuts)], "draw": self.draw, "stop": stop}
