"""Targets of time beside targets of MACs, on CIFAR-10's U-Net at batch 1 and 16 with one thread.

A target of MACs gives a plan. A target of time gives others that take as long by prediction: with channels removed, and with
residual branches removed as well. All of them run in turn with the base. The weights are random, so that what a plan costs is not a
loss but lost importance: of a channel its MACs times a random number, of a branch the sum of its own channels' shares.
Writes reports/engine/latency_targets.json and .md: python benchmarks/latency_targets.py [--quick]
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from _random_plans import about, importance, matched_plans
from _timing import in_turns, on
from cifar_unet import cifar_unet
from torch import nn

from prunekit._files import atomic_path
from prunekit.cost import CostModel, LatencyOptions, LatencyTable
from prunekit.graph import ChannelGraph, PruningPlan, apply, trace

FRACTIONS, BATCHES = (0.8, 0.6, 0.4), (1, 16)
ROUNDS = {1: 21, 16: 9}
Row = dict[str, Any]


def plans(model: nn.Module, inputs: Any, batch: int, quick: bool) -> tuple[list[Row], LatencyTable, ChannelGraph]:
    """For each fraction, the plan of the target of MACs and those of the same predicted time."""
    both = trace(model, inputs, norm_mode="whole", shrink="both")
    cost = CostModel.of(model, both, inputs)
    few = {"grid": 2, "repeats": 1, "fits": 1, "checks": 1} if quick else {}
    table = LatencyTable.of(model, both, cost, inputs, LatencyOptions(batch_size=batch, **few))
    latency, scores = table.bind(both, cost), importance(both, cost)
    rows: list[Row] = []
    for fraction in FRACTIONS[1:2] if quick else FRACTIONS:
        rows += [
            {"fraction": fraction, "target": name, **about(both, cost, latency, scores, widths)}
            for name, widths in matched_plans(both, cost, latency, scores, fraction).items()
        ]
    return rows, table, both


def measure(quick: bool) -> dict[str, Any]:
    """The plans of all batch sizes, timed."""
    model, inputs = cifar_unet()
    rows, tables = [], []
    for batch in (1,) if quick else BATCHES:
        found, table, graph = plans(model, inputs, batch, quick)
        zeros = {group.name: np.zeros(group.size) for group in graph}
        for fraction in dict.fromkeys(row["fraction"] for row in found):
            same = [row for row in found if row["fraction"] == fraction]
            widths = [np.array(row.pop("widths"), dtype=np.int64) for row in same]
            pruned = [apply(model, graph, PruningPlan.from_widths(graph, each, zeros)).eval() for each in widths]
            batched = (torch.randn(batch, 3, 32, 32), torch.full((batch,), 500))
            runs = [partial(one, *batched) for one in (model, *pruned)]
            seconds = in_turns(runs, on(torch.device("cpu")), 3 if quick else ROUNDS[batch])
            ratios = np.median(seconds / seconds[:, :1], axis=0)[1:]
            rows += [{"batch": batch, **row, "measured": float(ratio)} for row, ratio in zip(same, ratios, strict=True)]
        tables.append({**table.about(), "base_seconds": table.base_seconds})
    return {"quick": quick, "norm_mode": "whole", "tables": tables, "rows": rows}


def _markdown(figures: dict[str, Any]) -> str:
    header = [
        "batch",
        "MACs asked",
        "target",
        "MACs",
        "branches gone",
        "importance lost",
        "time predicted",
        "time measured",
    ]
    lines = [
        [
            f"{row['batch']}",
            f"{row['fraction']:g}",
            row["target"],
            f"{row['mac_ratio']:.3f}",
            f"{row['removed']}",
            f"{row['lost']:.3f}",
            f"{row['predicted']:.3f}",
            f"{row['measured']:.3f}",
        ]
        for row in figures["rows"]
    ]
    errors = ", ".join(f"{one['error']:.1%} at batch {one['batch_size']}" for one in figures["tables"])
    return (
        "# Targets of time beside targets of MACs\n\nCIFAR-10's U-Net with random weights, one thread, whole norm groups removed. "
        "`MACs` rows meet a share of the MACs; `time` rows are planned to take as long, by prediction, as the row `MACs, width` "
        "above. `both` may also remove residual branches. Lost importance is a share of all; a channel's is its MACs times a "
        "random number, a branch's too. Times are processor seconds, as shares of the base's, medians of rounds in which all "
        f"networks ran in turn. Predictions for random plans are off by {errors} (median). Made by "
        f"`python benchmarks/latency_targets.py`.\n\n{markdown_table(header, lines)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one fraction, three rounds, batch 1")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    figures = measure(arguments.quick)
    publish("latency_targets", {**figures, "seconds": time.perf_counter() - started}, arguments.output)
    with atomic_path(arguments.output / "latency_targets.md") as part:
        part.write_text(_markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
