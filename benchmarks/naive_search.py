"""Greedy search compared with the naive way: wall time and proxy loss.

The naive way measures every candidate in every round on a deep copy that torch-pruning traces and prunes again, and counts its
MACs by running it. Both sides use the same proxy on the same draws, the same channels, candidates, rounds and target.

    python benchmarks/naive_search.py --network digits --proxy loss --fresh 3 --rounds 24
    python benchmarks/naive_search.py --network cifar     # a randomly initialised U-Net of CIFAR-10's DDPM
    python benchmarks/naive_search.py --table             # makes the table from all stored figures
"""

import argparse
import copy
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from _benches import bench_of
from _manifest import REPORTS, markdown_table, publish
from _peers import head_widths, mend
from torch import nn

from prunekit._files import atomic_path
from prunekit._types import IntArray
from prunekit.cost import count_macs
from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.importance.criteria import criterion
from prunekit.search import Repair, RepairKind, SearchOptions, SearchResult, Task, search
from prunekit.search.greedy import candidates_of, close
from prunekit.search.proposers import PROPOSERS
from prunekit.steps.bench import Bench
from prunekit.training import DenoisingObjective

REPAIRS: dict[str, RepairKind] = {"least-squares": "least-squares", "loss": "none"}
REPEATS = {"digits": 3, "cifar": 1}  # of greedy; the naive way runs once


def cut(model: Any, layer: str, indices: list[int], inputs: Any, heads: dict[str, int]) -> nn.Module:
    """A deep copy without these output channels of a layer and everything that depends on them, found by torch-pruning."""
    clone = copy.deepcopy(model)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(clone, example_inputs=inputs, verbose=False)
        module = clone.get_submodule(layer)
        linear = isinstance(module, nn.Linear)
        function = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
        graph.get_pruning_group(module, function, indices).prune()
    return mend(clone, heads).eval()


@dataclass
class Naive:
    """Greedy without its savings: every candidate is measured in every round, each on a newly traced copy."""

    bench: Bench
    probe: Probe
    repair: Repair
    seconds: float = 0.0
    measured: int = 0

    def __call__(self, task: Task) -> IntArray:
        """The proposer. The clock stops while the last gap to the target is closed, because that part is greedy's own."""
        started = time.process_time()
        inputs, problem = self.bench.base.spec.example_inputs(), task.widths
        model: Any = copy.deepcopy(self.bench.base.model)
        heads = head_widths(model)
        steps = np.zeros(len(problem.graph), dtype=np.int64)
        macs, loss, rates = self.bench.macs, self.probe.mean(model), {}
        chunk = (macs - problem.target) / task.rounds
        while candidates := candidates_of(problem, steps, chunk, task.bite):
            best: tuple[float, Any] | None = None
            for g, candidate in candidates.items():
                name, plan = problem.graph.groups[g].name, task.plan(candidate)
                now = task.plan(steps).kept.get(name, range(problem.graph.groups[g].size))
                gone = [i for i, root in enumerate(now) if root not in set(plan.kept[name])]
                pruned = cut(model, name, gone, inputs, heads)
                cost = count_macs(pruned, inputs).macs
                mended = copy.deepcopy(pruned)
                self.repair.mend(mended, plan)
                rise = self.probe.mean(mended) - loss
                self.measured += 1
                rates[g] = rise / (macs - cost)
                if best is None or rates[g] < best[0]:
                    best = (rates[g], (candidate, pruned, cost, loss + rise))
            assert best is not None
            steps, model, macs, loss = best[1]
        self.seconds = time.process_time() - started
        return close(task, steps, rates)


def table(folder: Path) -> None:
    """``naive_search.md``, made from the figures in a folder."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("naive_search_*.json"))]
    rows = [
        [
            f"{run['network']} to {run['target']:g}, {run['proxy']} on {run['samples']} draws, {run['rounds']} rounds",
            f"{run['channel_groups']}",
            f"{run['naive_measured']}",
            f"{run['greedy_measured']}",
            f"{run.get('fresh', '–')}",
            f"{run['naive_seconds']:.1f}",
            f"{run['greedy_seconds']:.1f}",
            f"{run['times_faster']:.1f}",
            f"{run['naive_loss']:.5f}",
            f"{run['greedy_loss']:.5f}",
        ]
        for run in runs
    ]
    header = [
        "network, proxy",
        "channel groups",
        "candidates, naive",
        "greedy",
        "of these anew per round, at least",
        "seconds, naive",
        "greedy",
        "times faster",
    ]
    text = (
        "# Greedy search against the naive way\n\n"
        "To a share of the MACs, one timestep group, one thread. Naive: every round measures every candidate, each on a deep copy "
        "that torch-pruning prunes after tracing it anew and whose MACs are counted by running it. Greedy: this project's search. "
        "Both have the same candidates, rounds, proxy and draws, and close the last stretch in the same way (not in the naive "
        "seconds, but in greedy's). Seconds are the thread's own, with other jobs beside both sides on CIFAR's network (its raw "
        "loss: wall time); all but least squares to 0.6 there were made before candidates shared what they have in common; "
        f"greedy's on digits are the median of {REPEATS['digits']} runs, the naive way ran once. `digits` is the embedded base, "
        "`cifar` is a randomly initialised U-Net in the configuration of CIFAR-10's DDPM on random images; its losses say "
        "nothing of quality. Made by `python benchmarks/naive_search.py`.\n\n"
    )
    with atomic_path(folder / "naive_search.md") as part:
        part.write_text(text + markdown_table([*header, "loss, naive", "greedy"], rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["digits", "cifar"], default="digits")
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--proxy", choices=list(REPAIRS), default="least-squares")
    parser.add_argument("--shortlist", type=int, default=8)
    parser.add_argument("--fresh", type=int, default=1)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--table", action="store_true", help="make the table of the figures that are there")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    args = parser.parse_args()
    if args.table:
        table(args.output)
        return
    torch.set_num_threads(1)
    bench, images = bench_of(args.network)
    base, samples = bench.base, args.samples or {"digits": 32, "cifar": 4}[args.network]
    group = make_groups(base.schedule, count=5)[2]
    probe = Probe(DenoisingObjective(images, base.parameterization), group, samples, min(samples, 64), 0)
    scores = criterion("taylor")(base.model, bench.graph, probe)
    target = int(args.target * bench.macs)
    options = SearchOptions(rounds=args.rounds, proxy=args.proxy, shortlist=args.shortlist, fresh=args.fresh)

    def run(options: SearchOptions) -> tuple[float, SearchResult]:
        started = time.process_time()
        found = search(base.model, bench.graph.with_multiples({}), bench.cost, scores, probe, target, options)
        return time.process_time() - started, found

    def loss_of(found: SearchResult) -> float:
        return float([e["loss"] for e in found.memory if "steps" in e and e["macs"] == found.macs][-1])

    repeats = REPEATS[args.network]
    times, found = zip(*[run(options) for _ in range(repeats + 1)][-repeats:], strict=True)  # the first warms up
    figures: dict[str, Any] = {
        "network": args.network,
        "channel_groups": len(bench.graph),
        "target": args.target,
        "rounds": args.rounds,
        "proxy": args.proxy,
        "shortlist": args.shortlist,
        "fresh": args.fresh,
        "samples": samples,
        "greedy_seconds": statistics.median(times),
        "greedy_measured": len(found[0].measured),
        "greedy_mac_ratio": found[0].macs / bench.macs,
        "greedy_loss": loss_of(found[0]),
    }
    print(figures, flush=True)
    naive = Naive(bench, probe, Repair.of(base.model, bench.graph, probe, REPAIRS[args.proxy]))
    PROPOSERS["naive"] = naive
    _, slow = run(replace(options, proposer="naive"))
    figures |= {
        "naive_seconds": naive.seconds,
        "naive_measured": naive.measured,
        "naive_mac_ratio": slow.macs / bench.macs,
        "naive_loss": loss_of(slow),
    }
    figures["times_faster"] = naive.seconds / figures["greedy_seconds"]
    figures["loss_ratio"] = figures["greedy_loss"] / figures["naive_loss"]
    target = f"{100 * args.target:.0f}"
    publish(f"naive_search_{args.network}_{args.proxy}_{args.rounds}_to_{target}", figures, args.output)


if __name__ == "__main__":
    main()
