"""Turns a page's data into one HTML file that includes its style and pictures and needs no network."""

import base64
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from prunekit import __version__
from prunekit.report.document import Document, Picture
from prunekit.report.figures import save_figure, styled

__all__ = ["drawn", "load_picture", "render"]


def render(document: Document) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["beside"] = _beside
    page = environment.get_template("page.html.j2").render(page=document, version=__version__)
    return page.strip() + "\n"


def load_picture(path: Path, label: str, alt: str, caption: str, least: float = 0.75) -> Picture:
    """Read a PNG, which was drawn at twice its natural size, as a part of a page; see :class:`Picture`."""
    with Image.open(path, formats=("PNG",)) as image:
        width, height = image.size
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(label, alt, caption, data, width // 2, height // 2, least)


def drawn(draw: Callable[[], Figure], path: Path, words: tuple[str, str, str]) -> Picture:
    """Draw a figure into a file; returns it as a part of a page.

    Args:
        draw: makes the figure.
        path: path of the PNG.
        words: label, alternative text and caption.
    """
    with styled():
        save_figure(draw(), path)
    return load_picture(path, *words)


def _beside(path: str) -> str:
    """A link to a file by its path relative to the page, quoted so that no name becomes a link to elsewhere or a script."""
    return quote(path.lstrip("/"), safe="/")


def _unbroken(text: str) -> str:
    """Keep a number and its unit or error on one line."""
    for pair in (" %", " ± ", " = ", " s "):
        text = text.replace(pair, pair.replace(" ", "\N{NO-BREAK SPACE}", 1 if pair == " s " else 2))
    return text
