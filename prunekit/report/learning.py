"""Learning curves of trainings beside each other: where they end, how soon they reach another's end, a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunekit._files import atomic_path
from prunekit._types import FloatArray
from prunekit.report.figures import save_figure, scale_by_log, styled

__all__ = [
    "LearningCurve",
    "curves_of",
    "draw_learning",
    "learning_claim",
    "mean_and_error",
    "measured_on",
    "reaching",
    "share_to_reach",
    "write_learning",
]


@dataclass(frozen=True)
class LearningCurve:
    """How a training went, over its seeds.

    Args:
        title: what tables and pictures call it.
        training_macs: at every look, shape (seeds, looks).
        losses: held-out loss on all timesteps, likewise.
        fids: likewise.
    """

    title: str
    training_macs: FloatArray
    losses: FloatArray
    fids: FloatArray


def curves_of(title: str, rows: Sequence[dict[str, Any]]) -> LearningCurve:
    """The curve of a manifest's rows, one row for each seed."""
    tables = (
        np.array([[look[name] for look in row["curve"]] for row in rows], dtype=np.float64)
        for name in ("training_macs", "loss", "fid")
    )
    return LearningCurve(title, *tables)


def reaching(macs: FloatArray, values: FloatArray, goal: float) -> float | None:
    """Training MACs at which a curve first gets down to a goal, linear between looks; None where it never does.

    Args:
        macs: shape (looks,), rising.
        values: shape (looks,).
        goal: what is to be reached.
    """
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(macs[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(macs[i - 1] + share * (macs[i] - macs[i - 1]))


def share_to_reach(curve: LearningCurve, rival: LearningCurve, of: str) -> float | None:
    """Share of the rival's training MACs after which a curve is where the rival's ends; means over the seeds.

    Args:
        curve: who has to reach.
        rival: whose end is to be reached.
        of: ``losses`` or ``fids``.

    Returns:
        None where it never does.
    """
    goal = float(getattr(rival, of)[:, -1].mean())
    reached = reaching(curve.training_macs.mean(0), getattr(curve, of).mean(0), goal)
    return None if reached is None else reached / float(rival.training_macs[:, -1].mean())


def mean_and_error(values: FloatArray, digits: int) -> str:
    """Mean and, over two or more values, its standard error, as text."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def learning_claim(rival: LearningCurve, others: Sequence[LearningCurve]) -> str:
    """What a comparison found, in one sentence."""
    best = min(others, key=lambda curve: float(curve.fids[:, -1].mean()))
    ends = [mean_and_error(curve.fids[:, -1], 2) for curve in (best, rival)]
    share = share_to_reach(best, rival, "fids")
    reached = f"reaches that after {share:.2f} of its training MACs" if share else "does not reach that"
    return (
        f"At equal training MACs the best of {len(others)} is {best.title}: FID {ends[0]} against {ends[1]} of {rival.title}; "
        f"it {reached}."
    )


def measured_on(look: dict[str, Any], sampler: str, steps: int) -> str:
    """What losses and FID of a look are of, as sentences."""
    features = look["features"].get("name", "as stated")
    return (
        "Loss: ε on held-out images, all timesteps alike. "
        f"FID: {look['count']:,} images, {steps} steps of {sampler}, features {features}. "
        "± is the standard error over the seeds."
    )


def write_learning(
    folder: Path,
    name: str,
    curves: Sequence[LearningCurve],
    text: str,
    table: Sequence[Sequence[str]],
    words: int = 1,
    after: str = "",
) -> Path:
    """Write ``report/<name>.md`` and ``.png`` into a run's folder; returns the first.

    Args:
        folder: the run's.
        name: of both files.
        curves: what the picture shows.
        text: what stands before the table, Markdown.
        table: rows of cells, the heading first.
        words: columns of text at the left; the others are numbers.
        after: what stands below the picture, Markdown.
    """
    target = folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    draw_learning(curves, target / f"{name}.png")
    aligned = [table[0], ["---"] * words + ["---:"] * (len(table[0]) - words), *table[1:]]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in aligned)
    with atomic_path(target / f"{name}.md") as part:
        paragraphs = [text, lines, f"![Learning curves]({name}.png)", *([after] if after else [])]
        part.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return target / f"{name}.md"


def draw_learning(curves: Sequence[LearningCurve], path: Path, rival: int = 0) -> None:
    """Loss and FID over training MACs, one line for each curve, the rival's thick."""
    with styled():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, of, word in zip(figure.subplots(1, 2), ("losses", "fids"), ("held-out loss", "FID"), strict=True):
            for i, curve in enumerate(curves):
                macs = curve.training_macs.mean(0) / 1e12
                style = {"color": f"C{i}", "marker": "o", "markersize": 3, "linewidth": 2 if i == rival else 1}
                axes.plot(macs, getattr(curve, of).mean(0), label=curve.title, **style)
            scale_by_log(axes)
            axes.set_xlabel("training TMACs")
            axes.set_ylabel(word)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        save_figure(figure, path)
