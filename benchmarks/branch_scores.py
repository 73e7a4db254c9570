"""How well cheap scores of a residual branch rank the measured rise of the loss without it, for each timestep group.

The rise is measured on held-out images, once after the removal alone and once after the network is mended by least squares. Beside
the branches, a quarter of the channels of every channel group is cut, so that it shows whether the scores of both can be compared.
Each timestep group is a line of a JSON-lines file, and a second run resumes from it. Several processes may share the file, each
with its own --network. --table makes the table from all lines:

    python benchmarks/branch_scores.py && python benchmarks/branch_scores.py --table
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
from prunekit.graph import ChannelGraph, ChannelGroup, Member, PruningPlan, Template
from prunekit.groups import make_groups
from prunekit.importance import CRITERIA, Probe
from prunekit.importance.branch_signals import BranchSignals, branch_signals
from prunekit.search import make_proxy
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective

GROUPS, SAMPLES, JUDGED, CUT = 5, 256, 1024, 0.25
NETWORKS = {"digits": "embedded:digits", "fashion": "embedded:fashion"}
OF_SIGNALS: dict[str, Callable[[BranchSignals], float]] = {
    "first order, with its sign": lambda s: -s.slope,
    "first order": lambda s: abs(s.slope),
    "second order (Fisher)": lambda s: s.slope_squared / 2,
    "first and second order": lambda s: -s.slope + s.slope_squared / 2,
    "size |f|": lambda s: s.added**0.5,
    "relative size |f|/|x|": lambda s: (s.added / s.without) ** 0.5 if s.without else float("nan"),
    "block influence 1 - cos(x, x+f)": lambda s: s.influence,
}
BY_OUTPUT = ("taylor", "fisher")
OF_LAYERS = {"weights of the last layers": "magnitude"}
DRAWS = (16, 32, 64, SAMPLES)
ASIDE = ("rise", "mended", "MACs")


def by_outputs(graph: ChannelGraph, branch: ChannelGroup) -> list[ChannelGroup]:
    """Every layer that the branch ends with, its outputs as channels of their own."""
    made = []
    for member in branch.members:
        roots = np.arange(len(member.positions))
        own = Member(member.layer, member.axis, member.positions, roots)
        made.append(ChannelGroup(f"{branch.name} {member.layer}", len(roots), 1, False, 1, (own,)))
    return made


class Study:
    """One timestep group of one network."""

    def __init__(self, network: str, index: int) -> None:
        base = open_base(NETWORKS.get(network, network))
        self.bench, images = Bench.of(base, shrink="both"), images_of(base)
        group = make_groups(base.schedule, count=GROUPS)[index]
        train, held_out = (DenoisingObjective(i.images, base.parameterization) for i in (images.train, images.held_out))
        self.probe, self.judge = Probe(train, group, SAMPLES, 64, 0), Probe(held_out, group, JUDGED, 128, 1)
        self.model, self.graph = base.model, self.bench.graph
        self.branches = [one for one in self.graph if one.branch is not None]

    def row(self) -> dict[str, Any]:
        """All scores and rises, by name of the branch or of the channel group that is cut."""
        scores, seconds = self._scores()
        found: dict[str, Any] = {"scores": scores, "seconds": seconds}
        cuts = {one.name: PruningPlan({}, self.graph.fingerprint, (one.name,)) for one in self.branches}
        channels = self.graph.shrinking("width")
        taylor = CRITERIA["taylor"](self.model, channels, self.probe)
        for one in self.graph:
            width = next((int(w) for w in one.widths if w <= (1 - CUT) * one.size), None)
            if one.branch is None and width:
                kept = tuple(one.select(taylor[one.name], width).tolist())
                cuts[one.name] = PruningPlan({one.name: kept}, self.graph.fingerprint)
        whole, pruned_by = self.judge.mean(self.model), Template(self.model, self.graph)
        mended = make_proxy("least-squares", self.model, self.graph, self.probe)
        alone = self.probe.mean(self.model)
        rises: dict[str, Any] = {name: {} for name in ASIDE}
        for name, plan in cuts.items():
            rises["rise"][name] = self.judge.mean(pruned_by(plan)) - whole
            rises["mended"][name] = mended(plan) - alone
            rises["MACs"][name] = self.bench.macs - int(self.bench.cost.macs(plan.widths(self.graph)))
        lost = {}
        for criterion in BY_OUTPUT:
            own = taylor if criterion == "taylor" else CRITERIA[criterion](self.model, channels, self.probe)
            lost[criterion] = {
                name: float(own[name].sum() - own[name][list(plan.kept[name])].sum())
                for name, plan in cuts.items()
                if plan.kept
            }
        return found | rises | {"lost": lost, "whole": whole}

    def _scores(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        scores: dict[str, dict[str, float]] = {}
        seconds: dict[str, float] = {}

        def timed(make: Callable[[], Any], *names: str) -> Any:
            started = time.process_time()
            made = make()
            seconds.update(dict.fromkeys(names, time.process_time() - started))
            return made

        signals = timed(lambda: branch_signals(self.model, self.graph, self.probe), *OF_SIGNALS)
        for name, of in OF_SIGNALS.items():
            scores[name] = {branch: of(own) for branch, own in signals.items()}
        for criterion in BY_OUTPUT:
            pieces = {one.name: by_outputs(self.graph, one) for one in self.branches}
            groups = tuple(piece for made in pieces.values() for piece in made)
            fine = ChannelGraph(groups, self.graph.axis_sizes, {})
            name = f"{criterion}, summed over the outputs"
            own = timed(lambda c=criterion, g=fine: CRITERIA[c](self.model, g, self.probe), name)
            scores[name] = {
                branch: sum(float(own[piece.name].sum()) for piece in made) for branch, made in pieces.items()
            }
        for name, criterion in OF_LAYERS.items():
            own = timed(lambda c=criterion: CRITERIA[c](self.model, self.graph, self.probe), name)
            scores[name] = {one.name: float(own[one.name][0]) for one in self.branches}
        for samples in DRAWS:
            few = Probe(self.probe.loss, self.probe.group, samples, 64, 0)
            name = f"measured on {samples} draws"
            scores[name] = timed(lambda p=few: self._measured(p), name)
        return scores, seconds

    def _measured(self, probe: Probe) -> dict[str, float]:
        whole, pruned_by = probe.mean(self.model), Template(self.model, self.graph)
        return {
            one.name: probe.mean(pruned_by(PruningPlan({}, self.graph.fingerprint, (one.name,)))) - whole
            for one in self.branches
        }


def rows_of(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The measurements so far, by network and timestep group."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {(row["network"], row["group"]): row for row in map(json.loads, lines)}


def correlation(score: dict[str, float], rise: dict[str, float], names: list[str]) -> float:
    """Spearman's rank correlation, NaN where a score is missing."""
    return float(spearmanr([score[n] for n in names], [rise[n] for n in names]).statistic)


def table(path: Path) -> tuple[dict[str, Any], str]:
    """Rank correlations, as figures and in Markdown."""
    rows = rows_of(path)
    networks = list(dict.fromkeys(network for network, _ in rows))
    names = [
        name for name in next(iter(rows.values()))["scores"] if all(name in row["scores"] for row in rows.values())
    ]
    figures: dict[str, Any] = {"correlations": {}, "with_channels": {}, "scale": {}}
    parts = [
        "# Which cheap score ranks the residual branches as the measured rise of the loss does\n",
        f"Spearman's rank correlation, for each timestep group (cleanest first), of a score on {SAMPLES} draws with the rise of "
        f"the loss on {JUDGED} draws of held-out images when the branch is removed. *Mended*: mean correlation with the rise that "
        "is left after the repair by least squares. Seconds: processor seconds of one thread for all branches of a network, "
        "median over timestep groups. Made by `python benchmarks/branch_scores.py`; rows in `branches.jsonl`.\n",
    ]
    for network in networks:
        mine = [row for (one, _), row in sorted(rows.items()) if one == network]
        branches = list(mine[0]["scores"][names[0]])
        found = {n: [correlation(row["scores"][n], row["rise"], branches) for row in mine] for n in names}
        mended = {n: [correlation(row["scores"][n], row["mended"], branches) for row in mine] for n in names}
        figures["correlations"][network] = {"rise": found, "mended": mended}
        header = ["score", *(f"group {row['group']}" for row in mine), "mean", "least", "mended", "seconds"]
        lines = [
            [
                name,
                *(f"{rho:.2f}" for rho in found[name]),
                f"{np.mean(found[name]):.2f}",
                f"{min(found[name]):.2f}",
                f"{np.mean(mended[name]):.2f}",
                f"{np.median([row['seconds'][name] for row in mine]):.2f}",
            ]
            for name in sorted(names, key=lambda n: -np.nan_to_num(np.mean(found[n]), nan=-9))
        ]
        parts.append(f"## {network}, {len(branches)} branches\n\n{markdown_table(header, lines)}")
    parts += _beside_channels(rows, networks, figures)
    return figures, "\n".join(parts)


MIXED = {
    "taylor": (
        "first order",
        "taylor, summed over the outputs",
        "second order (Fisher)",
        f"measured on {SAMPLES} draws",
        "measured on 32 draws",
    ),
    "fisher": (
        "second order (Fisher)",
        "fisher, summed over the outputs",
        "taylor, summed over the outputs",
        f"measured on {SAMPLES} draws",
    ),
}


def _beside_channels(rows: dict[Any, Any], networks: list[str], figures: dict[str, Any]) -> list[str]:
    """Whether branches and channels can be compared by their scores."""
    header = [
        "channels by",
        "branches by",
        "network",
        "rank correlation",
        "mended",
        "channels: score / rise",
        "branches",
    ]
    lines = []
    for network in networks:
        mine = [row for (one, _), row in sorted(rows.items()) if one == network]
        for criterion, names in MIXED.items():
            for name in names:
                both, channels, branches, mended = [], [], [], []
                for row in mine:
                    lost, score = row["lost"][criterion], row["scores"][name]
                    both.append(correlation(lost | score, row["rise"], [*lost, *score]))
                    mended.append(correlation(lost | score, row["mended"], [*lost, *score]))
                    channels += [lost[n] / row["rise"][n] for n in lost if row["rise"][n] > 0]
                    branches += [score[n] / row["rise"][n] for n in score if row["rise"][n] > 0]
                middles = float(np.median(channels)), float(np.median(branches))
                figures["scale"][f"{network}, {criterion}, {name}"] = [
                    float(np.mean(both)),
                    float(np.mean(mended)),
                    *middles,
                ]
                rhos = [f"{np.mean(both):.2f}", f"{np.mean(mended):.2f}"]
                lines.append([criterion, name, network, *rhos, *(f"{one:.2g}" for one in middles)])
    told = (
        f"## Branches beside channels\n\nThe same candidates as in a search: every branch, and {CUT:g} of the channels of every "
        "channel group. *Rank correlation*: of the lost score with the measured rise over all of them, mean over the timestep "
        "groups; *mended*: with the rise after the repair. *Score / rise*: median of the lost score divided by the measured rise. "
        "Where it differs between channels and branches, a comparison of both scores favours one of them."
    )
    return [f"{told}\n\n{markdown_table(header, lines)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), help="digits, fashion, or a base's path")
    parser.add_argument("--table", action="store_true", help="make the table of the rows that are there")
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "search")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "branches.jsonl"
    if args.table:
        figures, text = table(path)
        publish("branches", figures, args.output)
        with atomic_path(args.output / "branches.md") as part:
            part.write_text(text, encoding="utf-8")
        return
    for network in args.network:
        for index in range(GROUPS):
            if (network, index) in rows_of(path):
                continue
            row = {"network": network, "group": index, **Study(network, index).row()}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
