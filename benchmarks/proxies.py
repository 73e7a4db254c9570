"""How well each proxy keeps the order of plans after fine-tuning: rank correlations over varied plans at one MAC target.

For each timestep group, plans of equal MACs are drawn that spread the removal over the layers in very different ways. Each is
scored by every proxy, then fine-tuned, and its loss on held-out images is measured. Results go to a JSON-lines file as they come,
and a second run goes on where the first stopped:

    python benchmarks/proxies.py --output reports/search/proxies.jsonl
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from prunekit.graph import PruningPlan
from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.importance.criteria import criterion
from prunekit.pipeline.stages import Bench, images_of, open_base, score_groups
from prunekit.recipe import PruneOptions
from prunekit.search import WidthProblem, lost_importance, meet_target
from prunekit.search.proxies import PROXIES, make_proxy
from prunekit.search.repair import Repair
from prunekit.training import DenoisingObjective, TrainOptions, group_timesteps, train


def varied_plans(bench: Bench, scores, target: int, count: int, seed: int) -> list[PruningPlan]:
    """Plans at the target: importance lost is weighed anew for every channel group, mildly to wildly."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="embedded:digits")
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--plans", type=int, default=32)
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1, help="of the plans")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--repaired", action="store_true", help="fine-tune from the repaired weights as well")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = open_base(args.base)
    images = images_of(base)
    bench = Bench.of(base)
    groups = make_groups(base.schedule, count=args.groups)
    objective = DenoisingObjective(images.train.images, base.schedule, base.prediction_type)
    held_out = DenoisingObjective(images.held_out.images, base.schedule, base.prediction_type)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.is_file() else []
    done = {(row["group"], row["plan"]) for row in known}
    for group in groups:
        if args.only is not None and group.index not in args.only:
            continue
        scores = score_groups(bench, images.train, [group], PruneOptions(samples=256)).of(group.index)
        probe = Probe(objective, group, 256, 64, 0)
        judge = Probe(held_out, group, 1024, 128, 1)
        whole = judge.mean(base.model)
        evaluations = {name: make_proxy(name, base.model, bench.graph, probe) for name in PROXIES}
        repair = Repair.of(base.model, bench.graph, probe)
        lost = lost_importance(bench.graph, scores)
        others = {
            name: criterion(name)(base.model, bench.graph, probe) for name in ("fisher", "magnitude", "activation")
        }
        for index, plan in enumerate(
            varied_plans(bench, scores, int(args.target * bench.macs), args.plans, 1000 * args.seed + group.index)
        ):
            if (group.index, index) in done:
                continue
            row = {
                "group": group.index,
                "plan": index,
                "macs": int(bench.cost.macs(plan.widths(bench.graph))),
                "whole": whole,
            }
            widths = plan.widths(bench.graph)
            ratios = widths / bench.graph.full_widths
            row["importance-lost"] = float(
                sum(t[list(g.widths).index(w)] for g, t, w in zip(bench.graph, lost, widths, strict=True))
            )
            row |= {
                f"{name} lost": sum(
                    float(values[g].sum() - values[g][list(kept)].sum()) for g, kept in plan.kept.items()
                )
                for name, values in others.items()
            }
            row["widths"] = [int(width) for width in widths]
            row["unevenness"] = float(np.std(ratios))
            row["least-ratio"] = float(-ratios.min())
            row["params"] = -int(bench.cost.params(widths))
            for name, evaluate in evaluations.items():
                started = time.perf_counter()
                row[name] = evaluate(plan)
                row[f"{name} seconds"] = time.perf_counter() - started
            for name, start in (
                ("tuned", Repair.of(base.model, bench.graph, probe, "none")),
                ("tuned-repaired", repair),
            ):
                if name == "tuned" or args.repaired:
                    options = TrainOptions(
                        steps=args.steps,
                        batch_size=args.batch_size,
                        learning_rate=args.learning_rate,
                        warmup_steps=10,
                        ema_decay=0.98,
                        seed=group.index,
                    )
                    result = train(start.apply(plan), objective, group_timesteps(group, 1000, 20), options)
                    row[name] = judge.mean(result.model)
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            known.append(row)
        mine = [row for row in known if row["group"] == group.index]
        for name in (*PROXIES, "importance-lost", "unevenness", "least-ratio", "params"):
            rho = spearmanr([row[name] for row in mine], [row["tuned"] for row in mine]).statistic
            print(f"group {group.index} {name}: {rho:.3f}", flush=True)


if __name__ == "__main__":
    main()
