"""What a search takes, with screening and without: operations, processor time, candidates, and the loss after an equal fine-tune.

Operations are the multiply-accumulates of all products that a search runs: forward passes of candidates, and the linear algebra of
repairs (sums for regressions, factorisations, products with weights). Element-wise work is left out. `digits` and `fashion` are
the embedded bases; `cifar` is a randomly initialised U-Net in the configuration of CIFAR-10's DDPM on random images, so its losses
say nothing of quality. Rows are appended to a JSON-lines file, and a second run resumes from it. Several processes may share
the file, each with its own --networks or --seeds. --times measures processor seconds without counting, before and after in turns.
--stable-diffusion estimates the search of Stable Diffusion 1.5, and --round measures a round of it with random weights at 32×32
latents (about 12 GB of memory). --table makes the table of everything that is there:

    python benchmarks/search_speed.py --networks digits fashion cifar --seeds 0 1 2
    python benchmarks/search_speed.py --times --networks digits fashion
    python benchmarks/search_speed.py --stable-diffusion --round && python benchmarks/search_speed.py --table
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _benches import bench_of
from _manifest import REPORTS, markdown_table, publish
from _operations import operations
from _sd15 import stable_diffusion
from torch import nn

from prunekit._files import atomic_path, write_json
from prunekit.groups import TimestepGroup, make_groups
from prunekit.importance import Probe, importance
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
    "screening on 24 draws": SearchOptions(screening=24),
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


def measure_times(subject: Subject, output: Path, turns: int = 3) -> None:
    """Append the median processor seconds of searches before and after, in turns."""
    group, budget = subject.groups[-1], subject.setting.budgets[-1]
    scores = subject.scores(0)[group.index]
    seconds: dict[str, list[float]] = {BEFORE: [], AFTER: []}
    for _ in range(turns):
        for variant, times in seconds.items():
            started = time.process_time()
            subject.search(scores, group, budget, VARIANTS[variant], 0)
            times.append(time.process_time() - started)
    row = {"network": subject.name, "seconds": {name: statistics.median(times) for name, times in seconds.items()}}
    with output.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(rows: list[dict[str, Any]], network: str, budget: float, variant: str) -> dict[str, Any] | None:
    """Means of a variant, and its paired comparison with the search before: ratio of the losses, standard error over pairs."""

    def by_pair(name: str) -> dict[tuple[int, int], dict[str, Any]]:
        chosen = [r for r in rows if (r.get("network"), r.get("budget"), r.get("variant")) == (network, budget, name)]
        return {(row["group"], row["seed"]): row for row in chosen}

    mine, theirs = by_pair(variant), by_pair(BEFORE)
    pairs = sorted(mine.keys() & theirs.keys())
    if not pairs:
        return None

    def ratios(key: str) -> list[float]:
        return [mine[pair][key] / theirs[pair][key] for pair in pairs]

    rise = [ratio - 1 for ratio in ratios("after")]
    return {
        "network": network,
        "budget": budget,
        "variant": variant,
        "seeds": len({seed for _, seed in pairs}),
        "pairs": len(pairs),
        "operations": float(np.mean([mine[pair]["operations"] for pair in pairs])),
        "fewer": 1 / float(np.mean(ratios("operations"))),
        "measured": float(np.mean([mine[pair]["measured"] for pair in pairs])),
        "on_all_draws": float(np.mean([mine[pair]["on_all_draws"] for pair in pairs])),
        "before": float(np.mean(ratios("before"))) - 1,
        "after": float(np.mean(rise)),
        "after_stderr": float(np.std(rise, ddof=1) / np.sqrt(len(rise))) if len(rise) > 1 else None,
    }


def markdown(summaries: list[dict[str, Any]], times: list[dict[str, Any]], large: dict[str, Any] | None) -> str:
    """The tables."""
    header = ["network, MACs", "search", "seeds", "candidates", "of these on all draws", "operations, G", "times fewer"]
    header += ["loss before fine-tuning", "after", "±"]
    table = [
        [
            f"{s['network']}, {s['budget']:g}",
            s["variant"],
            str(s["seeds"]),
            f"{s['measured']:.0f}",
            f"{s['on_all_draws']:.0f}",
            f"{s['operations'] / 1e9:.1f}",
            f"{s['fewer']:.1f}",
            f"{s['before']:+.1%}",
            f"{s['after']:+.1%}",
            "—" if s["after_stderr"] is None else f"{s['after_stderr']:.1%}",
        ]
        for s in summaries
    ]
    parts = [
        "# The search before and after screening\n",
        "Greedy by the proxy least-squares on Taylor's scores. Before, every candidate is measured on all draws of the calibration "
        "set. With screening, rounds compare candidates on few draws after a repair that starts from the repaired network of the "
        "last choice; the exchanges at the end are measured on all draws. Operations are multiply-accumulates of all products, "
        "repairs included. Losses are on held-out images with fixed noise, compared with the search before, paired by timestep "
        "group and seed; after an equal short fine-tune, with the standard error over the pairs. `digits` and `fashion` are the "
        "embedded bases with 256 draws in batches of 64; `cifar` is a randomly initialised U-Net in the configuration of "
        "CIFAR-10's DDPM on random images with 64 draws, and its losses say nothing of quality. Made by "
        "`python benchmarks/search_speed.py`; rows in `search_speed.jsonl`.\n",
        markdown_table(header, table),
    ]
    if times:
        rows = [[t["network"], *(f"{t['seconds'][name]:.1f}" for name in (BEFORE, AFTER))] for t in times]
        parts += [
            "Processor seconds of one search, one thread, medians of three in turns, other jobs beside it:\n",
            markdown_table(["network", BEFORE, AFTER], rows),
        ]
    if large:
        parts += [
            "## Stable Diffusion 1.5\n",
            f"{large['channel_groups']} channel groups, {large['macs'] / 1e9:.0f} GMACs per sample at 64×64 latents. "
            "The upper bound of one timestep group's search, with all rounds' whole short lists, in float32 at 30 % of the GPU's "
            "stated FLOP/s:\n",
            markdown_table(
                ["search", "operations, P", "A100, minutes", "H100, minutes"],
                [
                    [name, f"{own['operations'] / 1e15:.2f}", f"{own['A100'] * 60:.0f}", f"{own['H100'] * 60:.0f}"]
                    for name, own in large["searches"].items()
                ],
            ),
        ]
        if "round" in large:
            own = large["round"]
            parts.append(
                f"A round measured with random weights at 32×32 latents, {own['draws']} draws, {own['threads']} threads: "
                f"{own['measured']} candidates, {own['operations'] / 1e12:.2f} T operations "
                f"({own['forward'] / 1e12:.2f} T of them forward passes of candidates at full width), "
                f"{own['seconds']:.0f} processor seconds, peak memory {own['peak'] / 2**30:.1f} GiB.\n"
            )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["digits", "fashion"], choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", default=[BEFORE, AFTER])
    parser.add_argument("--budgets", type=float, nargs="*")
    parser.add_argument("--times", action="store_true", help="measure processor seconds in turns")
    parser.add_argument("--stable-diffusion", action="store_true", help="estimate Stable Diffusion 1.5's search")
    parser.add_argument("--round", action="store_true", help="and measure a round of it")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    rows, large = args.output / "search_speed.jsonl", args.output / "search_speed_sd15.json"
    if args.table:
        make_table(rows, large, args.output)
        return
    if args.stable_diffusion:
        write_json(large, stable_diffusion(args.round))
        return
    torch.set_num_threads(1)
    for name in args.networks:
        if args.budgets:
            SETTINGS[name] = replace(SETTINGS[name], budgets=tuple(args.budgets))
        subject = Subject(name)
        if args.times:
            measure_times(subject, rows)
            continue
        for seed in args.seeds:
            measure(subject, seed, rows, args.variants)


def make_table(path: Path, large: Path, folder: Path) -> None:
    """``search_speed.json`` and ``speed.md``."""
    rows = rows_of(path)
    found = [
        summary(rows, network, budget, variant)
        for network, setting in SETTINGS.items()
        for budget in setting.budgets
        for variant in VARIANTS
    ]
    summaries, times = [s for s in found if s is not None], [row for row in rows if "seconds" in row]
    about = json.loads(large.read_text(encoding="utf-8")) if large.is_file() else None
    publish("search_speed", {"rows": summaries, "times": times, "stable_diffusion": about}, folder)
    with atomic_path(folder / "speed.md") as part:
        part.write_text(markdown(summaries, times, about), encoding="utf-8")


if __name__ == "__main__":
    main()
