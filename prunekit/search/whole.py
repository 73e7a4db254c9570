"""Why layers keep their width, in one sentence."""

from prunekit.graph import ChannelGraph

__all__ = ["nothing_to_prune", "why_whole"]

_REASONS = 3  # number of reasons that are listed


def nothing_to_prune(graph: ChannelGraph) -> str | None:
    """The reasons why nothing in a network can be pruned, from :func:`why_whole`; None if something can."""
    return why_whole(graph) if all(len(group.widths) == 1 for group in graph) else None


def why_whole(graph: ChannelGraph) -> str:
    """The most frequent reasons for which layers keep their width, each with the number of layers and the first of them.

    Args:
        graph: the network's channel groups.

    Returns:
        Such as ``12 layers (conv_in, …): it meets something of a fixed size; 1 layer (conv_out): it makes a single channel``.
    """
    layers: dict[str, list[str]] = {}
    stuck = {group.name: "no smaller width is possible" for group in graph if len(group.widths) == 1}
    for layer, reason in {**stuck, **graph.left_whole}.items():
        layers.setdefault(reason, []).append(layer)
    if not layers and not len(graph):
        return "no layer was found that makes channels"
    most = sorted(layers.items(), key=lambda item: -len(item[1]))
    told = [
        f"{len(names)} layer{'s' * (len(names) > 1)} ({names[0]}{', …' * (len(names) > 1)}): {reason}"
        for reason, names in most
    ]
    rest = len(told) - _REASONS
    return "; ".join(told[:_REASONS]) + (f"; and {rest} more reason{'s' * (rest > 1)}" if rest > 0 else "")
