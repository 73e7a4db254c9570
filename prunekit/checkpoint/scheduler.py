"""A diffusers scheduler's config file: the noise schedule, what the network predicts, and the settings that samplers keep."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit._json import JsonDict, read_json
from prunekit._messages import one_line
from prunekit.checkpoint.config_limits import check_schedule, mistyped
from prunekit.checkpoint.metadata import checked_prediction
from prunekit.checkpoint.scheduler_classes import ERRORS, is_stand_in, named_class
from prunekit.errors import FileFormatError, InputError
from prunekit.schedule import NoiseSchedule, Parameterization, Parameterized
from prunekit.schedule.diffusers import is_edm, is_flow

__all__ = ["FoundScheduler", "prediction_under", "read_scheduler"]

_EDM = {"epsilon": "edm", "v_prediction": "edm_v"}  # what diffusers' EDM schedulers call the network's own output
_INSTEAD = "to read the network without it, give `noise_schedule` and `prediction_type`"


@dataclass(frozen=True)
class FoundScheduler(Parameterized):
    """The content of a scheduler's config.

    Args:
        parameterization: noise schedule with the scheduler's settings, and what the network predicts.
        notes: notes for the user on how it was read, one sentence each.
    """

    parameterization: Parameterization
    notes: tuple[str, ...]


def read_scheduler(path: Path) -> FoundScheduler:
    """Read a ``scheduler_config.json``; it may name scheduler classes of diffusers only.

    Infinities are read, since diffusers writes ``-Infinity`` for a missing bound. Keys that neither the class nor a compatible
    class accepts are ignored with a note, as in diffusers.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it names no scheduler, the scheduler does not accept it, or it has no usable noise schedule.
    """
    config = read_json(path, infinities=True)
    check_schedule({key: value for key, value in config.items() if not _infinite(value)}, str(path))
    name = str(config.get("_class_name"))
    scheduler_class = _scheduler_class(name, path)
    ignored = _unknown(scheduler_class, config)
    if (said := mistyped(scheduler_class, config)) is not None:
        raise FileFormatError(f"{path} has {said}.")
    try:
        scheduler = scheduler_class.from_config({key: config[key] for key in config if key not in ignored})
    except ERRORS as error:
        raise FileFormatError(f"{path} is no config that {name} takes ({one_line(error)}); {_INSTEAD}.") from error
    kind = checked_prediction(prediction_under(name, scheduler.config), str(path))
    try:
        schedule = NoiseSchedule.from_diffusers(scheduler)
    except (InputError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise FileFormatError(
            f"{path} describes no noise schedule that can be used ({one_line(error).rstrip('.')}); {_INSTEAD}."
        ) from error
    note = f"{path} has {', '.join(ignored)}, which {name} of the installed diffusers does not take; ignored."
    return FoundScheduler(Parameterization(schedule, kind), (note,) if ignored else ())


def _scheduler_class(name: str, path: Path) -> Any:
    import diffusers  # noqa: PLC0415 - takes seconds, and only diffusers folders need it

    found = named_class(name)
    if is_stand_in(found):
        missing = [package for package in found._backends if importlib.util.find_spec(package) is None]
        why = (
            f"needs {', '.join(missing)}: install it"
            if missing
            else f"diffusers {diffusers.__version__} does not have any more"
        )
        raise FileFormatError(f"{path} names {name}, which {why}, or {_INSTEAD}.")
    if found is None:
        raise FileFormatError(
            f"{path} names {name[:80]!r}; expected a scheduler class of diffusers {diffusers.__version__}, or {_INSTEAD}."
        )
    return found


def _infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _unknown(scheduler_class: Any, config: JsonDict) -> list[str]:
    """Keys that neither the class nor a compatible one takes."""
    compatible = scheduler_class._get_compatibles() if scheduler_class.has_compatibles else []
    classes = [one for one in (scheduler_class, *compatible) if not is_stand_in(one)]
    known = {key for one in classes for key in scheduler_class._get_init_keys(one)}
    return sorted(key for key in config if not key.startswith("_") and key not in known)


def prediction_under(name: str, config: JsonDict) -> str:
    """What networks predict whose pipeline has a scheduler: its own word, and the velocity for one of flow matching.

    Args:
        name: of the scheduler's class.
        config: of the scheduler.
    """
    told = "flow_prediction" if is_flow(name, config) else str(config.get("prediction_type") or "epsilon")
    return _EDM.get(told, told) if is_edm(name) else told
