"""Rules linear, snr and measured at equal mean budgets on the embedded digits base: loss summed over the sampler's steps.

Every timestep group is searched once, down to the frontier's floor, and the rules are compared on these frontiers by the search's
own proxy. With --held-out, every group is also pruned again to each rule's targets and fine-tuned. The loss is measured with fixed
noise on images that no search used, before and after. Writes reports/search/allocations.json and .md in about three minutes, or
in thirty with --held-out:
python benchmarks/allocations.py [--quick] [--held-out]
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit._files import atomic_path
from prunekit.allocation import Allocation, Frontier, read_frontier
from prunekit.data import ImageSplit
from prunekit.groups import TimestepGroups
from prunekit.importance import ImportanceMap, Probe
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.search import SearchOptions
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.budgets import cut_groups, plan_budget, side_by_side
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective, TrainOptions

BASE = "embedded:digits"
BUDGETS = (0.8, 0.6, 0.5)
FLOOR = 0.15  # of the frontiers, and of rule snr: below it nothing is known
STEPS = 50
HELD_OUT_DRAWS = 4096


class Study:
    """The base, its groups, and searches to any target."""

    def __init__(self, quick: bool, held_out: bool) -> None:
        self.measure_held_out = held_out
        self.base = open_base(BASE)
        self.bench = Bench.of(self.base)
        self.images: ImageSplit = images_of(self.base)
        self.groups: TimestepGroups = cut_groups(self.base.schedule, 2 if quick else 5)
        search = SearchOptions(rounds=4 if quick else 18)
        self.options = PruneOptions(samples=32 if quick else 256, search=search)
        self.scores: ImportanceMap = score_groups(self.bench, self.images.train, self.groups, self.options)
        self.draws = 64 if quick else HELD_OUT_DRAWS
        self.fine_tuning = TrainOptions(10 if quick else 100, 64, learning_rate=4e-4, warmup_steps=10, ema_decay=0.98)
        self.reached: dict[tuple[int, int], tuple[float, float, int]] = {}

    def frontier(self, index: int) -> Frontier:
        """One search to the floor, read as `allocate` reads it."""
        target = int(FLOOR * self.bench.macs)
        with tempfile.TemporaryDirectory() as folder:
            journal, group = Path(folder) / "search.jsonl", self.groups[index]
            prune_group(self.bench, self.images.train, self.scores, group, target, self.options, journal)
            return read_frontier(journal)

    def held_out(self, index: int, target: int) -> tuple[float, float, int]:
        """Held-out loss of a group pruned to a target, before and after fine-tuning, and its MACs."""
        if (index, target) not in self.reached:
            base, group = self.base, self.groups[index]
            slim, _ = prune_group(self.bench, self.images.train, self.scores, group, target, self.options)
            objective = DenoisingObjective(self.images.held_out.images, base.parameterization)
            probe = Probe(objective, group, self.draws, self.options.batch_size, self.options.seed + 1)
            before = probe.mean(slim.model)
            tuned = finetune_slim(slim, self.images.train, FinetuneOptions(train=self.fine_tuning))[0]
            self.reached[index, target] = (before, probe.mean(tuned.model), slim.macs)
        return self.reached[index, target]

    def figures(self, rule: str, allocation: Allocation) -> dict[str, Any]:
        """A rule's targets, the loss on the frontiers there, and the loss after pruning to them."""
        recorded, shown = allocation.expected_loss(recorded_only=True), allocation.expected_loss()
        figures = {
            "budget": allocation.budget,
            "rule": rule,
            "mac_ratios": [g.mac_ratio for g in allocation.groups],
            "mean_mac_ratio": allocation.mean_mac_ratio,
            "loss_sum_recorded": None if recorded is None else STEPS * recorded,
            "loss_sum_interpolated": None if shown is None else STEPS * shown,
        }
        if self.measure_held_out:
            pruned = [(g.share, *self.held_out(g.index, g.target_macs or 0)) for g in allocation.groups]
            figures["held_out_loss_sum"] = STEPS * sum(share * loss for share, loss, _, _ in pruned)
            figures["fine_tuned_loss_sum"] = STEPS * sum(share * loss for share, _, loss, _ in pruned)
            figures["reached_mac_ratio"] = sum(share * macs for share, *_, macs in pruned) / self.bench.macs
        return figures


def compare(study: Study, frontiers: Sequence[Frontier]) -> list[dict[str, Any]]:
    """One row per budget and rule; it has only budget and rule if the rule cannot meet the budget."""
    rows = []
    schedule = study.base.schedule
    floor = max(frontier.macs[0] / frontier.base_macs for frontier in frontiers)
    for budget in BUDGETS:
        uniform = plan_budget(study.groups, schedule, budget, rule="uniform", steps=STEPS, frontiers=frontiers)
        compared = {"uniform": uniform, **side_by_side(uniform, schedule, STEPS, floor)}
        for rule, allocation in compared.items():
            rows.append(study.figures(rule, allocation) if allocation else {"budget": budget, "rule": rule})
    return rows


def markdown(figures: dict[str, Any]) -> str:
    """One table."""
    columns = {"recorded": "loss_sum_recorded", "interpolated": "loss_sum_interpolated"}
    if "held_out_loss_sum" in figures["base"]:
        columns |= {
            "held out": "held_out_loss_sum",
            "fine-tuned": "fine_tuned_loss_sum",
            "MACs reached": "reached_mac_ratio",
        }
    table = []
    for row in figures["rows"]:
        ratios = " ".join(f"{ratio:.3f}" for ratio in row.get("mac_ratios", [])) or "not reachable"
        numbers = ["—" if row.get(key) is None else f"{row[key]:.4f}" for key in columns.values()]
        table.append([row["rule"], f"{row['budget']:g}", ratios, *numbers])
    header = ["rule", "budget", "MAC ratios, cleanest group first", *columns]
    base, held_out = figures["base"], ""
    if "held_out_loss_sum" in base:
        held_out = (
            "Held out: every group pruned anew to its target, on images that no search saw; the base itself has "
            f"{base['held_out_loss_sum']:.4f}, and {base['fine_tuned_loss_sum']:.4f} fine-tuned alike (on its groups apart). "
            f"Fine-tuned: {figures['fine_tuning_steps']} steps of 64 for every group. "
        )
    return (
        "# Allocation rules at equal mean budgets (embedded digits base)\n\n"
        f"Loss summed over {STEPS} DDIM steps, repaired as the search's proxy is; the base itself has {base['loss_sum']:.4f}. "
        "Recorded: at the best recorded point within each target; interpolated: linear between points. "
        f"{held_out}One base, one seed of the calibration. Frontiers were searched down to {FLOOR:g} of the base; about that is "
        "also rule snr's floor. Rule linear cannot go below (N+1)/2N of the base with N equal groups. Made by `python "
        "benchmarks/allocations.py`; the figures and the frontiers are in `allocations.json`.\n\n"
        + markdown_table(header, table)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two groups, few rounds and draws")
    parser.add_argument("--held-out", action="store_true", help="prune to every target and measure on held-out images")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    study = Study(arguments.quick, arguments.held_out)
    frontiers = [study.frontier(group.index) for group in study.groups]
    seconds = time.perf_counter() - started
    rows = compare(study, frontiers)
    uniform = plan_budget(study.groups, study.base.schedule, 1.0, rule="uniform", steps=STEPS, frontiers=frontiers)
    base = {"macs": study.bench.macs, "loss_sum": STEPS * (uniform.expected_loss() or 0.0)}
    if arguments.held_out:
        for column, key in enumerate(("held_out_loss_sum", "fine_tuned_loss_sum")):
            whole = [g.share * study.held_out(g.index, study.bench.macs)[column] for g in uniform.groups]
            base[key] = STEPS * sum(whole)
    figures = {
        "base": base,
        "sampler": "ddim",
        "steps": STEPS,
        "frontier_floor": FLOOR,
        "rounds": study.options.search.rounds,
        "samples": study.options.samples,
        "held_out_draws": study.draws,
        "fine_tuning_steps": study.fine_tuning.steps,
        "seconds": {"frontiers": seconds, "all": time.perf_counter() - started},
        "rows": rows,
        "frontiers": [frontier.to_json() for frontier in frontiers],
    }
    publish("allocations", figures, arguments.output)
    with atomic_path(arguments.output / "allocations.md") as part:
        part.write_text(markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
