"""Pictures of quality against cost. Every model is a point that differs in its mark and name, not only in its colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from prunekit._types import FloatArray
from prunekit.report.charts.marks import Key
from prunekit.report.charts.points import Spot, draw_points
from prunekit.report.illustrations import Chart
from prunekit.report.wording import estimate_text, short_ratio
from prunekit.results.estimate import Estimate

__all__ = ["Point", "best_of", "describe_pareto", "draw_pareto", "pareto_chart"]

_FAINT = "#8a929b"
_MARKS: Mapping[str, tuple[str, str, bool, str]] = {  # role → mark, colour, filled, word
    "base": ("s", "#333a42", True, "base"),
    "experts": ("o", "#b4540a", True, "experts"),
    "baseline": ("^", "#1d5f9e", False, "baseline"),
    "ablation": ("D", "#7a4fa0", False, "ablation"),
    "stages": ("o", "#b4540a", True, "for stages"),
    "pruned": ("v", "#4d7c3a", False, "before fine-tuning"),
}
_FORMS: Mapping[str, tuple[str, str, str]] = {  # role → form, class of the colour, word, in a page's chart
    "base": ("square", "ink", ""),
    "experts": ("circle", "s1", "experts"),
    "baseline": ("triangle", "s0", "baseline"),
    "ablation": ("diamond", "s2", "ablation"),
    "stages": ("circle", "s1", ""),
    "pruned": ("down", "s3", ""),
}


@dataclass(frozen=True)
class Point:
    """A model's cost and quality.

    Args:
        name: name of the model.
        role: ``base``, ``experts``, ``baseline``, ``ablation``, ``stages`` or ``pruned``.
        ratio: its MACs while sampling as a fraction of the base's or another rival's.
        value: the quality; lower is better.
    """

    name: str
    role: str
    ratio: float
    value: Estimate


def best_of(points: Sequence[Point]) -> list[Point]:
    """Points that no other point beats in both cost and quality, cheapest first; costs within a thousandth count as equal."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (round(each.ratio, 3), each.value.mean)):
        if not best or point.value.mean < best[-1].value.mean:
            best.append(point)
    return best


def draw_pareto(points: Sequence[Point], measure: str, rival: str = "base") -> Figure:
    """Draw points with standard errors and names, and a line through those that no other point beats.

    Args:
        points: at least one.
        measure: what ``value`` is.
        rival: what the point with role ``base`` is called.
    """
    figure = Figure(figsize=(9.5, max(4.2, 2.0 + 0.28 * len(points))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = best_of(points)
    axes.plot(
        [p.ratio for p in best], [p.value.mean for p in best], color=_FAINT, linewidth=1.0, linestyle=":", zorder=1
    )
    for point in points:
        mark, colour, filled, _ = _MARKS.get(point.role, _MARKS["ablation"])
        axes.errorbar(
            point.ratio,
            point.value.mean,
            yerr=point.value.se or None,
            fmt=mark,
            color=colour,
            markersize=7,
            markerfacecolor=colour if filled else "white",
            capsize=3,
            linewidth=1,
            zorder=4 if filled else 3,
        )
    ratios = [point.ratio for point in points]
    room = max(max(ratios) - min(ratios), 0.2)
    names = [min(0.12 + 0.014 * len(point.name), 0.75) * room for point in points]  # to the right of their points
    axes.set_xlim(min(ratios) - 0.1 * room, max(map(add, ratios, names)))
    axes.margins(y=0.12)
    axes.set_xlabel(f"MACs while sampling, fraction of the {rival}'s")
    bars = "; bars are standard errors" if any(point.value.se for point in points) else ""
    axes.set_title(f"{measure}; lower is better{bars}", loc="left", fontsize=9)
    _legend(figure, points, rival)
    _name_apart(figure, axes, points)
    return figure


def describe_pareto(points: Sequence[Point], measure: str, rival: str = "base") -> str:
    """The picture from :func:`draw_pareto` in words."""
    told = "; ".join(f"{p.name} {estimate_text(p.value)} at {short_ratio(p.ratio)}" for p in points)
    best = ", ".join(point.name for point in best_of(points))
    cost = f"the fraction of the {rival}'s MACs while sampling"
    return f"{measure} against {cost}: {told}. No other model is better in both than: {best}."


def pareto_chart(
    points: Sequence[Point], measure: str, caption: str, rival: str = "base", title: str = "Quality"
) -> Chart:
    """The points as a chart of a page, numbered, with a legend that has their figures.

    Args:
        points: at least one.
        measure: what ``value`` is.
        caption: how to read it.
        rival: what the point with role ``base`` is called.
        title: name of the chart.
    """
    spots, keys = [], []
    for number, each in enumerate(points, 1):
        form, style, word = _FORMS.get(each.role, _FORMS["ablation"])
        told = f"{each.name}: {estimate_text(each.value)} at {short_ratio(each.ratio)}"
        said = f"{told} of the {rival}'s MACs"
        spots.append(Spot(each.ratio, each.value.mean, each.value.se or 0.0, said, form, style))
        kind = "" if each.name.startswith(word) else f" ({word})"
        keys.append(Key(f"{told}{kind}", style, form, number))
    if len(best_of(points)) > 1:
        keys.append(Key("no other is better in both", "through", "dashed"))
    names = (f"MACs while sampling, fraction of the {rival}'s", "lower is better")
    through = [(best.ratio, best.value.mean) for best in best_of(points)]
    drawings = draw_points(spots, names, describe_pareto(points, measure, rival), through)
    return Chart(caption, drawings, tuple(keys), title)


def _legend(figure: Figure, points: Sequence[Point], rival: str) -> None:
    handles = [
        Line2D(
            [],
            [],
            marker=mark,
            color=colour,
            markerfacecolor=colour if filled else "white",
            linestyle="",
            label=rival if role == "base" else word,
        )
        for role, (mark, colour, filled, word) in _MARKS.items()
        if any(point.role == role for point in points)
    ]
    if len(best_of(points)) > 1:
        handles.append(Line2D([], [], color=_FAINT, linestyle=":", label="no other beats it in both"))
    figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8)


def _name_apart(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write names to the right of their points, moved up or down where they would overlap."""
    texts = [
        axes.annotate(
            point.name,
            (point.ratio, point.value.mean),
            xytext=(14, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
        )
        for point in points
    ]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in texts]  # without the lines that link names to points
    places = np.array([[box.x0, (box.y0 + box.y1) / 2, box.x1 - box.x0] for box in boxes])
    height = max(box.height for box in boxes) * 1.12
    marks = axes.transData.transform([[point.ratio, point.value.mean] for point in points])
    for text, shift in zip(texts, _shifts(places, height, marks), strict=True):
        text.xyann = (14, shift * 72 / figure.dpi)


def _shifts(places: FloatArray, height: float, marks: FloatArray) -> FloatArray:
    """How far to move each box up so that none overlap: each overlapping pair moves apart, again and again until all have room.

    Args:
        places: left end, middle and length of each box.
        height: height of all boxes.
        marks: points that no box may cover.
    """
    middles = places[:, 1].copy()
    for _ in range(400):
        moved = False
        for i in range(len(places)):
            for j in range(i):
                across = places[i, 0] < places[j, 0] + places[j, 2] and places[j, 0] < places[i, 0] + places[i, 2]
                lacking = height - abs(middles[i] - middles[j])
                if across and lacking > 0.01:
                    up, down = (i, j) if (middles[i], i) > (middles[j], j) else (j, i)
                    middles[up] += lacking / 2
                    middles[down] -= lacking / 2
                    moved = True
            across_mark = (places[i, 0] < marks[:, 0]) & (marks[:, 0] < places[i, 0] + places[i, 2])
            for mark in marks[across_mark, 1]:
                lacking = height - abs(middles[i] - mark)
                if lacking > 0.01:
                    middles[i] += lacking if middles[i] > mark else -lacking
                    moved = True
        if not moved:
            break
    return middles - places[:, 1]
