"""What a search takes, with screening and without: operations, processor time, candidates, and the loss after an equal fine-tune.

Operations are the multiply-accumulates of all products that a search runs: forward passes of candidates, and the linear algebra of
repairs (sums for regressions, factorisations, products with weights). Element-wise work is left out. `digits` and `fashion` are
the embedded bases; `cifar` is a randomly initialised U-Net in the configuration of CIFAR-10's DDPM on random images, so its losses
say nothing of quality. Rows are appended to a JSON-lines file, and a second run resumes from it. Several processes may share
the file, each with its own --networks or --seeds. --times measures processor seconds in turns; --table makes the table:

    python benchmarks/search_speed.py --networks digits fashion --seeds 0 1 2
    python benchmarks/search_speed.py --times && python benchmarks/search_speed.py --table
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _benches import bench_of
from _manifest import REPORTS
from _operations import operations
from torch import nn

from prunekit.groups import TimestepGroup, make_groups
from prunekit.importance import Probe
from prunekit.search import SearchOptions, SearchResult, repair, search
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective, TrainOptions, group_timesteps, train

FOLDER = REPORTS.parent / "search"
BEFORE = "all draws (before)"
AFTER = "screening on 16 draws"
VARIANTS: Mapping[str, SearchOptions] = {
    BEFORE: SearchOptions(screening=0),
    AFTER: SearchOptions(screening=16),
    "screening on 32 draws": SearchOptions(screening=32),
    "screening on 8 draws": SearchOptions(screening=8),
}


@dataclass(frozen=True)
class Setting:
    """How a network is searched and fine-tuned.

    Args:
        groups: number of timestep groups.
        budgets: shares of the MACs.
        samples: draws of the calibration set.
        batch_size: draws that repairs are fitted to.
        steps: steps of the fine-tune.
        tuned: its batch size.
    """

    groups: int = 2
    budgets: tuple[float, ...] = (0.8, 0.5)
    samples: int = 256
    batch_size: int = 64
    steps: int = 100
    tuned: int = 64


SETTINGS = {
    "digits": Setting(),
    "fashion": Setting(),
    "cifar": Setting(1, (0.6,), 64, 64, 10, 16),
}


class Subject:
    """A network with its images and losses."""

    def __init__(self, name: str) -> None:
        self.name, self.setting = name, SETTINGS[name]
        if name == "cifar":
            self.bench, training = bench_of(name)
            held_out = training
        else:
            base = open_base(f"embedded:{name}")
            self.bench, images = Bench.of(base), images_of(base)
            training, held_out = images.train.images, images.held_out.images
        self.base = self.bench.base
        self.objective = DenoisingObjective(training, self.base.parameterization)
        self.held_out = DenoisingObjective(held_out, self.base.parameterization)
        self.images = training
        self.groups = list(make_groups(self.base.schedule, count=self.setting.groups))
        self.graph = self.bench.graph if name == "cifar" else self.bench.graph.with_multiples({})

    def scores(self, seed: int) -> list[Any]:
        """Taylor's scores by timestep group."""
        from prunekit.importance import importance  # noqa: PLC0415

        found = importance(
            self.base.model,
            self.base.spec.example_inputs(),
            self.objective,
            self.groups,
            samples=self.setting.samples,
            batch_size=self.setting.batch_size,
            seed=seed,
            graph=self.bench.graph,
        )
        return [found.of(group.index) for group in self.groups]

    def probe(self, group: TimestepGroup, seed: int) -> Probe:
        """The calibration set."""
        return Probe(self.objective, group, self.setting.samples, self.setting.batch_size, seed)

    def search(
        self, scores: Any, group: TimestepGroup, budget: float, options: SearchOptions, seed: int
    ) -> SearchResult:
        """A search."""
        target = int(budget * self.bench.macs)
        probe = self.probe(group, seed)
        return search(self.base.model, self.graph, self.bench.cost, scores, probe, target, replace(options, seed=seed))

    def after(self, model: nn.Module, group: TimestepGroup, seed: int) -> float:
        """Held-out loss after the fine-tune."""
        settings = TrainOptions(
            self.setting.steps,
            self.setting.tuned,
            learning_rate=4e-4,
            warmup_steps=self.setting.steps // 10,
            ema_decay=0.98,
            seed=1009 * seed + group.index,
        )
        timesteps = group_timesteps(group, self.base.schedule.num_timesteps, 20)
        return self.judge(group).mean(train(model, self.objective, timesteps, settings).model)

    def judge(self, group: TimestepGroup) -> Probe:
        """The held-out loss."""
        return Probe(self.held_out, group, 1024 if self.name != "cifar" else 64, 128, 1)


def measure(subject: Subject, seed: int, output: Path, only: list[str]) -> None:
    """Measure all rows of one network and seed that the file does not have yet."""
    done = {(r["variant"], r["network"], r["budget"], r["group"], r["seed"]) for r in rows_of(output)}
    waiting = [
        (variant, budget, group)
        for variant in only
        for budget in subject.setting.budgets
        for group in subject.groups
        if (variant, subject.name, budget, group.index, seed) not in done
    ]
    scores = subject.scores(seed) if waiting else []
    for variant, budget, group in waiting:
        started = time.process_time()
        with operations() as counted:
            found = subject.search(scores[group.index], group, budget, VARIANTS[variant], seed)
        seconds = time.process_time() - started
        pruned = repair(subject.base.model, subject.graph, found.plan, subject.probe(group, seed))
        row = {
            "network": subject.name,
            "variant": variant,
            "budget": budget,
            "group": group.index,
            "seed": seed,
            "operations": counted.macs,
            "per_draw": subject.bench.macs,
            "counted_seconds": seconds,
            "measured": len(found.measured),
            "on_all_draws": sum("draws" not in entry for entry in found.measured),
            "mac_ratio": found.macs / subject.bench.macs,
            "proxy": next(entry["loss"] for entry in reversed(found.memory) if "draws" not in entry),
            "before": subject.judge(group).mean(pruned),
            "after": subject.after(pruned, group, seed),
            "widths": [after for _, after in found.widths.values()],
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "widths"}, flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["digits", "fashion"], choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--budgets", type=float, nargs="*")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=FOLDER / "search_speed.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        if args.budgets:
            SETTINGS[name] = replace(SETTINGS[name], budgets=tuple(args.budgets))
        subject = Subject(name)
        for seed in args.seeds:
            measure(subject, seed, args.output, args.variants)


if __name__ == "__main__":
    main()
