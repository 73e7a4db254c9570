"""A page as data: sections of tables, pictures and words. One template shows the pages of all kinds of runs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markupsafe import Markup

from prunekit.report.illustrations import Chart, Charts, Compare, Picture, Strip
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
    "Prose",
    "Section",
    "Step",
    "Tile",
    "Words",
    "sections_with",
]


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
    """A link to a file.

    Args:
        text: what it leads to.
        href: path of the file relative to the page, with names as they are on disk.
        note: text after the link.
        part: id of the place in the file; empty for its beginning.
    """

    text: str
    href: str
    note: str = ""
    part: str = ""


@dataclass(frozen=True)
class Links:
    """A list of links under a heading."""

    kind: ClassVar[str] = "links"
    title: str
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Prose:
    """Text with markup of its own, which is safe."""

    kind: ClassVar[str] = "prose"
    html: Markup


@dataclass(frozen=True)
class Tile:
    """A number of the result, and what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Card:
    """A run in the list of runs; ``facts`` are short, ``text`` is the run's finding.

    Args:
        title: its name, which leads to its page.
        facts: kind, date and versions.
        description: the recipe's description.
        text: the finding.
        links: further files.
        thumbs: small pictures.
    """

    title: Link
    facts: tuple[str, ...]
    description: str
    text: str
    links: tuple[Link, ...] = ()
    thumbs: tuple[Picture | Markup, ...] = ()


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


Block: TypeAlias = (
    Table | Chart | Charts | Strip | Compare | Words | Flow | Facts | Items | Code | Links | Cards | Fold | Prose
)


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
        claim: the finding, in sentences; the first one is shown larger.
        sentences: further text before the table of contents.
        sections: in order.
        warnings: sentences about numbers that do not agree.
        kind: the line above the title.
        tiles: the most important numbers.
    """

    title: str
    claim: str
    sections: tuple[Section, ...]
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = "prunekit report"
    tiles: tuple[Tile, ...] = ()

    @property
    def lead(self) -> str:
        """The first sentence of the claim."""
        return re.split(r"(?<=[\w)%]\.) (?=[A-Z0-9])", self.claim, maxsplit=1)[0]

    @property
    def rest(self) -> str:
        """The claim without its first sentence."""
        return self.claim[len(self.lead) :].strip()


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
