"""Measured speed-up by MAC fraction on the CIFAR-10 U-Net, with free widths and with widths that suit the hardware.

The base and the pruned networks run one after the other in each round, in the opposite order in every other round, so that the
machine's noise affects them equally. A speed-up is the median over rounds of base seconds / pruned seconds, with its quartiles.
Writes reports/engine/speedup.json, .md and .png, in at most about eight minutes: python benchmarks/speedup.py [--quick]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from _random_plans import importance, plan_of
from _timing import in_turns
from cifar_unet import cifar_unet
from torch import nn

from prunekit._files import atomic_path
from prunekit.cost import CostModel
from prunekit.graph import ChannelGraph, PruningPlan, apply, trace

mpl.use("Agg")
import matplotlib.pyplot as plt

FRACTIONS = (0.9, 0.8, 0.6, 0.4)
BATCHES = (1, 16)
THREADS = (1, 2)
MULTIPLES = {1: 16, 32: 32}
FREE, FRIENDLY = "free", "multiples of 32 at 32×32, of 16 below"
SECONDS = {1: 8, 16: 36}  # of rounds, for each batch size, number of threads and fraction
ROUNDS = (5, 31)  # at least and at most
QUICK_ROUNDS = (3, 3)


def pruned_networks(model: nn.Module, inputs: Any, fractions: tuple[float, ...]) -> list[dict[str, Any]]:
    """One network per fraction and kind of widths, and what it costs."""
    graph = trace(model, inputs, norm_mode="whole")  # widths of 128 channels move by 4, of 256 by 8
    cost = CostModel.of(model, graph, inputs)
    base_macs = int(cost.macs(graph.full_widths))
    scores = importance(graph, cost)
    kinds: Mapping[str, ChannelGraph] = {FREE: graph, FRIENDLY: graph.with_multiples(MULTIPLES)}
    networks = []
    for fraction in fractions:
        for kind, asked in kinds.items():
            target = int(fraction * base_macs)
            started = time.perf_counter()
            widths = plan_of(asked, cost, scores, target)
            seconds = time.perf_counter() - started
            plan = PruningPlan.from_widths(asked, widths, scores)
            networks.append(
                {
                    "model": apply(model, graph, plan).eval(),
                    "fraction": fraction,
                    "widths": kind,
                    "mac_ratio": int(cost.macs(widths)) / base_macs,
                    "params": int(cost.params(widths)),
                    "width_search_seconds": seconds,
                }
            )
    return networks


def wall_seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(quick: bool) -> dict[str, Any]:
    """All networks at every batch size and number of threads."""
    model, inputs = cifar_unet()
    networks = pruned_networks(model, inputs, FRACTIONS[2:3] if quick else FRACTIONS)
    rows = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for batch in (1, 2) if quick else BATCHES:
            for fraction in dict.fromkeys(network["fraction"] for network in networks):
                same = [network for network in networks if network["fraction"] == fraction]
                models = [model, *(network["model"] for network in same)]
                batched = (torch.randn(batch, 3, 32, 32), torch.full((batch,), 500))
                runs = [partial(one, *batched) for one in models]
                rounds = QUICK_ROUNDS if quick else ROUNDS
                seconds = in_turns(runs, wall_seconds, *rounds, SECONDS.get(batch, 1))
                rows += [_row(network, seconds[:, [0, i]], batch, threads) for i, network in enumerate(same, 1)]
    return {"quick": quick, "norm_mode": "whole", "multiples": MULTIPLES, "rows": rows}


def _row(network: dict[str, Any], seconds: np.ndarray, batch: int, threads: int) -> dict[str, Any]:
    low, middle, high = np.quantile(seconds[:, 0] / seconds[:, 1], (0.25, 0.5, 0.75))
    return {
        "batch": batch,
        "threads": threads,
        **{name: value for name, value in network.items() if name != "model"},
        "base_milliseconds": 1e3 * float(np.median(seconds[:, 0])),
        "pruned_milliseconds": 1e3 * float(np.median(seconds[:, 1])),
        "speedup": float(middle),
        "quartiles": [float(low), float(high)],
        "ideal": 1 / network["mac_ratio"],
        "rounds": len(seconds),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per batch size and number of threads: speed-up by MAC fraction, and the ideal."""
    cells = sorted({(row["threads"], row["batch"]) for row in rows})
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True, sharey=True, squeeze=False, layout="constrained")
    for axis, (threads, batch) in zip(axes.flat, cells, strict=True):
        ratios = np.linspace(min(row["mac_ratio"] for row in rows) * 0.95, 1)
        axis.plot(ratios, 1 / ratios, color="0.5", linestyle="--", label="ideal: 1 / MAC fraction")
        for kind, marker, colour in ((FREE, "o", "C0"), (FRIENDLY, "s", "C1")):
            own = [row for row in rows if (row["threads"], row["batch"], row["widths"]) == (threads, batch, kind)]
            middle = np.array([row["speedup"] for row in own])
            spread = np.abs(np.array([row["quartiles"] for row in own]).T - middle)
            places = [row["mac_ratio"] for row in own]
            axis.errorbar(places, middle, spread, marker=marker, color=colour, capsize=3, label=f"widths {kind}")
        axis.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        axis.grid(alpha=0.3)
    figure.supxlabel("MACs kept, fraction of the base")
    figure.supylabel("speed-up over the base (median and quartiles of paired runs)")
    axes[0, 0].legend()
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            f"{row['batch']}",
            f"{row['threads']}",
            row["widths"],
            f"{row['mac_ratio']:.4f}",
            f"{row['base_milliseconds']:.1f}",
            f"{row['pruned_milliseconds']:.1f}",
            f"{row['speedup']:.2f} ({row['quartiles'][0]:.2f} … {row['quartiles'][1]:.2f})",
            f"{row['ideal']:.2f}",
            f"{row['rounds']}",
        ]
        for row in rows
    ]
    header = ["batch", "threads", "widths", "MAC fraction", "base ms", "pruned ms", "speed-up", "ideal", "rounds"]
    return (
        "# Speed-up against MAC fraction\n\nCIFAR-10 U-Net with random weights on the CPU, whole norm groups removed; milliseconds "
        "per forward pass. Speed-up: median and quartiles of base / pruned over rounds in which both ran in turn. "
        f"Ideal: 1 / MAC fraction.\n\n{markdown_table(header, lines)}\n![speed-up](speedup.png)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one fraction, three rounds, small batches")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of results")
    arguments = parser.parse_args()
    started = time.perf_counter()
    figures = measure(arguments.quick)
    publish("speedup", {**figures, "seconds": time.perf_counter() - started}, arguments.output)
    with atomic_path(arguments.output / "speedup.md") as part:
        part.write_text(_markdown(figures["rows"]), encoding="utf-8")
    draw(figures["rows"], arguments.output / "speedup.png")


if __name__ == "__main__":
    main()
