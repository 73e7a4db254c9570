"""A chart of coloured cells: rows by columns, with numbers where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prunekit.report.charts.layout import LINE, SIZE, Layout, cut_text, text_width
from prunekit.report.charts.marks import line, rect, svg, tag, text

__all__ = ["Cell", "Sheet", "draw_cells"]

_ROW = 24.0  # height of a row with numbers
_SMALL = 10  # height of text where there is little room
_LOW = 17.0  # height of a row without
_TALL = 720.0  # rows get lower, so that a chart does not become higher than this
_NAMES = 0.42  # share of the width that names of rows may have
_MANY = 3000  # with more cells than this, they have no figures in words
_TILT = 150.0  # length of a column's name that is read from below


@dataclass(frozen=True)
class Cell:
    """A cell.

    Args:
        said: its figures in words.
        style: class of its colour.
        text: its number; empty if it has none.
        strength: opacity of the colour, from 0 to 1.
        colour: a colour in place of the class'.
        share: how much of the cell is coloured, from its left or lower end.
    """

    said: str
    style: str = "cell"
    text: str = ""
    strength: float | None = None
    colour: str | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Sheet:
    """Cells with the names of their rows and columns.

    Args:
        said: the chart in words.
        rows: names of the rows.
        columns: names of the columns.
        cells: row by row.
        top: name of the columns together.
        above: whether rows have their names above them, since these are long.
        gap: columns before which there is a gap.
    """

    said: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    top: str = ""
    above: bool = False
    gap: int = 0

    def turned(self, top: str = "") -> "Sheet":
        """The same with rows for columns."""
        cells = [list(column) for column in zip(*self.cells, strict=True)]
        return Sheet(self.said, self.columns, self.rows, cells, top)


def draw_cells(sheet: Sheet, layout: Layout) -> Markup:
    """Draw cells in one layout."""
    left = 0.0 if sheet.above else min(10 + max(map(text_width, sheet.rows)), _NAMES * layout.width)
    width = (layout.width - left - 1) / max(len(sheet.columns), 1)
    most = max((text_width(cell.text) for row in sheet.cells for cell in row if cell.text), default=0.0)
    size = next((size for size in (SIZE, _SMALL) if most <= (width - 2) * SIZE / size), 0) if most else 0
    row = _ROW if size else _LOW
    row = min(row, max(_TALL / len(sheet.rows), 4.0))
    head, names = _head(sheet, left, width)
    step = row + (LINE + 4 if sheet.above else 0)
    parts = [*names]
    every = max(1, round((SIZE + 1) / row + 0.49)) if not sheet.above else 1
    with_said = len(sheet.rows) * len(sheet.columns) <= _MANY
    for i, (name, cells) in enumerate(zip(sheet.rows, sheet.cells, strict=True)):
        y = head + i * step
        if sheet.above:
            parts.append(text(0, y + LINE / 2, name))
            y += LINE + 1
        elif i % every == 0:
            parts.append(text(left - 6, y + row / 2, cut_text(name, left - 8), "end"))
        for j, cell in enumerate(cells):
            box = (left + j * width, y, width, row)
            parts.append(_cell(cell, box, size, layout.is_narrow and not sheet.above, with_said))
    if sheet.gap:
        at = left + sheet.gap * width
        parts.append(line(at, head, at, head + len(sheet.rows) * step, "divide"))
    height = head + len(sheet.rows) * step + 2
    return svg(layout, height, sheet.said, *parts, columns=len(sheet.columns))


def _head(sheet: Sheet, left: float, width: float) -> tuple[float, list[Markup]]:
    """Names of the columns, read from below where they are wider than a column, and the height that they take up."""
    parts, head = [], 2.0
    if sheet.top:
        parts.append(text(left + 2, SIZE / 2 + 1, sheet.top, class_="name"))
        head = LINE + 6.0
    widest = max(map(text_width, sheet.columns))
    if widest <= width - 4:
        parts += [
            text(left + (j + 0.5) * width, head + SIZE / 2, name, "middle") for j, name in enumerate(sheet.columns)
        ]
        return head + LINE + 3, parts
    long = min(widest, _TILT)
    every = max(1, round((SIZE + 1) / width + 0.49))
    for j, name in enumerate(sheet.columns):
        if j % every == 0:
            parts.append(text(left + (j + 0.5) * width, head + long, cut_text(name, long), turned=True))
    return head + long + 6, parts


def _cell(cell: Cell, box: tuple[float, float, float, float], size: int, lying: bool, with_said: bool) -> Markup:
    x, y, width, height = box
    gap = min(1.0, 0.12 * width, 0.12 * height)
    x, y, width, height = x + gap / 2, y + gap / 2, width - gap, height - gap
    parts = []
    if cell.share < 1:
        parts.append(rect(x, y, width, height, class_="rest"))
    long = (width * cell.share, height) if lying else (width, height * cell.share)
    opacity = None if cell.strength is None else f"{cell.strength:.2f}"
    parts.append(rect(x, y + height - long[1], *long, class_=cell.style, fill=cell.colour, fill_opacity=opacity))
    if cell.style == "fixed":
        parts.append(line(x + 1, y + height - 1, x + width - 1, y + 1, "strike"))
    if cell.text and size:
        parts.append(text(x + width / 2, y + height / 2, cell.text, "middle", "small" if size == _SMALL else None))
    if not with_said:
        return Markup("").join(parts)
    return tag("g", *parts, class_="point", tabindex="-1", role="img", aria_label=cell.said)
