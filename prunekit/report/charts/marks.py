"""The parts of an SVG: escaped elements, texts, points that can be focused, and axes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prunekit.report.charts.layout import LINE, SIZE, Layout, Scale, text_width, tick_text

__all__ = ["MARKS", "Frame", "Key", "axes", "line", "mark", "path", "point", "rect", "svg", "tag", "text"]

MARKS = ("circle", "square", "triangle", "diamond", "down", "cross")
"""Forms of points, so that colours are not needed to tell them apart."""
_PATHS = {
    "circle": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "square": "M-4-4h8v8h-8z",
    "triangle": "M0-5L5 4H-5z",
    "diamond": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "down": "M0 5L5-4H-5z",
    "cross": "M-4-4L4 4M-4 4L4-4",
}


@dataclass(frozen=True)
class Key:
    """An entry of a chart's legend.

    Args:
        text: its meaning.
        style: class of its colour.
        form: form of its mark, ``line``, ``dashed``, ``box`` or ``none``.
        number: the number of a point in the chart; None if it has none.
    """

    text: str
    style: str = ""
    form: str = "line"
    number: int | None = None

    @property
    def swatch(self) -> Markup:
        """The mark as a small SVG."""
        if self.form == "none":
            return Markup("")
        if self.form == "box":
            inside = rect(3, 1, 14, 12, class_=f"{self.style} area")
        elif self.form in ("line", "dashed"):
            inside = tag("path", d="M1 7H19", class_=f"{self.style} {self.form}")
        else:
            inside = tag("g", mark(self.form), class_=self.style, transform="translate(10 7)")
        return tag("svg", inside, width=20, height=14, viewBox="0 0 20 14", aria_hidden="true")


def _number(value: float) -> str:
    return f"{round(value, 1):g}"


def tag(name: str, *content: str | Markup, **attributes: str | float | None) -> Markup:
    """An element; text and attributes are escaped.

    Args:
        name: its name.
        content: text, or elements.
        attributes: ``class_`` and ``fill_opacity`` stand for ``class`` and ``fill-opacity``; None leaves one out.
    """
    made = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _number(value)
        )
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(name, made, Markup("").join(content), name)


def text(
    x: float, y: float, said: str, anchor: str = "start", class_: str | None = None, turned: bool = False
) -> Markup:
    """A line of text.

    Args:
        x: coordinate of its anchor.
        y: coordinate of its middle.
        said: the text.
        anchor: ``start``, ``middle`` or ``end``.
        class_: class in the page's style.
        turned: whether it is read from below.
    """
    turn = f"rotate(-90 {_number(x)} {_number(y)})" if turned else None
    baseline = y + 0.35 * SIZE if not turned else y
    shift = 0.35 * SIZE if turned else 0
    return tag(
        "text",
        said,
        x=x + shift,
        y=baseline,
        text_anchor=None if anchor == "start" else anchor,
        class_=class_,
        transform=turn,
    )


def rect(x: float, y: float, width: float, height: float, **attributes: str | float | None) -> Markup:
    """A rectangle."""
    return tag("rect", x=x, y=y, width=width, height=height, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("path", d=f"M{_number(x1)} {_number(y1)}L{_number(x2)} {_number(y2)}", class_=class_)


def path(places: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A line through places."""
    d = "L".join(f"{_number(x)} {_number(y)}" for x, y in places)
    return tag("path", d=f"M{d}", class_=class_)


def mark(form: str) -> Markup:
    """A point's form around the origin."""
    return tag("path", d=_PATHS[form], class_=f"mark {form}")


def point(x: float, y: float, said: str, form: str, style: str, *more: Markup) -> Markup:
    """A point that says its figures when it is pointed at or focused.

    Args:
        x: coordinate.
        y: coordinate.
        said: its figures in words.
        form: one of :data:`MARKS`.
        style: class of its colour.
        more: parts in the chart's coordinates that belong to it, such as its label.
    """
    place = f"translate({_number(x)} {_number(y)})"
    shape = tag("g", mark(form), tag("circle", r=9, class_="hit"), transform=place)
    return tag("g", *more, shape, class_=f"point {style}", tabindex="-1", role="img", aria_label=said)


@dataclass(frozen=True)
class Frame:
    """The plot area of a chart with axes, and its scales.

    Args:
        layout: the room.
        height: height of the chart.
        x: scale of the horizontal axis.
        y: scale of the vertical axis.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis, written above it.
    """

    layout: Layout
    height: float
    x: Scale
    y: Scale
    x_label: str
    y_label: str


def axes(frame: Frame, marked: Sequence[tuple[float, str]] = ()) -> Markup:
    """Axes with numbers, names and pale lines at the vertical axis' ticks.

    Args:
        frame: the plot area.
        marked: values of the horizontal axis with a text above the plot area.
    """
    left, right, top, bottom = frame.x.start, frame.x.end, frame.y.end, frame.y.start
    parts = [text(2, SIZE / 2 + 2, frame.y_label, class_="name")]
    for tick in frame.y.ticks:
        at = frame.y(tick)
        parts += [line(left, at, right, at, "grid"), text(left - 6, at, tick_text(tick), "end")]
    written = -1e9
    for tick in frame.x.ticks:
        at, said = frame.x(tick), tick_text(tick)
        half = text_width(said) / 2
        parts.append(line(at, bottom, at, bottom + 4, "axis"))
        if at - half > written + 6 and at + half <= frame.layout.width:
            parts.append(text(at, bottom + LINE - 1, said, "middle"))
            written = at + half
    parts.append(line(left, bottom, right, bottom, "axis"))
    half = text_width(frame.x_label) / 2
    middle = max(min((left + right) / 2, frame.layout.width - half), half)
    parts.append(text(middle, bottom + 2 * LINE + 1, frame.x_label, "middle", class_="name"))
    written = -1e9
    for value, said in marked:
        at, half = frame.x(value), text_width(said) / 2
        parts.append(line(at, top, at, bottom, "cut"))
        if said and at - half > written + 4:
            parts.append(text(at, top - 0.6 * SIZE, said, "middle"))
            written = at + half
    return Markup("").join(parts)


def svg(layout: Layout, height: float, said: str, *parts: Markup, columns: int = 1, both: bool = False) -> Markup:
    """A chart in one layout.

    Args:
        layout: the room.
        height: its height.
        said: the chart in words.
        parts: its content.
        columns: points in a row, over which the arrow keys move up and down.
        both: whether this layout is the only one.
    """
    inside = Markup(str(Markup("").join(parts)).replace('tabindex="-1"', 'tabindex="0"', 1))  # noqa: S704 - escaped before
    return tag(
        "svg",
        inside,
        class_="both" if both else layout.name,
        viewBox=f"0 0 {layout.width} {_number(height)}",
        role="group",
        aria_label=said,
        data_columns=str(columns) if columns > 1 else None,
    )
