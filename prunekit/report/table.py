"""One table in two forms: exact numbers for CSV, and the same numbers rounded for reading."""

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from prunekit.report.wording import ABSENT, count_text, estimate_text, ratio_text
from prunekit.results.estimate import Estimate

__all__ = ["Cell", "Column", "Row", "Table", "count", "estimate", "flat", "markdown_text", "named", "ratio"]

Row = Mapping[str, Any]
_FEW_ROWS, _FEW_COLUMNS = 4, 3


@dataclass(frozen=True)
class Column:
    """One column for reading.

    Args:
        heading: the column's heading.
        key: the key of the exact number in the row; empty if the cell is not one number.
        text: makes the cell's text from the row; None to show the value itself.
        spare: whether a page leaves the column out where there is little room.
    """

    heading: str
    key: str
    text: Callable[[Row], str] = lambda row: ABSENT
    spare: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell's text and, for a number, its exact value."""

    text: str
    value: str | None


@dataclass(frozen=True)
class Table:
    """A table in both forms.

    Args:
        name: file stem, and id on the page.
        caption: what the table shows.
        rows: exact numbers, or None for a missing one. All rows have the same keys, which are the CSV's columns.
        columns: the columns for reading; the first one names the row.
        note: how to read it.
        last_is_total: whether the last row is the sum of the others.
        strong: places of the rows that the page is about.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    note: str = ""
    last_is_total: bool = False
    strong: frozenset[int] = frozenset()

    @cached_property
    def shown(self) -> tuple[Column, ...]:
        """The columns for reading in which a row has a value."""
        return tuple(
            column
            for place, column in enumerate(self.columns)
            if not place or any(column.text(row) not in (ABSENT, "") for row in self.rows)
        )

    @property
    def as_cards(self) -> bool:
        """Whether a phone shows each row as a card, since there are few rows."""
        return len(self.rows) <= _FEW_ROWS and len(self.shown) > _FEW_COLUMNS

    def is_strong(self, place: int) -> bool:
        """Whether the page is about a row."""
        return place in self.strong

    @property
    def frame(self) -> pd.DataFrame:
        """The exact numbers; integers stay integers even if some are missing."""
        return pd.DataFrame({key: _series(row[key] for row in self.rows) for key in self.rows[0]})

    @property
    def cells(self) -> list[list[Cell]]:
        """The table for reading, row by row."""
        return [[_cell(column, row) for column in self.shown] for row in self.rows]

    def to_csv(self, path: Path | str) -> None:
        """Write the exact numbers."""
        path = Path(path)
        self.frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")

    def to_markdown(self, path: Path | str) -> None:
        """Write the table for reading, with its caption and note."""
        path = Path(path)
        parts = [markdown_text(self.caption), self.markdown, markdown_text(self.note)]
        path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")

    @property
    def markdown(self) -> str:
        """The table for reading, without caption and note."""
        right = ["---", *("---:" for _ in self.shown[1:])]
        body = [[cell.text for cell in line] for line in self.cells]
        lines = [[column.heading for column in self.shown], right, *body]
        return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def _series(values: Iterable[Any]) -> "pd.Series[Any]":
    items = list(values)
    present = [item for item in items if item is not None]
    if present and all(isinstance(item, int) for item in present):
        return pd.Series(items, dtype="Int64")
    if present and all(isinstance(item, float) for item in present):
        return pd.Series(items, dtype="float64")
    return pd.Series(items, dtype="object")  # words, or counts and a mean of counts, which float64 would round


def _cell(column: Column, row: Row) -> Cell:
    value = row.get(column.key)
    return Cell(column.text(row), repr(value) if isinstance(value, int | float) else None)


def markdown_text(text: str) -> str:
    """Text as plain words of a Markdown page or table: one line, no markup, no link."""
    words = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\|*_`\[\]~])", r"\\\1", words)
    escaped = re.sub(r"^([#+>-]|\d+[.)])(?=\s)", lambda mark: f"{mark[1][:-1]}\\{mark[1][-1]}", escaped)
    return re.sub(r"(?i)\b(https?|ftp|mailto|javascript|data)(:)(?=\S)|\b(www)(\.)(?=\S)", _unlinked, escaped)


def _unlinked(found: re.Match[str]) -> str:
    name, mark = (part for part in found.groups() if part is not None)
    return f"{name}&#{ord(mark)};"


def named(heading: str, key: str) -> Column:
    """A column of words."""
    return Column(heading, key, lambda row: str(row[key]))


def count(heading: str, key: str) -> Column:
    """A column of counts in full."""
    return Column(heading, key, lambda row: count_text(row[key]))


def ratio(heading: str, key: str) -> Column:
    """A column of ratios."""
    return Column(heading, key, lambda row: ratio_text(row[key]))


def estimate(heading: str, name: str) -> Column:
    """A column of ``mean ± se``, from the keys of :func:`flat`."""
    return Column(heading, f"{name}_mean", lambda row: estimate_text(_read(row, name)))


def _read(row: Row, name: str) -> Estimate | None:
    return None if row[f"{name}_mean"] is None else Estimate(mean=row[f"{name}_mean"], se=row[f"{name}_se"])


def flat(**estimates: Estimate | None) -> dict[str, float | None]:
    """Entries ``{name}_mean`` and ``{name}_se`` for each estimate."""
    flat: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        flat[f"{name}_mean"], flat[f"{name}_se"] = (estimate.mean, estimate.se) if estimate else (None, None)
    return flat
