"""The denoisers of the installed diffusers, by name. A name can reach nothing else."""

import difflib
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from prunekit.errors import InputError

__all__ = ["denoiser", "denoisers", "forward_parameters"]

_PLACES = ("transformers.", "unets.")
_OTHER_PLACES = {"UNetControlNetXSModel": "controlnets.controlnet_xs"}


@functools.cache
def _listed() -> frozenset[str]:
    """Names that diffusers lists among its transformers and U-Nets; nothing is imported for it."""
    import diffusers.models  # noqa: PLC0415 - takes seconds, and only networks that a file names need it

    structure: Mapping[str, list[str]] = diffusers.models._import_structure
    names = {name for place, own in structure.items() if place.startswith(_PLACES) for name in own}
    return frozenset(names | {name for name, place in _OTHER_PLACES.items() if name in structure.get(place, ())})


@functools.cache
def denoiser(name: str) -> type[nn.Module]:
    """The class of a denoiser.

    Args:
        name: class name, as under ``_class_name`` in a ``config.json``.

    Raises:
        InputError: diffusers has no such denoiser; pipelines, schedulers, autoencoders and parts of networks do not count.
    """
    found = _class(name) if name in _listed() else None
    if found is None:
        near = difflib.get_close_matches(name[:80], _listed(), n=1) or ["UNet2DModel"]
        raise InputError(
            f"Unknown architecture {name[:80]!r}; expected one of the installed diffusers' denoisers, such as "
            f"{near[0]}, or a factory that builds it."
        )
    return found


def denoisers() -> tuple[str, ...]:
    """Names of all denoisers of the installed diffusers, sorted; it takes as long as importing each of them."""
    return tuple(name for name in sorted(_listed()) if _class(name) is not None)


def _class(name: str) -> type[nn.Module] | None:
    """A listed class if it is a whole network with an argument besides its sample, such as the timestep."""
    import diffusers  # noqa: PLC0415 - see above

    try:
        found: Any = getattr(diffusers.models, name)
    except (RuntimeError, ImportError):  # it needs a package that is not installed
        return None
    if not (inspect.isclass(found) and issubclass(found, diffusers.ModelMixin)) or not hasattr(found, "config_name"):
        return None
    network: Any = found
    return network if len(forward_parameters(network)) > 1 else None


def forward_parameters(network: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The named arguments of a network's forward pass, without those that only change the form of the result."""
    parameters = list(inspect.signature(network.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {one.name: one for one in parameters if one.kind not in kinds and one.name != "return_dict"}
