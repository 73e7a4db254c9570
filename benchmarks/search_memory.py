"""Peak memory of scoring and searching, compared with one train step of the base; each in its own process, with equal batches.

python benchmarks/search_memory.py --network digits
python benchmarks/search_memory.py --network cifar     # a randomly initialised U-Net of CIFAR-10's DDPM
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _benches import bench_of
from _manifest import REPORTS, publish

from prunekit.groups import make_groups
from prunekit.importance import Probe, importance
from prunekit.search import PROXIES, SearchOptions, search
from prunekit.training import DenoisingObjective, RangeTimesteps, TrainOptions, train


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(network: str, work: str, batch: int, rounds: int) -> dict[str, float]:
    """MiB resident with base and images loaded, and at the peak of the work."""
    torch.set_num_threads(1)
    bench, images = bench_of(network)
    base = bench.base
    objective = DenoisingObjective(images, base.parameterization)
    before = resident()
    if work == "train":
        options = TrainOptions(steps=2, batch_size=batch, warmup_steps=1)
        train(base.model, objective, RangeTimesteps(0, base.schedule.num_timesteps), options)
    else:
        group = make_groups(base.schedule, count=5)[2]
        scores = importance(
            base.model,
            base.spec.example_inputs(),
            objective,
            [group],
            samples=2 * batch,
            batch_size=batch,
            graph=bench.graph,
        ).of(group.index)
        options_ = SearchOptions(rounds=rounds, shortlist=4, proxy=work)
        probe = Probe(objective, group, 2 * batch, batch)
        search(base.model, bench.graph.with_multiples({}), bench.cost, scores, probe, int(0.6 * bench.macs), options_)
    return {"before": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["digits", "cifar"], default="digits")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proxies", nargs="*", default=list(PROXIES))
    parser.add_argument("--work", help="measure this alone, here")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    args = parser.parse_args()
    batch = args.batch or (64 if args.network == "digits" else 8)
    if args.work:
        print(json.dumps(measure(args.network, args.work, batch, args.rounds)))
        return
    figures: dict[str, Any] = {"network": args.network, "batch": batch, "unit": "MiB"}
    for work in ("train", *args.proxies):
        command = [
            sys.executable,
            __file__,
            "--network",
            args.network,
            "--batch",
            str(batch),
            "--rounds",
            str(args.rounds),
        ]
        told = subprocess.run([*command, "--work", work], check=True, capture_output=True, text=True)  # noqa: S603
        figures[work] = json.loads(told.stdout.splitlines()[-1])
        figures[work]["rise"] = figures[work]["peak"] - figures[work]["before"]
        figures[work]["rise_to_training"] = figures[work]["rise"] / figures["train"]["rise"]
        print(work, figures[work], flush=True)
    publish(f"search_memory_{args.network}", figures, args.output)


if __name__ == "__main__":
    main()
