"""Torch-Pruning on diffusers' U-Nets at a share of the MACs, to compare with."""

import copy
import time
from typing import Any

import torch_pruning as tp
from _peers import head_widths, mend
from torch import nn

from prunekit.cost import count_macs

HALVINGS = 9


class Peer:
    """torch-pruning at any ratio; each ratio is tried once, and its time is stored."""

    def __init__(self, model: nn.Module, inputs: Any, ranking: str, round_to: int | None) -> None:
        self.model, self.inputs, self.ranking, self.round_to = model, inputs, ranking, round_to
        self.tried: dict[float, tuple[int | str, float]] = {}

    def __call__(self, ratio: float) -> tuple[int | str, float]:
        """MACs, or why it failed, and seconds."""
        if ratio not in self.tried:
            started = time.perf_counter()
            try:
                macs: int | str = count_macs(self.pruned(ratio), self.inputs).macs
            except Exception as error:  # whatever it raises is its result
                macs = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            self.tried[ratio] = (macs, time.perf_counter() - started)
        return self.tried[ratio]

    def pruned(self, ratio: float) -> nn.Module:
        """The network at a ratio."""
        model = copy.deepcopy(self.model)
        attentions = [module for module in model.modules() if type(module).__name__ == "Attention"]
        heads = {layer: int(a.heads) for a in attentions for layer in (a.to_q, a.to_k, a.to_v)}
        pruner = tp.pruner.BasePruner(
            model,
            self.inputs,
            tp.importance.GroupMagnitudeImportance(),
            global_pruning=self.ranking != "local",
            isomorphic=self.ranking == "isomorphic",
            pruning_ratio=ratio,
            round_to=self.round_to,
            ignored_layers=[model.get_submodule("conv_out")],
            in_channel_groups={},  # its defaults are shared between pruners
            out_channel_groups={},
            channel_groups={},
            num_heads=heads,
        )
        pruner.step()
        return mend(model, head_widths(self.model))

    def best(self, target: int, full: int) -> dict[str, Any]:
        """The ratio with most MACs at or below the target among those that bisection visits."""
        low, high, seconds, found, failure = 0.0, 1.0, 0.0, (0.0, 0), None
        for _ in range(HALVINGS):
            ratio = 0.5 * (low + high)
            macs, took = self(ratio)
            seconds += took
            if isinstance(macs, str):
                failure = macs
            elif found[1] < macs <= target:
                found = (ratio, macs)
            low, high = (ratio, high) if isinstance(macs, int) and macs > target else (low, ratio)
        if found[1] == 0:
            least = min((macs for macs, _ in self.tried.values() if isinstance(macs, int)), default=full)
            return {"failure": failure or "never so small", "least_reached": least / full, "seconds": seconds}
        return {"ratio": found[0], "got": found[1] / full, "missed": (target - found[1]) / full, "seconds": seconds}
