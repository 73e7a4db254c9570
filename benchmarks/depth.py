"""Depth beside width: the loss and the time of networks that lose channels, residual branches, or both, at equal MACs.

Each timestep group of three bases (the embedded U-Nets of digits and of Fashion-MNIST, and a DiT on Fashion-MNIST) is pruned to the
same share of the base's MACs. The loss is measured on images that no search used, before and after the same short fine-tune. Each
row is appended to a JSON-lines file, and a second run resumes from it. Several processes may share the file, each with its own
--seeds or --bases. --times then measures the rows' networks, the base and all ways to shrink in turn, and --table makes the table:

    python benchmarks/depth.py && python benchmarks/depth.py --times && python benchmarks/depth.py --table
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from _depth_table import markdown, summaries
from _manifest import REPORTS, publish
from _timing import in_turns, on
from torch import nn

from prunekit._files import atomic_path
from prunekit.choices import Shrink
from prunekit.errors import BudgetError
from prunekit.graph import ChannelGroup, PruningPlan, apply
from prunekit.groups import TimestepGroup, make_groups
from prunekit.importance import ImportanceMap, Probe
from prunekit.recipe import PruneOptions
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.image_choice import images_of
from prunekit.steps.objectives import objective_for
from prunekit.training import TrainOptions, group_timesteps, train

FOLDER = REPORTS.parent / "search"
BASES = {
    "digits": "embedded:digits",
    "fashion": "embedded:fashion",
    "dit": str(REPORTS.parents[1] / "recipes" / "fashion-bases" / "dit.safetensors"),
}
GROUPS, BUDGETS, STEPS, OVERLAP, DRAWS = 2, (0.8, 0.6, 0.4), 100, 20, 1024
WAYS = get_args(Shrink)
BATCHES, ROUNDS = (1, 16), 31
DEFAULT = PruneOptions(samples=128)
Row = dict[str, Any]


class Subject:
    """One base with everything that its rows share."""

    def __init__(self, name: str) -> None:
        self.name, self.base = name, open_base(BASES[name])
        self.images, self.groups = images_of(self.base), make_groups(self.base.schedule, count=GROUPS)
        told = (self.base.spec, self.base.parameterization)
        self.tuning = objective_for(self.images.train, *told)
        self.judges = [Probe(objective_for(self.images.held_out, *told), group, DRAWS, 128, 1) for group in self.groups]

    @cache  # noqa: B019 - a subject lives as long as the process
    def bench(self, way: Shrink) -> Bench:
        return Bench.of(self.base, shrink=way)

    @cache  # noqa: B019
    def scores(self, way: Shrink, seed: int) -> ImportanceMap:
        options = replace(DEFAULT, seed=seed, shrink=way)
        return score_groups(self.bench(way), self.images.train, self.groups, options)

    @cache  # noqa: B019
    def whole(self, group: int) -> float:
        return self.judges[group].mean(self.base.model)

    def tuned(self, model: nn.Module, group: TimestepGroup, seed: int) -> float:
        """The loss of a network after the fine-tune."""
        rate, own = 4e-4, 1009 * seed + group.index
        settings = TrainOptions(STEPS, 64, learning_rate=rate, warmup_steps=10, ema_decay=0.98, seed=own)
        timesteps = group_timesteps(group, self.base.schedule.num_timesteps, OVERLAP)
        return self.judges[group.index].mean(train(model, self.tuning, timesteps, settings).model)

    def pruned(self, way: Shrink, budget: float, group: TimestepGroup, seed: int) -> Row:
        """What shrinking costs; without a loss if no plan meets the budget."""
        bench, options = self.bench(way), replace(DEFAULT, seed=seed, shrink=way)
        found, started = self.scores(way, seed), time.process_time()
        try:
            slim, result = prune_group(bench, self.images.train, found, group, int(budget * bench.macs), options)
        except BudgetError as error:
            return {"least": error.feasible[0] / bench.macs}
        seconds, params = time.process_time() - started, sum(p.numel() for p in self.base.model.parameters())
        return {
            "mac_ratio": slim.macs / bench.macs,
            "param_ratio": slim.params / params,
            "removed": list(slim.plan.removed),
            "branches": sum(each.branch is not None for each in bench.graph),
            "widths": {name: after for name, (before, after) in result.widths.items() if after != before},
            "processor_seconds": seconds,
            "before": self.judges[group.index].mean(slim.model),
            "after": self.tuned(slim.model, group, seed),
        }


def cells(seeds: list[int], names: list[str]) -> Iterator[tuple[int, str, float, int, str]]:
    """All cells of the comparison: seed, base, budget, timestep group, and the way to shrink."""
    for seed in seeds:
        for name in names:
            for budget in (1.0, *BUDGETS):
                for group in range(GROUPS):
                    for way in WAYS if budget < 1 else ("whole",):
                        yield seed, name, budget, group, way


def measure(seeds: list[int], names: list[str], output: Path) -> None:
    """Measure all rows that the file does not have yet."""
    subject = cache(Subject)
    for seed, name, budget, group, way in cells(seeds, names):
        key = {"seed": seed, "base": name, "budget": budget, "group": group, "way": way}
        if any(key.items() <= row.items() for row in rows_of(output)):
            continue
        one = subject(name)
        if way == "whole":
            found: Row = {"mac_ratio": 1.0, "param_ratio": 1.0, "removed": [], "before": one.whole(group)}
            found["after"] = one.tuned(copy.deepcopy(one.base.model), one.groups[group], seed)
        else:
            found = one.pruned(way, budget, one.groups[group], seed)  # type: ignore[arg-type]
        _append(output, {**key, "whole": one.whole(group), **found})
        print(*key.values(), {name: found.get(name) for name in ("mac_ratio", "before", "after")}, flush=True)


def time_all(rows: list[Row], names: list[str], output: Path) -> None:
    """Measure the networks of all rows: those of a base, budget, group and seed in turn with the base."""
    for name in names:
        bench = Bench.of(open_base(BASES[name]), shrink="both")
        for seed, _, budget, group, _ in dict.fromkeys((*cell[:4], "") for cell in cells(seeds_of(rows), [name])):
            key = {"seed": seed, "base": name, "budget": budget, "group": group}
            same = [row for row in rows if key.items() <= row.items() and "widths" in row]
            if not same or any(key.items() <= row.items() for row in rows_of(output)):
                continue
            models = {"base": bench.base.model, **{row["way"]: network(bench, row) for row in same}}
            for batch in BATCHES:
                inputs = {
                    key: value.repeat_interleave(batch, 0) for key, value in bench.base.spec.example_inputs().items()
                }
                runs = [partial(model, **inputs) for model in models.values()]
                seconds = in_turns(runs, on(torch.device("cpu")), ROUNDS)
                ratios = np.median(seconds / seconds[:, :1], axis=0)
                found = {
                    way: {"seconds": float(middle), "ratio": float(ratio)}
                    for way, middle, ratio in zip(models, np.median(seconds, axis=0), ratios, strict=True)
                }
                _append(output, {**key, "batch": batch, "rounds": ROUNDS, "times": found})
            print(*key.values(), {way: one["ratio"] for way, one in found.items()}, flush=True)


def network(bench: Bench, row: Row) -> nn.Module:
    """The network of a row, as far as time goes: with its widths and without its branches."""
    widths = np.array([_width(row, group) for group in bench.graph], dtype=np.int64)
    scores = {group.name: np.zeros(group.size) for group in bench.graph}
    return apply(bench.base.model, bench.graph, PruningPlan.from_widths(bench.graph, widths, scores)).eval()


def _width(row: Row, group: ChannelGroup) -> int:
    if group.branch is not None:
        return 0 if group.name in row["removed"] else 1
    return row["widths"].get(group.name) or group.size  # 0 if a removed branch takes it along


def rows_of(path: Path) -> list[Row]:
    """The rows so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def seeds_of(rows: list[Row]) -> list[int]:
    """The seeds of the rows."""
    return sorted({row["seed"] for row in rows})


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bases", nargs="*", choices=list(BASES), default=list(BASES))
    parser.add_argument("--times", action="store_true", help="time the networks of the rows that are there")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, times = args.output / "depth.jsonl", args.output / "depth_times.jsonl"
    if args.times:
        time_all(rows_of(path), args.bases, times)
    elif args.table:
        found = summaries(rows_of(path), rows_of(times))
        publish("depth", {"groups": GROUPS, "steps": STEPS, "batches": BATCHES, "rows": found}, args.output)
        with atomic_path(args.output / "depth.md") as part:
            part.write_text(markdown(found, STEPS, DRAWS), encoding="utf-8")
    else:
        measure(args.seeds, args.bases, path)


if __name__ == "__main__":
    main()
