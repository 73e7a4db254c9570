"""Where FID depends on an expert: single experts of an evidence run's entries replace full-size ones.

Each row has FID and the held-out loss of the same group, so that the two can be compared. The run's networks must still exist.
Writes reports/swaps/<recipe>.json and .md; 2,000 images take about a minute a row:
python benchmarks/swaps.py RUN [--into ENTRY] [--entries ENTRY …] [--count 2000] [--seed 0]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit._files import atomic_path
from prunekit._json import read_json
from prunekit.evaluation import image_metrics
from prunekit.nets import TimestepExperts
from prunekit.recipe import Recipe, slug
from prunekit.sampling import to_images
from prunekit.slim import SlimModel, load_slim
from prunekit.studies.evidence_study import EvidenceRun


class Swaps:
    """An evidence run's experts, exchanged one at a time."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.manifest = read_json(folder / "manifest.json")
        self.run = EvidenceRun(Recipe.model_validate(self.manifest["config"]), folder)
        self.folder, self.count, self.seed, self.setting = folder, count, seed, self.run.setting
        self.base_macs = self.manifest["base"]["macs"]
        choice = self.setting.choice
        if choice.extractor is None:
            raise SystemExit(f"The run has no FID: {choice.why_none}")
        self.extractor = choice.extractor
        self.losses = {
            row["entry"]: [loss["mean"] for loss in row["losses"]]
            for row in self.manifest["evidence"]
            if row["seed"] in (None, seed)
        }

    def experts(self, entry: str) -> list[SlimModel]:
        """An entry's experts; those of ``base`` are the base itself, once for each group."""
        entries = self.folder / "entries"
        if entry != "base":
            return _load(entries / slug(entry) / f"seed-{self.seed}")
        for own in sorted(entries.iterdir()):  # an unpruned copy of the base, before any fine-tuning
            copies = _load(own / "pruned")
            if len(copies) == len(self.setting.groups) and {copy.macs for copy in copies} == {self.base_macs}:
                return copies
        raise SystemExit("None of the run's entries has unpruned experts, which stand for the base.")

    def fid(self, slims: list[SlimModel]) -> float:
        """FID of the experts put together."""
        model = TimestepExperts(self.setting.groups, slims).eval()
        images = to_images(self.setting.sampler(model, self.count, self.setting.options.seeds[0]))
        return image_metrics(self.setting.images.train.images, images, self.extractor).fid

    def rows(self, into: str, entries: list[str]) -> list[dict[str, Any]]:
        """The whole networks, then every swap."""
        networks = {name: self.experts(name) for name in (into, *entries)}
        rows: list[dict[str, Any]] = [{"entry": name, "fid": self.fid(slims)} for name, slims in networks.items()]
        home, whole = networks[into], rows[0]["fid"]
        for name in entries:
            for i, guest in enumerate(networks[name]):
                if name != "base" and guest.macs == home[i].macs:
                    continue  # as large as what it would replace
                fid = self.fid([*home[:i], guest, *home[i + 1 :]])
                change = 100 * (self.losses[name][i] / self.losses[into][i] - 1)
                row = {
                    "entry": name,
                    "group": i,
                    "mac_ratio": guest.macs / self.base_macs,
                    "loss_change_percent": change,
                }
                rows.append({**row, "fid": fid, "fid_change": fid - whole})
                print(rows[-1], flush=True)
        return rows


def _load(folder: Path) -> list[SlimModel]:
    """A folder's slim models, cleanest timestep group first."""
    return sorted((load_slim(path) for path in folder.glob("group-*")), key=lambda slim: slim.group.index)


def markdown(figures: dict[str, Any]) -> str:
    """Whole networks and swaps."""
    rows = figures["rows"]
    whole = [[row["entry"], f"{row['fid']:.3f}"] for row in rows if "group" not in row]
    swaps = [
        [
            f"{row['entry']}, group {row['group']}",
            f"{row['mac_ratio']:.3f}",
            f"{row['loss_change_percent']:+.2f}",
            f"{row['fid']:.3f}",
            f"{row['fid_change']:+.3f}",
        ]
        for row in rows
        if "group" in row
    ]
    return (
        f"# Which experts FID depends on: {figures['recipe']}\n\n"
        f"FID ({figures['features']}, n = {figures['count']}, the same noise for all). One fine-tuning seed ({figures['seed']}); "
        "how much FID differs from one fine-tuning to the next is in that run's report. Made by `python benchmarks/swaps.py`.\n\n"
        + markdown_table(["all groups of", "FID"], whole)
        + f"\nOne expert in the place of its group's in *{figures['into']}*; the loss is that of its group, on held-out images:\n\n"
        + markdown_table(["the expert of", "MAC ratio", "loss, %", "FID", "change"], swaps)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run of a recipe with an evidence section")
    parser.add_argument("--into", default="experts without pruning")
    parser.add_argument("--entries", nargs="+", default=["base", "experts 0.8", "experts 0.6", "experts 0.4"])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "swaps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    swaps = Swaps(arguments.run, arguments.count, arguments.seed)
    figures = {
        "recipe": swaps.manifest["recipe"],
        "run_commit": swaps.manifest["commit"],
        "into": arguments.into,
        "seed": arguments.seed,
        "count": arguments.count,
        "features": swaps.extractor.describe()["name"],
        "rows": swaps.rows(arguments.into, arguments.entries),
    }
    publish(figures["recipe"], figures, arguments.output)
    with atomic_path(arguments.output / f"{figures['recipe']}.md") as part:
        part.write_text(markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
