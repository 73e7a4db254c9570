"""The noise schedule and the settings of a diffusers scheduler. diffusers itself is not imported here."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray
from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.schedule.noise import NoiseSchedule

__all__ = [
    "BETA_KEYS",
    "GIVEN",
    "changed_settings",
    "is_edm",
    "is_flow",
    "of_scheduler",
    "settings_text",
    "shift_of",
    "steps_as_planned",
    "tells_noise_levels",
]

BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Settings that define the noise schedule."""

GIVEN = ("_even_sigmas", "_image_seq_len")
"""What a pipeline gives its scheduler when it sets the steps, as far as encoded images record it."""

_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
_USUAL: JsonDict = {
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "set_alpha_to_one": True,
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
}
_FLOWS = ("FlowMatch", "FlowMap", "Helios", "LTXEulerAncestralRF", "Piflow", "MiniMaxH3")


def of_scheduler(schedules: "type[NoiseSchedule]", scheduler: object) -> "NoiseSchedule":
    """See :meth:`NoiseSchedule.from_diffusers`; ``schedules`` is the class that makes the schedule."""
    settings = _settings(scheduler)
    return replace(_noise_levels(schedules, scheduler, settings), scheduler=settings)


def is_flow(name: str, settings: JsonDict) -> bool:
    """Whether a scheduler is for flow matching, by its class's name and its settings."""
    asked = settings.get("use_flow_sigmas") or settings.get("prediction_type") == "flow_prediction"
    return bool(asked) or name.startswith(_FLOWS)


def settings_text(settings: JsonDict) -> str:
    """The unusual settings of a pipeline's sampler, as the end of a sentence; empty if there are none."""
    unusual = {key: settings[key] for key in _USUAL if key in settings and settings[key] != _USUAL[key]}
    told = ", ".join(f"{key} {value}" for key, value in unusual.items())
    return f"with {told}, as the pipeline's {settings.get('_class_name')} has it" if told else ""


def steps_as_planned(settings: JsonDict) -> tuple[str, int]:
    """Timestep spacing and offset of DDIM and DDPM with these settings of a scheduler.

    Raises:
        InputError: the spacing is not a name or the offset is not a whole number.
    """
    spacing, offset = settings.get("timestep_spacing", "leading"), settings.get("steps_offset", 0)
    if not isinstance(spacing, str) or not isinstance(offset, int) or isinstance(offset, bool):
        raise InputError(
            f"Got timestep_spacing {spacing!r:.40} and steps_offset {offset!r:.40}; expected a name and a whole number."
        )
    return spacing, offset


def tells_noise_levels(settings: JsonDict) -> bool:
    """Whether a scheduler's networks take ¼·ln σ as their time input, in place of a timestep."""
    return is_edm(str(settings.get("_class_name", ""))) or settings.get("timestep_type") == "continuous"


def is_edm(name: str) -> bool:
    """Whether a scheduler has EDM's preconditioning (arXiv:2206.00364), by its class's name."""
    return name.startswith("EDM")


def shift_of(settings: JsonDict, tokens: int | None = None) -> float:
    """By how much a flow-matching scheduler's settings multiply the noise levels σ = u/(1 − u) (arXiv:2403.03206, eq. 23).

    Args:
        settings: of a scheduler; empty for none, which shifts nothing.
        tokens: of one sample, for schedulers whose shift depends on it (arXiv:2403.03206, section 5.3.2): its logarithm rises
            evenly from ``base_shift`` to ``max_shift``. If missing, that of the images with which the settings were met, else the
            largest number in the settings, that of Flux's pictures of 1024 x 1024.
    """
    if not settings.get("use_dynamic_shifting"):
        return float(settings.get("shift") or settings.get("flow_shift") or 1.0)
    few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
    found = settings.get("_image_seq_len", many) if tokens is None else tokens
    mu = float(low + (high - low) * (found - few) / (many - few))
    return mu if settings.get("time_shift_type") == "linear" else math.exp(mu)


def changed_settings(settings: JsonDict, defaults: JsonDict) -> dict[str, object]:
    """Settings that differ from defaults, without those of the noise schedule.

    Args:
        settings: of a scheduler.
        defaults: by name; settings that are missing there count as changed.
    """
    own = {key: value for key, value in settings.items() if not key.startswith("_") and key not in BETA_KEYS}
    return {key: value for key, value in own.items() if key not in defaults or defaults[key] != value}


def _settings(scheduler: object) -> dict[str, object]:
    """A scheduler's config as plain JSON, without the entries that its class filled in by default.

    Raises:
        InputError: a number is infinite or NaN, and that is not its default.
    """
    config = dict(getattr(scheduler, "config", {}))
    unsaid = set(config.get("_use_default_values", ())) - set(BETA_KEYS)
    parameters = inspect.signature(type(scheduler).__init__).parameters
    found: JsonObject = {"_class_name": type(scheduler).__name__}
    for key, value in config.items():
        if key in unsaid or key.startswith("_"):
            continue
        plain = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(plain, float) and not math.isfinite(plain):
            if key in parameters and parameters[key].default == plain:  # -inf stands for no bound
                continue
            raise InputError(f"{type(scheduler).__name__} has {key} {plain}; expected a finite number.")
        found[key] = list(plain) if isinstance(plain, tuple) else plain
    return found


def _noise_levels(schedules: "type[NoiseSchedule]", scheduler: Any, settings: JsonDict) -> "NoiseSchedule":
    name, config = type(scheduler).__name__, {**dict(getattr(scheduler, "config", {})), **settings}
    if (is_flow(name, config) or is_edm(name)) and "num_train_timesteps" not in config:
        raise InputError(f"{name} has no num_train_timesteps; give a NoiseSchedule made by hand instead.")
    if is_flow(name, config):  # a shift moves the sampler's steps; networks are told T·u whatever it is
        return schedules.rectified_flow(config["num_train_timesteps"])
    if is_edm(name):
        return _edm(schedules, config)
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if tells_noise_levels(config) and alphas_cumprod is not None:
        return _levels_within(schedules, np.asarray(alphas_cumprod, dtype=np.float64), config)
    if alphas_cumprod is not None:
        bar = np.asarray(alphas_cumprod, dtype=np.float64)
        told = _as_told(schedules, config)
        return told if told is not None and _same(told.alphas_cumprod, bar) else _as_computed(schedules, bar)
    if hasattr(scheduler, "from_config"):
        scheduler = type(scheduler).from_config(scheduler.config)  # set_timesteps overwrites the training sigmas
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise InputError(f"{name} has neither alphas_cumprod nor sigmas; give a NoiseSchedule made by hand instead.")
    sigma = np.sort(np.asarray(sigmas, dtype=np.float64))
    sigma = sigma[sigma > 0]
    return schedules.from_sigmas(sigma)


def _edm(schedules: "type[NoiseSchedule]", config: JsonDict) -> "NoiseSchedule":
    """EDM's grid of noise levels with the scheduler's spacing."""
    count, low, high = config["num_train_timesteps"], config["sigma_min"], config["sigma_max"]
    if config.get("sigma_schedule") == "exponential":
        return schedules.from_sigmas(np.geomspace(low, high, count))
    return schedules.edm(count, low, high, config.get("rho", 7.0))


def _levels_within(schedules: "type[NoiseSchedule]", bar: FloatArray, config: JsonDict) -> "NoiseSchedule":
    """Noise levels of ᾱ, or EDM's grid within the bounds that the config states."""
    sigma = np.sqrt((1 - bar) / bar)
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None and high is None:
        return schedules.from_sigmas(sigma)
    return schedules.edm(len(bar), float(low or sigma[0]), float(high or sigma[-1]))


def _as_told(schedules: "type[NoiseSchedule]", config: Mapping[str, object]) -> "NoiseSchedule | None":
    """The schedule that a scheduler's settings describe, in double precision; None if they describe none."""
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
        within = betas.ndim == 1 and bool(((betas > 0) & (betas < 1)).all())
        return schedules.from_betas(betas) if within else None
    kind = _KINDS.get(str(config.get("beta_schedule")))
    if kind is None:
        return None
    keys = {"kind": kind, "num_timesteps": config["num_train_timesteps"]}
    if kind != "cosine":
        keys |= {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
    return schedules.from_config(keys)


def _same(told: FloatArray, computed: FloatArray) -> bool:
    """Whether a scheduler's values match its settings: some schedulers shift or rescale them. They compute in single precision."""
    return told.shape == computed.shape and np.allclose(told, computed, rtol=1e-2, atol=1e-8)


def _as_computed(schedules: "type[NoiseSchedule]", bar: FloatArray) -> "NoiseSchedule":
    """The schedule of ᾱ, with both ends kept away from 0 and 1."""
    bar = np.clip(bar, 1e-12, 1 - 1e-12)
    betas = 1 - bar / np.concatenate([[1.0], bar[:-1]])
    return schedules.from_betas(np.clip(betas, 1e-12, 1 - 1e-12))
