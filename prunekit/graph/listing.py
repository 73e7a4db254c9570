"""Every layer with weights is in a channel group that can shrink, or in the list of those that are left whole."""

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from prunekit.graph.layers import own_tensors
from prunekit.graph.structure import ChannelGroup

__all__ = ["complete"]


def complete(
    modules: Mapping[str, nn.Module],
    groups: Iterable[ChannelGroup],
    reasons: Mapping[str, str],
    why: Callable[[str], str],
) -> dict[str, str]:
    """Reasons for layers that would be in neither list.

    Args:
        modules: of the network, by name.
        groups: all channel groups.
        reasons: what is known, by layer or by tensor.
        why: the reason for one of these layers, by its name.
    """
    told = dict(reasons)
    groups = list(groups)
    for group in groups:
        if len(group.widths) == 1:
            for layer in _members([group]):
                told.setdefault(layer, _only_width(group))
    known = {name for layer in (*told, *_members(groups)) for name in (layer, *_parents(layer))}
    for name, module in modules.items():
        has_weights = any(tensor.ndim > 1 for tensor in own_tensors(module).values())
        if not name or not has_weights or name in known or known & set(_parents(name)) & _weighted(modules):
            continue
        told[name] = why(name)
    for name in set(_parents_of_tensors(modules, reasons)) - set(_members(groups)):
        told.setdefault(name, next(reason for layer, reason in reasons.items() if name in _parents(layer)))
    return told


def _only_width(group: ChannelGroup) -> str:
    rows = f"{group.rows} rows of {group.size // group.rows} channels" if group.rows > 1 else f"steps of {group.step}"
    return f"no smaller width is possible: it has {group.size} channels in {rows}; another norm or head mode may allow some"


def _members(groups: Iterable[ChannelGroup]) -> Iterable[str]:
    """Layers, and tensors of no known layer, whose outputs are in a group."""
    return [member.layer for group in groups for member in group.members if member.axis != "in"]


def _parents(name: str) -> list[str]:
    """Names of all modules that a module or tensor is in, but for the root."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _weighted(modules: Mapping[str, nn.Module]) -> set[str]:
    """Modules with weights of their own: what they hold besides, such as parametrizations, is part of them."""
    return {
        name for name, module in modules.items() if name and (module._parameters or hasattr(module, "parametrizations"))
    }


def _parents_of_tensors(modules: Mapping[str, nn.Module], reasons: Mapping[str, str]) -> Iterable[str]:
    """Layers of torch's own, of which only a tensor is listed, such as a mask of their weights."""
    found = [layer.rpartition(".")[0] for layer in reasons if layer not in modules]
    return [name for name in found if name in modules and type(modules[name]).__module__.startswith("torch.")]
