"""How a denoiser is called, and which conditions it takes: read from its signature and from example inputs at batch 1."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunekit.conditions import Calling, flat
from prunekit.errors import InputError

__all__ = ["TIMES", "Taken", "calling_of", "sample_of", "taken_by"]

TIMES = ("timestep", "timesteps", "t")
"""Names under which denoisers take the timestep."""
_SAMPLES = ("sample", "hidden_states", "x")


@dataclass(frozen=True)
class Taken:
    """Conditions that a network takes.

    Args:
        needed: those that it does not run without, by their paths.
        arguments: names of all arguments of its forward pass; None for a network that is not known, which may take any.
    """

    needed: tuple[str, ...] = ()
    arguments: frozenset[str] | None = None

    def may_take(self, path: str) -> bool:
        """Whether the network has an argument for a condition."""
        return self.arguments is None or path.partition(".")[0] in self.arguments


def sample_of(names: Iterable[str]) -> str:
    """Which of a network's arguments are the noisy samples.

    Args:
        names: of its arguments.

    Raises:
        InputError: none has such a name.
    """
    known = set(names)
    found = next((name for name in _SAMPLES if name in known), None)
    if found is None:
        raise InputError(f"Got the arguments {', '.join(sorted(known))[:200]}; expected one of {', '.join(_SAMPLES)}.")
    return found


def taken_by(arguments: tuple[str, ...], inputs: object) -> Taken:
    """The conditions of a network.

    Args:
        arguments: of its forward pass, in order.
        inputs: of one forward pass at batch 1, by name.
    """
    own = flat(inputs) if isinstance(inputs, Mapping) else {}
    return Taken(tuple(name for name, value in own.items() if _is_condition(name, value)), frozenset(arguments))


def calling_of(arguments: tuple[str, ...], inputs: object, fixed: Mapping[str, object] | None = None) -> Calling:
    """How a network is called.

    Args:
        arguments: as for :func:`taken_by`.
        inputs: as for :func:`taken_by`; those without an axis for the batch are the same for every sample.
        fixed: further arguments that are the same for every sample, by their paths; they go before those of ``inputs``.
    """
    own = flat(inputs) if isinstance(inputs, Mapping) else {}
    alike = {
        name: value for name, value in own.items() if name not in (*_SAMPLES, *TIMES) and not _is_condition(name, value)
    }
    names = [next((name for name in known if name in arguments), "") for known in (_SAMPLES, TIMES)]
    by_place = [arguments[place : place + 1] == (name,) for place, name in enumerate(names)]
    sample, timestep = ("" if there else name for there, name in zip(by_place, names, strict=True))
    return Calling(sample, timestep, {**alike, **(fixed or {})})


def _is_condition(name: str, value: object) -> bool:
    """Whether an example input has a row for each sample, of which there is one."""
    return name not in (*_SAMPLES, *TIMES) and isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1
