"""Experts and their rivals over several bases that differ only in the seed of their training, paired over the bases.

Each study is a recipe in recipes/ that is run for each of its bases; an interrupted call goes on. The fine-tuning's seed is the
base's own: the same batches and noise on every base would shift all of them alike, which no interval over bases can show. Writes
the manifest of every finished base to reports/bases/STUDY/base-N.json (base-N-seed-S.json for another seed), and the table over all
of them to reports/bases/bases.json and .md:

    python benchmarks/bases.py --work /tmp/bases                                       # everything, about 20 hours on one core
    python benchmarks/bases.py --work /tmp/bases --studies fashion-bases --bases 3 4
    python benchmarks/bases.py --work /tmp/bases --studies fashion-bases --bases 0 --seeds 1 2 --entries "experts 0.8, snr"
    python benchmarks/bases.py --table                                                 # only what is finished
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
from scipy.stats import spearmanr
from scipy.stats import t as student

from prunekit._files import atomic_path
from prunekit._types import FloatArray
from prunekit.recipe import Recipe, load_recipe
from prunekit.studies.kinds_of_runs import run_of

ROOT = REPORTS.parents[1]
FOLDER = REPORTS.parent / "bases"
STUDIES = {  # the bases of each, by the seed of their training
    "fashion-bases": (0, 1, 2, 3, 4),
    "fashion-sensitivity": (0, 1, 2, 3, 4),
    "fashion-scratch": (0, 1, 2, 3, 4),
    "fashion-two": (0, 1, 2),
    "fashion-cost": (0, 1, 2),
    "fashion-groups": (0,),
}
HEADLINE = "experts 0.8, by sensitivity"
PAIRS = (  # what is compared with what
    (HEADLINE, "base trained on"),
    (HEADLINE, "one network, searched 0.8"),
    (HEADLINE, "experts 0.8, snr"),
    (HEADLINE, "experts 0.8, linear"),
    (HEADLINE, "experts without pruning"),
    (HEADLINE, "small from scratch 0.8"),
    (HEADLINE, "base"),
    ("experts 0.8, snr", "base"),
    ("experts 0.8, snr", "base trained on"),
    ("experts 0.8, linear", "base trained on"),
    ("experts without pruning", "base trained on"),
    ("one network, searched 0.8", "base trained on"),
    ("experts 0.8, snr", "experts without pruning"),
    ("experts 0.8, linear", "experts without pruning"),
    ("experts 0.8, snr", "experts 0.8, linear"),
    ("experts 0.8, snr", "one network, searched 0.8"),
    ("experts 0.8, linear", "one network, searched 0.8"),
    ("experts 0.6, by sensitivity", "experts 0.6, snr"),
    ("experts 0.6, by sensitivity", "base trained on"),
    ("specialist, whole", "base"),
    ("specialist, whole", "base trained on for 0.02"),
    ("specialist, 0.5", "specialist, whole"),
    ("specialist, 0.3", "specialist, whole"),
    ("specialist, 0.15", "specialist, whole"),
    ("base trained on for 0.02, weight inverse loss", "base trained on for 0.02"),
    ("base trained on for 0.02, weight inverse root loss", "base trained on for 0.02"),
    ("specialist, whole", "base trained on for 0.02, weight inverse loss"),
    ("0.7 base and experts 0.8, by sensitivity", "base"),
    ("0.7 base and experts 0.8, snr", "base"),
    ("0.7 base and experts 0.8, by sensitivity", "0.7 base trained on to 0.94"),
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


@dataclass(frozen=True)
class Spread:
    """How much an entry's FID varies, by cause.

    Args:
        entry: the entry.
        bases: standard deviation over bases, each with a fine-tuning seed of its own; None for one base.
        tuning: standard deviation over fine-tuning seeds on one base, with the same noise for the images; None for one seed.
        sampling: standard deviation over the images of one network, from a bootstrap; None if it is not known.
        paired: the same of the difference from the base, sampled from the same noise.
    """

    entry: str
    bases: float | None
    tuning: float | None
    sampling: float | None
    paired: float | None


def difference(fids: Mapping[str, Mapping[str, float]], entry: str, other: str) -> Difference | None:
    """The paired difference of two entries, Student's interval over bases; None if no base has both.

    Args:
        fids: FID by base and entry.
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


def recipe_of(study: str, base: int, seed: int, entries: Sequence[str] | None = None) -> Recipe:
    """A study's recipe on a base: one that is trained already, or the recipe's own training with that seed.

    Args:
        study: name of the recipe.
        base: seed of the base's training.
        seed: of the fine-tuning.
        entries: only these; None for all.
    """
    recipe = load_recipe(ROOT / "recipes" / f"{study}.yaml")
    if recipe.base.checkpoint is not None:
        recipe = recipe.with_base(checkpoint(base))
    data = recipe.model_dump(mode="json")
    if recipe.base.checkpoint is None:
        data["base"]["train"]["seed"] = base
    own = data["evidence"]
    own["seeds"] = [seed]
    if entries is not None:
        own["entries"] = {name: entry for name, entry in own["entries"].items() if name in entries}
        own["headline"] = own["headline"] if own["headline"] in entries else next(iter(own["entries"]), own["headline"])
    return Recipe.model_validate(data)


def checkpoint(base: int) -> str:
    """Where a base is."""
    return "embedded:fashion" if base == 0 else str(ROOT / "recipes" / "fashion-bases" / f"seed-{base}.safetensors")


def rows_of(manifests: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The networks of every base, from the manifests by study and file, whose name starts with the base's.

    A study that trains bases of its own has no base that others share: its unchanged base counts as an entry of its own.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for study, own in manifests.items():
        is_shared = load_recipe(ROOT / "recipes" / f"{study}.yaml").base.checkpoint is not None
        for file, manifest in own.items():
            base = file.partition("-seed-")[0]
            for row in manifest["evidence"]:
                name = row["entry"] if is_shared or row["entry"] != "base" else f"base of {study}"
                if name != "base" or not any(known["entry"] == "base" for known in found.get(base, ())):
                    found.setdefault(base, []).append({**row, "entry": name})
    return dict(sorted(found.items()))


def fids_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """FID by base and entry, of the base's own seed of the fine-tuning."""
    return {base: {row["entry"]: row["fid"] for row in of_own_seed(base, own)} for base, own in rows.items()}


def of_own_seed(base: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a base's networks whose fine-tuning has the base's own seed, and the base itself."""
    own = int(base.rpartition("-")[2])
    return [row for row in rows if row["seed"] in (None, own)]


def spreads_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Spread]:
    """How much every entry's FID varies, by cause."""
    entries = list(dict.fromkeys(row["entry"] for own in rows.values() for row in own))
    return [_spread(entry, rows) for entry in entries]


def _spread(entry: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Spread:
    own = {base: [row for row in found if row["entry"] == entry] for base, found in rows.items()}
    over = [row["fid"] for base, found in own.items() for row in of_own_seed(base, found)]
    tuned = [np.var([row["fid"] for row in found], ddof=1) for found in own.values() if len(found) > 1]
    every = [row for found in own.values() for row in found]
    sampled = [row["fid_sampling_error"] for row in every if row.get("fid_sampling_error") is not None]
    paired = [row["fid_difference"]["se"] for row in every if (row.get("fid_difference") or {}).get("se") is not None]
    return Spread(
        entry,
        float(np.std(over, ddof=1)) if len(over) > 1 else None,
        float(np.sqrt(np.mean(tuned))) if tuned else None,
        float(np.mean(sampled)) if sampled else None,
        float(np.mean(paired)) if paired else None,
    )


@dataclass(frozen=True)
class Following:
    """How FID follows the held-out loss of each timestep group, over all entries and bases.

    Args:
        groups: first timestep of each group after the first.
        changes: entry → change of each group's loss from the base's in per cent, the mean over bases.
        ranks: Spearman's correlation of each group's change with the change of FID.
        weighed: the same of the summed change, weighed by the amplification that a sensitivity measured; None if none did.
        pairs: number of entries on bases.
    """

    groups: list[int]
    changes: dict[str, list[float]]
    ranks: list[float]
    weighed: float | None
    pairs: int


def following(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], groups: Sequence[int], amplification: Sequence[float] | None
) -> Following:
    """Compare the networks of every base with the base itself.

    Args:
        rows: the networks of every base.
        groups: first timestep of each group after the first, for which the losses are.
        amplification: weight of each group's loss.
    """
    relative, absolute, fids = list[FloatArray](), list[FloatArray](), list[float]()
    by_entry: dict[str, list[FloatArray]] = {}
    for own in rows.values():
        (base,) = (row for row in own if row["entry"] == "base")
        before = _losses(base)
        for row in own:
            if row["entry"] != "base" and len(row["losses"]) == len(before):
                absolute.append(_losses(row) - before)
                relative.append(100 * absolute[-1] / before)
                fids.append(row["fid"] - base["fid"])
                by_entry.setdefault(row["entry"], []).append(relative[-1])
    changes = {name: np.mean(found, axis=0).tolist() for name, found in by_entry.items()}
    ranks = [float(spearmanr(column, fids).statistic) for column in np.array(relative).T]
    summed = None if amplification is None else np.array(absolute) @ np.array(amplification)
    weighed = None if summed is None else float(spearmanr(summed, fids).statistic)
    return Following(list(groups), changes, ranks, weighed, len(fids))


def _losses(row: Mapping[str, Any]) -> FloatArray:
    return np.array([loss["mean"] for loss in row["losses"]])


def _amplification(manifests: Mapping[str, Mapping[str, Any]], groups: int) -> list[float] | None:
    """The mean over bases of what the sensitivities measured; None if there is none for that number of groups."""
    found = [manifest["method"]["allocation"].get("sensitivity") for manifest in manifests.values()]
    every = [[group["amplification"] for group in one["groups"]] for one in found if one is not None]
    every = [one for one in every if len(one) == groups]
    return np.mean(every, axis=0).tolist() if every else None


def run(study: str, base: int, seed: int, work: Path, entries: Sequence[str] | None = None) -> None:
    """Run a study on a base, and keep its manifest. What another study has measured on the same base is not measured again.

    Args:
        study: name of the recipe.
        base: seed of the base's training.
        seed: of the fine-tuning.
        work: folder for the runs.
        entries: only these; a later call for all of them replaces the manifest.
    """
    folder = work / study / f"base-{base}"
    others = [other for other in work.glob(f"*/{folder.name}") if other != folder]
    run_of(recipe_of(study, base, seed, entries), folder, peers=others).execute()
    kept = FOLDER / study / f"base-{base}{'' if seed == base else f'-seed-{seed}'}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "manifest.json", kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--bases", type=int, nargs="+", help="only these (default: all of the study)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the fine-tuning (default: the base's)")
    parser.add_argument("--entries", nargs="+", help="only these of each study (default: all)")
    parser.add_argument("--work", type=Path, default=Path("runs") / "bases")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for study in [] if options.table else options.studies:
        for base in STUDIES[study]:
            for seed in options.seeds or [base] if options.bases is None or base in options.bases else []:
                run(study, base, seed, options.work, options.entries)
    table()


def table() -> None:
    """Write the figures of all that is finished."""
    manifests = {
        study: {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((FOLDER / study).glob("base-*.json"))
        }
        for study in STUDIES
    }
    rows = rows_of(manifests)
    fids, spreads = fids_of(rows), spreads_of(rows)
    found = [pair for entry, other in PAIRS if (pair := difference(fids, entry, other)) is not None]
    groups = next(iter(manifests["fashion-bases"].values()))["groups"]
    followed = following(rows, groups, _amplification(manifests["fashion-sensitivity"], len(groups) + 1))
    figures = {"fids": fids, "differences": list(map(asdict, found)), "spreads": list(map(asdict, spreads))}
    publish("bases", figures | {"following": asdict(followed)}, FOLDER)
    with atomic_path(FOLDER / "bases.md") as part:
        part.write_text(markdown(fids, found, spreads, rows) + _followed(followed), encoding="utf-8")


def markdown(
    fids: Mapping[str, Mapping[str, float]],
    found: Sequence[Difference],
    spreads: Sequence[Spread],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The tables."""
    costs = {
        row["entry"]: (row["sampling_macs"] / own[0]["sampling_macs"], row["params"])
        for own in rows.values()
        for row in own
    }
    levels = []
    for spread in spreads:
        values = [own.get(spread.entry) for own in fids.values()]
        known = [value for value in values if value is not None]
        ratio, params = costs[spread.entry]
        mean = f"{np.mean(known):.3f}" if known else "–"
        levels.append([spread.entry, *map(_number, values), mean, f"{ratio:.3f}", f"{params:,}"])
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
    errors = [
        [spread.entry, *map(_number, (spread.bases, spread.tuning, spread.sampling, spread.paired))]
        for spread in spreads
    ]
    said = (
        "# Several bases\n\n"
        "FID on 10,000 samples of Fashion-MNIST at 16×16 from the same noise, on bases that differ only in the seed of their "
        "training. The entries of a study spend the same training MACs, scoring, searches, recoveries and the sensitivity "
        "included; the recipe of the study says what they are. Made by `python benchmarks/bases.py`; the manifest of each study on "
        "each base is in the folders beside this page. Less is better.\n\n"
    )
    paired = (
        "\n## Paired over bases\n\n"
        "Both entries of a pair start from the same base and sample from the same noise. The interval is Student's for the mean "
        "over bases, 95 %. Every base has a fine-tuning seed of its own, so it contains what another base and another seed of the "
        "fine-tuning would change. The noise of the images is the same on all bases; what other images would change is in the next "
        "table.\n\n"
    )
    causes = (
        "\n## What the figures vary by\n\n"
        "Standard deviations of an entry's FID: over bases, where the fine-tuning's seed acts too; over fine-tuning seeds on one "
        "base; over images of one network (bootstrap), and the same of its difference from the base.\n\n"
    )
    names = [name.replace("-", " ") for name in fids]
    return (
        said
        + markdown_table(["entry", *names, "mean", "MACs", "parameters"], levels)
        + paired
        + markdown_table(["pair", "bases", "difference", "95 %", "relative", "better"], pairs)
        + causes
        + markdown_table(["entry", "bases", "fine-tuning", "sampling", "sampling, paired"], errors)
    )


def _followed(found: Following) -> str:
    """The table of losses by group."""
    header = ["entry", *(f"t ≥ {start}" for start in (0, *found.groups))]
    lines = [[name, *(f"{value:+.2f} %" for value in values)] for name, values in found.changes.items()]
    ranks = ["*rank correlation with FID*", *(f"{value:.2f}" for value in found.ranks)]
    summed = (
        ""
        if found.weighed is None
        else (
            f" Summed over the groups with the amplification that the sensitivities measured as weights, it is {found.weighed:.2f}."
        )
    )
    return (
        "\n## Which group's loss FID follows\n\n"
        "Change of the held-out loss from the base's by timestep group, the mean over bases. The last line is Spearman's rank "
        f"correlation with the change of FID, over all {found.pairs} networks.{summed}\n\n"
        + markdown_table(header, [*lines, ranks])
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
