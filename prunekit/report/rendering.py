"""Turns a page's data into one HTML file that includes its style, script and pictures and needs no network."""

import base64
import hashlib
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prunekit import __version__
from prunekit.report.document import Document

__all__ = ["render"]

_SCRIPT = "page.js"


def render(document: Document) -> str:
    """The page as HTML. Its policy lets no script run but its own."""
    loader = PackageLoader("prunekit.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["beside"] = _beside
    script = loader.get_source(environment, _SCRIPT)[0].strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = environment.get_template("page.html.j2").render(
        page=document,
        version=__version__,
        script=Markup(script),  # noqa: S704 - a file of this package
        digest=digest,
    )
    return page.strip() + "\n"


def _beside(path: str) -> str:
    """A link to a file by its path relative to the page, quoted so that no name becomes a link to elsewhere or a script."""
    return quote(path.lstrip("/"), safe="/")


def _unbroken(text: str) -> str:
    """Keep a number and its unit or error on one line."""
    for pair in (" %", " ± ", " = ", " s "):
        text = text.replace(pair, pair.replace(" ", "\N{NO-BREAK SPACE}", 1 if pair == " s " else 2))
    return text
