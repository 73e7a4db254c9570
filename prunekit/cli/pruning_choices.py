"""Choices that the scoring and pruning commands share, so that each has one name and one help text."""

from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._missing import check_base
from prunekit.choices import CriterionName, HeadMode, NormMode, Shrink
from prunekit.cli.shared_options import Exists
from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.groups import TimestepGroups
    from prunekit.schedule import NoiseSchedule

__all__ = [
    "BasePath",
    "CriterionOption",
    "HeadOption",
    "NormOption",
    "Samples",
    "ShrinkOption",
    "check_timesteps",
]

BasePath = Annotated[
    str,
    typer.Argument(help="Base checkpoint (.pt, .safetensors), diffusers folder, embedded:digits, or embedded:fashion."),
    Exists(check_base),
]
Samples = Annotated[int, typer.Option(help="Number of timesteps per group in the calibration set.")]


CriterionOption = Annotated[CriterionName, typer.Option(help="How channels are scored.")]
NormOption = Annotated[
    NormMode,
    typer.Option(
        "--norm-mode", help="even: remove equally many channels from every norm group; whole: remove whole norm groups."
    ),
]
HeadOption = Annotated[
    HeadMode, typer.Option("--head-mode", help="whole: remove whole attention heads; even: narrow all heads equally.")
]
ShrinkOption = Annotated[
    Shrink,
    typer.Option(
        help="width: remove channels; depth: remove whole residual branches; both: decide between them by the loss."
    ),
]


def check_timesteps(groups: "TimestepGroups", schedule: "NoiseSchedule", base: str) -> None:
    """Refuse timestep groups for another number of timesteps than the schedule's."""
    if groups.num_timesteps != schedule.num_timesteps:
        raise InputError(
            f"The timestep groups cover {groups.num_timesteps} timesteps and {base} was trained with {schedule.num_timesteps}; "
            f"make groups and allocation again with --num-timesteps {schedule.num_timesteps}."
        )
