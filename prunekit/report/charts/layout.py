"""Where things are in a chart: two layouts, scales from values to coordinates, and the width of text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import ImageFont

__all__ = [
    "LAYOUTS",
    "LINE",
    "NARROW",
    "SIZE",
    "WIDE",
    "Layout",
    "Scale",
    "cut_text",
    "spread",
    "text_width",
    "tick_text",
]

SIZE = 12
"""Height of a chart's text in pixels."""
LINE = 15
"""Distance of two lines of text."""
_MARGIN = 1.04  # browsers round the widths of letters
_FEW = 2  # with fewer ticks than this, a logarithmic axis takes those of a linear one
_ALIKE = 1e-4  # values that differ by a smaller share get the room of equal ones: up to seven ticks have six digits


@dataclass(frozen=True)
class Layout:
    """The room for a chart.

    Args:
        name: ``wide`` or ``narrow``, a class in the page's style.
        width: width in pixels.
    """

    name: str
    width: int

    @property
    def is_narrow(self) -> bool:
        """Whether the chart is for a phone, or one of two side by side."""
        return self.name == "narrow"


WIDE, NARROW = Layout("wide", 660), Layout("narrow", 350)
LAYOUTS = (WIDE, NARROW)


@dataclass(frozen=True)
class Scale:
    """Maps values to coordinates.

    Args:
        low: value at the start.
        high: value at the end.
        start: coordinate of ``low``.
        end: coordinate of ``high``.
        ticks: values with a number on the axis.
        log: whether distances are ratios.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, log: bool = False, room: float = 0.07, count: int = 5
    ) -> "Scale":
        """A scale that begins and ends near the values.

        Args:
            values: values to show; at least one.
            start: coordinate of the least.
            end: coordinate of the greatest.
            log: whether distances are ratios; ignored unless all values are positive.
            room: share of the range that is left free on both sides.
            count: number of ticks, at most.
        """
        known = [value for value in values if math.isfinite(value)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        if high - low <= _ALIKE * max(abs(low), abs(high)):
            low = high = (low + high) / 2
        log = log and low > 0
        if log:
            factor = (high / low) ** room if high > low else 1.1
            low, high = low / factor, high * factor
        else:
            more = room * (high - low) or abs(high) * 0.1 or 1.0
            low, high = low - (more if room or low == high else 0), high + (more if room or low == high else 0)
        return cls(low, high, start, end, _ticks(low, high, log, count), log)


def _ticks(low: float, high: float, log: bool, count: int) -> tuple[float, ...]:
    """Round numbers within a range."""

    def within(values: Iterable[float]) -> tuple[float, ...]:
        slack = 1e-9 * (high - low)
        return tuple(float(value) for value in values if low - slack <= value <= high + slack)

    choices = [
        within(MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)) for bins in range(2, count + 5)
    ]
    linear = max((each for each in choices if len(each) <= count + 1), key=len, default=choices[0])
    if not log:
        return linear
    for subs in ((1.0,), (1.0, 2.0, 5.0)):
        found = within(LogLocator(subs=subs).tick_values(low, high))
        if _FEW < len(found) <= count + 2:
            return found
    return linear


def tick_text(value: float) -> str:
    """A tick's number.

    Example:
        >>> [tick_text(value) for value in (0.30000000000000004, -20.0, 1e-9)]
        ['0.3', '−20', '1e−09']
    """
    return f"{round(value, 12) or value:.6g}".replace("-", "−")


@cache
def _font() -> ImageFont.FreeTypeFont:
    """A font that is at least as wide as those in which browsers show the page."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", SIZE)


def text_width(text: str) -> float:
    """Width in pixels of a text on a chart; an upper bound."""
    return _MARGIN * float(_font().getlength(text))


def cut_text(text: str, width: float) -> str:
    """A text that fits; the middle of a longer one is left out."""
    if text_width(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        short = f"{text[:head].rstrip()}…{text[len(text) - kept + head :].lstrip()}"
        if text_width(short) <= width:
            return short
    return "…"


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places for labels near wanted ones, at least a distance apart, in the same order and within bounds if there is room.

    Args:
        wanted: wanted places.
        distance: least distance of two labels.
        low: least place.
        high: greatest place.

    Example:
        >>> spread([10, 11, 50], 12, 0, 100)
        [4.5, 16.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[
        list[float]
    ] = []  # first place, number of labels: blocks of touching labels, centred on their wanted places
    for i in order:
        blocks.append([float(wanted[i]), 1])
        while len(blocks) > 1 and blocks[-2][0] + (blocks[-2][1] - 1) * distance + distance > blocks[-1][0]:
            (first, many), (second, more) = blocks[-2], blocks[-1]
            middle = (many * (first + (many - 1) * distance / 2) + more * (second + (more - 1) * distance / 2)) / (
                many + more
            )
            blocks[-2:] = [[middle - (many + more - 1) * distance / 2, many + more]]
    places = [first + j * distance for first, many in blocks for j in range(int(many))]
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], high - (len(places) - 1 - at) * distance)
    for at in range(len(places)):
        places[at] = max(places[at], low + at * distance)
    found = [0.0] * len(wanted)
    for place, i in zip(places, order, strict=True):
        found[i] = place
    return found
