"""The parts that let a denoiser replace a diffusers U-Net: its output, its config, and routing by each sample's timestep."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunekit._json import JsonDict
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups

__all__ = ["DropInConfig", "DropInOutput", "rows_by_group", "scattered"]


class DropInOutput(NamedTuple):
    """The denoiser's output, with the same attributes as diffusers' ``UNet2DOutput``.

    Attributes:
        sample: the prediction, shape (batch, channels, height, width).
    """

    sample: Tensor


class DropInConfig(SimpleNamespace):
    """Attribute and item access, as diffusers' pipelines read a model's config."""

    @classmethod
    def of(cls, values: JsonDict) -> "DropInConfig":
        """The config's public entries."""
        return cls(**{key: value for key, value in values.items() if not key.startswith("_")})

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def get(self, key: str, default: Any = None) -> Any:
        """An entry, or ``default``."""
        return self.__dict__.get(key, default)


def rows_by_group(
    groups: TimestepGroups, cuts: Tensor, timestep: Tensor | float | int, batch: int
) -> Iterator[tuple[int, Tensor | None]]:
    """Which samples of a batch belong to which timestep group, by each sample's own timestep.

    Args:
        groups: the partition.
        cuts: its inner borders as an int64 tensor on the batch's device.
        timestep: a number, or shape (), (1,) or (batch,); fractional ones belong to the group that contains them.
        batch: number of samples.

    Yields:
        Index of a timestep group and its rows, shape (rows,); None for all of them.

    Raises:
        InputError: there are neither one nor as many timesteps as samples, or there are no samples.
    """
    timesteps = torch.as_tensor(timestep, device=cuts.device)
    if timesteps.numel() == 1:
        yield int(groups.index_of(np.asarray(timesteps.reshape(1).double().cpu()))[0]), None
        return
    if timesteps.shape != (batch,):
        raise InputError(
            f"Got timesteps of shape {tuple(timesteps.shape)} for {batch} samples; expected one for each, or one for all."
        )
    if batch == 0:
        raise InputError("Got a batch of no samples; expected at least one.")
    index_of_sample = torch.bucketize(timesteps.double(), cuts.double(), right=True)
    present = index_of_sample.unique().tolist()
    for index in present:
        yield index, None if len(present) == 1 else (index_of_sample == index).nonzero().squeeze(1)


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
    return whole.index_copy(0, rows, part)
