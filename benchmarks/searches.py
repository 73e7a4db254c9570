"""Every criterion, proposer and proxy at equal mean budgets, before and after an equal short fine-tune.

Each timestep group of the embedded digits base is pruned to the same share of the base's MACs, so that the mean budget is met and
the methods differ in nothing else. Its loss is measured on images that no search used, and it is fine-tuned on its own timesteps
with the same steps, draws and learning rate. Each row is appended to a JSON-lines file, and a second run resumes from it. Several
processes may share the file, each with its own --seeds. --table makes the table from all rows:

    python benchmarks/searches.py --seeds 0 1 2 && python benchmarks/searches.py --table
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit._files import atomic_path
from prunekit.groups import make_groups
from prunekit.importance import CRITERIA, ImportanceMap, Probe
from prunekit.recipe import PruneOptions
from prunekit.search import RepairKind
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective, TrainOptions, group_timesteps, train

FOLDER = REPORTS.parent / "search"
GROUPS, BUDGETS, STEPS, OVERLAP, DRAWS = 2, (0.8, 0.5), 100, 20, 1024
BASELINE = "uniform, magnitude"
DEFAULT = PruneOptions(samples=128)


@dataclass(frozen=True)
class Method:
    """One entry of the comparison; without options, nothing is pruned."""

    name: str
    options: PruneOptions | None


def methods() -> Iterator[Method]:
    """The unpruned base, other people's methods, the default, and the default with one thing changed."""

    def searched(**changes: Any) -> PruneOptions:
        return replace(DEFAULT, search=replace(DEFAULT.search, **changes))

    uniform = searched(proposer="uniform")
    yield Method("whole base", None)
    yield Method(BASELINE, replace(uniform, criterion="magnitude", repair="none"))
    yield Method("uniform, Diff-Pruning's criterion", replace(uniform, criterion="diff-pruning", repair="none"))
    yield Method("default", DEFAULT)
    for kind in get_args(RepairKind):
        if kind != DEFAULT.repair:
            yield Method(f"repair: {kind}", replace(DEFAULT, repair=kind))
    if DEFAULT.repair != "none":
        yield Method(f"{BASELINE}, repaired", replace(uniform, criterion="magnitude"))
    for name in ("uniform", "oneshot", "evolution", "tpe"):
        yield Method(f"proposer: {name}", searched(proposer=name))
    for name in ("loss", "bias"):  # those with gradient steps take ten times as long, and are compared in proxies.py
        yield Method(f"proxy: {name}", searched(proxy=name))
    yield Method("floor of a quarter", replace(DEFAULT, floor=0.25))
    yield Method("bites of half a layer", searched(bite=0.5))
    for name in CRITERIA:
        if name != DEFAULT.criterion:
            yield Method(f"criterion: {name}", replace(DEFAULT, criterion=name))


def measure(seed: int, output: Path, only: list[str] | None, every: Sequence[Method]) -> None:
    """Measure all rows of one seed, of these methods, that the file does not have yet."""
    base = open_base("embedded:digits")
    bench, images, groups = Bench.of(base), images_of(base), make_groups(base.schedule, count=GROUPS)
    tuning = DenoisingObjective(images.train.images, base.parameterization)
    held_out = DenoisingObjective(images.held_out.images, base.parameterization)
    known = rows_of(output)
    done = {(row["method"], row["budget"], row["group"], row["seed"]) for row in known}

    judges = [Probe(held_out, group, DRAWS, 128, 1) for group in groups]
    whole = [judge.mean(base.model) for judge in judges]

    @cache
    def scores(name: str) -> tuple[ImportanceMap, float]:
        started = time.perf_counter()
        found = score_groups(bench, images.train, groups, replace(DEFAULT, criterion=name, seed=seed))
        return found, time.perf_counter() - started

    for method in every:
        if only and method.name not in only:
            continue
        for budget in BUDGETS:
            for group in groups:
                if (method.name, budget, group.index, seed) in done:
                    continue
                judge = judges[group.index]
                row: dict[str, Any] = {"method": method.name, "budget": budget, "group": group.index, "seed": seed}
                model, macs = copy.deepcopy(base.model), bench.macs  # training is in place
                if method.options is not None:
                    found, seconds = scores(method.options.criterion)
                    started, options = time.perf_counter(), replace(method.options, seed=seed)
                    slim, result = prune_group(bench, images.train, found, group, int(budget * bench.macs), options)
                    model, macs = slim.model, slim.macs
                    row |= {
                        "criterion_seconds": seconds / len(groups),
                        "search_seconds": time.perf_counter() - started,
                        "measured": len(result.measured),
                        "widths": [after for _, after in result.widths.values()],
                    }
                before = judge.mean(model)
                settings = TrainOptions(
                    STEPS, 64, learning_rate=4e-4, warmup_steps=10, ema_decay=0.98, seed=1009 * seed + group.index
                )
                timesteps = group_timesteps(group, base.schedule.num_timesteps, OVERLAP)
                after = judge.mean(train(model, tuning, timesteps, settings).model)
                row |= {
                    "mac_ratio": macs / bench.macs,
                    "whole": whole[group.index],
                    "before": before,
                    "after": after,
                }
                output.parent.mkdir(parents=True, exist_ok=True)
                with output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(method.name, budget, group.index, seed, f"{before:.4f} → {after:.4f}", flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(rows: list[dict[str, Any]], budget: float, method: str, baseline: str = BASELINE) -> dict[str, Any] | None:
    """Loss averaged over timestep groups: mean and standard error over seeds, and the paired comparison with the baseline."""

    def by_seed(name: str, key: str) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for row in rows:
            if (row["method"], row["budget"]) == (name, budget):
                found.setdefault(row["seed"], []).append(row[key])
        return {seed: float(np.mean(values)) for seed, values in sorted(found.items()) if len(values) == GROUPS}

    after = by_seed(method, "after")
    if not after:
        return None
    rivals = {(r["group"], r["seed"]): r["after"] for r in rows if (r["method"], r["budget"]) == (baseline, budget)}
    mine = [r for r in rows if (r["method"], r["budget"]) == (method, budget) and (r["group"], r["seed"]) in rivals]
    ratios = [r["after"] / rivals[r["group"], r["seed"]] - 1 for r in mine]
    values = list(after.values())
    return {
        "method": method,
        "budget": budget,
        "seeds": len(after),
        "mac_ratio": float(np.mean([r["mac_ratio"] for r in mine])) if mine else None,
        "before": float(np.mean(list(by_seed(method, "before").values()))),
        "after": float(np.mean(values)),
        "after_stderr": float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None,
        "against_baseline": float(np.mean(ratios)) if ratios else None,
        "against_baseline_stderr": float(np.std(ratios, ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None,
        "wins": sum(ratio < 0 for ratio in ratios),
        "of": len(ratios),
        "search_seconds": float(np.mean([r.get("search_seconds", 0.0) + r.get("criterion_seconds", 0.0) for r in mine]))
        if mine
        else None,
        "measured": float(np.mean([r.get("measured", 0) for r in mine])) if mine else None,
    }


def markdown(summaries: list[dict[str, Any]], whole: float) -> str:
    """A table for each budget, best after fine-tuning first."""
    parts = [
        "# Criteria, proposers and proxies at equal budgets (embedded digits base)\n",
        f"Each of {GROUPS} timestep groups pruned to the budget and fine-tuned for {STEPS} steps of 64 images on its own "
        f"timesteps; loss on held-out images with fixed noise ({DRAWS:,} draws a group), averaged over the groups; the base "
        f"itself has {whole:.4f}. Mean and standard error over seeds, which change calibration set, search and fine-tuning, not "
        "the base. The last columns compare with uniform magnitude after fine-tuning, paired by seed and group. The first "
        "two and the whole base are baselines; every other row is the default with one thing changed. The default is "
        f"{DEFAULT.search.proposer} by the proxy {DEFAULT.search.proxy} on {DEFAULT.criterion}, repaired by {DEFAULT.repair}. "
        "Seconds are of scoring and search for one group, one thread, with another job beside it. Made by "
        "`python benchmarks/searches.py`; rows in `searches.jsonl`.\n",
    ]
    header = ["method", "MACs", "before", "after", "± ", "against uniform magnitude", "better in", "seconds"]
    for budget in BUDGETS:
        chosen = sorted((s for s in summaries if s["budget"] == budget), key=lambda s: s["after"])
        table = [
            [
                s["method"],
                f"{s['mac_ratio']:.3f}",
                f"{s['before']:.4f}",
                *cells(s),
                f"{s['search_seconds']:.1f}",
            ]
            for s in chosen
        ]
        parts.append(f"## Budget {budget:g}\n\n{markdown_table(header, table)}")
    return "\n".join(parts)


def cells(summary: dict[str, Any]) -> list[str]:
    """What both tables of searches say of a method after fine-tuning."""
    return [
        f"{summary['after']:.4f}",
        "—" if summary["after_stderr"] is None else f"{summary['after_stderr']:.4f}",
        f"{summary['against_baseline']:+.2%} ± {summary['against_baseline_stderr'] or 0:.2%}",
        f"{summary['wins']} of {summary['of']}",
    ]


def measured_or_table(
    name: str, said: str | None, every: Sequence[Method], baseline: str = BASELINE
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Path] | None:
    """Measure what the command line asks for; with --table, the rows of all methods, their summaries and the folder.

    Args:
        name: of the file of rows.
        said: the description of the command.
        every: the methods.
        baseline: what they are compared with.
    """
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of methods")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.output / f"{name}.jsonl"
    if not args.table:
        for seed in args.seeds:
            measure(seed, path, args.only, every)
        return None
    rows = rows_of(path)
    found = [summary(rows, budget, method.name, baseline) for budget in BUDGETS for method in every]
    return rows, [s for s in found if s is not None], args.output


def main() -> None:
    if (found := measured_or_table("searches", __doc__, list(methods()))) is None:
        return
    rows, summaries, output = found
    whole = float(np.mean([row["whole"] for row in rows]))
    publish("searches", {"groups": GROUPS, "steps": STEPS, "whole": whole, "rows": summaries}, output)
    with atomic_path(output / "searches.md") as part:
        part.write_text(markdown(summaries, whole), encoding="utf-8")


if __name__ == "__main__":
    main()
