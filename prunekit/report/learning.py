"""Compares learning curves of trainings: their final values, how soon they reach another's final value, and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from prunekit._types import FloatArray
from prunekit.report.claims import contradiction
from prunekit.report.doubts import doubt_of, doubt_sentence
from prunekit.report.figures import scale_by_log
from prunekit.report.table import Column, Row, estimate, flat
from prunekit.report.wording import ABSENT, clear, interval_text, unclear, unpaired
from prunekit.results.estimate import Estimate
from prunekit.results.learning_results import CurriculumRow, Look, MultistageRow
from prunekit.results.manifest_head import Head, metric_label

__all__ = [
    "LearningCurve",
    "are_even",
    "comparison_claim",
    "curves_of",
    "draw_learning",
    "end_columns",
    "ends",
    "is_reached",
    "label_and_doubt",
    "learning_claim",
    "mean_and_error",
    "measured_on",
    "reaching",
    "seeds_text",
    "share_column",
    "share_to_reach",
    "shares_sentence",
    "tmacs_text",
]

_EVEN = 1.05  # whole numbers of steps differ by a few per cent
_MARKERS = "os^DvPX<>*"


@dataclass(frozen=True)
class LearningCurve:
    """The learning curve of a training, over its seeds.

    Args:
        title: its name in tables and pictures.
        training_macs: training MACs at every look, shape (seeds, looks).
        losses: held-out loss on all timesteps, same shape.
        fids: FID, same shape; NaN if no extractor knows the pictures.
        seeds: seeds of the trainings, in order; curves of equal seeds are paired.
    """

    title: str
    training_macs: FloatArray
    losses: FloatArray
    fids: FloatArray
    seeds: tuple[int, ...] = ()

    @property
    def has_fid(self) -> bool:
        """Whether FID was measured at every look."""
        return bool(np.isfinite(self.fids).all())


def curves_of(title: str, rows: Sequence[CurriculumRow | MultistageRow]) -> LearningCurve:
    """The learning curve from a manifest's rows, one for each seed."""
    macs, losses, fids = (
        np.array([[getattr(look, name) for look in row.curve] for row in rows], dtype=np.float64)
        for name in ("training_macs", "loss", "fid")
    )
    seeds = tuple(place if row.seed is None else row.seed for place, row in enumerate(rows))
    return LearningCurve(title, macs, losses, fids, seeds)


def reaching(macs: FloatArray, values: FloatArray, goal: float) -> float | None:
    """Training MACs at which a curve first reaches a goal from above, linear between looks; None if it never does.

    Args:
        macs: shape (looks,), rising.
        values: shape (looks,).
        goal: the value to reach.
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
    """Share of the rival's training MACs after which a curve reaches the rival's final value; means over the seeds.

    Args:
        curve: the curve.
        rival: the curve with the final value to reach.
        of: ``losses`` or ``fids``.

    Returns:
        The share; None if the curve never reaches that value.
    """
    goal = float(getattr(rival, of)[:, -1].mean())
    reached = reaching(curve.training_macs.mean(0), getattr(curve, of).mean(0), goal)
    return None if reached is None else reached / float(rival.training_macs[:, -1].mean())


def tmacs_text(macs: float) -> str:
    """Training MACs in TMACs: two decimals, or two digits where these would be zeros."""
    tmacs = macs / 1e12
    return f"{tmacs:.2f}" if tmacs >= 0.01 else f"{tmacs:.2g}"


def mean_and_error(values: FloatArray, digits: int) -> str:
    """Mean and, over two or more values, its standard error, as text."""
    found = Estimate.over(values)
    return f"{found.mean:.{digits}f}" + ("" if found.se is None else f" ± {found.se:.{digits}f}")


def are_even(curves: Sequence[LearningCurve]) -> bool:
    """Whether all trainings took about as many MACs, to a twentieth."""
    ends = [float(curve.training_macs[:, -1].mean()) for curve in curves]
    return max(ends) <= _EVEN * min(ends)


def _spending(rival: LearningCurve, others: Sequence[LearningCurve]) -> str:
    """How the training MACs compare, as the beginning of a sentence."""
    if are_even([rival, *others]):
        return "At equal training MACs"
    cost = float(rival.training_macs[:, -1].mean())
    more = any(float(curve.training_macs[:, -1].mean()) > _EVEN * cost for curve in others)
    return "With different training MACs" if more else "With as many training MACs or fewer"


def learning_claim(rival: LearningCurve, others: Sequence[LearningCurve], label: str = "FID", doubt: str = "") -> str:
    """The finding of a comparison in sentences: which training ends best, and whether the difference exceeds the error.

    Args:
        rival: the training that the others are compared with.
        others: the other trainings.
        label: FID with its features and count, see :func:`prunekit.results.manifest_head.metric_label`.
        doubt: why no claim may rest on FID, see :func:`prunekit.report.doubts.doubt_of`; the held-out loss decides then.
    """
    of = "losses" if doubt or not all(curve.has_fid for curve in (rival, *others)) else "fids"
    best = min(others, key=lambda curve: float(getattr(curve, of)[:, -1].mean()))
    difference = _difference(best, rival, of)
    found = f"{_ends_text(best, rival, of, label)}: {_verdict(difference, of)}"
    share = share_to_reach(best, rival, of)
    if clear(difference):
        found += (
            f"; it reaches the latter after {share:.2f} of the training MACs"
            if share
            else "; it does not reach the latter"
        )
    which = "the one alternative" if len(others) == 1 else f"the best of {len(others)}, chosen by this number,"
    lead = f"{_spending(rival, others)} {which} is {best.title}"
    loss = _difference(best, rival, "losses")
    against = contradiction(difference, loss, float(rival.losses[:, -1].mean())) if of == "fids" else ""
    if not against:
        return f"{lead}: {found}."
    also = f"{_ends_text(best, rival, 'losses', label)}: {_verdict(loss, 'losses')}"
    if against == "far":
        return f"{lead} by FID only, and its higher loss contradicts that, so no gain is claimed: {also}; {found}."
    return f"{lead}: {found}. Its {also}."


def comparison_claim(manifest: Head, look: Look, rival: LearningCurve, others: Sequence[LearningCurve]) -> str:
    """The finding of a comparison with what limits it: :func:`learning_claim`, and whether FID may decide.

    Args:
        manifest: names the images.
        look: the measurement that says how FID was measured.
        rival: the training that the others are compared with.
        others: the other trainings.
    """
    label, doubt = label_and_doubt(manifest, look)
    return " ".join(filter(None, [learning_claim(rival, others, label, doubt), doubt_sentence(label, look, doubt)]))


def label_and_doubt(manifest: Head, look: Look) -> tuple[str, str]:
    """FID's name with its features and count, and why no claim may rest on it.

    Args:
        manifest: names the images.
        look: the measurement that says how FID was measured.
    """
    return metric_label("FID", look.features, look.count), doubt_of(look, manifest.settings.data or {})


def _ends_text(curve: LearningCurve, rival: LearningCurve, of: str, label: str) -> str:
    """The final values of two trainings, in words."""
    name, digits = f"{label} is" if of == "fids" else "held-out loss is", _digits(_difference(curve, rival, of), of)
    own, other = (mean_and_error(getattr(each, of)[:, -1], digits) for each in (curve, rival))
    return f"{name} {own} against {other} of {rival.title}"


def _difference(curve: LearningCurve, rival: LearningCurve, of: str) -> Estimate:
    """Final value of a training − the rival's: paired if both have the same seeds, otherwise with independent errors."""
    own, other = (getattr(each, of)[:, -1] for each in (curve, rival))
    if curve.seeds == rival.seeds:
        return Estimate.over(own - other)
    return unpaired(Estimate.over(own), Estimate.over(other))


def _verdict(difference: Estimate, of: str) -> str:
    """Better, worse or unclear, with the difference and its error."""
    if difference.mean == 0:
        return "the same"
    size = _signed(difference, _digits(difference, of))
    if difference.se is None:
        return f"unclear, since one seed gives no error of the difference {size}"
    if unclear(difference):
        return f"unclear, the difference {size} over the seeds may be chance ({interval_text(difference)})"
    return f"{'better' if difference.mean < 0 else 'worse'}, difference {size} over the seeds"


def _digits(difference: Estimate, of: str) -> int:
    """Decimals that show a difference's error: two for FID and five for losses, or more if it would be 0."""
    least = 2 if of == "fids" else 5
    return next((n for n in range(least, 9) if not difference.se or round(difference.se, n)), least)


def _signed(estimate: Estimate, digits: int) -> str:
    """A signed difference and its error with a number of decimals."""
    error = "" if estimate.se is None else f" ± {estimate.se:.{digits}f}"
    return f"{estimate.mean:+.{digits}f}{error}".replace("-", "−")


def measured_on(look: Look, sampler: str, steps: int) -> str:
    """Sentences about the images and timesteps on which a look's losses and FID were measured."""
    if look.features is None:
        fid = f"No FID was measured: {(look.no_features or 'no features are recorded').rstrip('.')}. "
    else:
        features = look.features.name or "as stated"
        fid = f"FID: {look.count:,} images, {steps} steps of {sampler}, features {features}. "
    return (
        f"Loss: that of the training, on held-out images, averaged over all timesteps. {fid}± is the standard error over the "
        "training seeds, each of which starts from its own weights; all sample from the same noise."
    )


def seeds_text(count: int) -> str:
    """``3 seeds``; for one seed with a note that the error is unknown."""
    return f"{count} seeds" if count > 1 else "one seed, so the error is unknown"


def share_column(heading: str, curves: Sequence[LearningCurve], rival: LearningCurve | None, of: str) -> Column:
    """A column of the shares of the rival's training MACs after which the curves reach its final value.

    Behind each is how many times sooner than the rival's own curve, which may reach that value before its end.

    Args:
        heading: heading of the column.
        curves: one for each row; the row's ``place`` is the curve's index.
        rival: None if there is none.
        of: ``losses`` or ``fids``.
    """
    own = None if rival is None else share_to_reach(rival, rival, of)

    def text(row: Row) -> str:
        share = None if rival is None else share_to_reach(curves[row["place"]], rival, of)
        return ABSENT if share is None or own is None else f"{share:.2f} ({own / share:.1f}×)"

    return Column(heading, "", text)


def end_columns(curves: Sequence[LearningCurve], rival: LearningCurve | None, whose: str) -> list[Column]:
    """Columns for trainings' final loss and FID, and the shares to reach the rival's; no FID if it was not measured.

    Args:
        curves: one for each row; the row has the curve's index as ``place``, and its :func:`ends`.
        rival: the curve with the final values to reach; None if there is none.
        whose: ``the`` or ``its``, for headings.
    """
    columns = [estimate("loss", "loss")]
    with_fid = all(curve.has_fid for curve in curves)
    columns += [estimate("FID", "fid")] if with_fid else []
    for of, word in [("losses", "loss"), ("fids", "FID")][: 1 + with_fid]:
        if is_reached(curves, rival, of):
            columns.append(share_column(f"share to {whose} {word}", curves, rival, of))
    return columns


def is_reached(curves: Sequence[LearningCurve], rival: LearningCurve | None, of: str) -> bool:
    """Whether a curve other than the rival reaches the rival's final value.

    Args:
        curves: all curves.
        rival: None if there is none.
        of: ``losses`` or ``fids``.
    """
    others = [curve for curve in curves if curve is not rival]
    return rival is not None and any(share_to_reach(curve, rival, of) is not None for curve in others)


def shares_sentence(curves: Sequence[LearningCurve], rival: LearningCurve | None, told: str) -> str:
    """A sentence about the columns of shares; another one if no curve reaches the rival's final values.

    Args:
        curves: all curves.
        rival: None if there is none.
        told: the meaning of the shares.
    """
    if rival is None or all(curve is rival for curve in curves):
        return ""
    measures = ("losses", "fids") if all(curve.has_fid for curve in curves) else ("losses",)
    if any(is_reached(curves, rival, of) for of in measures):
        return told
    words = "loss or FID" if len(measures) > 1 else "loss"
    return f"None reaches the final mean {words} of {rival.title}."


def ends(curve: LearningCurve) -> dict[str, float | None]:
    """A curve's final loss and FID over its seeds, as part of a table's row."""
    fid = Estimate.over(curve.fids[:, -1]) if curve.has_fid else None
    return flat(loss=Estimate.over(curve.losses[:, -1]), fid=fid)


def draw_learning(curves: Sequence[LearningCurve]) -> Figure:
    """Draw loss and, if measured, FID over training MACs, with one line for each curve and a thick one for the first, the rival.

    Bars are standard errors over the seeds.
    """
    shown = [("losses", "held-out loss"), ("fids", "FID")][: 2 if all(curve.has_fid for curve in curves) else 1]
    figure = Figure(figsize=(9.5, 3.9 + 0.17 * (len(curves) // 3)), layout="constrained")
    for axes, (of, word) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for i, curve in enumerate(curves):
            macs = curve.training_macs.mean(0) / 1e12
            style = {"color": f"C{i}", "marker": _MARKERS[i % len(_MARKERS)], "markersize": 4}
            values = getattr(curve, of)
            errors = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
            width = 1 if i else 2.4
            axes.errorbar(
                macs, values.mean(0), errors, label=curve.title, linewidth=width, elinewidth=0.8, capsize=2, **style
            )
        scale_by_log(axes)
        axes.set_xlabel("training TMACs")
        axes.set_ylabel(f"{word} (log scale)")
    if any(len(curve.losses) > 1 for curve in curves):
        figure.axes[0].set_title("bars are standard errors over the seeds", loc="left", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
