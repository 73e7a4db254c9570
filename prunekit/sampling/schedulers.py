"""diffusers' schedulers with a network's noise schedule and the settings of its pipeline's scheduler."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean, one_line
from prunekit._types import FloatArray
from prunekit.checkpoint.scheduler_classes import ERRORS, is_stand_in, named_class
from prunekit.errors import InputError
from prunekit.sampling.native_schedulers import init_defaults, made_natively, shift_arguments, short_names
from prunekit.sampling.variances import without_unused_variances
from prunekit.schedule import FLOW, NoiseSchedule, Parameterization
from prunekit.schedule.diffusers import BETA_KEYS, changed_settings, is_flow, tells_noise_levels

__all__ = [
    "PIPELINE",
    "SAMPLERS",
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
    "FlowMapEulerDiscreteScheduler": "its networks are told two timesteps",
    "HeliosDMDScheduler": "its steps go through several sizes",
    "HeliosScheduler": "its steps go through several sizes",
    "PiflowScheduler": "its networks predict several velocities at once",
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
    settings, short = dict(schedule.scheduler), short_names(parameterization)
    found, class_name = _scheduler_class(name, schedule, SAMPLERS if short is None else short)
    if class_name in _REFUSED:
        raise InputError(f"{class_name} cannot be used here: {_REFUSED[class_name]}; expected one of {_EXPECTED}.")
    if short is not None:
        made = made_natively(found, parameterization)
        _tell_left_out(class_name, {**init_defaults(found), "shift": 1, "flow_shift": 1}, settings)
        return made
    if is_flow(class_name, {}) or parameterization.prediction_type == FLOW:
        raise InputError(f"{class_name} is for flow matching, and the network is not; expected one of {_EXPECTED}.")
    known = init_defaults(found)
    settings = without_unused_variances(found, settings)
    if "prediction_type" not in known:
        raise InputError(f"{class_name} does not take a prediction type; expected one of {_EXPECTED}.")
    made = _with_schedule(found, class_name, settings, parameterization)
    _tell_left_out(class_name, known, settings)
    return made


def real_timesteps(name: str, steps: int, schedule: NoiseSchedule, tokens: int | None = None) -> FloatArray:
    """Training timestep of every network evaluation that a sampler makes, fractional, in order, shape (evaluations,).

    Second-order samplers make more evaluations than steps; every evaluation is listed.

    Args:
        name: as for :func:`make_scheduler`.
        steps: number of sampling steps.
        schedule: noise schedule with its pipeline's settings.
        tokens: of one sample, for a pipeline that shifts its steps by it, see
            :func:`prunekit.sampling.native_schedulers.shift_arguments`.
    """
    kind = Parameterization.usual(schedule)
    scheduler = make_scheduler(name, kind)
    set_timesteps(scheduler, steps, tokens)
    return kind.timeline.place_of(np.asarray(scheduler.timesteps, dtype=np.float64))


def set_timesteps(scheduler: Any, steps: int, tokens: int | None = None) -> None:
    """Prepare a scheduler for a number of steps.

    A timestep below 0, which diffusers' ``trailing`` spacing adds where its rounding just misses 0, is left out.

    Args:
        scheduler: of diffusers.
        steps: number of sampling steps.
        tokens: as for :func:`real_timesteps`.

    Raises:
        InputError: the scheduler does not support this number of steps.
    """
    name, config = type(scheduler).__name__, scheduler.config
    try:
        if steps < 1:
            raise ValueError("at least one is needed")
        shift = shift_arguments(scheduler, steps, tokens)
        scheduler.set_timesteps(**({} if "sigmas" in shift else {"num_inference_steps": steps}), **shift)
        timesteps = scheduler.timesteps
        if tells_noise_levels({**config, "_class_name": name}):
            return
        if len(timesteps) > 1 and float(timesteps[-1]) < 0:
            scheduler.timesteps = timesteps = timesteps[:-1]
        low, high = float(timesteps.min()), float(timesteps.max())
        last = config.num_train_timesteps - (0 if is_flow(name, config) else 1)
        if not 0 <= low <= high <= last:
            raise ValueError(f"its timesteps would go from {high:g} to {low:g}, beyond 0 … {last}")
    except ERRORS as error:
        raise InputError(f"{name} cannot take {steps} steps ({one_line(error)}).") from error


def _scheduler_class(name: str, schedule: NoiseSchedule, short: Mapping[str, str]) -> tuple[Any, str]:
    """The class of a sampler and its name.

    Args:
        name: as for :func:`make_scheduler`.
        schedule: with the pipeline's settings.
        short: classes by the short names.

    Raises:
        InputError: there is none, or it needs a package that is not installed.
    """
    if name == PIPELINE and "_class_name" not in schedule.scheduler:
        raise InputError(f"The model came without a pipeline's scheduler; expected one of {', '.join(short)}.")
    if name in SAMPLERS and name not in short:
        raise InputError(f"Sampler {name} is not for this network; expected one of {', '.join(short)}.")
    class_name = str(schedule.scheduler["_class_name"]) if name == PIPELINE else short.get(name, name)
    found = named_class(class_name)
    if is_stand_in(found):
        raise InputError(
            f"{class_name} needs {', '.join(found._backends)}, which are not all installed; expected one of {_EXPECTED}."
        )
    if found is None:
        raise InputError(
            f"Unknown sampler {name!r:.80}{did_you_mean(name, short)}; expected one of {', '.join(short)}, or a scheduler "
            "of diffusers by its class's name."
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
