"""A network's ``config.json`` as diffusers and training scripts write it."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit._json import JsonDict, JsonObject, read_json
from prunekit.checkpoint.denoisers import denoiser
from prunekit.checkpoint.spec import ModelSpec
from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["FoundConfig", "found_config", "read_config"]

_EMA = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power", "foreach")
)
"""Keys that diffusers' ``EMAModel`` adds to the config of the network that it saves."""


@dataclass(frozen=True)
class FoundConfig:
    """A network by its config file.

    Args:
        spec: the network.
        ema: whether the file says that its weights are a moving average.
        ignored: keys that the class does not accept and that were left out.
    """

    spec: ModelSpec
    ema: bool = False
    ignored: tuple[str, ...] = ()

    def notes(self, source: object) -> tuple[str, ...]:
        """Notes for the user on the config in ``source``."""
        if not self.ignored:
            return ()
        return (
            f"The config of {source} has {', '.join(self.ignored)}, which {self.spec.class_name} of the installed diffusers "
            "does not take; ignored.",
        )


def read_config(path: Path) -> FoundConfig:
    """The network of a ``config.json``.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it names no denoiser of diffusers, or is hostile.
    """
    if not path.is_file():
        raise MissingFileError(f"{path.parent} has no config.json or model_index.json; expected a diffusers folder.")
    found = found_config(read_json(path, infinities=True))
    try:
        denoiser(found.spec.class_name)
    except InputError as error:
        raise FileFormatError(
            f"{path.parent} names {found.spec.class_name[:80]!r}; expected one of the installed diffusers' denoisers, such as "
            "UNet2DModel."
        ) from error
    return found


def found_config(data: JsonDict) -> FoundConfig:
    """The network that a config describes; of one that diffusers wrote, keys that the class does not take are left out.

    Raises:
        FileFormatError: keys are missing, or a value is beyond any network's.
    """
    spec = ModelSpec.from_json(data)
    if "_class_name" not in data:  # written by prunekit or by hand: a wrong key is a mistake
        return FoundConfig(spec)
    try:
        arguments = inspect.signature(denoiser(spec.class_name)).parameters.values()
    except InputError:
        return FoundConfig(spec)
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
        return FoundConfig(spec)
    known = {argument.name for argument in arguments}
    foreign = {key for key in spec.config if key not in known}
    ema = {"decay", "optimization_step"} <= foreign
    config: JsonObject = {key: value for key, value in spec.config.items() if key not in foreign}
    return FoundConfig(replace(spec, config=config), ema, tuple(sorted(foreign - _EMA if ema else foreign)))
