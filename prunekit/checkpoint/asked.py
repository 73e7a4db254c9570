"""A caller's choices for a base if its files do not decide them: weights, noise schedule and prediction type."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from prunekit._chosen import check_choice
from prunekit._json import read_json
from prunekit.checkpoint.metadata import read_schedule
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.choices import Weights
from prunekit.errors import InputError
from prunekit.schedule import PREDICTION_TYPES, NoiseSchedule, Parameterization
from prunekit.schedule.diffusers import BETA_KEYS
from prunekit.schedule.noise import NAMED_KINDS

__all__ = ["WEIGHTS", "Asked", "Task", "named_schedule"]

WEIGHTS: tuple[str, ...] = get_args(Weights)
"""Weights that can be requested: an exponential moving average, or the raw weights from the optimizer."""
_UNSAID = 1000  # default number of training timesteps


@dataclass(frozen=True)
class Task:
    """A network's noise schedule and prediction type, as far as its files state them.

    Args:
        schedule: noise schedule; None if not stated.
        prediction_type: prediction type; None if not stated.
        notes: notes for the user on how they were found.
    """

    schedule: NoiseSchedule | None = None
    prediction_type: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The caller's choices.

    Args:
        weights: one of :data:`WEIGHTS`; None prefers a moving average if there is one.
        noise_schedule: see :func:`named_schedule`, or the schedule itself; None takes the files'.
        prediction_type: what the network predicts; None takes the files'.

    Raises:
        InputError: the weights or the prediction type have no such name.
    """

    weights: str | None = None
    noise_schedule: NoiseSchedule | str | None = None
    prediction_type: str | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in WEIGHTS:
            raise InputError(f"Got weights {self.weights!r:.40}; expected {' or '.join(WEIGHTS)}.")
        if self.prediction_type is not None:
            check_choice("prediction type", self.prediction_type, PREDICTION_TYPES)

    @property
    def says_task(self) -> bool:
        """Whether the caller states the whole task, so that the files are not needed for it."""
        return self.noise_schedule is not None and self.prediction_type is not None

    def completed(self, found: Task, source: object) -> tuple[Parameterization, tuple[str, ...]]:
        """The parameterization with notes: the caller's, else the files', else the usual one with a note: linear betas and ε.

        Args:
            found: the task that the files state.
            source: name of the checkpoint in notes.

        Raises:
            InputError: the noise schedule that was asked for is unknown.
        """
        prediction = self.prediction_type or found.prediction_type or "epsilon"
        schedule = self._schedule(found, prediction)
        notes = (*found.notes, *self._notes(found, schedule, source))
        if "prediction_type" in schedule.scheduler:
            schedule = replace(schedule, scheduler={**schedule.scheduler, "prediction_type": prediction})
        return Parameterization(schedule, prediction), notes

    def _schedule(self, found: Task, prediction: str) -> NoiseSchedule:
        if self.noise_schedule is None:
            return found.schedule or Parameterization.usual_schedule(prediction, _UNSAID)
        if isinstance(self.noise_schedule, NoiseSchedule):
            asked = self.noise_schedule
        else:
            asked = named_schedule(self.noise_schedule, found.schedule.num_timesteps if found.schedule else _UNSAID)
        if asked.scheduler or found.schedule is None:
            return asked
        kept = {key: value for key, value in found.schedule.scheduler.items() if key not in BETA_KEYS}
        return replace(asked, scheduler=kept)

    def _notes(self, found: Task, schedule: NoiseSchedule, source: object) -> Iterator[str]:
        if found.schedule is not None and self.noise_schedule is not None:
            asked, own = _kind(schedule), _kind(found.schedule)
            yield f"Using the noise schedule that was asked for ({asked}), not that of {source} ({own})."
        if self.prediction_type is not None and found.prediction_type not in (None, self.prediction_type):
            yield f"Using {self.prediction_type} predictions as asked for, not {found.prediction_type}, which {source} says."
        missing = {}
        if found.schedule is None and self.noise_schedule is None:
            kind = schedule.to_config()["kind"]
            betas = "linear betas" if kind == "linear" else f"the noise schedule {kind}"
            missing["noise schedule"] = f"{betas} over {_UNSAID:,} timesteps", "`noise_schedule`"
        if found.prediction_type is None and self.prediction_type is None:
            missing["prediction type"] = "epsilon", "`prediction_type`"
        if missing:
            taken, options = (" and ".join(each) for each in zip(*missing.values(), strict=True))
            yield (
                f"{source} does not say its {' and '.join(missing)}: taking {taken}. "
                f"Give {options} if it was trained otherwise."
            )


def named_schedule(text: str, num_timesteps: int = _UNSAID) -> NoiseSchedule:
    """A noise schedule by its name, or from a file.

    Args:
        text: a kind, such as ``cosine``; a kind with its number of timesteps, as ``cosine:4000``; or a JSON file: a scheduler's
            config as diffusers writes it, or a noise schedule as prunekit does.
        num_timesteps: T if the text does not state it.

    Raises:
        InputError: the text is none of these.
        FileFormatError: the file does not describe a noise schedule.

    Example:
        >>> named_schedule("cosine:4000").num_timesteps
        4000
    """
    kind, _, count = text.partition(":")
    if kind in NAMED_KINDS and (not count or (count.isascii() and count.isdigit())):
        return NoiseSchedule.from_config({"kind": kind, "num_timesteps": int(count[:9]) if count else num_timesteps})
    path = Path(text)
    if path.is_dir() and (path / "scheduler_config.json").is_file():
        path /= "scheduler_config.json"
    if not path.is_file():
        raise InputError(
            f"Unknown noise schedule {text[:80]!r}; expected one of {', '.join(NAMED_KINDS)}, one with its timesteps as in "
            "cosine:4000, or a scheduler_config.json."
        )
    config = read_json(path, infinities=True)
    return read_scheduler(path).schedule if "_class_name" in config else read_schedule(config, str(path))


def _kind(schedule: NoiseSchedule) -> str:
    return f"{schedule.to_config()['kind']}, {schedule.num_timesteps:,} timesteps"
