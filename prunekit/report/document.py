"""A page as data: sections of tables, pictures and words, which one template shows alike for every kind of run."""

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
        label: a few words, for the box that it may scroll in.
        alt: the picture in words.
        caption: how to read it.
        data: base64 of the PNG.
        width: natural width in CSS pixels.
        height: natural height in CSS pixels.
        least: share of its natural size below which it scrolls rather than shrinks.
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
    """Pictures of the same size beside each other, each under its caption; they scroll together."""

    kind: ClassVar[str] = "strip"
    label: str
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph; a note is set smaller."""

    kind: ClassVar[str] = "words"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Step:
    """One stage of the flow and what came of it."""

    title: str
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Flow:
    """Stages in order."""

    kind: ClassVar[str] = "flow"
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Items:
    """A list of names in code, and what is said of each."""

    kind: ClassVar[str] = "items"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text as it is typed."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Link:
    """A link to a file beside the page; ``href`` is its path from there, with names as they are on disk."""

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
    """A run in the list of runs; ``facts`` are short, ``text`` is what it found."""

    title: Link
    facts: tuple[str, ...]
    description: str
    text: str
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Cards:
    """Runs below each other."""

    kind: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them."""

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
        blocks: what it shows.
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
        claim: what was found, in a sentence.
        sentences: what else is said before the contents.
        sections: in order.
        warnings: numbers that do not agree.
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
    """Sections of the blocks that are there; a section without any is left out.

    Args:
        parts: id, heading, and blocks or None.
        short: names in the contents by id, where the heading is too long.
    """
    made = []
    for name, title, blocks in parts:
        present = tuple(block for block in blocks if block is not None)
        if present:
            made.append(Section(name, title, present, (short or {}).get(name, "")))
    return tuple(made)
