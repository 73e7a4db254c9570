"""Learning curves of trainings beside each other: where they end, how soon they reach another's end, a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunekit._types import FloatArray
from prunekit.report.estimate import Estimate
from prunekit.report.figures import scale_by_log
from prunekit.report.table import Column, Row, flat
from prunekit.report.wording import number_text

__all__ = [
    "LearningCurve",
    "curves_of",
    "describe_learning",
    "draw_learning",
    "ends",
    "learning_claim",
    "mean_and_error",
    "measured_on",
    "reaching",
    "seeds_text",
    "share_column",
    "share_to_reach",
]

_MARKERS = "os^DvPX<>*"


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


def seeds_text(count: int) -> str:
    """``3 seeds``; one says that nothing is known of the error."""
    return f"{count} seeds" if count > 1 else "one seed, so that there is no error"


def share_column(heading: str, curves: Sequence[LearningCurve], rival: LearningCurve | None, of: str) -> Column:
    """Shares of the rival's training MACs after which the curves are where it ends.

    Args:
        heading: of the column.
        curves: one for each row, which has its number as ``place``.
        rival: None where there is none.
        of: ``losses`` or ``fids``.
    """

    def text(row: Row) -> str:
        curve = curves[row["place"]]
        share = None if rival is None else 1.0 if curve is rival else share_to_reach(curve, rival, of)
        return "—" if share is None else f"{share:.2f} ({1 / share:.1f}×)"

    return Column(heading, "", text)


def ends(curve: LearningCurve) -> dict[str, float | None]:
    """Loss and FID at a curve's end, over its seeds, as parts of a table's row."""
    return flat(loss=Estimate.over(curve.losses[:, -1]), fid=Estimate.over(curve.fids[:, -1]))


def describe_learning(curves: Sequence[LearningCurve]) -> str:
    """The picture of :func:`draw_learning` in words."""
    told = []
    for curve in curves:
        loss, fid = (number_text(float(values[:, -1].mean())) for values in (curve.losses, curve.fids))
        told.append(f"{curve.title} ends at loss {loss} and FID {fid}")
    return f"Held-out loss and FID over training MACs, one line for each of {len(curves)}: {'; '.join(told)}."


def draw_learning(curves: Sequence[LearningCurve], rival: int = 0) -> Figure:
    """Loss and FID over training MACs, one line for each curve, the rival's thick."""
    figure = Figure(figsize=(9.5, 3.9 + 0.17 * (len(curves) // 3)), layout="constrained")
    for axes, of, word in zip(figure.subplots(1, 2), ("losses", "fids"), ("held-out loss", "FID"), strict=True):
        for i, curve in enumerate(curves):
            macs = curve.training_macs.mean(0) / 1e12
            style = {"color": f"C{i}", "marker": _MARKERS[i % len(_MARKERS)], "markersize": 4}
            axes.plot(macs, getattr(curve, of).mean(0), label=curve.title, linewidth=2.4 if i == rival else 1, **style)
        scale_by_log(axes)
        axes.set_xlabel("training TMACs")
        axes.set_ylabel(word)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
