"""Greedy search against the naive way: wall time and proxy loss.

The naive way measures every candidate in every round on a deep copy that torch-pruning prunes after tracing it anew, and counts
its MACs by running it. Both sides use the same proxy on the same draws, the same channels, chunk per round and target.

    python benchmarks/naive_search.py --network digits
    python benchmarks/naive_search.py --network cifar     # a randomly initialised U-Net of CIFAR-10's DDPM
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from _benches import bench_of
from _manifest import REPORTS, publish
from _peers import head_widths, mend
from torch import nn

from prunekit.cost import count_macs
from prunekit.graph import PruningPlan
from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.importance.criteria import criterion
from prunekit.pipeline.stages import Bench
from prunekit.search import Repair, RepairKind, SearchOptions, search
from prunekit.training import DenoisingObjective

REPAIRS: dict[str, RepairKind] = {"least-squares": "least-squares", "loss": "none"}


def cut(model: Any, layer: str, indices: list[int], inputs: Any, heads: dict[str, int]) -> nn.Module:
    """A deep copy without these output channels of a layer, and whatever torch-pruning finds to depend on them."""
    clone = copy.deepcopy(model)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(clone, example_inputs=inputs, verbose=False)
        module = clone.get_submodule(layer)
        linear = isinstance(module, nn.Linear)
        function = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
        graph.get_pruning_group(module, function, indices).prune()
    return mend(clone, heads).eval()


def naive(bench: Bench, scores: Any, probe: Probe, target: int, rounds: int, proxy: str) -> tuple[float, int, int]:
    """Loss, MACs and number of measured candidates where every candidate is measured in every round."""
    inputs = bench.base.spec.example_inputs()
    model: Any = copy.deepcopy(bench.base.model)
    heads = head_widths(model)
    kept = {group.name: np.arange(group.size) for group in bench.graph}
    repair = Repair.of(bench.base.model, bench.graph, probe, REPAIRS[proxy])
    macs, chunk, measured = bench.macs, (bench.macs - target) / rounds, 1
    loss = probe.mean(model)
    while macs > target:
        best: tuple[float, Any] | None = None
        for group in bench.graph:
            now = len(kept[group.name])
            for width in group.widths[group.widths < now]:
                stay = group.select(scores[group.name], int(width))
                gone = [int(i) for i, root in enumerate(kept[group.name]) if root not in set(stay.tolist())]
                widths = np.array([width if g is group else len(kept[g.name]) for g in bench.graph])
                saved = macs - int(bench.cost.macs(widths))
                if saved >= 0.5 * min(chunk, macs - target) or width == group.widths[-1]:
                    candidate = cut(model, group.name, gone, inputs, heads)
                    cost = count_macs(candidate, inputs).macs
                    mended = copy.deepcopy(candidate)
                    left = {name: tuple(int(i) for i in roots) for name, roots in {**kept, group.name: stay}.items()}
                    repair.mend(mended, PruningPlan(left, bench.graph.fingerprint))
                    candidate_loss = probe.mean(mended)
                    measured += 1
                    rate = (candidate_loss - loss) / max(macs - cost, 1)
                    if best is None or rate < best[0]:
                        best = (rate, (group.name, stay, candidate, cost, candidate_loss))
                    break
        if best is None:
            break
        name, stay, model, macs, loss = best[1]
        kept[name] = stay
    return loss, macs, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["digits", "cifar"], default="digits")
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--proxy", choices=list(REPAIRS), default="least-squares")
    parser.add_argument("--shortlist", type=int, default=8)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--skip-naive", action="store_true")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench, images = bench_of(args.network)
    base, samples = bench.base, args.samples or {"digits": 256, "cifar": 8}[args.network]
    group = make_groups(base.schedule, count=5)[2]
    probe = Probe(DenoisingObjective(images, base.schedule, base.prediction_type), group, samples, min(samples, 64), 0)
    scores = criterion("taylor")(base.model, bench.graph, probe)
    target = int(args.target * bench.macs)
    started = time.perf_counter()
    found = search(
        base.model,
        bench.graph,
        bench.cost,
        scores,
        probe,
        target,
        SearchOptions(rounds=args.rounds, proxy=args.proxy, shortlist=args.shortlist),
    )
    figures: dict[str, Any] = {
        "network": args.network,
        "target": args.target,
        "rounds": args.rounds,
        "proxy": args.proxy,
        "shortlist": args.shortlist,
        "samples": samples,
        "greedy_seconds": time.perf_counter() - started,
        "greedy_measured": sum("steps" in entry and "chosen" not in entry for entry in found.memory),
        "greedy_mac_ratio": found.macs / bench.macs,
        "greedy_loss": [e["loss"] for e in found.memory if "steps" in e and e["macs"] == found.macs][-1],
    }
    print(figures, flush=True)
    if not args.skip_naive:
        started = time.perf_counter()
        loss, macs, measured = naive(bench, scores, probe, target, args.rounds, args.proxy)
        seconds = time.perf_counter() - started
        figures |= {
            "naive_seconds": seconds,
            "naive_measured": measured,
            "naive_loss": loss,
            "naive_mac_ratio": macs / bench.macs,
        }
        figures["times_faster"] = seconds / figures["greedy_seconds"]
    publish(f"naive_search_{args.network}_{args.proxy}_{samples}", figures, args.output)


if __name__ == "__main__":
    main()
