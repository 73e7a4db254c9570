"""Tables of a comparison of experts with baselines, and their pictures."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from prunekit.report.evidence import TRAININGS, Entry, Evidence, short_gap
from prunekit.report.pareto import Point
from prunekit.report.table import Column, Row, Table, count, estimate, flat, named, ratio
from prunekit.report.wording import ABSENT, estimate_text, large_text, number_text, si_text
from prunekit.results.estimate import Estimate

__all__ = [
    "describe_losses",
    "describe_training",
    "draw_losses",
    "draw_training",
    "entry_table",
    "group_table",
    "points_of",
    "training_table",
]

_PARTS = {"base": ("#c9ced4", ""), "search": ("#e3b98f", "///"), "fine-tuning": ("#7fa8d1", "...")}
_WORDS = {"base": "the base's training", "search": "search", "fine-tuning": "fine-tuning"}
_STRONG = 0.6  # above this share of the largest change, white text is easier to read


def entry_table(evidence: Evidence) -> Table:
    """Cost of every entry, and means with standard errors over its fine-tuning seeds."""
    rows = tuple(_entry_row(evidence, entry) for entry in evidence.entries.values())
    fid = [
        estimate(evidence.label("FID"), "fid"),
        named(f"FID against {evidence.reference.name}", "verdict"),
    ]
    columns = (
        named("Entry", "entry"),
        named("Kind", "kind"),
        *(fid if evidence.has_fid else []),
        estimate("Loss", "loss"),
        *([estimate("KID", "kid")] if evidence.has_fid else []),
        estimate("SSIM to the base", "ssim"),
        ratio("Sampling MACs, of the base's", "mac_ratio"),
        count("Sampling MACs", "sampling_macs"),
        count("Parameters stored", "params"),
        ratio("Training MACs, of the base's", "training_ratio"),
        Column("Seconds per image", "seconds_per_image", lambda row: number_text(row["seconds_per_image"], 3)),
        count("Seeds", "seeds"),
    )
    metrics = evidence.metrics
    note = (
        "± is one standard error over fine-tuning seeds; the base is one model and has no error. Every entry's images start from "
        "the same noise. Not clearly: within two standard errors of no difference. Lower is better for loss, FID and KID; SSIM is "
        "1 for the base itself. MACs are per sample per evaluation, averaged over the sampler's steps."
    )
    caption = f"{metrics.count:,} images of each entry, {metrics.steps} steps of {str(metrics.sampler).upper()}"
    return Table("evidence", caption, rows, columns, note)


def _entry_row(evidence: Evidence, entry: Entry) -> Row:
    reference, seconds = evidence.reference, entry.estimate("seconds_per_image")
    return {
        "entry": entry.name,
        "kind": entry.role,
        "seeds": sum(seed is not None for seed in entry.seeds),
        **flat(**{key: entry.estimate(key) for key in ("fid", "loss", "kid", "ssim")}),
        "verdict": short_gap(entry, reference, "fid") if evidence.has_fid and entry is not reference else ABSENT,
        "mac_ratio": evidence.ratio(entry),
        "sampling_macs": entry.mean("sampling_macs"),
        "params": entry.mean("params"),
        "training_ratio": entry.total / evidence.base.total if evidence.base.total else None,
        "seconds_per_image": seconds.mean if seconds else None,
    }


def group_table(evidence: Evidence) -> Table:
    """Held-out loss of every entry in every timestep group of the evaluation, as a change from the base in percent."""
    rows = tuple(
        {
            "entry": entry.name,
            **flat(**{f"group_{i}": change for i, change in enumerate(_changes(evidence, entry))}),
        }
        for entry in _others(evidence)
    )
    columns = (named("Entry", "entry"), *(estimate(text, f"group_{i}") for i, text in enumerate(_ranges(evidence))))
    note = "Below zero is better than the base. ± is one standard error over fine-tuning seeds."
    return Table("losses", "Held-out loss by timesteps, change from the base in percent", rows, columns, note)


def training_table(evidence: Evidence) -> Table:
    """The cost of making every entry, by use."""
    base = evidence.base.total
    rows = tuple(
        {
            "entry": entry.name,
            **{part: float(macs.mean()) for part, macs in entry.training.items()},
            "total": entry.total,
            "part": entry.total / base if base else None,
        }
        for entry in evidence.entries.values()
    )
    columns = (
        named("Entry", "entry"),
        *(Column(f"MACs of {_WORDS[part]}", part, _large(part)) for part in TRAININGS),
        Column("Total MACs", "total", _large("total")),
        ratio("Of the base's", "part"),
    )
    note = (
        "Means over the seeds. A backward pass counts as twice its forward pass. Search includes grouping and scoring."
    )
    return Table("training", "Training MACs, search included", rows, columns, note)


def points_of(evidence: Evidence, measure: str) -> list[Point]:
    """Every entry as a point for :func:`draw_pareto`."""
    return [
        Point(entry.name, entry.role, evidence.ratio(entry), Estimate.over(entry.values[measure]))
        for entry in evidence.entries.values()
    ]


def draw_losses(evidence: Evidence) -> Figure:
    """The changes of :func:`group_table` as coloured cells with their numbers."""
    entries = _others(evidence)
    means = np.array([[change.mean for change in _changes(evidence, entry)] for entry in entries])
    widest = max(float(np.abs(means).max()), 1e-9)
    figure = Figure(figsize=(9.5, 1.3 + 0.36 * len(entries)), layout="constrained")
    axes = figure.subplots()
    mesh = axes.imshow(means, cmap="PuOr_r", vmin=-widest, vmax=widest, aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        colour = "white" if abs(value) > _STRONG * widest else "#22282e"
        text = f"{value:+.1f}".replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize=8)
    axes.set_xticks(range(means.shape[1]), _ranges(evidence), fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("timesteps (0 = cleanest)")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("change of the loss, %", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure


def describe_losses(evidence: Evidence) -> str:
    """The picture from :func:`draw_losses` in words."""
    told = (
        f"{entry.name}: {', '.join(estimate_text(change) for change in _changes(evidence, entry))}"
        for entry in _others(evidence)
    )
    return f"Change of the held-out loss from the base in percent, cleanest timesteps first. {'; '.join(told)}."


def draw_training(evidence: Evidence) -> Figure:
    """A bar for each entry: training MACs, split into the base's, search and fine-tuning."""
    entries = list(evidence.entries.values())
    figure = Figure(figsize=(9.5, 1.5 + 0.32 * len(entries)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(entries))
    for part, (colour, hatch) in _PARTS.items():
        macs = np.array([entry.training[part].mean() for entry in entries])
        axes.barh(range(len(entries)), macs, left=left, color=colour, hatch=hatch, height=0.7, label=_WORDS[part])
        left += macs
    for place, total in enumerate(left):
        axes.text(total, place, f" {si_text(total)}", va="center", fontsize=8)
    axes.axvline(
        evidence.reference.total,
        color="#333a42",
        linewidth=0.9,
        linestyle=":",
        label=f"{evidence.reference.name} in all",
    )
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(float(left.max()), 1.0))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return figure


def describe_training(evidence: Evidence) -> str:
    """The picture from :func:`draw_training` in words."""
    told = (f"{entry.name} {si_text(entry.total)}" for entry in evidence.entries.values())
    return f"Training MACs of every entry, split into the base's training, search and fine-tuning: {', '.join(told)}."


def _large(key: str) -> Callable[[Row], str]:
    return lambda row: large_text(row[key])


def _others(evidence: Evidence) -> list[Entry]:
    return [entry for entry in evidence.entries.values() if entry is not evidence.base]


def _changes(evidence: Evidence, entry: Entry) -> list[Estimate]:
    """Change of the loss from the base in percent, by timestep group."""
    base = evidence.base.losses.mean(0)
    return [Estimate.over(column) for column in (100 * (entry.losses / base - 1)).T]


def _ranges(evidence: Evidence) -> list[str]:
    """The timestep groups of the evaluation, for headings."""
    starts = (0, *evidence.cuts)
    return [
        *(f"t {start}–{stop - 1}" for start, stop in zip(starts, evidence.cuts, strict=False)),
        f"t from {starts[-1]}",
    ]
