"""How the sampler carries an error of each timestep group into the sample: where it is measured, and how large the noise is.

The embedded bases with DDIM, five uniform groups. Diffusers' DDIM clamps the predicted clean image to −1 … 1; the measurement does
not, except where a row says so. Writes reports/search/sensitivity.json and .md: python benchmarks/sensitivity.py
"""

import json
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from scipy.stats import spearmanr

from prunekit._files import atomic_path
from prunekit.allocation import Sensitivity
from prunekit.groups import make_groups
from prunekit.sampling import make_sampler
from prunekit.sampling.disturbances import SensitivityOptions
from prunekit.steps.bases import open_base
from prunekit.steps.image_choice import images_of
from prunekit.steps.measuring_sensitivity import Sampled, chosen_measure, measure_sensitivity

FOLDER = REPORTS.parent / "search"
GROUPS, STEPS, COUNT = 5, 50, 128
CLOSE = 1.7  # FID of close rivals
WAYS = (  # where, size of the noise, whether the prediction is clamped
    ("pixels", 0.02, False),
    ("pixels", 0.002, False),
    ("features", 0.02, False),
    ("features", 0.002, False),
    ("pixels", 0.02, True),
    ("pixels", 0.002, True),
    ("features", 0.02, True),
)


def measured(name: str, where: str, size: float, clamped: bool) -> Sensitivity:
    """The sensitivity of an embedded base."""
    base = open_base(f"embedded:{name}")
    shape = tuple(base.spec.example_inputs()["sample"].shape[1:])
    sampler = make_sampler("ddim", STEPS, base.parameterization, shape)
    sampled = Sampled(base.model, name, base.spec, base.parameterization, sampler, "ddim", latent=False)
    measure = chosen_measure(where, False, False, "auto", lambda: images_of(base).train.images)
    groups = make_groups(base.schedule, count=GROUPS)
    options = SensitivityOptions(COUNT, size=size, batch_size=COUNT, clamped=clamped)
    return measure_sensitivity(sampled, groups, options, measure)


def ranking(rows: list[dict[str, Any]]) -> list[tuple[str, float, float, float]]:
    """How well the groups' weighed losses rank the published run's entries by FID: Spearman over entries, runs and close rivals.

    The losses are of the published comparison on Fashion-MNIST; nothing is fitted to it.
    """
    runs = json.loads((REPORTS.parent / "fashion-tdc" / "manifest.json").read_text(encoding="utf-8"))["evidence"]
    by_entry: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_entry.setdefault(run["entry"], []).append(run)

    def of(group: list[dict[str, Any]]) -> tuple[Any, float]:
        losses = np.mean([[each["mean"] for each in run["losses"]] for run in group], axis=0)
        return losses, float(np.mean([run["fid"] for run in group]))

    entries, single = [of(group) for group in by_entry.values()], [of([run]) for run in runs]
    close = [entry for entry in entries if entry[1] < CLOSE]
    weights = {"the groups' losses, not weighed": np.ones(GROUPS)}
    for row in rows:
        if row["base"] == "fashion":
            weights[described(row)] = np.array([group["amplification"] for group in row["sensitivity"]["groups"]])

    def rank(weigh: Any, each: list[tuple[Any, float]]) -> float:
        return float(spearmanr([losses @ weigh for losses, _ in each], [fid for _, fid in each])[0])

    return [(name, rank(w, entries), rank(w, single), rank(w, close)) for name, w in weights.items()]


def described(row: dict[str, Any]) -> str:
    """A row's name in tables."""
    return f"{row['in']}, noise {row['size']:g}{', clamped' if row['clamped'] else ''}"


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in ("digits", "fashion"):
        for where, size, clamped in WAYS:
            found = measured(name, where, size, clamped)
            rows.append({"base": name, "in": where, "size": size, "clamped": clamped, "sensitivity": found.to_json()})
            print(name, where, size, clamped, [f"{group.amplification:.3g}" for group in found.groups], flush=True)
    ranks = [dict(zip(("weights", "entries", "runs", "close"), rank, strict=True)) for rank in ranking(rows)]
    publish("sensitivity", {"groups": GROUPS, "steps": STEPS, "samples": COUNT, "rows": rows, "ranking": ranks}, FOLDER)
    with atomic_path(FOLDER / "sensitivity.md") as part:
        part.write_text(markdown(rows, ranks), encoding="utf-8")


def plain(value: float, digits: int) -> str:
    """A number with so many significant digits and without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def markdown(rows: list[dict[str, Any]], ranks: list[dict[str, Any]]) -> str:
    """The tables."""
    header = ["base, measured in, size of the noise", *(f"group {index}" for index in range(GROUPS))]
    lines = []
    for row in rows:
        groups = row["sensitivity"]["groups"]
        lines.append(
            [
                f"{row['base']}, {described(row)}",
                *(f"{plain(g['amplification'], 2)} ± {plain(g['se'], 1)}" for g in groups),
            ]
        )
        if row["in"] == "pixels":
            lines.append(["the same at twice the noise, ratio", *(f"{group['linearity']:.2f}" for group in groups)])
    said = (
        "# How the sampler carries an error of each timestep group\n\n"
        f"White noise is added to every prediction in one group while DDIM draws {COUNT} samples in {STEPS} steps. The "
        "amplification is the mean square change of the sample, divided by the mean square of the noise that one prediction got, "
        "with its standard error over the samples. Group 0 is the cleanest. In features it is the squared distance, a sum; in "
        "pixels a mean. Noise is relative to the root mean square of each prediction. The ratio is that of the amplifications, 1 "
        "if the change of the sample is in proportion to the error. Made by `python benchmarks/sensitivity.py`.\n\n"
    )
    ranked = (
        "\n\n## Do weighed losses predict FID?\n\n"
        "Spearman's rank correlation of Σ A·loss with FID: over the 14 entries of `reports/fashion-tdc` (means of their "
        f"seeds), its 36 runs, and the entries with an FID below {CLOSE:g}. The weights are those above; the entries are "
        "fine-tuned networks, most of them experts on the same base. Nothing is fitted.\n\n"
    )
    columns = ["weights", "14 entries", "36 runs", "close rivals"]
    cells = [[rank["weights"], *(f"{rank[key]:.2f}" for key in ("entries", "runs", "close"))] for rank in ranks]
    return said + markdown_table(header, lines) + ranked + markdown_table(columns, cells)


if __name__ == "__main__":
    main()
