"""Diff-Pruning's published size from the CIFAR-10 U-Net: 19.851M parameters and 3.392 GMACs by torch-pruning's count.

Fang et al., Structural Pruning for Diffusion Models (NeurIPS 2023): 35.7M parameters and 6.1 GMACs become 19.8M and 3.4.
Writes reports/engine/diff_pruning.json and .md: python benchmarks/diff_pruning.py
"""

import copy
from collections import Counter
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from _manifest import REPORTS, markdown_table, publish
from cifar_unet import cifar_unet
from torch import Tensor, nn

from prunekit._files import atomic_path
from prunekit._types import IntArray
from prunekit.cost import CostModel, count_macs
from prunekit.graph import ChannelGraph, ChannelGroup, PruningPlan, apply, trace

RATIO = 0.30
PUBLISHED = {"params_millions": 19.851, "gmacs": 3.392}


def uniform_width(group: ChannelGroup, ratio: float) -> int:
    """Keep ⌊(1 − ratio)·size⌋ channels, rounded so that only whole steps are removed.

    A norm of 32 groups loses the same number of channels from each: of 256 channels 77 would go, which is 2 from each norm group
    and so 64 (0.25); of 128, 39 and so 32 (0.25). Without a tied norm the ratio is met: 77 of 256 and 154 of 512 (0.3008).
    """
    removed = group.size - int((1 - ratio) * group.size)
    return group.size - removed // group.step * group.step


def measure() -> dict[str, Any]:
    """Sizes of the base and of the pruned network, by torch-pruning's count and by this package's."""
    model, inputs = cifar_unet()
    graph = trace(model, inputs)
    widths: IntArray = np.array([uniform_width(group, RATIO) for group in graph], dtype=np.int64)
    rng = np.random.default_rng(0)
    plan = PruningPlan.from_widths(graph, widths, {group.name: rng.random(group.size) for group in graph})
    cost = CostModel.of(model, graph, inputs)
    return {
        "published": PUBLISHED,
        "ratio": RATIO,
        "removed": _removed(model, graph, widths),
        "base": _sizes(model, inputs),
        "pruned": _sizes(apply(model, graph, plan), inputs),
        "closed_form": {"macs": int(cost.macs(widths)), "params": int(cost.params(widths))},
    }


def _removed(model: nn.Module, graph: ChannelGraph, widths: IntArray) -> dict[str, dict[str, float]]:
    """Number of channel groups, and the removed share of their channels, for groups with and without a tied group norm."""
    sizes: dict[str, list[tuple[int, int]]] = {"tied to a group norm": [], "elsewhere": []}
    for group, width in zip(graph, widths, strict=True):
        normed = any(isinstance(model.get_submodule(member.layer), nn.GroupNorm) for member in group.members)
        sizes["tied to a group norm" if normed else "elsewhere"].append((group.size, int(width)))
    return {
        name: {"channel_groups": len(both), "removed": 1 - sum(w for _, w in both) / sum(s for s, _ in both)}
        for name, both in sizes.items()
    }


def _sizes(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Counts by torch-pruning and by this package. torch-pruning counts wrongly unless batch is 1 and arguments are positional."""
    counted = count_macs(model, inputs)
    by_place = tuple(inputs.values())
    macs, params, layers, _ = tp.utils.count_ops_and_params(copy.deepcopy(model), by_place, layer_wise=True)
    kinds: Counter[str] = Counter()
    for layer, figure in layers.items():
        if figure and not list(layer.children()):
            kinds[type(layer).__name__] += int(figure)
    return {
        "params": counted.params,
        "macs": counted.macs,
        "macs_by_operator": counted.by_operator,
        "torch_pruning": {"params": int(params), "macs": int(macs), "macs_by_layer": dict(kinds.most_common())},
    }


def _markdown(figures: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{figures[name]['params']:,}",
            f"{figures[name]['torch_pruning']['macs']:,}",
            f"{figures[name]['macs']:,}",
            f"{figures[name]['macs_by_operator']['scaled_dot_product_attention']:,}",
        ]
        for name in ("base", "pruned")
    ]
    removed = "; ".join(
        f"{of['removed']:.4f} of the channels of the {of['channel_groups']} channel groups {name}"
        for name, of in figures["removed"].items()
    )
    table = markdown_table(
        ["CIFAR-10 U-Net", "parameters", "MACs by torch-pruning", "MACs by prunekit", "of them attention products"],
        rows,
    )
    published = f"{PUBLISHED['params_millions']}M parameters and {PUBLISHED['gmacs']} GMACs"
    return (
        f"# Diff-Pruning's published size\n\nPublished: {published} by torch-pruning's count, which leaves attention products out "
        f"and counts biases and norms.\n\n{table}\nOne ratio of {figures['ratio']} for every channel group, rounded down to the "
        f"steps that norm groups allow, removes {removed}. The weights are random: sizes do not depend on them.\n"
    )


def main() -> None:
    torch.set_num_threads(1)
    figures = measure()
    publish("diff_pruning", figures)
    with atomic_path(REPORTS / "diff_pruning.md") as part:
        part.write_text(_markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
