"""How closely and how fast a MAC target is met on the CIFAR-10 U-Net with random weights, compared with torch-pruning.

torch-pruning takes pruning ratios, not targets. So bisection finds the best ratio for each target, for its `BasePruner`
(local, global and isomorphic ranking, with and without `round_to`). Everything is counted on the pruned networks by `count_macs`.
Writes reports/engine/targets.json and .md, in about twelve minutes on one core: python benchmarks/targets.py [--quick]
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from _torch_pruning import Peer
from cifar_unet import cifar_unet
from torch import nn

from prunekit._files import atomic_path
from prunekit.cost import CostModel, count_macs
from prunekit.graph import ChannelGraph, PruningPlan, apply, trace
from prunekit.search import WidthProblem, lost_importance, meet_target

TARGETS = tuple(round(0.30 + 0.05 * i, 2) for i in range(14))
MULTIPLES: Mapping[str, Mapping[int, int]] = {
    "any widths": {},
    "multiples of 8": {1: 8},
    "multiples of 16": {1: 16},
    "multiples of 32": {1: 32},
    "32 at 32×32, 16 below": {1: 16, 32: 32},
}
RANKINGS = ("local", "global", "isomorphic")
ROUND_TO = (None, 8, 16, 32)
TOLERANCE = 0.001


def our_rows(model: nn.Module, inputs: Any, targets: tuple[float, ...]) -> dict[str, Any]:
    """Figures of `meet_target` for both norm modes and all multiples."""
    found: dict[str, Any] = {"tolerance": TOLERANCE, "setup_seconds": {}, "rows": []}
    for mode in ("even", "whole"):
        started = time.perf_counter()
        graph = trace(model, inputs, mode)
        cost = CostModel.of(model, graph, inputs)
        found["setup_seconds"][mode] = time.perf_counter() - started
        rng = np.random.default_rng(0)
        scores = {group.name: rng.random(group.size) for group in graph}
        for name, multiples in MULTIPLES.items():
            limited = graph.with_multiples(multiples)
            for asked in targets:
                figures = our_row(model, inputs, limited, cost, scores, asked)
                found["rows"].append({"norm_mode": mode, "widths": name, **figures})
    return found


def our_row(
    model: nn.Module, inputs: Any, graph: ChannelGraph, cost: CostModel, scores: dict[str, Any], asked: float
) -> dict[str, Any]:
    full = int(cost.macs(graph.full_widths))
    started = time.perf_counter()
    problem = WidthProblem(graph, cost, lost_importance(graph, scores), int(asked * full), int(TOLERANCE * full))
    widths = problem.widths(meet_target(problem))
    seconds = time.perf_counter() - started
    got = count_macs(apply(model, graph, PruningPlan.from_widths(graph, widths, scores), share=True), inputs).macs
    return {"asked": asked, "got": got / full, "missed": (problem.target - got) / full, "seconds": seconds}


def peer_rows(model: nn.Module, inputs: Any, targets: tuple[float, ...]) -> list[dict[str, Any]]:
    full = count_macs(model, inputs).macs
    rows = []
    for ranking in RANKINGS:
        for round_to in ROUND_TO:
            peer = Peer(model, inputs, ranking, round_to)
            for asked in targets:
                best = peer.best(int(asked * full), full)
                rows.append({"ranking": ranking, "round_to": round_to, "asked": asked, **best})
    return rows


def markdown(figures: dict[str, Any], targets: tuple[float, ...]) -> str:
    """Tables of the distance to the target, in per cent of the base."""
    ours, peers = figures["prunekit"]["rows"], figures["torch_pruning"]
    lines = [
        "# MAC targets on the CIFAR-10 U-Net (random weights)\n",
        "How far below the target the pruned network ends, in % of the base's MACs (no result is above its target), and seconds "
        "per target. Made by `python benchmarks/targets.py`; the figures are in `targets.json`.\n",
    ]
    for mode in ("even", "whole"):
        table = [
            [f"{asked:.2f}", *(cell(ours, norm_mode=mode, widths=name, asked=asked) for name in MULTIPLES)]
            for asked in targets
        ]
        lines += [f"## prunekit, norm mode `{mode}`\n", markdown_table(["target", *MULTIPLES], table)]
    for ranking in RANKINGS:
        table = [
            [f"{asked:.2f}", *(cell(peers, ranking=ranking, round_to=r, asked=asked) for r in ROUND_TO)]
            for asked in targets
        ]
        names = ["no round_to" if r is None else f"round_to={r}" for r in ROUND_TO]
        lines += [f"## torch-pruning, {ranking}, best ratio by bisection\n", markdown_table(["target", *names], table)]
    lines.append(
        "A dash: no ratio that bisection visits came to the target or below it (the reason and the least that was reached are "
        "in `targets.json`). With `round_to`, layers tied to a group norm of 32 groups stay whole: the number to remove is "
        "counted within one norm group and rounded on the whole width. Repeated ratios are pruned once, and their time is "
        "counted for each target.\n"
    )
    return "\n".join(lines)


def cell(rows: list[dict[str, Any]], **keys: Any) -> str:
    (row,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return f"{100 * row['missed']:.4f} ({row['seconds']:.2f} s)" if "missed" in row else "—"


def summary(rows: list[dict[str, Any]], *keys: str) -> dict[str, Any]:
    """Worst miss, slowest target and failures by kind."""
    found: dict[str, Any] = {}
    for row in rows:
        name = ", ".join(str(row[key]) for key in keys)
        worst = found.setdefault(name, {"worst_missed": 0.0, "slowest_seconds": 0.0, "failures": 0})
        worst["worst_missed"] = max(worst["worst_missed"], row.get("missed", 0.0))
        worst["slowest_seconds"] = max(worst["slowest_seconds"], row["seconds"])
        worst["failures"] += "missed" not in row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two targets only")
    parser.add_argument("--output", type=Path, default=REPORTS)
    arguments = parser.parse_args()
    targets = (0.5, 0.8) if arguments.quick else TARGETS
    torch.set_num_threads(1)
    model, inputs = cifar_unet()
    ours, peers = our_rows(model, inputs, targets), peer_rows(model, inputs, targets)
    summaries = {"prunekit": summary(ours["rows"], "norm_mode", "widths")}
    summaries["torch_pruning"] = summary(peers, "ranking", "round_to")
    base = {"macs": count_macs(model, inputs).macs, "threads": torch.get_num_threads()}
    figures = {**base, "summary": summaries, "prunekit": ours, "torch_pruning": peers}
    publish("targets", figures, arguments.output)
    with atomic_path(arguments.output / "targets.md") as part:
        part.write_text(markdown(figures, targets), encoding="utf-8")


if __name__ == "__main__":
    main()
