"""Where a denoiser's call has the noisy sample and the timestep: classes name and order them differently."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from prunekit.checkpoint.callings import TIMES
from prunekit.errors import InputError

__all__ = ["CallForm"]

_SAMPLES = ("sample", "hidden_states", "x", "noisy_latents", "latents")


@dataclass(frozen=True)
class CallForm:
    """The names by which a network takes the noisy sample and the timestep, and the order of its arguments.

    Args:
        order: names of the arguments that may be given by place.
        sample: name of the noisy sample's argument.
        timestep: name of the timestep's argument.
    """

    order: tuple[str, ...]
    sample: str
    timestep: str

    @classmethod
    def of(cls, network: type[nn.Module]) -> "CallForm":
        """Read from the signature of a class's ``forward``.

        Raises:
            InputError: it takes no two arguments.
        """
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = list(inspect.signature(network.forward).parameters.values())[1:]
        order = tuple(one.name for one in parameters if one.kind in kinds)
        if len(order) < 2:
            raise InputError(
                f"{network.__name__} takes {len(order)} arguments; expected a noisy sample and a timestep."
            )
        rest = order[1:]
        return cls(order, order[0], next((name for name in TIMES if name in rest), rest[0]))

    def bound(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """The arguments of a call by name; ``sample`` and ``hidden_states``, ``timestep`` and ``timesteps`` mean the same.

        Raises:
            InputError: there are too many, one is given twice, or the noisy sample or the timestep is missing.
        """
        if len(args) > len(self.order):
            raise InputError(f"Got {len(args)} arguments by place; expected at most {len(self.order)}.")
        found = dict(zip(self.order, args, strict=False))
        for given, value in kwargs.items():
            name = self._own_name(given)
            if name in found:
                raise InputError(f"The argument {name} is given twice; give it once.")
            found[name] = value
        for name in (self.sample, self.timestep):
            if found.get(name) is None:
                raise InputError(f"The argument {name} is missing; expected a noisy sample and its timestep.")
        return found

    def _own_name(self, name: str) -> str:
        """The network's name of an argument that another class may call differently."""
        for own, names in ((self.sample, _SAMPLES), (self.timestep, TIMES)):
            if name in names and name not in self.order:
                return own
        return name
