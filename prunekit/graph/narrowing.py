"""A copy of a network with few channels in each group: values are tried on it, for a large network takes too long."""

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.graph.channels import Channels
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph, ChannelGroup
from prunekit.graph.surgery import all_tensors, apply, put

__all__ = ["corresponds", "narrowed"]

_STEPS = (1, 2, 3)
"""So many steps can each group still shrink by, not all the same, so that widths differ."""


def narrowed(model: nn.Module, graph: ChannelGraph, seed: int = 0) -> tuple[PruningPlan, nn.Module]:
    """A copy with few channels in each group.

    Args:
        model: the network, on any device.
        graph: its channel groups.
        seed: of the draw of widths and channels.

    Returns:
        What was kept, and the copy; a network of the meta device gets tensors that take no memory, and no values.
    """
    rng = np.random.default_rng(seed)
    kept = {group.name: group.select(rng.random(group.size), _width(group, rng)) for group in graph}
    plan = PruningPlan({name: tuple(c.tolist()) for name, c in kept.items()}, graph.fingerprint)
    narrow = apply(model, graph, plan, share=True)
    if any(tensor.is_meta for tensor in all_tensors(narrow).values()):
        put(narrow, {key: _without_memory(tensor) for key, tensor in all_tensors(narrow).items()})
    return plan, narrow


def _width(group: ChannelGroup, rng: np.random.Generator) -> int:
    steps = int(rng.choice(_STEPS))
    return int(group.widths[max(len(group.widths) - 1 - steps, 0)])


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def corresponds(
    full: ChannelGraph, channels: Channels, plan: PruningPlan, narrow: ChannelGraph, narrow_channels: Channels
) -> bool:
    """Whether a narrowed network is followed like the full one: the same calls, and the same groups, as wide as planned.

    Args:
        full: channel groups of the full network.
        channels: what its forward pass said.
        plan: what was kept.
        narrow: channel groups of the narrow network.
        narrow_channels: what its forward pass said.
    """
    if [call.name for call in channels.calls] != [call.name for call in narrow_channels.calls]:
        return False
    if set(full.index) != set(narrow.index):
        return False
    for group in full:
        other = narrow[group.name]
        axes, others = ({(member.layer, member.axis) for member in one.members} for one in (group, other))
        if axes != others or other.size != len(plan.kept.get(group.name, range(group.size))):
            return False
        if (other.whole, other.step) != (group.whole, group.step):
            return False
    return True
