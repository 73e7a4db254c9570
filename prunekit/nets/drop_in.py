"""Routing by each sample's timestep, and the output of a network that replaces a denoiser of diffusers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import Timeline, TimeUnit

__all__ = ["DropInOutput", "Router", "scattered"]


_ROUNDING = 1e-9  # of the arithmetic here, in timesteps


class DropInOutput(NamedTuple):
    """The denoiser's output, with the same attributes as diffusers' ``UNet2DOutput``.

    Attributes:
        sample: the prediction, shape (batch, channels, height, width) or as the network's class makes it.
    """

    sample: Tensor


class Router:
    """Which samples of a batch belong to which timestep group, by the number that each sample's network is told.

    Args:
        groups: the partition of the training timesteps.
        unit: of the numbers that the network is told. If missing, they are the scheduler's timesteps, and numbers between 0 and 1
            are refused: they may come from a pipeline that divides by the number of timesteps.
        timeline: the scheduler's timesteps; training timesteps if missing.

    Raises:
        InputError: groups and timeline differ in the number of timesteps.
    """

    def __init__(self, groups: TimestepGroups, unit: TimeUnit | None = None, timeline: Timeline | None = None) -> None:
        self.groups, self.unit = groups, unit
        self.timeline = timeline or Timeline.of_counts(groups.num_timesteps)
        if self.timeline.num_timesteps != groups.num_timesteps:
            raise InputError(
                f"The noise schedule has {self.timeline.num_timesteps} timesteps and the groups have {groups.num_timesteps}; "
                "expected the same number."
            )

    def index_of(self, told: Tensor) -> IntArray:
        """Index of the timestep group of each told number, same shape.

        A number that its type cannot hold exactly belongs to the noisier group if a border lies within its rounding: 0.7 as a
        32-bit number is a little less than 0.7.

        Args:
            told: what the network is told.

        Raises:
            InputError: a number is outside the unit's range, or it fits two units.
        """
        values = told.detach().double().cpu().numpy()
        eps = torch.finfo(told.dtype).eps / 2 if told.is_floating_point() else 0
        return self.groups.index_of(self.timeline.place_of_told(values, self.unit, eps) + _ROUNDING)

    def routes(
        self, timestep: Tensor | float | int, batch: int, device: torch.device | None = None
    ) -> Iterator[tuple[int, Tensor | None]]:
        """Every timestep group that has samples of the batch, cleanest first.

        Args:
            timestep: a number, or shape (), (1,), (batch,), or (batch, tokens), as image-to-video pipelines tell it: there the
                noisiest token counts, because tokens of the given picture are told to be clean.
            batch: number of samples.
            device: where the rows shall be.

        Yields:
            Index of a timestep group and its rows, shape (rows,); None for all of them.

        Raises:
            InputError: there are neither one nor as many timesteps as samples, or there are no samples.
        """
        told = torch.as_tensor(timestep)
        if told.numel() == 1:
            yield int(self.index_of(told.reshape(1))[0]), None
            return
        per_token = told.ndim == 2 and told.shape[1] > 1
        if not (told.ndim == 1 or per_token) or len(told) != batch:
            raise InputError(
                f"Got timesteps of shape {tuple(told.shape)} for {batch} samples; expected one for each, or one for all."
            )
        if batch == 0:
            raise InputError("Got a batch of no samples; expected at least one.")
        index_of_sample = self.index_of(told).reshape(batch, -1).max(1)
        present = np.unique(index_of_sample).tolist()
        for index in present:
            rows = np.flatnonzero(index_of_sample == index)
            yield index, None if len(present) == 1 else torch.from_numpy(rows).to(device)


def scattered(output: Tensor, part: Tensor, rows: Tensor | None, batch: int) -> Tensor:
    """Put one timestep group's part into its rows of the batch's output; without rows, the part is the whole output.

    Args:
        output: the output with the parts of the earlier groups; empty for the first group.
        part: shape (rows, …).
        rows: the part's rows in the batch, shape (rows,).
        batch: number of samples, at least 1.
    """
    if rows is None:
        return part
    whole = output if len(output) == batch else part.new_empty((batch, *part.shape[1:]))
    return whole.index_copy(0, rows.to(whole.device), part)
