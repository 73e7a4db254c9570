"""FID of an evidence run's experts, fine-tuned again for other numbers of train steps and with other seeds.

The pruned networks are the run's, everything else is as its recipe says; nothing is searched again. A row is added to
reports/bases/lengths.jsonl as soon as it is measured, rows that are there are not measured again, and lengths.md is the table.
About a quarter of an hour a row on one core for five experts of the small Fashion-MNIST network and 10,000 images:

    python benchmarks/train_lengths.py RUN --entry "experts 0.8, linear" --base 0 --steps 990 1175 --seeds 0 1
    python benchmarks/train_lengths.py --table
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS, environment, markdown_table
from swaps import Swaps

from prunekit._files import atomic_path
from prunekit.recipe import slug
from prunekit.slim import load_slim
from prunekit.steps.finetuning import finetune_slim

FOLDER = REPORTS.parent / "bases"
KEY = ("entry", "base", "steps", "seed", "count")


def measure(swaps: Swaps, entry: str, steps: int, seed: int) -> float:
    """FID of an entry's networks after a fine-tuning of this length.

    Args:
        swaps: the evidence run.
        entry: one of its entries.
        steps: train steps of every group.
        seed: of the fine-tuning.
    """
    folder = swaps.folder / "entries" / slug(entry) / "pruned"
    options = swaps.run.recipe.entry(entry).finetune
    options = replace(options, train=replace(options.train, steps=steps, seed=seed))
    slims = [load_slim(folder / f"group-{group.index}") for group in swaps.setting.groups]
    return swaps.fid([finetune_slim(slim, swaps.setting.images.train, options)[0] for slim in slims])


def known_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that have been measured."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table: a column for each length and seed."""
    columns = sorted({(row["steps"], row["seed"]) for row in rows})
    lines = []
    for entry, base in sorted({(row["entry"], row["base"]) for row in rows}):
        found = {
            (row["steps"], row["seed"]): row["fid"] for row in rows if (row["entry"], row["base"]) == (entry, base)
        }
        cells = [f"{found[column]:.3f}" if column in found else "–" for column in columns]
        lines.append([f"{entry}, base {base}", *cells])
    return (
        "# Train steps and seeds\n\n"
        "FID of the same pruned networks after fine-tunings of another length or with another seed; 10,000 images of "
        "Fashion-MNIST at 16×16 from the same noise. The learning rate falls to zero over the steps, whatever their number. "
        "Networks with the same seed see the same batches and noise at each step. Made by `python benchmarks/train_lengths.py`.\n\n"
        + markdown_table(["entry", *(f"{steps:,} steps, seed {seed}" for steps, seed in columns)], lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a finished run of a recipe with an evidence section"
    )
    parser.add_argument("--entry", default="experts 0.8, linear")
    parser.add_argument("--base", type=int, default=0, help="which base the run has")
    parser.add_argument("--steps", type=int, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.output / "lengths.jsonl"
    pairs = [] if options.table else [(steps, seed) for seed in options.seeds for steps in options.steps]
    asked = [dict(zip(KEY, (options.entry, options.base, *pair, options.count), strict=True)) for pair in pairs]
    known = [{key: row[key] for key in KEY} for row in known_rows(path)]
    if missing := [row for row in asked if row not in known]:
        swaps = Swaps(options.run, options.count, seed=0)
        for row in missing:
            row["fid"] = measure(swaps, row["entry"], row["steps"], row["seed"])
            with path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({**row, "environment": environment()}) + "\n")
            print(row, flush=True)
    with atomic_path(options.output / "lengths.md") as part:
        part.write_text(markdown(known_rows(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
