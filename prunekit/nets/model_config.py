"""What a composite network takes from its base's description: its config as pipelines read it, and its time input."""

import inspect
from collections.abc import Mapping

from prunekit._json import JsonDict, JsonObject
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.denoisers import denoiser
from prunekit.errors import InputError
from prunekit.schedule import Parameterization, Timeline, TimeUnit

__all__ = ["full_config", "time_unit_of", "timeline_of"]


def full_config(spec: ModelSpec) -> JsonObject:
    """The base's config with its class's defaults, because pipelines ask for keys that older checkpoints do not have.

    Args:
        spec: the base's architecture.
    """
    config = {key: value for key, value in spec.config.items() if not key.startswith("_")}
    if spec.factory is not None:
        return config
    try:
        parameters = inspect.signature(denoiser(spec.class_name)).parameters.values()
    except InputError:  # a stage of a multi-decoder network
        return config
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return {**defaults, **config}


def time_unit_of(about: JsonDict) -> TimeUnit | None:
    """In which unit the network is told the time, from the metadata of a slim model; None if that does not say it."""
    known = about.get("time_unit")
    return TimeUnit.from_config(known) if isinstance(known, Mapping) else None


def timeline_of(about: JsonDict) -> Timeline | None:
    """The scheduler's timesteps, from the metadata of a slim model; None if that has no noise schedule."""
    return Parameterization.from_config(about).timeline if "noise_schedule" in about else None
