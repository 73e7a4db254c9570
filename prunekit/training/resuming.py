"""Whether a checkpoint belongs to a training: with equal options, or with other steps or another batch size."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from prunekit._files import json_hash
from prunekit.errors import FileFormatError, InputError
from prunekit.training.callbacks import Callback
from prunekit.training.checkpoints import weights_hash
from prunekit.training.objective import Objective
from prunekit.training.options import TrainOptions
from prunekit.training.timesteps import TimestepSampler, described

__all__ = ["CHANGEABLE", "check_changes", "fingerprint_of"]

CHANGEABLE = ("steps", "batch_size")
"""Options with which an interrupted training may resume at other values, with a warning."""
_log = logging.getLogger(__name__)


def fingerprint_of(
    model: nn.Module,
    objective: Objective,
    sampler: TimestepSampler,
    options: TrainOptions,
    callbacks: Sequence[Callback],
    without: Sequence[str] = (),
) -> str:
    """Hash of everything that decides the result; a checkpoint must match it. Options of later versions do not change it.

    Args:
        model: the network with its first weights.
        objective: images and loss.
        sampler: draws the timesteps.
        options: of the training.
        callbacks: that look at it.
        without: options that are left out.
    """
    name = type(sampler).__qualname__
    looking = {"callbacks": [[type(each).__qualname__, each.describe()] for each in callbacks]} if callbacks else {}
    return json_hash(
        {
            "options": {
                f.name: getattr(options, f.name)
                for f in fields(options)
                if getattr(options, f.name) != f.default and f.name not in ("checkpoint_minutes", *without)
            },
            "objective": objective.fingerprint(),
            "sampler": [name, described(sampler)],
            "weights": weights_hash(model),
            **looking,
        }
    )


def check_changes(state: Mapping[str, Any], fingerprint_of_rest: str, options: TrainOptions, folder: Path) -> None:
    """Accept a checkpoint of a training with other steps or another batch size, with a warning in the log.

    Args:
        state: the checkpoint's.
        fingerprint_of_rest: of this training, without :data:`CHANGEABLE`.
        options: of this training.
        folder: with the checkpoints, for messages.

    Raises:
        FileFormatError: it is a checkpoint of another training.
        InputError: it has more steps already than are asked for.
    """
    before = state.get("changeable")
    if not isinstance(before, Mapping) or state.get("fingerprint_of_rest") != fingerprint_of_rest:
        raise FileFormatError(
            f"The checkpoints in {folder} belong to an interrupted training with other options, images or first weights; "
            "repeat its options to go on with it, or remove that folder to start anew."
        )
    step = int(state["step"])
    if options.steps < step:
        raise InputError(
            f"The training in {folder} is at step {step:,} already; got steps {options.steps:,}: expected at least as many."
        )
    changed = [
        f"{name} from {before.get(name)} to {getattr(options, name)}"
        for name in CHANGEABLE
        if before.get(name) != getattr(options, name)
    ]
    _log.warning(
        "The training resumes at step %d with other options (%s): the learning rate stays %g and follows the new steps from there, "
        "and the result differs from that of a training with these options from its start.",
        step,
        ", ".join(changed),
        options.learning_rate,
    )
