"""Which channels are tied though no operator says so: by a user's constraints, or since layers take turns; modes by module."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.graph.constraints import Constraints, named_by

if TYPE_CHECKING:
    from prunekit.graph.channels import Channels

__all__ = ["experts", "head_modes", "tied_by"]


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


def experts(channels: "Channels") -> Iterator[tuple[IntArray, IntArray]]:
    """Ids that are to be the same thing, so that costs do not depend on which of several equal layers an input is sent to.

    Experts are equal modules of a list whose owner computes shapes from values. They worked on different numbers of positions, or
    some did not run: their widths follow those of the others, since another input may be sent to them.
    """
    work: dict[str, list[int]] = {}
    for product in channels.flow.found.products:
        work.setdefault(product.module, []).append(product.scale)
    for owner in sorted(channels.flow.found.deciding):
        for name, child in channels.modules[owner].named_children():
            equal = isinstance(child, nn.ModuleList) and len({str([type(one), *_shapes(one)]) for one in child}) == 1
            prefixes = [f"{owner}.{name}.{place}".lstrip(".") for place in range(len(child))] if equal else []
            done = [_work_in(prefix, child[0], work) for prefix in prefixes]
            if any(one != done[0] for one in done):
                yield from _alike(channels, prefixes, child[0])


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()]


def _work_in(prefix: str, module: nn.Module, work: dict[str, list[int]]) -> list[list[int]]:
    return [work.get(f"{prefix}.{name}".rstrip("."), []) for name, _ in module.named_modules()]


def _alike(channels: "Channels", prefixes: Sequence[str], first: nn.Module) -> Iterator[tuple[IntArray, IntArray]]:
    """Ids along the axes of equal tensors."""
    for key, shape in _shapes(first):
        for dim, size in enumerate(shape):
            ids = [channels.flow.axis(f"{prefix}.{key}", dim, size) for prefix in prefixes if size > 1]
            yield from ((one, ids[0]) for one in ids[1:])
