"""What a user's constraints say of a network that was followed: channels that leave together, and modes by module."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.graph.constraints import Constraints, named_by

if TYPE_CHECKING:
    from prunekit.graph.channels import Channels

__all__ = ["head_modes", "tied_by"]


def tied_by(channels: "Channels", patterns: Sequence[str]) -> Iterator[tuple[IntArray, IntArray]]:
    """Ids that are to be the same thing, so that the layers which a user ties lose the same channels.

    Args:
        channels: what a forward pass said.
        patterns: one set of ``Constraints.tie``.

    Raises:
        InputError: a pattern names no layer that makes channels which could leave, they name one layer only, or layers with
            different numbers of channels.
    """
    makers = {found.name: set(channels.makers(found)) for found in channels.found}
    layers = sorted({layer for own in makers.values() for layer in own}, key=channels.rank)
    named = {layer for pattern in patterns for layer in named_by("tie", pattern, layers)}
    first, *others = [found for found in channels.found if named & makers[found.name]]
    told = ", ".join(patterns)
    if len(named) < 2:
        raise InputError(f"Got a tie of {told}, which names {first.layer} only; expected at least two layers.")
    for found in others:
        if len(found.components) != len(first.components):
            raise InputError(
                f"Got a tie of {told}, but {first.name} has {len(first.components)} channels that leave one by one and "
                f"{found.name} has {len(found.components)}; expected layers with equally many."
            )
        yield from channels.tied(first.name, found.name)


def head_modes(model: nn.Module, constraints: Constraints) -> dict[str, str]:
    """How attentions are meant to shrink, by module, where the user says it."""
    modes = {name: constraints.head_mode([name]) for name, _ in model.named_modules() if name}
    return {name: mode for name, mode in modes.items() if mode is not None}
