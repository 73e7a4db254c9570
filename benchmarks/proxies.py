"""How well each proxy predicts the order of plans after fine-tuning: rank correlations over different plans at one MAC target.

For each timestep group, plans of equal MACs are drawn that distribute the removal over the layers in very different ways. Each is
scored by every proxy, then fine-tuned from the weights after the cut and from repaired weights, and its loss on held-out images is
measured. Each measurement is appended to a JSON-lines file, and a second run resumes from it. Several processes may share the file,
each with its own --only. --table makes the table from all rows:

    python benchmarks/proxies.py && python benchmarks/proxies.py --table
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from scipy.stats import spearmanr

from prunekit._files import atomic_path
from prunekit.graph import PruningPlan
from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.importance.criteria import criterion
from prunekit.recipe import PruneOptions
from prunekit.search import PROXIES, Repair, WidthProblem, lost_importance, make_proxy, meet_target
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, score_groups
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective, TrainOptions, group_timesteps, train

GROUPS, TARGET, STEPS = 5, 0.6, 100
CRITERIA = ("taylor", "fisher", "magnitude", "activation")
STARTS = {"tuned": "none", "tuned-repaired": "least-squares"}


def varied_plans(bench: Bench, scores, target: int, count: int, seed: int) -> list[PruningPlan]:
    """Plans at the target. Each gives the channel groups' lost importance other random weights, from mild to extreme."""
    rng = np.random.default_rng(seed)
    lost = lost_importance(bench.graph, scores)
    tolerance = int(0.002 * bench.macs)
    plans = []
    for i in range(count):
        sigma = (0.0, 0.5, 1.0, 2.0)[i % 4]
        weighed = []
        for group, table in zip(bench.graph, lost, strict=True):
            flat = (
                (group.size - group.widths) / group.size * table[-1] if i % 8 >= 4 else table
            )  # by share, or by score
            scale = np.exp(sigma * rng.standard_normal()) / max(float(table[-1]), 1e-30) ** (i % 3 == 2)
            weighed.append(flat * scale)
        problem = WidthProblem(bench.graph, bench.cost, weighed, target, tolerance)
        widths = problem.widths(meet_target(problem))
        plans.append(PruningPlan.from_widths(bench.graph, widths, scores))
    return plans


class Study:
    """One timestep group: all figures of a plan, by name."""

    def __init__(self, index: int) -> None:
        base = open_base("embedded:digits")
        self.bench, images = Bench.of(base), images_of(base)
        group = make_groups(base.schedule, count=GROUPS)[index]
        objective = DenoisingObjective(images.train.images, base.parameterization)
        held_out = DenoisingObjective(images.held_out.images, base.parameterization)
        self.scores = score_groups(self.bench, images.train, [group], PruneOptions(samples=256)).of(index)
        probe, judge = Probe(objective, group, 256, 64, 0), Probe(held_out, group, 1024, 128, 1)
        self.whole = judge.mean(base.model)
        settings = TrainOptions(STEPS, 64, learning_rate=4e-4, warmup_steps=10, ema_decay=0.98, seed=index)
        timesteps = group_timesteps(group, base.schedule.num_timesteps, 20)

        def lost(name: str) -> Callable[[PruningPlan], float]:
            scores = criterion(name)(base.model, self.bench.graph, probe)
            return lambda plan: sum(float(scores[g].sum() - scores[g][list(k)].sum()) for g, k in plan.kept.items())

        def tuned(kind: Any) -> Callable[[PruningPlan], float]:
            repair = Repair.of(base.model, self.bench.graph, probe, kind)
            return lambda plan: judge.mean(train(repair.apply(plan), objective, timesteps, settings).model)

        def kept(plan: PruningPlan) -> np.ndarray:
            return plan.widths(self.bench.graph) / self.bench.graph.full_widths

        self.measures: dict[str, Callable[[PruningPlan], Any]] = {
            **{name: make_proxy(name, base.model, self.bench.graph, probe) for name in PROXIES},
            **{f"importance lost: {name}": lost(name) for name in CRITERIA},
            "penalty: unevenness": lambda plan: float(np.std(kept(plan))),
            "penalty: narrowest layer": lambda plan: float(-kept(plan).min()),
            "penalty: inverse widths": lambda plan: float((1 / kept(plan)).mean()),
            "widths": lambda plan: [int(width) for width in plan.widths(self.bench.graph)],
            **{name: tuned(kind) for name, kind in STARTS.items()},
        }

    def plans(self, count: int, seed: int) -> list[PruningPlan]:
        """The plans to compare."""
        return varied_plans(self.bench, self.scores, int(TARGET * self.bench.macs), count, seed)


def measure(index: int, count: int, seed: int, output: Path) -> None:
    """Measure everything of a timestep group that the file does not have yet."""
    study = Study(index)
    for number, plan in enumerate(study.plans(count, 1000 * seed + index)):
        known = rows_of(output).get((index, number), {})
        missing = [name for name in study.measures if name not in known]
        if not missing:
            continue
        row: dict[str, Any] = {"group": index, "plan": number, "whole": study.whole}
        for name in missing:
            started = time.perf_counter()
            row[name] = study.measures[name](plan)
            if name in PROXIES:
                row[f"{name} seconds"] = time.perf_counter() - started
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def rows_of(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The measurements so far, by timestep group and plan."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        row = json.loads(line)
        found.setdefault((row["group"], row["plan"]), {}).update(row)
    return found


def table(path: Path) -> tuple[dict[str, Any], str]:
    """Rank correlations, as figures and in Markdown."""
    rows = list(rows_of(path).values())
    groups = sorted({row["group"] for row in rows})
    names = [name for name in rows[0] if name in PROXIES or ":" in name]
    figures: dict[str, Any] = {
        "plans": {group: sum(row["group"] == group for row in rows) for group in groups},
        "target": TARGET,
        "steps": STEPS,
        "correlations": {},
        "seconds": {n: float(np.median([row[f"{n} seconds"] for row in rows])) for n in names if n in PROXIES},
    }
    parts = [
        "# Which proxy keeps the order of plans after fine-tuning (embedded digits base)\n",
        f"Spearman's rank correlation of a proxy with the loss on held-out images after {STEPS} steps of fine-tuning, over "
        f"{min(figures['plans'].values())} varied plans at {TARGET:g} of the MACs for each timestep group, cleanest first. "
        "The plans are drawn anew, and are not those that proxies were designed on. Seconds: median for one plan, one thread, "
        "another job beside it. Made by `python benchmarks/proxies.py`; rows in `proxies.jsonl`.\n",
    ]
    titles = {
        "tuned": "Fine-tuned from the weights left by the cut",
        "tuned-repaired": "Fine-tuned from repaired weights",
    }
    for start, title in titles.items():
        found = {}
        for name in names:
            mine = [[row for row in rows if row["group"] == group and start in row] for group in groups]
            found[name] = [float(spearmanr([r[name] for r in m], [r[start] for r in m]).statistic) for m in mine]
        figures["correlations"][start] = found
        header = ["proxy", *(f"group {group}" for group in groups), "mean", "least", "seconds"]
        lines = [
            [
                name,
                *(f"{rho:.2f}" for rho in rhos),
                f"{np.mean(rhos):.2f}",
                f"{min(rhos):.2f}",
                f"{figures['seconds'][name]:.2f}" if name in figures["seconds"] else "—",
            ]
            for name, rhos in sorted(found.items(), key=lambda item: -np.mean(item[1]))
        ]
        parts.append(f"## {title}\n\n{markdown_table(header, lines)}")
    figures["start"] = {
        group: {
            "whole": next(row["whole"] for row in rows if row["group"] == group),
            **{start: _median(rows, group, lambda row, start=start: row[start]) for start in STARTS},
            "ratio": _median(rows, group, lambda row: row["tuned-repaired"] / row["tuned"]),
        }
        for group in groups
    }
    header = ["group", "base", "from the cut", "from repaired weights", "ratio"]
    lines = [[str(group), *(f"{value:.5f}" for value in found.values())] for group, found in figures["start"].items()]
    parts.append(f"## Loss after fine-tuning, median over the plans\n\n{markdown_table(header, lines)}")
    return figures, "\n".join(parts)


def _median(rows: list[dict[str, Any]], group: int, of: Callable[[dict[str, Any]], float]) -> float:
    return float(np.median([of(row) for row in rows if row["group"] == group]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", default=range(GROUPS), help="timestep groups")
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the plans")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "proxies.jsonl"
    if not args.table:
        for index in args.only:
            measure(index, args.plans, args.seed, path)
        return
    figures, text = table(path)
    publish("proxies", figures, args.output)
    with atomic_path(args.output / "proxies.md") as part:
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
