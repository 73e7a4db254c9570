"""Choices that the scoring and pruning commands share, so that each has one name and one help text."""

from enum import StrEnum
from typing import Annotated

import typer

from prunekit._missing import check_base
from prunekit.cli.options import Exists
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule

__all__ = [
    "BasePath",
    "Criterion",
    "CriterionOption",
    "HeadMode",
    "HeadOption",
    "NormMode",
    "NormOption",
    "Proposer",
    "Proxy",
    "Repair",
    "Samples",
    "Schedule",
    "TargetOf",
    "check_timesteps",
]

BasePath = Annotated[
    str,
    typer.Argument(help="Base checkpoint (.pt, .safetensors), diffusers folder, or embedded:digits."),
    Exists(check_base),
]
Samples = Annotated[int, typer.Option(help="Number of timesteps per group in the calibration set.")]


class Criterion(StrEnum):
    """Importance criteria."""

    activation = "activation"
    diff_pruning = "diff-pruning"
    fisher = "fisher"
    fpgm = "fpgm"
    magnitude = "magnitude"
    magnitude_l1 = "magnitude-l1"
    proxy = "proxy"
    random = "random"
    taylor = "taylor"


class Proposer(StrEnum):
    """Proposers of the search."""

    greedy = "greedy"
    evolution = "evolution"
    tpe = "tpe"
    llm = "llm"
    oneshot = "oneshot"
    uniform = "uniform"


class Proxy(StrEnum):
    """How the search rates candidates."""

    loss = "loss"
    bias = "bias"
    least_squares = "least-squares"
    recovery = "recovery"
    repaired_recovery = "repaired-recovery"


class Repair(StrEnum):
    """Closed-form repair before fine-tuning."""

    none = "none"
    bias = "bias"
    least_squares = "least-squares"


class NormMode(StrEnum):
    """Ways in which group norms shrink."""

    even = "even"
    whole = "whole"


class Schedule(StrEnum):
    """Noise schedules that can be named on the command line."""

    linear = "linear"
    scaled_linear = "scaled_linear"
    cosine = "cosine"
    sigmoid = "sigmoid"
    edm = "edm"
    rectified_flow = "rectified_flow"


class TargetOf(StrEnum):
    """What a target bounds."""

    macs = "macs"
    params = "params"
    latency = "latency"


class HeadMode(StrEnum):
    """Ways in which attentions shrink."""

    whole = "whole"
    even = "even"


CriterionOption = Annotated[Criterion, typer.Option(help="How channels are scored.")]
NormOption = Annotated[
    NormMode,
    typer.Option(
        "--norm-mode", help="even: remove equally many channels from every norm group; whole: remove whole norm groups."
    ),
]
HeadOption = Annotated[
    HeadMode, typer.Option("--head-mode", help="whole: remove whole attention heads; even: narrow all heads equally.")
]


def check_timesteps(groups: TimestepGroups, schedule: NoiseSchedule, base: str) -> None:
    """Refuse timestep groups for another number of timesteps than the schedule's."""
    if groups.num_timesteps != schedule.num_timesteps:
        raise InputError(
            f"The timestep groups cover {groups.num_timesteps} timesteps and {base} was trained with {schedule.num_timesteps}; "
            f"make groups and allocation again with --num-timesteps {schedule.num_timesteps}."
        )
