"""Experts and their rivals over several bases that differ only in the seed of their training, paired over the bases.

Each study is a recipe in recipes/ that is run for each of its bases; an interrupted call goes on. The fine-tuning's seed is the
base's own, N on base N: the same batches and noise on every base would shift all of them alike, which no interval over bases can
show. More seeds of the same base are N + 10, N + 20, …; each base's mean counts once. Writes
the manifest of every finished base to reports/bases/STUDY/base-N.json (base-N-seed-S.json for another seed), and the table over all
of them to reports/bases/bases.json and .md:

    python benchmarks/bases.py --work /tmp/bases                                       # everything, about 21 hours on one core
    python benchmarks/bases.py --work /tmp/bases --studies fashion-bases --bases 3 4
    python benchmarks/bases.py --work /tmp/bases --studies fashion-bases --bases 0 --seeds 10 20 --entries "experts 0.8, snr"
    python benchmarks/bases.py --table                                                 # only what is finished
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from _bases_figures import Design, amplification_of, following, rows_of, spreads_of
from _bases_page import markdown
from _manifest import REPORTS, publish

from prunekit._files import atomic_path
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
    ("experts 0.8, linear", "base"),
    ("experts without pruning", "base trained on"),
    ("one network, searched 0.8", "base trained on"),
    ("one network, searched 0.8", "base"),
    ("experts 0.8, snr", "experts without pruning"),
    ("experts 0.8, linear", "experts without pruning"),
    ("experts 0.8, snr", "experts 0.8, linear"),
    ("experts 0.8, snr", "one network, searched 0.8"),
    ("experts 0.8, linear", "one network, searched 0.8"),
    ("experts 0.8, snr, rates by group", "base trained on"),
    ("experts 0.8, snr, rates by group", "base"),
    ("experts 0.8, snr, rates by group", "one network, searched 0.8"),
    ("experts 0.8, snr, rates by group", "experts 0.8, snr"),
    ("experts 0.8, linear, rates by group", "base trained on"),
    ("experts 0.8, linear, rates by group", "base"),
    ("experts 0.8, linear, rates by group", "one network, searched 0.8"),
    ("experts 0.8, linear, rates by group", "experts 0.8, linear"),
    ("experts 0.8, linear, rates by group", "experts 0.8, snr, rates by group"),
    ("experts 0.8, linear, rates by group", "experts without pruning"),
    ("experts 0.6, by sensitivity", "experts 0.6, snr"),
    ("experts 0.6, by sensitivity", "base trained on"),
    ("experts 0.6, by sensitivity", "base"),
    ("experts 0.6, snr", "base"),
    ("experts 0.8, by sensitivity, rates by group", "base trained on"),
    ("experts 0.8, by sensitivity, rates by group", "base"),
    ("experts 0.8, by sensitivity, rates by group", "experts 0.8, snr, rates by group"),
    ("experts 0.8, by sensitivity, rates by group", "experts 0.8, linear, rates by group"),
    ("experts 0.8, by sensitivity, rates by group", "experts 0.8, by sensitivity"),
    ("experts 0.6, by sensitivity, rates by group", "base trained on"),
    ("experts 0.6, by sensitivity, rates by group", "experts 0.6, by sensitivity"),
    ("specialist, whole", "base"),
    ("specialist, 0.3", "base"),
    ("specialist, whole", "base trained on for 0.02"),
    ("specialist, 0.3", "base trained on for 0.02"),
    ("specialist, 0.3", "base trained on for 0.02, weight inverse root loss"),
    ("base trained on", "base"),
    ("specialist, 0.5", "specialist, whole"),
    ("specialist, 0.3", "specialist, whole"),
    ("specialist, 0.15", "specialist, whole"),
    ("base trained on for 0.02, weight inverse loss", "base trained on for 0.02"),
    ("base trained on for 0.02, weight inverse root loss", "base trained on for 0.02"),
    ("specialist, whole", "base trained on for 0.02, weight inverse loss"),
    ("specialist, whole", "base trained on for 0.02, weight inverse root loss"),
    ("base trained on for 0.02", "base"),
    ("base trained on for 0.02, weight inverse root loss", "base"),
    ("0.7 base and experts 0.8, by sensitivity", "base"),
    ("0.7 base and experts 0.8, snr", "base"),
    ("0.7 base and experts 0.8, by sensitivity", "0.7 base trained on to 0.94"),
    ("0.7 base and experts 0.8, snr", "0.7 base trained on to 0.94"),
    ("0.7 base and experts 0.8, snr", "0.7 base trained on to 0.94, rate 0.001"),
    ("0.7 base trained on to 0.94, rate 0.001", "base"),
)


def recipe_of(study: str, base: int, seed: int, entries: Sequence[str] | None = None) -> Recipe:
    """A study's recipe on a base: one that is trained already, or the recipe's own training with that seed.

    Args:
        study: name of the recipe.
        base: seed of the base's training.
        seed: of the fine-tuning.
        entries: only these; None for all.
    """
    recipe = _recipe(study)
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


def run(study: str, base: int, seed: int, work: Path, entries: Sequence[str] | None = None) -> None:
    """Run a study on a base, and keep its manifest. What another study has measured on the same base is not measured again.

    Args:
        study: name of the recipe.
        base: seed of the base's training.
        seed: of the fine-tuning.
        work: folder for the runs.
        entries: only these; a later call for all of them replaces the manifest.
    """
    name = f"base-{base}{'' if seed == base else f'-seed-{seed}'}"  # a folder shows the images of one seed
    folder = work / study / name
    others = [other for other in (*work.glob(f"*/base-{base}"), *work.glob(f"*/base-{base}-seed-*")) if other != folder]
    run_of(recipe_of(study, base, seed, entries), folder, peers=others).execute()
    kept = FOLDER / study / f"{name}.json"
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
    training = [study for study in STUDIES if _recipe(study).base.checkpoint is None]
    rows = rows_of(manifests, training)
    designs = [Design.of(rows, own, PAIRS) for own in (True, False)]
    spreads = spreads_of(rows)
    groups = next(iter(manifests["fashion-bases"].values()))["groups"]
    followed = following(rows, groups, amplification_of(manifests["fashion-sensitivity"], len(groups) + 1))
    figures = {"designs": list(map(asdict, designs)), "spreads": list(map(asdict, spreads))}
    publish("bases", figures | {"following": asdict(followed)}, FOLDER)
    with atomic_path(FOLDER / "bases.md") as part:
        part.write_text(markdown(designs, spreads, followed, rows), encoding="utf-8")


def _recipe(study: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{study}.yaml")


if __name__ == "__main__":
    main()
