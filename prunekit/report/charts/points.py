"""A chart of points with errors; every point has a number, which the legend explains."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prunekit.report.charts.layout import LAYOUTS, LINE, SIZE, Layout, Scale, spread, text_width, tick_text
from prunekit.report.charts.marks import Frame, axes, line, path, point, svg, text

__all__ = ["Spot", "draw_points"]

_NEAR = 26  # points closer to each other than this share a column of numbers
_AWAY = 12  # distance of a number from its point
_SPAN = 0.02  # a horizontal axis covers at least this share of its values


@dataclass(frozen=True)
class Spot:
    """A point.

    Args:
        x: value on the horizontal axis.
        y: value on the vertical axis.
        error: error of ``y``; 0 if it has none.
        said: its figures in words.
        form: form of its mark.
        style: class of its colour.
    """

    x: float
    y: float
    error: float
    said: str
    form: str
    style: str


def draw_points(
    spots: Sequence[Spot], names: tuple[str, str], said: str, through: Sequence[tuple[float, float]]
) -> tuple[Markup, ...]:
    """Draw points with numbers, in all layouts.

    Args:
        spots: at least one; numbered in this order, from 1.
        names: names of the axes.
        said: the chart in words.
        through: values that a pale line connects.
    """
    return tuple(_drawn(layout, spots, names, said, through) for layout in LAYOUTS)


def _drawn(
    layout: Layout, spots: Sequence[Spot], names: tuple[str, str], said: str, through: Sequence[tuple[float, float]]
) -> Markup:
    height = 320.0 if layout.is_narrow else 380.0
    ends = [spot.y + sign * spot.error for spot in spots for sign in (-1, 1)]
    top, bottom = 2.2 * LINE, height - 2.6 * LINE
    y = Scale.around(ends, bottom, top, room=0.08)
    left = 12 + max(text_width(tick_text(tick)) for tick in y.ticks)
    most = max(abs(spot.x) for spot in spots)
    wanted = [spot.x for spot in spots]
    if max(wanted) - min(wanted) < _SPAN * most:
        wanted += [min(wanted) - _SPAN * most, max(wanted) + _SPAN * most]
    x = Scale.around(wanted, left, layout.width - 28.0, room=0.06)
    frame = Frame(layout, height, x, y, *names)
    parts = [axes(frame)]
    if len(through) > 1:
        parts.append(path([(x(a), y(b)) for a, b in through], "through"))
    labels = _labels(frame, spots)
    for number, spot in enumerate(spots):
        parts.append(
            point(x(spot.x), y(spot.y), spot.said, spot.form, spot.style, *_error(frame, spot), *labels[number])
        )
    return svg(layout, height, said, *parts)


def _error(frame: Frame, spot: Spot) -> list[Markup]:
    """A point's error as a bar with ends."""
    if not spot.error:
        return []
    at, low, high = frame.x(spot.x), frame.y(spot.y - spot.error), frame.y(spot.y + spot.error)
    return [line(at, low, at, high, "error"), *(line(at - 3, end, at + 3, end, "error") for end in (low, high))]


def _labels(frame: Frame, spots: Sequence[Spot]) -> list[list[Markup]]:
    """Numbers to the right of points, with lines to them; those of near points share a column, in which none overlap."""
    order = sorted(range(len(spots)), key=lambda i: frame.x(spots[i].x))
    clusters: list[list[int]] = []
    for i in order:
        if clusters and frame.x(spots[i].x) - frame.x(spots[clusters[-1][-1]].x) < _NEAR:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    found: list[list[Markup]] = [[] for _ in spots]
    for cluster in clusters:
        column = max(frame.x(spots[i].x) for i in cluster) + _AWAY
        wanted = [frame.y(spots[i].y) for i in cluster]
        places = spread(wanted, SIZE + 1.0, frame.y.end, frame.y.start - SIZE / 2)
        for i, place in zip(cluster, places, strict=True):
            start = (frame.x(spots[i].x), frame.y(spots[i].y))
            found[i] = [line(*start, column - 2, place, "leader"), text(column, place, str(i + 1), class_="number")]
    return found
