"""Which timestep groups use one network, so that its weights are stored and held once."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunekit._json import JsonObject
from prunekit.errors import FileFormatError
from prunekit.graph.surgery import all_tensors
from prunekit.slim import SlimModel, slim_config

__all__ = ["read_networks", "shared", "shared_networks"]


def shared_networks(slims: Sequence[SlimModel]) -> tuple[int, ...]:
    """For each slim model, the index of the first one with the same network.

    Networks are the same if their plans and records are equal, and the modules are the same or all their tensors are equal.
    """
    told = [_without_group(slim) for slim in slims]
    first: list[int] = []
    for index, slim in enumerate(slims):
        same = (
            other
            for other in dict.fromkeys(first)
            if told[other] == told[index]
            and (slims[other].model is slim.model or _equal(slims[other].model, slim.model))
        )
        first.append(next(same, index))
    return tuple(first)


def shared(slims: Sequence[SlimModel], networks: Sequence[int]) -> list[SlimModel]:
    """The same slim models, where those with the same network hold one copy of it.

    Args:
        slims: one for each timestep group.
        networks: as from :func:`shared_networks`.
    """
    return [replace(slim, model=slims[network].model) for slim, network in zip(slims, networks, strict=True)]


def read_networks(found: Sequence[int] | None, count: int, where: str) -> tuple[int, ...]:
    """For each timestep group, the group whose folder has its network, as ``experts.json`` says.

    Args:
        found: what the file says; None if every group has its own.
        count: number of groups.
        where: name of the file, for the error.

    Raises:
        FileFormatError: a group's network is not its own and not that of an earlier group with its own.
    """
    networks = tuple(range(count)) if found is None else tuple(found)
    if len(networks) != count or not all(
        0 <= network <= index and networks[network] == network for index, network in enumerate(networks)
    ):
        raise FileFormatError(
            f"The networks of {where} are {list(networks)}; expected {count} numbers, each the group's own or that of an earlier "
            "group with a network of its own."
        )
    return networks


def _without_group(slim: SlimModel) -> JsonObject:
    return {key: value for key, value in slim_config(slim).items() if key != "timestep_group"}


def _equal(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other):
        return False
    first, second = all_tensors(one), all_tensors(other)
    return first.keys() == second.keys() and all(_same(tensor, second[name]) for name, tensor in first.items())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))
