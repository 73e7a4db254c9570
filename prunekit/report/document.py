"""A page as data: sections of tables, pictures and words. One template shows the pages of all kinds of runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from prunekit.report.table import Table

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Code",
    "Document",
    "Facts",
    "Flow",
    "Fold",
    "Items",
    "Link",
    "Links",
    "Picture",
    "Section",
    "Step",
    "Strip",
    "Words",
    "sections_with",
]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Args:
        label: a few words, for the box in which it may scroll.
        alt: the picture in words.
        caption: how to read it.
        data: base64 of the PNG.
        width: natural width in CSS pixels.
        height: natural height in CSS pixels.
        least: share of its natural size down to which it shrinks; below that it scrolls.
    """

    kind: ClassVar[str] = "picture"
    label: str
    alt: str
    caption: str
    data: str
    width: int
    height: int
    least: float = 0.75


@dataclass(frozen=True)
class Strip:
    """Pictures of the same size side by side, each under its caption; they scroll together."""

    kind: ClassVar[str] = "strip"
    label: str
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph; a note has smaller type."""

    kind: ClassVar[str] = "words"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Step:
    """One stage of the flow, and its results."""

    title: str
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Flow:
    """Stages in order."""

    kind: ClassVar[str] = "flow"
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Items:
    """A list of names in code, with a text for each."""

    kind: ClassVar[str] = "items"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text to be typed, in a fixed-width font."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Link:
    """A link to a file; ``href`` is its path relative to the page, with names as they are on disk."""

    text: str
    href: str
    note: str = ""


@dataclass(frozen=True)
class Links:
    """A list of links under a heading."""

    kind: ClassVar[str] = "links"
    title: str
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Card:
    """A run in the list of runs; ``facts`` are short, ``text`` is the run's finding."""

    title: Link
    facts: tuple[str, ...]
    description: str
    text: str
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Cards:
    """A list of runs."""

    kind: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that are hidden until the reader opens them."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple["Block", ...]


Block: TypeAlias = Table | Picture | Strip | Words | Flow | Facts | Items | Code | Links | Cards | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: its id.
        title: its heading.
        blocks: its content.
        short: its name in the contents; the title if empty.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    short: str = ""


@dataclass(frozen=True)
class Document:
    """A page.

    Args:
        title: its name.
        claim: the finding, in a sentence.
        sentences: further text before the table of contents.
        sections: in order.
        warnings: sentences about numbers that do not agree.
        kind: the line above the title.
    """

    title: str
    claim: str
    sections: tuple[Section, ...]
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = "prunekit report"


def sections_with(
    *parts: tuple[str, str, Iterable[Block | None]], short: dict[str, str] | None = None
) -> tuple[Section, ...]:
    """Make sections from blocks; None is skipped, and a section without blocks is left out.

    Args:
        parts: id, heading, and blocks or None.
        short: names in the table of contents by id, for headings that are too long.
    """
    made = []
    for name, title, blocks in parts:
        present = tuple(block for block in blocks if block is not None)
        if present:
            made.append(Section(name, title, present, (short or {}).get(name, "")))
    return tuple(made)
