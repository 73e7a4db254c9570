"""diffusers' schedulers with a network's noise schedule and the settings of its pipeline's scheduler."""

import functools
import inspect
import logging
from typing import Any

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._messages import did_you_mean, one_line
from prunekit._types import FloatArray
from prunekit.checkpoint.scheduler_classes import ERRORS, is_stand_in, named_class
from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.diffusers import BETA_KEYS, changed_settings, is_flow, timesteps_refused

__all__ = [
    "PIPELINE",
    "SAMPLERS",
    "check_network",
    "init_defaults",
    "make_scheduler",
    "real_timesteps",
    "set_timesteps",
]

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names; any other scheduler class of diffusers can be named in full."""
PIPELINE = "pipeline"
"""Name of the sampler that is the scheduler of the model's own pipeline."""

_REFUSED = {
    "CogVideoXDPMScheduler": "its steps need the prediction of the step before",
    "DDIMInverseScheduler": "it goes from images to noise",
    "DPMSolverMultistepInverseScheduler": "it goes from images to noise",
    "RePaintScheduler": "it fills in parts of given images",
    "UnCLIPScheduler": "its steps need to be told the next timestep",
}
_ZERO_SNR = 1e-11  # ᾱ; the cosine schedule's last is 2e-9
_EXPECTED = ", ".join(SAMPLERS)
_log = logging.getLogger(__name__)


def make_scheduler(name: str, parameterization: Parameterization) -> Any:
    """A diffusers scheduler with exactly this noise schedule and the settings of ``schedule.scheduler``.

    Settings that the class does not have are left out, as in diffusers' ``from_config``; a log message names those that the
    pipeline had changed.

    Args:
        name: a key of :data:`SAMPLERS`, a class of diffusers, or :data:`PIPELINE`.
        parameterization: noise schedule with its pipeline's settings, and what the network predicts.

    Raises:
        InputError: diffusers has no such scheduler, it does not follow this noise schedule, or it cannot honour the settings.
    """
    schedule = parameterization.schedule
    settings = dict(schedule.scheduler)
    check_network(parameterization)
    found, class_name = _scheduler_class(name, schedule)
    if is_flow(class_name, {}):
        raise InputError(f"{class_name} is for flow matching, and the network is not; expected one of {_EXPECTED}.")
    if class_name in _REFUSED:
        raise InputError(f"{class_name} cannot be used here: {_REFUSED[class_name]}; expected one of {_EXPECTED}.")
    known = init_defaults(found)
    if str(settings.get("variance_type", "")).startswith("learned") and "variance_type" in known:
        raise InputError(
            f"The pipeline's variance_type is {settings['variance_type']}, and networks that predict variances are not supported; "
            "sample with `sampler` ddim, which needs none."
        )
    if "prediction_type" not in known:
        raise InputError(f"{class_name} does not take a prediction type; expected one of {_EXPECTED}.")
    made = _with_schedule(found, class_name, settings, parameterization)
    _tell_left_out(class_name, known, settings)
    return made


def check_network(parameterization: Parameterization) -> None:
    """Refuse networks that no sampler here can serve, by the settings of their pipeline's scheduler.

    Raises:
        InputError: the network was trained for flow matching, or takes log σ instead of timesteps.
    """
    settings, prediction_type = parameterization.schedule.scheduler, parameterization.prediction_type
    refused = timesteps_refused({"prediction_type": prediction_type, **settings})
    if not refused and prediction_type == "flow_prediction":
        refused = timesteps_refused({"prediction_type": prediction_type})
    if refused:
        what = f"The pipeline's {settings['_class_name']}" if "_class_name" in settings else "The network"
        raise InputError(f"{what} {refused}; expected a diffusion network that is told timesteps.")


def real_timesteps(name: str, steps: int, schedule: NoiseSchedule) -> FloatArray:
    """Timestep of every network evaluation that a sampler makes, in order, shape (evaluations,).

    Second-order samplers make more evaluations than steps; every evaluation is listed.
    """
    scheduler = make_scheduler(name, Parameterization(schedule))
    set_timesteps(scheduler, steps)
    return np.asarray(scheduler.timesteps, dtype=np.float64)


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Prepare a scheduler for a number of steps.

    A timestep below 0, which diffusers' ``trailing`` spacing adds where its rounding just misses 0, is left out.

    Raises:
        InputError: the scheduler does not support this number of steps.
    """
    name = type(scheduler).__name__
    try:
        if steps < 1:
            raise ValueError("at least one is needed")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        if len(timesteps) > 1 and float(timesteps[-1]) < 0:
            scheduler.timesteps = timesteps = timesteps[:-1]
        low, high, last = float(timesteps.min()), float(timesteps.max()), scheduler.config.num_train_timesteps - 1
        if not 0 <= low <= high <= last:
            raise ValueError(f"its timesteps would go from {high:g} to {low:g}, beyond 0 … {last}")
    except ERRORS as error:
        raise InputError(f"{name} cannot take {steps} steps ({one_line(error)}).") from error


def init_defaults(scheduler_class: Any) -> JsonObject:
    """Default of every argument of a scheduler's constructor, by name."""
    parameters = inspect.signature(scheduler_class.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("self", "kwargs")}


def _scheduler_class(name: str, schedule: NoiseSchedule) -> tuple[Any, str]:
    """The class of a sampler and its name.

    Raises:
        InputError: there is none, or it needs a package that is not installed.
    """
    if name == PIPELINE and "_class_name" not in schedule.scheduler:
        raise InputError(f"The model came without a pipeline's scheduler; expected one of {_EXPECTED}.")
    class_name = str(schedule.scheduler["_class_name"]) if name == PIPELINE else SAMPLERS.get(name, name)
    found = named_class(class_name)
    if is_stand_in(found):
        raise InputError(
            f"{class_name} needs {', '.join(found._backends)}, which are not all installed; expected one of {_EXPECTED}."
        )
    if found is None:
        raise InputError(
            f"Unknown sampler {name!r:.80}{did_you_mean(name, SAMPLERS)}; expected one of {_EXPECTED}, or a diffusers scheduler's "
            "class name."
        )
    return found, class_name


def _with_schedule(found: Any, class_name: str, settings: JsonDict, parameterization: Parameterization) -> Any:
    """The scheduler with its pipeline's betas if they match this schedule, else with the schedule's betas."""
    schedule, prediction_type = parameterization.schedule, parameterization.prediction_type
    bar = schedule.alphas_cumprod
    betas = 1 - bar / np.concatenate([[1.0], bar[:-1]])
    own = {"num_train_timesteps": schedule.num_timesteps, "trained_betas": betas.tolist()}
    plain = {key: value for key, value in settings.items() if key not in BETA_KEYS}
    ways = [settings] if "num_train_timesteps" in settings else []
    for config in [*ways, {**plain, **own}]:
        try:
            made = found.from_config({**config, "prediction_type": prediction_type})
        except ERRORS as error:  # some need packages that diffusers does not require
            raise InputError(f"{class_name} does not take these settings ({one_line(error)}).") from error
        made_bar = np.asarray(getattr(made, "alphas_cumprod", []))
        if made_bar.min(initial=1) < _ZERO_SNR and "rescale_betas_zero_snr" not in init_defaults(found):
            continue  # it would divide by zero, or nearly
        if made_bar.shape == bar.shape and np.allclose(made_bar, bar, rtol=1e-4, atol=1e-6):
            return made
    raise InputError(
        f"{class_name} does not follow the noise schedule of the network; expected one of {_EXPECTED} that does."
    )


def _tell_left_out(class_name: str, known: JsonDict, settings: JsonDict) -> None:
    """Name the pipeline's settings that a sampler of another class does not have."""
    own_class = settings.get("_class_name", class_name)
    if own_class == class_name:
        return
    defaults = init_defaults(named_class(str(own_class)) or object)
    changed = changed_settings({key: settings[key] for key in settings if key != "prediction_type"}, defaults)
    left_out = sorted(set(changed) - set(known))
    if left_out:
        told = ", ".join(f"{key} {changed[key]!r:.40}" for key in left_out)
        _tell_once(f"{class_name} does not have these settings of the pipeline's {own_class}: {told}.")


@functools.cache
def _tell_once(sentence: str) -> None:
    _log.info(sentence)
