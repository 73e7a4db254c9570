"""A chart of lines over one axis, with cuts between ranges; and a small one without axes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from prunekit.report.charts.layout import LAYOUTS, LINE, Layout, Scale, text_width, tick_text
from prunekit.report.charts.marks import MARKS, Frame, Key, axes, line, path, point, rect, svg

__all__ = ["Plot", "Series", "draw_lines", "keys_of", "sparkline", "style_of"]

_STYLES = 8  # colours for lines in the page's style
_MOST = 120  # corners of a line


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        name: its name in the legend.
        x: values on the horizontal axis.
        y: values on the vertical axis; NaN leaves a gap.
        said: figures in words by place, for the points that are marked.
        style: class of its colour, see :func:`style_of`.
        form: form of its marks.
        kind: ``line``, ``thick``, ``dashed``, or ``none`` for marks alone.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    said: dict[int, str] = field(default_factory=dict)
    style: str = "s0"
    form: str = "circle"
    kind: str = "line"


@dataclass(frozen=True)
class Plot:
    """What the lines are drawn on.

    Args:
        said: the chart in words.
        names: names of the axes.
        log: whether the vertical axis is logarithmic, if all values are positive.
        cuts: values of the horizontal axis with a text, marked by upright lines.
        level: a value of the vertical axis to mark, if any, with its name in the legend.
        ends: range of the horizontal axis; None to begin and end near the lines.
        most: range of the vertical axis; None to begin and end near the lines.
        height: height in the wide layout.
    """

    said: str
    names: tuple[str, str]
    log: bool = False
    cuts: tuple[tuple[float, str], ...] = ()
    level: tuple[float, str] | None = None
    ends: tuple[float, float] | None = None
    most: tuple[float, float] | None = None
    height: float = 300.0


def style_of(place: int) -> tuple[str, str]:
    """Class of the colour and form of the marks of a line."""
    return f"s{place % _STYLES}", MARKS[place % len(MARKS)]


def keys_of(series: Sequence[Series], plot: Plot | None = None) -> tuple[Key, ...]:
    """The legend of a chart."""
    keys = [Key(each.name, each.style, _key_form(each)) for each in series]
    if plot is not None and plot.level is not None:
        keys.append(Key(plot.level[1], "level", "dashed"))
    return tuple(keys)


def _key_form(series: Series) -> str:
    if series.said:
        return series.form
    return "dashed" if series.kind == "dashed" else "line"


def draw_lines(series: Sequence[Series], plot: Plot) -> tuple[Markup, ...]:
    """Draw lines in all layouts."""
    return tuple(_drawn(layout, series, plot) for layout in LAYOUTS)


def _drawn(layout: Layout, series: Sequence[Series], plot: Plot) -> Markup:
    height = min(plot.height, 280.0) if layout.is_narrow else plot.height
    top, bottom = (3.2 if plot.cuts else 2.2) * LINE, height - 2.6 * LINE
    shown = [float(v) for each in series for v in np.asarray(each.y, dtype=np.float64)]
    shown += [plot.level[0]] if plot.level else []
    y = Scale.around(plot.most or shown, bottom, top, plot.log, room=0.0 if plot.most else 0.06)
    left = 12 + max(text_width(tick_text(tick)) for tick in y.ticks)
    wanted = plot.ends or [float(v) for each in series for v in np.asarray(each.x, dtype=np.float64)]
    right = layout.width - 22.0
    x = Scale.around(wanted, left, right, room=0.0 if plot.ends else 0.03, count=4 if layout.is_narrow else 7)
    frame = Frame(layout, height, x, y, *plot.names)
    parts = [axes(frame, plot.cuts)]
    if plot.level:
        parts.append(line(left, y(plot.level[0]), right, y(plot.level[0]), "level"))
    for each in series:
        parts += _line(frame, each)
    for each in series:
        xs, ys = np.asarray(each.x, dtype=np.float64), np.asarray(each.y, dtype=np.float64)
        parts += [
            point(x(xs[i]), y(ys[i]), said, each.form, each.style)
            for i, said in each.said.items()
            if np.isfinite(ys[i])
        ]
    return svg(layout, height, plot.said, *parts)


def _line(frame: Frame, series: Series) -> list[Markup]:
    """The line in pieces without gaps, with a bounded number of corners."""
    if series.kind == "none":
        return []
    xs, ys = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _MOST)).round().astype(int))
    pieces: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(xs[kept], ys[kept], strict=True):
        if np.isfinite(b):
            pieces[-1].append((frame.x(a), frame.y(b)))
        elif pieces[-1]:
            pieces.append([])
    return [path(piece, f"{series.style} {series.kind}") for piece in pieces if len(piece) > 1]


def sparkline(series: Sequence[Series], said: str) -> Markup:
    """Lines alone in a small picture, the first one thick."""
    layout = Layout("narrow", 240)
    x = Scale.around([float(v) for each in series for v in np.asarray(each.x, dtype=np.float64)], 8, 232)
    y = Scale.around([float(v) for each in series for v in np.asarray(each.y, dtype=np.float64)], 92, 8, log=True)
    frame = Frame(layout, 100, x, y, "", "")
    parts = [rect(0, 0, 240, 100, class_="ground"), *(part for each in series for part in _line(frame, each))]
    return svg(layout, 100, said, *parts, both=True)
