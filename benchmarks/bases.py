"""Experts and their rivals over several bases that differ only in the seed of their training, paired over the bases.

Runs recipes/fashion-bases.yaml for each base; an interrupted call goes on. Writes reports/bases/bases.json and .md, with the
manifest of every base beside them. About two hours and a half on one core for each base:

    python benchmarks/bases.py --work /tmp/bases --bases 0 1 2 3 4
    python benchmarks/bases.py --work /tmp/bases --table   # only what is finished
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from scipy.stats import t as student

from prunekit._files import atomic_path
from prunekit.recipe import load_recipe
from prunekit.studies.kinds_of_runs import run_of

ROOT = REPORTS.parents[1]
RECIPE = ROOT / "recipes" / "fashion-bases.yaml"
FOLDER = REPORTS.parent / "bases"
HEADLINE = "experts 0.8, by sensitivity"
PAIRS = (  # what is compared with what
    (HEADLINE, "base trained on"),
    (HEADLINE, "one network, searched 0.8"),
    (HEADLINE, "experts 0.8, snr"),
    (HEADLINE, "experts 0.8, linear"),
    (HEADLINE, "experts without pruning"),
    (HEADLINE, "small from scratch 0.8"),
    ("experts 0.8, snr", "base trained on"),
    ("experts 0.8, snr", "one network, searched 0.8"),
    ("experts 0.6, by sensitivity", "experts 0.6, snr"),
    ("experts 0.6, by sensitivity", "base trained on"),
)


@dataclass(frozen=True)
class Difference:
    """An entry's FID minus another's on the same bases.

    Args:
        entry: the entry.
        other: what it is compared with.
        bases: number of bases that have both.
        mean: mean difference.
        low: lower end of the 95 % interval of the mean over bases; None for one base.
        high: its upper end.
        relative: mean of the difference as a part of the other's FID on the same base.
        better: on how many bases the entry's FID is lower.
    """

    entry: str
    other: str
    bases: int
    mean: float
    low: float | None
    high: float | None
    relative: float
    better: int


def difference(fids: Mapping[str, Mapping[str, float]], entry: str, other: str) -> Difference | None:
    """The paired difference of two entries, Student's interval over bases; None if no base has both.

    Args:
        fids: by base and entry, the mean FID over its seeds.
        entry: the entry.
        other: what it is compared with.
    """
    pairs = [(own[entry], own[other]) for own in fids.values() if entry in own and other in own]
    if not pairs:
        return None
    mine, others = np.array(pairs).T
    gaps, count = mine - others, len(pairs)
    half = None if count < 2 else float(student.ppf(0.975, count - 1) * gaps.std(ddof=1) / np.sqrt(count))
    mean = float(gaps.mean())
    ends = (None, None) if half is None else (mean - half, mean + half)
    return Difference(entry, other, count, mean, *ends, float((gaps / others).mean()), int((gaps < 0).sum()))


def checkpoint(base: int) -> str:
    """Where a base is."""
    return "embedded:fashion" if base == 0 else str(ROOT / "recipes" / "fashion-bases" / f"seed-{base}.safetensors")


def fids_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """The mean FID of every entry of a run over its seeds, and of the base."""
    found: dict[str, list[float]] = {}
    for row in manifest["evidence"]:
        found.setdefault(row["entry"], []).append(row["fid"])
    return {entry: float(np.mean(values)) for entry, values in found.items()}


def run(base: int, work: Path) -> None:
    """Run the recipe on a base, and keep its manifest."""
    recipe = load_recipe(RECIPE).with_base(checkpoint(base))
    folder = work / f"base-{base}"
    run_of(recipe, folder).execute()
    kept = FOLDER / f"base-{base}"
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "manifest.json", kept / "manifest.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs") / "bases")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for base in [] if options.table else options.bases:
        run(base, options.work)
    table()


def table() -> None:
    """Write the figures of all bases that are finished."""
    manifests = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob("base-*/manifest.json"))
    }
    fids = {name: fids_of(manifest) for name, manifest in manifests.items()}
    found = [pair for entry, other in PAIRS if (pair := difference(fids, entry, other)) is not None]
    publish("bases", {"fids": fids, "differences": [asdict(pair) for pair in found]}, FOLDER)
    with atomic_path(FOLDER / "bases.md") as part:
        part.write_text(markdown(fids, found), encoding="utf-8")


def markdown(fids: Mapping[str, Mapping[str, float]], found: Sequence[Difference]) -> str:
    """The tables."""
    entries = list(dict.fromkeys(entry for own in fids.values() for entry in own))
    rows = []
    for entry in entries:
        values = [own.get(entry) for own in fids.values()]
        known = [value for value in values if value is not None]
        spread = f"{np.std(known, ddof=1):.3f}" if len(known) > 1 else "–"
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        rows.append([entry, *cells, f"{np.mean(known):.3f}", spread])
    pairs = [
        [
            f"{pair.entry} − {pair.other}",
            str(pair.bases),
            f"{pair.mean:+.3f}",
            "–" if pair.low is None else f"{pair.low:+.3f} … {pair.high:+.3f}",
            f"{100 * pair.relative:+.1f} %",
            f"{pair.better} of {pair.bases}",
        ]
        for pair in found
    ]
    said = (
        "# Several bases\n\n"
        "FID on 10,000 samples of Fashion-MNIST at 16×16 from the same noise, on bases that differ only in the seed of their "
        "training. All entries of a base spend the same training MACs on top of it, a tenth of the base's own, scoring, searches, "
        "recoveries and the sensitivity included; the network from scratch also spends the base's. The column SD is the standard "
        "deviation over bases: it contains the base's seed, the fine-tuning's and the samples'. Made by `python "
        "benchmarks/bases.py`; the manifest of each base's run is in the folder beside this page.\n\n"
    )
    paired = (
        "\n## Paired over bases\n\n"
        "Both entries of a pair start from the same base and sample from the same noise. The interval is Student's for the mean "
        "over bases, 95 %; a fine-tuning seed of its own for each base is contained in it. Less is better.\n\n"
    )
    return (
        said
        + markdown_table(["entry", *(name.replace("-", " ") for name in fids), "mean", "SD"], rows)
        + paired
        + markdown_table(["pair", "bases", "difference", "95 %", "relative", "better"], pairs)
    )


if __name__ == "__main__":
    main()
