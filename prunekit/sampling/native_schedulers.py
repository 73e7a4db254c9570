"""diffusers' schedulers for networks whose time input is not a whole timestep: flow matching, EDM, and other noise levels."""

import inspect
import math
from typing import Any

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._messages import one_line
from prunekit.checkpoint.scheduler_classes import ERRORS
from prunekit.errors import InputError
from prunekit.schedule import EDM, Parameterization
from prunekit.schedule.diffusers import GIVEN, is_edm, is_flow, shift_of

__all__ = ["EDM_SAMPLERS", "FLOW_SAMPLERS", "init_defaults", "made_natively", "shift_arguments", "short_names"]

FLOW_SAMPLERS = {
    "ddim": "FlowMatchEulerDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""What the short names of samplers mean for flow matching, where a DDIM step is an Euler step."""
EDM_SAMPLERS = {
    "ddim": "EDMEulerScheduler",
    "dpm-solver": "EDMDPMSolverMultistepScheduler",
    "euler": "EDMEulerScheduler",
}
"""What they mean for EDM. Here, too, a DDIM step is an Euler step."""


def short_names(parameterization: Parameterization) -> dict[str, str] | None:
    """Scheduler classes by short name, for a network whose time input is not a whole timestep; None for any other network.

    Args:
        parameterization: what the network predicts.
    """
    if parameterization.is_flow:
        return FLOW_SAMPLERS
    if parameterization.prediction_type in EDM:
        return EDM_SAMPLERS
    own = str(parameterization.schedule.scheduler.get("_class_name", ""))
    return None if parameterization.timeline.counts else {"ddim": own, "euler": own}


def made_natively(found: Any, parameterization: Parameterization) -> Any:
    """A scheduler of the class ``found`` for such a network, with the settings of its pipeline that the class has.

    Raises:
        InputError: the class is not for such networks, or does not take these settings.
    """
    name, known = found.__name__, init_defaults(found)
    if parameterization.is_flow:
        fits, what, own = is_flow(name, {}) or "use_flow_sigmas" in known, "for flow matching", _flow(parameterization)
    elif parameterization.prediction_type in EDM:
        fits, what, own = is_edm(name), "within EDM's preconditioning", _edm(parameterization)
    else:
        fits, what, own = "timestep_type" in known, "told noise levels in place of timesteps", {}
    if not fits:
        expected = ", ".join(short_names(parameterization) or {})
        raise InputError(
            f"{name} is for networks that are told timesteps, and the network is {what}; expected one of {expected}."
        )
    settings = {**parameterization.schedule.scheduler, **own}
    try:
        made = found.from_config({key: value for key, value in settings.items() if key in known})
    except ERRORS as error:
        raise InputError(f"{name} does not take these settings ({one_line(error)}).") from error
    _check_levels(made, parameterization)
    made.register_to_config(**{key: settings[key] for key in GIVEN if key in settings})
    return made


def shift_arguments(scheduler: Any, steps: int, tokens: int | None = None) -> JsonObject:
    """Arguments of ``set_timesteps`` with which pipelines shift the steps by the number of tokens (arXiv:2403.03206, 5.3.2).

    Empty for a scheduler that does not. These pipelines give their schedulers u from 1 to 1/steps; so do others, which encoded
    images record (:func:`prunekit.pipelines.steps_given`).

    Args:
        scheduler: of diffusers.
        steps: number of sampling steps.
        tokens: of one sample, see :func:`prunekit.schedule.diffusers.shift_of`.
    """
    config, taken = scheduler.config, inspect.signature(scheduler.set_timesteps).parameters
    found: JsonObject = {}
    shifts = config.get("use_dynamic_shifting") and "mu" in taken
    if shifts:
        shift = shift_of(config, tokens)
        found["mu"] = shift if config.get("time_shift_type") == "linear" else math.log(shift)
    even = config.get("_even_sigmas", shifts and is_flow(type(scheduler).__name__, {}))
    if even and "sigmas" in taken:
        found["sigmas"] = np.linspace(1.0, 1 / steps, steps).tolist()
    return found


def init_defaults(scheduler_class: Any) -> JsonObject:
    """Default of every argument of a scheduler's constructor, by name."""
    parameters = inspect.signature(scheduler_class.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("self", "kwargs")}


def _flow(parameterization: Parameterization) -> JsonObject:
    """Settings for flow matching, under both names that schedulers have for the shift."""
    schedule = parameterization.schedule
    settings: JsonDict = schedule.scheduler
    shift = settings.get("shift") or settings.get("flow_shift") or schedule.config.get("shift", 1.0)
    own = {"num_train_timesteps": schedule.num_timesteps, "shift": shift, "flow_shift": shift, "invert_sigmas": False}
    return {**own, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def _edm(parameterization: Parameterization) -> JsonObject:
    """Settings of EDM's grid."""
    schedule = parameterization.schedule
    own = {
        "num_train_timesteps": schedule.num_timesteps,
        "sigma_min": float(schedule.sigma[0]),
        "sigma_max": float(schedule.sigma[-1]),
        "sigma_data": parameterization.sigma_data,
        "prediction_type": "v_prediction" if parameterization.prediction_type == "edm_v" else "epsilon",
    }
    return {**own, "rho": schedule.config["rho"]} if "rho" in schedule.config else own


def _check_levels(scheduler: Any, parameterization: Parameterization) -> None:
    """Refuse a scheduler whose first step is noisier than any that the network was trained on.

    Raises:
        InputError: it is.
    """
    if parameterization.is_flow:
        return
    highest, trained = float(scheduler.sigmas.max()), float(parameterization.schedule.sigma[-1])
    if highest > trained * 1.001:
        raise InputError(
            f"{type(scheduler).__name__} begins at the noise level {highest:.4g}, and the network's highest is {trained:.4g}; "
            "expected a sampler within the noise levels of the training."
        )
