"""A chart of bars that are made of parts, one below the other, each with its name above it."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prunekit.report.charts.layout import LAYOUTS, LINE, Layout, text_width
from prunekit.report.charts.marks import rect, svg, tag, text

__all__ = ["Bar", "draw_bars"]

_THICK = 14.0


@dataclass(frozen=True)
class Bar:
    """A bar.

    Args:
        name: its name.
        parts: lengths of its parts, with the classes of their colours.
        total: its whole length as a text.
        said: its figures in words.
    """

    name: str
    parts: tuple[tuple[float, str], ...]
    total: str
    said: str


def draw_bars(bars: Sequence[Bar], said: str) -> tuple[Markup, ...]:
    """Draw bars in all layouts."""
    return tuple(_drawn(layout, bars, said) for layout in LAYOUTS)


def _drawn(layout: Layout, bars: Sequence[Bar], said: str) -> Markup:
    longest = max((sum(length for length, _ in bar.parts) for bar in bars), default=0.0) or 1.0
    room = layout.width - 8 - max(text_width(bar.total) for bar in bars)
    parts = []
    for place, bar in enumerate(bars):
        y, x = place * (LINE + _THICK + 8), 0.0
        drawn = [text(0, y + LINE / 2, bar.name)]
        for length, style in bar.parts:
            width = length / longest * room
            drawn.append(rect(x, y + LINE + 1, width, _THICK, class_=f"{style} area"))
            x += width
        drawn.append(text(x + 6, y + LINE + 1 + _THICK / 2, bar.total))
        parts.append(tag("g", *drawn, class_="point", tabindex="-1", role="img", aria_label=bar.said))
    return svg(layout, len(bars) * (LINE + _THICK + 8), said, *parts)
