"""Charts of learning curves, and the most important numbers of a comparison of trainings."""

from collections.abc import Sequence

from markupsafe import Markup

from prunekit.report.charts.lines import Plot, Series, draw_lines, keys_of, sparkline, style_of
from prunekit.report.document import Tile
from prunekit.report.illustrations import Chart, Charts
from prunekit.report.learning import LearningCurve, mean_and_error
from prunekit.report.wording import number_text

__all__ = ["describe_learning", "learning_charts", "learning_spark", "learning_tiles"]


def describe_learning(curves: Sequence[LearningCurve], of: str, word: str) -> str:
    """The learning curves of one measure in words.

    Args:
        curves: at least one.
        of: ``losses`` or ``fids``.
        word: name of the measure.
    """
    told = (f"{curve.title} ends at {number_text(float(getattr(curve, of)[:, -1].mean()))}" for curve in curves)
    return f"Learning curves, {word} over training MACs, one line for each of {len(curves)}: {'; '.join(told)}."


def learning_charts(curves: Sequence[LearningCurve]) -> Charts:
    """Loss and, if measured, FID over training MACs, with a line for each curve and a thick one for the first."""
    shown = [("losses", "held-out loss"), ("fids", "FID")][: 2 if all(curve.has_fid for curve in curves) else 1]
    charts = []
    for of, word in shown:
        series = [_series(curve, of, word, place) for place, curve in enumerate(curves)]
        plot = Plot(
            describe_learning(curves, of, word), ("training TMACs", f"{word}, lower is better"), log=True, height=340
        )
        caption = "Means over the seeds at every look; the others are compared with the thick line."
        charts.append(Chart(caption, draw_lines(series, plot), keys_of(series), word[0].upper() + word[1:]))
    return Charts(tuple(charts))


def _series(curve: LearningCurve, of: str, word: str, place: int) -> Series:
    macs, values = curve.training_macs.mean(0) / 1e12, getattr(curve, of).mean(0)
    said = {
        i: f"{curve.title}: {word} {number_text(float(value))} after {number_text(float(macs[i]), 3)} TMACs"
        for i, value in enumerate(values)
    }
    style, form = style_of(place)
    return Series(curve.title, macs, values, said, style, form, "thick" if not place else "line")


def learning_spark(curves: Sequence[LearningCurve], run: str) -> Markup:
    """The learning curves as a small picture without axes, for the list of runs."""
    of, word = ("fids", "FID") if all(curve.has_fid for curve in curves) else ("losses", "held-out loss")
    series = [_series(curve, of, word, place) for place, curve in enumerate(curves)]
    return sparkline(
        series, f"Learning curves of {run}: {word} over training MACs, one line for each of {len(curves)}."
    )


def learning_tiles(rival: LearningCurve, others: Sequence[LearningCurve], label: str, doubt: str) -> tuple[Tile, ...]:
    """Final FID, unless no claim may rest on it, and final loss of the best training compared with the rival's.

    Args:
        rival: the training that the others are compared with.
        others: the other trainings.
        label: FID with its features and count.
        doubt: why no claim may rest on FID; empty if one may.
    """
    curves, tiles = (rival, *others), []
    with_fid = not doubt and all(curve.has_fid for curve in curves)
    for of, word, digits in [("fids", label, 2), ("losses", "held-out loss", 5)][0 if with_fid else 1 :]:
        best = min(others, key=lambda curve: float(getattr(curve, of)[:, -1].mean()))
        own, other = (mean_and_error(getattr(each, of)[:, -1], digits) for each in (best, rival))
        tiles.append(Tile(own, f"{word} of {best.title}, the best; {rival.title} {other}"))
    return tuple(tiles)
