"""Pictures of a page as data: charts, and generated images."""

from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from prunekit.report.charts.marks import Key

__all__ = ["Chart", "Charts", "Compare", "Picture", "Ramp", "Strip"]


@dataclass(frozen=True)
class Picture:
    """A small picture of pixels.

    Args:
        alt: the picture in words.
        caption: its name, or how to read it.
        data: base64 of the PNG.
        width: natural width in CSS pixels.
        height: natural height in CSS pixels.
        smooth: whether it has so many pixels that the page may smooth it; otherwise each pixel stays a rectangle.
    """

    kind: ClassVar[str] = "picture"
    alt: str
    caption: str
    data: str
    width: int
    height: int
    smooth: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, see :mod:`prunekit.report.charts`.

    Args:
        caption: how to read it.
        drawings: the chart in each layout; the page's style shows the one that fits.
        keys: its legend.
        title: its name above it, if there are several.
        ramp: colours from the lowest to the highest value with the texts at both ends, for cells.
    """

    kind: ClassVar[str] = "chart"
    caption: str
    drawings: tuple[Markup, ...]
    keys: tuple[Key, ...] = ()
    title: str = ""
    ramp: "Ramp | None" = None

    @property
    def is_numbered(self) -> bool:
        """Whether the legend explains numbers in the chart."""
        return any(key.number is not None for key in self.keys)


@dataclass(frozen=True)
class Ramp:
    """The meaning of colours: the texts at both ends, and the colours between."""

    low: str
    high: str
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Strip:
    """Pictures of the same size, each under its caption, in as many rows as they need."""

    kind: ClassVar[str] = "strip"
    label: str
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Compare:
    """Two grids of images from the same noise, of which a slider shows more of one or of the other.

    Args:
        label: what is compared.
        caption: how to read it.
        before: shown in the left part of each image.
        after: shown in the right part.
        columns: images in a row.
    """

    kind: ClassVar[str] = "compare"
    label: str
    caption: str
    before: Picture
    after: Picture
    columns: int
